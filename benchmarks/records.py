"""What is measured, and the file that it is kept in."""

import functools
from typing import Any, NamedTuple

from . import runs
from .contestants import OURS
from .runs import Run


# The field itself, once: what the contestants' times are divided by.
YARDSTICK = "field"


class Measurement(NamedTuple):
    """Of one contestant.

    **Attributes:**

    - `field`, `batch`, `order`, `contestant`: what was measured.
    - `forward`: the derivative.
    - `gradient`: its mean square, with the gradient in parameters and state; `None` of
        fields without reverse mode.
    - `error`, `gradient_error`: the largest difference from this package's numbers, in
        parts of the largest of these.
    - `failure`: why there is nothing of this contestant.
    """

    field: str
    batch: int
    order: int
    contestant: str
    forward: Run | None = None
    gradient: Run | None = None
    error: float | None = None
    gradient_error: float | None = None
    failure: str | None = None


class Results(NamedTuple):
    """All measurements, under which circumstances they were made."""

    settings: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    measurements: list[Measurement]

    def find(
        self, field: str, batch: int, order: int, contestant: str = OURS
    ) -> Measurement:
        """The measurement asked for, or one of nothing."""
        asked = field, batch, order, contestant
        for measurement in self.measurements:
            if measurement[: len(asked)] == asked:
                return measurement
        return Measurement(*asked, failure="not measured")

    def batches(self, field: str) -> list[int]:
        return sorted({m.batch for m in self.measurements if m.field == field})

    def orders(self, field: str, batch: int) -> list[int]:
        asked = field, batch
        return sorted({m.order for m in self.measurements if m[:2] == asked})


load = functools.partial(runs.load, results=Results, measurements=Measurement)
