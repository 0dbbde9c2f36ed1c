from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, Y
from .._nfe import evaluations
from .wrapping import AbstractWrappingSolver


class UnrolledSolver(AbstractWrappingSolver[Any]):
    """Solver whose step consists of several equal steps of another one.

    The compiled program contains each of them, so that a gradient needs no loop in
    which they would be computed again. Its dense output is that of the last one.
    """

    solver: dfx.AbstractSolver
    num_steps: int = eqx.field(static=True)

    def evaluations(self, adaptive: bool | None) -> tuple[int, int]:
        counts = evaluations(self.solver, adaptive)
        return counts.at_first_step, self.num_steps * counts.per_step

    def init(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> PyTree[Any]:
        ts = jnp.linspace(t0, t1, self.num_steps + 1)
        return self.solver.init(terms, ts[0], ts[1], y0, args)

    def step(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: PyTree[Any],
        made_jump: BoolScalarLike,
    ) -> tuple[Y, Y | None, DenseInfo, PyTree[Any], dfx.RESULTS]:
        ts = jnp.linspace(t0, t1, self.num_steps + 1)
        y, y_error, dense_info = y0, None, {}
        result = dfx.RESULTS.successful
        for start, end in zip(ts[:-1], ts[1:]):
            y, y_error, dense_info, solver_state, new = self.solver.step(
                terms, start, end, y, args, solver_state, made_jump
            )
            okay = result == dfx.RESULTS.successful
            result = dfx.RESULTS.where(okay, new, result)
            made_jump = False
        return y, y_error, dense_info, solver_state, result
