import math
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree, Real

from .._checks import check_positive_integer, check_solver
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, Y
from .._misc import mean_square, nan_as, real_dtype
from .._nfe import Evaluations, evaluations
from .dense_output import innermost, largest_order, stage_weights, stages_of
from .wrapping import AbstractWrappingSolver


class DerivativeState(eqx.Module):
    r"""State of a [`diffrax_speedreg.DerivativeRegularizedSolver`][].

    **Attributes:**

    - `inner`: the wrapped solver's state.
    - `integral`: $R_K$ over the accepted steps, in the units of the squared state
        divided by those of time to the power $2K - 1$.
    """

    inner: PyTree[Any]
    # The integral over the steps up to the last one that was long enough.
    _total: Real[Array, ""]
    _last: Real[Array, ""]
    # The integral over the steps after it, with stages that differ only by roundings.
    _rounded: Real[Array, ""]
    _length: Real[Array, ""]

    @classmethod
    def start(cls, inner: PyTree[Any], y0: Y) -> "DerivativeState":
        if not is_precise(y0):
            raise ValueError(
                "The differences of stages need at least single precision, but the "
                f"state is {eqx.tree_pformat(y0, struct_as_array=True)}. "
                f"{_other_methods}"
            )
        zero = jnp.zeros((), real_dtype(y0))
        return cls(inner, zero, jnp.full_like(zero, jnp.inf), zero, zero)

    @property
    def integral(self) -> Real[Array, ""]:
        known = jnp.isfinite(self._last)
        last = jnp.where(known, self._last, 0)
        bound = jnp.where(known, last * self._length, self._rounded)
        return self._total + jnp.minimum(self._rounded, bound)


class DerivativeRegularizedSolver(AbstractWrappingSolver[DerivativeState]):
    r"""Wraps a Runge-Kutta solver, and integrates $R_K$ from the stages of its steps.

    Use it if you call `diffrax.diffeqsolve` yourself. Otherwise use
    [`diffrax_speedreg.regularized_solve`][], whose default method does the same. The
    steps and the solution are those of the wrapped solver.

    The dense output of a step is a polynomial in time. This solver integrates the mean
    square of its K-th derivative,

    $$\sum_i \int_{t_i}^{t_{i + 1}} \frac{1}{N} \left\lVert
    \frac{\mathrm{d}^K p_i}{\mathrm{d}t^K} \right\rVert^2 |\mathrm{d}t|,$$

    where $p_i$ is the polynomial of step $i$, of degree $d$. For $K < d - 1$ this
    integral is exact. For $K = d - 1$ the derivative is linear in time in each step.
    The square of its slope is then multiplied by a factor, which cancels the leading
    error: 3/5 for quartic polynomials, that is for $K = 3$ with `Tsit5` and `Dopri5`.

    !!! example

        ```python
        solver = dsr.DerivativeRegularizedSolver(diffrax.Tsit5(), order=3)
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        solution = diffrax.diffeqsolve(term, solver, ..., saveat=saveat)
        integral = solution.solver_state.integral
        ```

    The largest $K$ is 5 for `Dopri8`, 3 for `Tsit5` and `Dopri5`, 2 for `Bosh3`,
    `Kvaerno3`, `Kvaerno4` and `Kvaerno5`, and 1 for `Euler`, `Heun`, `Midpoint` and
    `Ralston`. It is the smaller of $d - 1$ and the largest power of time that the
    polynomial reproduces. The error is that of the derivative of the dense output, and
    decreases with the step size.

    At a kink of the vector field, as in a network with `relu`, the second derivative of
    the solution jumps, and the third one is not a function. The nodes of a quadrature
    miss kinks, but the polynomial includes them: from $K = 3$ on, the integral grows as
    the steps get shorter.

    The derivative is a difference of stages, divided by $h^K$. In a very short step,
    such as the first or the last one, this difference may consist of rounding errors.
    The integrand is then replaced by that of the next step that is long enough (at the
    end, of the last such step), if that is smaller. In single precision, use another
    method if times or states are thousands of times larger than their changes. If the
    hardware rounds matrix products to fewer digits than their dtype has, use
    `jax.default_matmul_precision`.

    **Cost:** no vector field evaluations, and one product of a small matrix with the
    stages.

    !!! warning

        In an adaptive solve, Diffrax does not differentiate through the choice of step
        sizes: the gradient treats them as constants.
    """

    solver: dfx.AbstractSolver
    derivative_order: int = eqx.field(static=True)

    def __init__(self, solver: dfx.AbstractSolver, order: int = 3):
        """**Arguments:**

        - `solver`: a Runge-Kutta solver of Diffrax, or a solver with linear dense
            output. It may be within another solver, such as a `diffrax.HalfSolver`.
        - `order`: $K$, a positive integer.

        **Raises:**

        A `ValueError` if the solver has other dense output, or if `order` is above the
        largest order of the solver.
        """
        check_solver(solver)
        check_positive_integer(order, "order")
        largest = largest_order(solver)
        if largest is None:
            raise ValueError(
                "The dense output of "
                f"{type(solver).__name__} is no known function of its stages. "
                f"{_other_methods}"
            )
        if order > largest:
            raise ValueError(
                f"The dense output of {type(solver).__name__} allows "
                f"derivatives of order {largest} at most, but got `order={order}`. "
                f"{_other_methods}"
            )
        self.solver = solver
        self.derivative_order = order

    def evaluations(self, adaptive: bool | None) -> Evaluations:
        return evaluations(self.solver, adaptive)

    def init(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> DerivativeState:
        inner = self.solver.init(terms, t0, t1, y0, args)
        return DerivativeState.start(inner, y0)

    def step(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: DerivativeState,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, Y | None, DenseInfo, DerivativeState, dfx.RESULTS]:
        y1, y_error, dense_info, inner, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state.inner, made_jump
        )
        state = solver_state
        dtype = state._total.dtype
        h = jnp.abs(jnp.asarray(t1 - t0, dtype))
        mean, rounding = self._mean_square(dense_info, h)
        # The stages of a constant slope are numbers, even if the state is NaN.
        mean = nan_as(mean, y1)
        known = mean > rounding
        area = mean * h
        length = state._length + h
        before = jnp.minimum(state._rounded, mean * state._length)
        state = DerivativeState(
            inner,
            jnp.where(known, state._total + before + area, state._total),
            jnp.where(known, mean, state._last),
            jnp.where(known, 0, state._rounded + area),
            jnp.where(known, 0, length),
        )
        return y1, y_error, dense_info, state, result

    def _mean_square(
        self, dense_info: DenseInfo, h: Real[Array, ""]
    ) -> tuple[Real[Array, ""], Real[Array, ""]]:
        """Computes the mean square of the derivative over a step, and the largest value
        that the rounding of the stages alone may give it."""
        K, solver = self.derivative_order, innermost(self.solver)
        weights = stage_weights(solver, K)
        # So that its power is not zero. Such a step is too short for the derivative.
        h = jnp.maximum(h, float(jnp.finfo(h.dtype).tiny) ** (1 / (K + 1)))

        def derivative(*leaves: Array) -> Array:
            """Computes the derivative at the nodes, for the stages of one leaf."""
            # The weights of each tableau sum to 0, except for the first derivative.
            stages = [
                k[i] - k[0] if K > 1 else k[i] for k in leaves for i in range(len(k))
            ]
            # Sums rather than a product of matrices: XLA fuses them with their squares.
            sums = jnp.stack([_weighted_sum(row, stages) for row in weights])
            return sums / (h**K).astype(sums.dtype)

        def rounding(*leaves: Array) -> Array:
            # The first and the last stage give the scale: one may be zero by chance.
            stages = jnp.concatenate([k[i] for k in leaves for i in (_first, _last)])
            factor = 8 * float(jnp.finfo(stages.dtype).eps) * np.linalg.norm(weights)
            # The errors of several tableaus add up.
            factor = float(factor * math.sqrt(len(leaves) / len(weights)))
            return factor * stages / (h**K).astype(stages.dtype)

        stages = stages_of(solver, dense_info)
        parts = [jtu.tree_map(f, *stages) for f in (derivative, rounding)]
        mean, rounded = map(mean_square, parts)
        return mean.astype(h.dtype), rounded.astype(h.dtype)


def _weighted_sum(weights: np.ndarray, stages: list[Array]) -> Array:
    terms = [float(w) * k for w, k in zip(weights, stages) if w != 0]
    return sum(terms[1:], terms[0])


def is_precise(y: PyTree[Array]) -> bool:
    """Returns whether differences of stages have digits left, for such a state."""
    return all(jnp.finfo(leaf.dtype).bits >= 32 for leaf in jtu.tree_leaves(y))


_first, _last = slice(None, 1), slice(-1, None)
_other_methods = (
    "Use `method=gauss_legendre()` of `regularized_solve`, which does not depend on "
    "the solver, or a solver with other dense output, such as `diffrax.Tsit5()`."
)
