from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from equinox.internal import ω
from jaxtyping import Array, PyTree, Real

from .._checks import check_not_backsolve, check_solver, check_time_driven
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._misc import mean_absolute, mean_square, real_dtype
from .correction import AbstractCorrection
from .field import corrected, step_field
from .interpolation import TaylorInterpolation


class HyperState(eqx.Module):
    r"""The state of a [`diffrax_speedreg.HyperSolver`][].

    **Attributes:**

    - `inner`: the wrapped solver's state.
    - `penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert^2$, the mean square of the
        entries of what the steps were corrected by, summed over the steps so far.
    - `absolute_penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert_1$, their mean absolute
        value.
    """

    inner: PyTree[Any]
    penalty: Real[Array, ""]
    absolute_penalty: Real[Array, ""]


class HyperSolver(dfx.AbstractSolver[HyperState]):
    r"""Hypersolver: a solver with a learned correction of each step's result.

    For a method of order $p$ with $y_1 = \psi(y_0)$ it computes

    $$y_1 = \psi(y_0) + h^p \varphi\, h f(t_0, y_0),$$

    so that the order stays $p$ whatever $\varphi$ is; and where it has been learned
    well, the error is reduced by the accuracy with which it has been. For constant
    steps. Uses cubic Hermite interpolation for dense/ts output.

    It takes the same corrections as a [`diffrax_speedreg.TaylorLagrangeSolver`][], and
    is trained by the same [`diffrax_speedreg.AlternatingTrainer`][].

    **Arguments:**

    - `solver`: an explicit Diffrax solver with constant steps.
    - `remainder`: the correction.

    **Cost:** an evaluation of the vector field beside those of the wrapped solver, and
    of the correction.

    ??? cite "Reference"

        Poli, Massaroli, Yamashita, Asama and Park, "Hypersolvers: Toward Fast
        Continuous-Depth Models", NeurIPS 2020. There $\varphi f$ is the network's own
        output; here it is a multiple of $f$, so that what is at rest stays at rest.
    """

    solver: dfx.AbstractSolver
    remainder: AbstractCorrection

    def __check_init__(self):
        check_solver(self.solver)

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
        nothing = jnp.zeros((), real_dtype(y0))
        return HyperState(inner, nothing, nothing)

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
        # What the solver remembers of the last step is not from where we are.
        uncorrected, _, _, inner, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state.inner, made_jump=True
        )
        control = terms.contr(t0, t1)
        field = step_field(terms, control, args)
        dy, _ = field(t0, y0)
        correction = corrected(self.remainder, t0, t1, control, y0, dy, args)
        order = self.solver.order(terms)
        assert order is not None  # Known for what is driven by time.
        size = jnp.abs(t1 - t0) ** order
        residual = jtu.tree_map(
            lambda c: c * size.astype(jnp.finfo(c.dtype).dtype), correction
        )
        y1 = (uncorrected**ω + residual**ω).ω
        state = HyperState(
            inner,
            solver_state.penalty + mean_square(residual),
            solver_state.absolute_penalty + mean_absolute(residual),
        )
        dense_info = dict(coefficients=_hermite(y0, y1, dy, field(t1, y1)[0]))
        return y1, None, dense_info, state, result

    def func(
        self, terms: dfx.AbstractTerm, t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return terms.vf(t0, y0, args)


def _hermite(
    y0: PyTree[Array], y1: PyTree[Array], dy0: PyTree[Array], dy1: PyTree[Array]
) -> PyTree[Array]:
    """The coefficients of the cubic polynomial with these ends and slopes."""

    def coefficients(y0: Array, y1: Array, dy0: Array, dy1: Array) -> Array:
        change = y1 - y0
        return jnp.stack([y0, dy0, 3 * change - 2 * dy0 - dy1, dy0 + dy1 - 2 * change])

    return jtu.tree_map(coefficients, y0, y1, dy0, dy1)
