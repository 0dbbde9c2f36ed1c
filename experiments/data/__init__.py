"""Data of the experiments: from a folder of files, from OpenML, or generated."""

from .miniboone import load_miniboone as load_miniboone
from .mnist import load_mnist as load_mnist
from .physionet import load_physionet as load_physionet
from .planar import (
    entropy_of_moons as entropy_of_moons,
    entropy_of_pinwheel as entropy_of_pinwheel,
    moons as moons,
    pinwheel as pinwheel,
    Sampler as Sampler,
)
from .sources import DataUnavailable as DataUnavailable
