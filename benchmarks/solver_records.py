"""What is measured of solvers, and the file that it is kept in."""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

from . import runs
from .runs import ratio, Run, seconds


Kind: TypeAlias = Literal["evaluation", "gradient"]
KINDS: tuple[Kind, ...] = ("evaluation", "gradient")


class Floor(NamedTuple):
    """A Taylor-Lagrange solve, and the same arithmetic in a hand-written scan."""

    batch: int
    order: int
    num_steps: int
    kind: Kind
    solver: Run
    scan: Run
    difference: float

    @property
    def ratio(self) -> float | None:
        return ratio(self.solver.seconds, self.scan.seconds)


class NetworkSolve(NamedTuple):
    """Of a neural ODE.

    **Attributes:**

    - `network`, `batch`: what was solved.
    - `kind`: the solve alone, or with the gradient of a loss.
    - `method`, `setting`: how, with the number of steps, or the tolerance.
    - `run`: what it took.
    - `evaluations`: of the vector field, in the solve.
    - `error`: root mean square, of the final state.
    - `failure`: why there is nothing of this method.
    """

    network: str
    batch: int
    kind: Kind
    method: str
    setting: float
    run: Run | None = None
    evaluations: int | None = None
    error: float | None = None
    failure: str | None = None


class SmoothSolve(NamedTuple):
    """Of a small smooth problem, in double precision.

    **Attributes:**

    - `problem`: what was solved.
    - `method`, `tolerance`: how.
    - `run`: what it took.
    - `steps`: how many the solver made, with rejected ones.
    - `evaluations`: of the vector field; of Taylor methods, computed coefficients.
    - `error`: the largest of the final state, in parts of the largest entry of that.
    - `failure`: why there is nothing of this method.
    """

    problem: str
    method: str
    tolerance: float
    run: Run | None = None
    steps: int | None = None
    evaluations: int | None = None
    error: float | None = None
    failure: str | None = None


class Results(NamedTuple):
    """All that was measured, under which circumstances."""

    settings: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    floors: list[Floor]
    networks: list[NetworkSolve]
    smooth: list[SmoothSolve]

    def network_seconds(self, *asked: Any) -> float | None:
        """Of network, batch, kind, method and setting."""
        found = (one.run for one in self.networks if one[: len(asked)] == asked)
        return seconds(next(found, None))


load = functools.partial(
    runs.load, results=Results, floors=Floor, networks=NetworkSolve, smooth=SmoothSolve
)
