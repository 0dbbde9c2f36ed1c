import abc
from typing import Any, TypeVar

import diffrax as dfx
import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._nfe import AbstractCountedSolver


_SolverState = TypeVar("_SolverState")


class AbstractLearnedSolver(AbstractCountedSolver[_SolverState]):
    """Abstract base class for Diffrax solvers with a learned part, such as a network.

    Subclass it to train your own solver. A subclass is a Diffrax solver with two more
    members: `learned` and `evaluations`. [`diffrax_speedreg.training.Trainer`][] and
    [`diffrax_speedreg.training.fit_solver`][] train the learned part, and
    [`diffrax_speedreg.nfe`][] counts the evaluations.
    """

    @property
    @abc.abstractmethod
    def learned(self) -> PyTree[Any]:
        """The learned part: a field of the solver, whose inexact arrays are trained. It
        is `None` if the solver has nothing to train.
        """


def learned_part(solver: dfx.AbstractSolver) -> PyTree[Any]:
    """Returns the learned part of a solver, or of the solver that it wraps, if any."""
    # `type`, since for Diffrax a wrapping solver is an instance of the wrapped class.
    if issubclass(type(solver), AbstractLearnedSolver):
        assert isinstance(solver, AbstractLearnedSolver)
        return solver.learned
    if isinstance(solver, dfx.AbstractWrappedSolver):
        return learned_part(solver.solver)
    return None


def learned_leaves(solver: dfx.AbstractSolver) -> PyTree[bool]:
    """Makes a pytree like the solver that says of each leaf whether it is trained."""
    nothing = jtu.tree_map(lambda leaf: False, solver)
    learned = learned_part(solver)
    if learned is None:
        return nothing
    trained = jtu.tree_map(eqx.is_inexact_array, learned)
    return eqx.tree_at(learned_part, nothing, trained)
