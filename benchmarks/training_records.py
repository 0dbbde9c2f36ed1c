"""What is measured of training, and the file that it is kept in."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import runs


class Case(NamedTuple):
    """What is trained: by a solver of that order, in batches of that size."""

    field: str
    batch: int
    order: int


class Loop(NamedTuple):
    """Of the parts of a training, in seconds.

    **Attributes:**

    - `field`, `batch`, `order`: the case.
    - `bare`: a dynamics step, called again and again with the same batch.
    - `supplied`: a dynamics step, called with new batches.
    - `fit`: a dynamics step of `fit`, with new batches and a progress bar.
    - `targets`: the solve at high fidelity.
    - `remainder`: a remainder step.
    - `checkpoint`: writing one.
    - `checkpoint_bytes`: how large it is.
    """

    field: str
    batch: int
    order: int
    bare: float
    supplied: float
    fit: float
    targets: float
    remainder: float
    checkpoint: float
    checkpoint_bytes: int

    def amortized(self, every: int, steps: int) -> float:
        """The time of training, in that of its dynamics steps alone."""
        return 1 + (self.targets + steps * self.remainder) / (every * self.bare)


class Scaling(NamedTuple):
    """Of a dynamics step on some devices, which share some cores.

    `cpu_seconds` is the time that all cores together have worked for it.
    """

    field: str
    batch: int
    order: int
    devices: int
    cores: int
    seconds: float
    cpu_seconds: float

    @property
    def disturbed(self) -> bool:
        """Whether it has waited for other programs: one core at least always works."""
        return self.seconds > 1.15 * self.cpu_seconds


class Results(NamedTuple):
    """All that was measured, under which circumstances."""

    settings: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    loops: list[Loop]
    scalings: list[Scaling]

    def speedups(self, devices: int, cores: int) -> Iterator[tuple[Case, float]]:
        """By two devices with a core each, in comparison with these."""
        valid = [scaling for scaling in self.scalings if not scaling.disturbed]
        ours = [scaling for scaling in valid if scaling[3:5] == (2, 2)]
        bases = {s[:3]: s for s in valid if s[3:5] == (devices, cores)}
        for scaling in ours:
            if (base := bases.get(scaling[:3])) is not None:
                yield Case(*scaling[:3]), base.seconds / scaling.seconds


load = functools.partial(runs.load, results=Results, loops=Loop, scalings=Scaling)
