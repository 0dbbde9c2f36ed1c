from typing import Any, TypeVar

import diffrax as dfx
import equinox as eqx
from jaxtyping import PyTree

from .._custom_types import Args, RealScalarLike, VF, Y
from .._nfe import AbstractCountedSolver


_SolverState = TypeVar("_SolverState")


class AbstractWrappingSolver(
    dfx.AbstractAdaptiveSolver[_SolverState],
    dfx.AbstractWrappedSolver[_SolverState],
    AbstractCountedSolver[_SolverState],
):
    """Abstract base class for solvers that make the steps of another one.

    A subclass may add an integral of a quantity that the steps compute, or make several
    steps in one.
    """

    solver: eqx.AbstractVar[dfx.AbstractSolver]

    @property
    def term_structure(self) -> Any:
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return self.solver.term_compatible_contr_kwargs

    # Diffrax sees the wrapped solver's class, and sets these two for it.

    @property
    def root_finder(self) -> Any:
        return self.solver.root_finder  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def scan_kind(self) -> Any:
        return self.solver.scan_kind  # pyright: ignore[reportAttributeAccessIssue]

    def order(self, terms: PyTree[dfx.AbstractTerm]) -> int | None:
        return self.solver.order(terms)

    def strong_order(self, terms: PyTree[dfx.AbstractTerm]) -> RealScalarLike | None:
        return self.solver.strong_order(terms)

    def error_order(self, terms: PyTree[dfx.AbstractTerm]) -> RealScalarLike | None:
        return self.solver.error_order(terms)

    def func(
        self, terms: PyTree[dfx.AbstractTerm], t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return self.solver.func(terms, t0, y0, args)
