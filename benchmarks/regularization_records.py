"""What is measured of regularization, and the file that it is kept in."""

import functools
from typing import Any, NamedTuple

from . import runs
from .regularization_ways import PLAIN
from .runs import ratio, Run, seconds


class Case(NamedTuple):
    """In which the ways to get the speed are compared with each other."""

    field: str
    batch: int
    solver: str
    order: int


class GradientStep(NamedTuple):
    """Of one way to get the speed, in one solver.

    **Attributes:**

    - `field`, `batch`, `solver`, `order`, `way`: what was measured.
    - `run`: the loss and its gradient in parameters and initial state.
    - `num_steps`: how many steps the solver made.
    - `speed`: the speed.
    - `error`: its difference from a precise one, in parts of that.
    - `failure`: why there is nothing of this way.
    """

    field: str
    batch: int
    solver: str
    order: int
    way: str
    run: Run | None = None
    num_steps: int | None = None
    speed: float | None = None
    error: float | None = None
    failure: str | None = None


class QuadratureError(NamedTuple):
    """Of Gauss-Legendre quadrature of the speed, in parts of a precise one."""

    activation: str
    order: int
    num_nodes: int
    error: float


class NormSteps(NamedTuple):
    """The steps of a solve without the speed, and with it beside the state: by the norm
    of the state alone, and by that of both."""

    order: int
    tolerance: float
    plain: int
    with_norm: int
    without_norm: int


class Results(NamedTuple):
    """All that was measured, under which circumstances."""

    settings: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    steps: list[GradientStep]
    quadrature: list[QuadratureError]
    norms: list[NormSteps]

    def ratio(
        self, field: str, batch: int, solver: str, order: int, way: str
    ) -> float | None:
        """The time of a gradient step, in that of one without the speed."""
        ours, base = (
            self._seconds((field, batch, solver, order, name)) for name in (way, PLAIN)
        )
        return ratio(ours, base)

    def _seconds(self, asked: tuple) -> float | None:
        found = (step.run for step in self.steps if step[: len(asked)] == asked)
        return seconds(next(found, None))


load = functools.partial(
    runs.load,
    results=Results,
    steps=GradientStep,
    quadrature=QuadratureError,
    norms=NormSteps,
)
