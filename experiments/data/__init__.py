"""The experiments' data: from a folder of files, or else from OpenML; or made."""

from .miniboone import load_miniboone as load_miniboone, TabularData as TabularData
from .mnist import ImageData as ImageData, load_mnist as load_mnist
from .physionet import (
    load_physionet as load_physionet,
    TimeSeries as TimeSeries,
    TimeSeriesData as TimeSeriesData,
)
from .planar import moons as moons, pinwheel as pinwheel, Sampler as Sampler
from .sources import DataUnavailable as DataUnavailable
