from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from equinox.internal import ω
from jaxtyping import Array, PyTree, Real

from .._checks import (
    check_is,
    check_not_backsolve,
    check_solver,
    check_time_driven,
)
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._misc import mean_absolute, mean_square, real_dtype
from .._nfe import evaluations
from .._solution import vector_field
from .interpolation import TaylorInterpolation
from .learned import AbstractLearnedSolver
from .midpoint import AbstractMidpoint, midpoint_offset


class HyperState(eqx.Module):
    r"""The state of a [`diffrax_speedreg.HyperSolver`][].

    **Attributes:**

    - `inner`: the wrapped solver's state.
    - `residual_penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert^2$, the mean square of
        the entries of the residuals, summed over the steps so far.
    - `absolute_residual_penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert_1$, their mean
        absolute value.
    """

    inner: PyTree[Any]
    residual_penalty: Real[Array, ""]
    absolute_residual_penalty: Real[Array, ""]


class HyperSolver(AbstractLearnedSolver[HyperState]):
    r"""Solver with a learned residual that is added to each step of another solver.

    Use it for a few constant steps, to compare with a
    [`diffrax_speedreg.TaylorLagrangeSolver`][]. It takes the same networks, and
    [`diffrax_speedreg.training.Trainer`][] trains it in the same way.

    For a solver of order $p$ with the step $y_1 = \psi(y_0)$, it computes

    $$y_1 = \psi(y_0) + h^p \varphi\, h f(t_0, y_0).$$

    The order is $p$ for any $\varphi$, and a trained $\varphi$ reduces the error. Uses
    cubic Hermite interpolation for dense/ts output.

    **Arguments:**

    - `solver`: the explicit Diffrax solver $\psi$.
    - `residual`: a [`diffrax_speedreg.AbstractMidpoint`][] that computes $\varphi\, h
        f(t_0, y_0)$.

    **Cost:** the evaluations of the wrapped solver, one more vector field evaluation
    and one of the residual, in each step.

    ??? cite "Reference"

        Poli, Massaroli, Yamashita, Asama and Park, "Hypersolvers: Toward Fast
        Continuous-Depth Models", NeurIPS 2020. There the network computes $\varphi f$
        directly. Here it is a multiple of $f$, so that steady states stay steady.
    """

    solver: dfx.AbstractSolver
    residual: AbstractMidpoint

    def __check_init__(self):
        check_solver(self.solver)
        example = "MidpointMLP(2, key=key)"
        check_is(self.residual, AbstractMidpoint, "residual", example)
        if isinstance(self.solver, dfx.AbstractImplicitSolver):
            raise ValueError(
                "A `HyperSolver` needs an explicit solver, such as `diffrax.Heun()`, "
                f"but got {type(self.solver).__name__}."
            )

    @property
    def learned(self) -> AbstractMidpoint:
        return self.residual

    def evaluations(self, adaptive: bool | None) -> tuple[int, int]:
        # No slope is kept from one step to the next: treat each step as after a jump.
        counts = evaluations(self.solver, adaptive)
        return 0, counts.per_step + counts.after_jump + 1

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., TaylorInterpolation]] = (
        TaylorInterpolation
    )

    def order(self, terms: dfx.AbstractTerm) -> int | None:
        return self.solver.order(terms)

    def init(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> HyperState:
        check_time_driven(terms)
        check_not_backsolve(y0)
        inner = self.solver.init(terms, t0, t1, y0, args)
        zero = jnp.zeros((), real_dtype(y0))
        return HyperState(inner, zero, zero)

    def step(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: HyperState,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, None, DenseInfo, HyperState, dfx.RESULTS]:
        del made_jump
        # A slope that the solver kept from the last step is not that at `y0`.
        uncorrected, _, _, inner, result = _differentiable(self.solver).step(
            terms, t0, t1, y0, args, solver_state.inner, made_jump=True
        )
        control = terms.contr(t0, t1)
        field = vector_field(terms, args, control)
        dy = field(t0, y0)
        offset = midpoint_offset(self.residual, t0, t1, control, y0, dy, args)
        order = self.solver.order(terms)
        assert order is not None  # Known for terms driven by time.
        size = jnp.abs(t1 - t0) ** order
        residual = jtu.tree_map(lambda x: x * size.astype(x.dtype), offset)
        y1 = (uncorrected**ω + residual**ω).ω
        state = HyperState(
            inner,
            solver_state.residual_penalty + mean_square(residual),
            solver_state.absolute_residual_penalty + mean_absolute(residual),
        )
        dense_info = dict(coefficients=_hermite(y0, y1, dy, field(t1, y1)))
        return y1, None, dense_info, state, result

    def func(
        self, terms: dfx.AbstractTerm, t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return terms.vf(t0, y0, args)


def _differentiable(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """Returns the solver with a loop over stages that has derivatives of both modes.

    Diffrax sets this loop for Runge-Kutta methods, but not for those within others.
    """
    if not isinstance(solver, dfx.AbstractRungeKutta) or solver.scan_kind is not None:
        return solver
    return eqx.tree_at(
        lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda x: x is None
    )


def _hermite(
    y0: PyTree[Array], y1: PyTree[Array], dy0: PyTree[Array], dy1: PyTree[Array]
) -> PyTree[Array]:
    """Computes the coefficients of the cubic polynomial with these ends and slopes."""

    def coefficients(y0: Array, y1: Array, dy0: Array, dy1: Array) -> Array:
        change = y1 - y0
        return jnp.stack([y0, dy0, 3 * change - 2 * dy0 - dy1, dy0 + dy1 - 2 * change])

    return jtu.tree_map(coefficients, y0, y1, dy0, dy1)
