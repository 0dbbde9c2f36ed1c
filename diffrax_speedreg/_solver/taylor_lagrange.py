import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from equinox.internal import ω
from jaxtyping import Array, PyTree, Real

from .._checks import (
    check_not_backsolve,
    check_positive_integer,
    check_that,
    check_time_driven,
)
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._misc import just_after, mean_absolute, mean_square, nan_as, real_dtype
from .._regularizers import DerivativeNorm
from .._solution import SolutionSeries, vector_field, VectorField
from .error_estimate import larger, WITHIN_STEP
from .interpolation import TaylorInterpolation
from .learned import AbstractLearnedSolver
from .midpoint import AbstractMidpoint, midpoint_offset


_LARGEST = 64


class TaylorLagrangeState(eqx.Module):
    r"""The state of a [`diffrax_speedreg.TaylorLagrangeSolver`][].

    **Attributes:**

    - `midpoint_penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert^2$, the mean square of
        the remainder's entries, summed over the steps so far.
    - `absolute_midpoint_penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert_1$, their mean
        absolute value, which the reference implementation penalizes.
    - `regularizer`: the integral of the regularizer up to here; `None` if the solver
        has none.
    """

    midpoint_penalty: Real[Array, ""]
    absolute_midpoint_penalty: Real[Array, ""]
    regularizer: Real[Array, ""] | None


class TaylorLagrangeSolver(
    dfx.AbstractAdaptiveSolver[TaylorLagrangeState],
    AbstractLearnedSolver[TaylorLagrangeState],
):
    r"""Explicit Taylor method of degree $p$ with a learned midpoint.

    Use it for a few coarse steps, with [`diffrax_speedreg.fixed_step_solve`][] and a
    [`diffrax_speedreg.MidpointMLP`][] that [`diffrax_speedreg.training.Trainer`][]
    trains. Start with $p = 1$ or 2. The order is $p + 1$, or $p$ without a midpoint.

    A step expands the solution in $s = (t - t_0) / h$. As in Lagrange's form of the
    remainder, the last coefficient is evaluated at a midpoint $\Gamma$ instead of
    $y_0$:

    $$\begin{aligned}
    y_1 &= \sum_{k < p} c_k(t_0, y_0) + c_p(t_0 + \theta h, \Gamma), \\
    \Gamma &= y_0 + \theta\, (1 + \varphi)\, h f(t_0, y_0),
    \end{aligned}$$

    where $\theta = 1 / (p + 1)$ and
    $c_k = \frac{1}{k!} \frac{\mathrm{d}^k y}{\mathrm{d}s^k}$.

    The network $\varphi$ learns the midpoint. With $\varphi = 0$ and $p = 1$, the
    solver is the explicit midpoint rule. Without a midpoint, $\Gamma = y_0$ and $\theta
    = 0$: this is the truncated Taylor method.

    The error estimate for adaptive steps is the defect $h f(t_0 + s h, P(s)) - P'(s)$
    of the polynomial $P(s)$: the larger of those at the end of the step and at a point
    within. It is of order $h^{p + 1}$ for any $\Gamma$, and is not computed for
    constant steps. Uses $P(s)$ for dense/ts output.

    If a step starts at a kink or jump of the vector field in time, the expansion is
    that of the side after it. So kinks and jumps do no harm if steps end at them: see
    `step_ts` of `diffrax.ClipStepSizeController`. At a kink in the state, `abs`,
    `maximum`, `minimum` and `clip` have the derivative on the side to which the
    solution goes, and other functions have JAX's derivative. If a derivative of the
    solution is not finite at the start of a step, as at $t = 0$ for $y' = t^{3/2}$, the
    step has the order of the finite derivatives, and a gradient through it may be NaN.

    The final state of the solver has these attributes. Read it as
    `solution.solver_state` of a [`diffrax_speedreg.fixed_step_solve`][], or save it by
    `diffrax.SaveAt(t1=True, solver_state=True)`.

    - `midpoint_penalty`: the mean square of the entries of the remainder, summed over
        the steps.
    - `absolute_midpoint_penalty`: the mean absolute value, summed over the steps.
    - `regularizer`: the integral of $R_K$ for the polynomials, if a regularizer is
        passed. Its error is $O(h^{p + 1 - K})$.

    **Cost:** about $2p - 1$ vector field evaluations in each step (2 if $p = 1$, and
    $p$ without a midpoint), and two more in an adaptive step.

    ??? cite "Reference"

        Djeumou, Neary, Goubault, Putot and Topcu, "Taylor-Lagrange Neural Ordinary
        Differential Equations: Toward Fast Training and Evaluation of Neural ODEs",
        IJCAI 2022. Its reference implementation counts orders from the highest
        coefficient at $y_0$ (`order=1` there is `degree=2` here). It starts from
        $\Gamma = y_0$, which has order $p$ until it is trained.
    """

    degree: int = eqx.field(static=True)
    midpoint: AbstractMidpoint | None
    regularizer: DerivativeNorm | None

    # `diffeqsolve` checks this and then wraps the term, so that a solver never sees the
    # class that the user passed.
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., TaylorInterpolation]] = (
        TaylorInterpolation
    )

    def __init__(
        self,
        degree: int = 2,
        midpoint: AbstractMidpoint | None = None,
        *,
        regularizer: DerivativeNorm | None = None,
    ):
        """**Arguments:**

        - `degree`: $p$, the degree of the Taylor polynomial, from 1 to 64. The compile
            time grows at least quadratically with it. Degrees above 20 are rarely
            useful.
        - `midpoint`: a [`diffrax_speedreg.AbstractMidpoint`][]; or `None` for the
            truncated Taylor method.
        - `regularizer`: a [`diffrax_speedreg.DerivativeNorm`][] of order at most $p$,
            which the solver integrates without further expansions; or `None`.

        **Raises:**

        A `ValueError` if `degree`, `midpoint` or `regularizer` has another value.
        """
        degree = check_positive_integer(degree, "degree")
        wanted = f"at most {_LARGEST}, for the time to compile"
        check_that(degree <= _LARGEST, "degree", wanted, degree)
        if not isinstance(midpoint, AbstractMidpoint | None):
            raise ValueError(
                "`midpoint` must be an `AbstractMidpoint`, such as `MidpointMLP`, or "
                f"`None`, but got {midpoint!r}."
            )
        if not isinstance(regularizer, DerivativeNorm | None):
            raise ValueError(
                "`regularizer` must be a `DerivativeNorm`, such as "
                f"`DerivativeNorm({degree})`, or `None`, but got {regularizer!r}. "
                "Integrate other regularizers by `regularized_solve(..., "
                "method=gauss_legendre())`, or by a `SpeedRegularizedTerm`."
            )
        if regularizer is not None and regularizer.order > degree:
            raise ValueError(
                f"The expansion in a solver of degree {degree} has no derivative of "
                f"order {regularizer.order}. Use `DerivativeNorm({degree})` or lower, "
                f"a solver of degree {regularizer.order}, or "
                "`regularized_solve(..., method=gauss_legendre())`."
            )
        self.degree = degree
        self.midpoint = midpoint
        self.regularizer = regularizer

    @property
    def learned(self) -> AbstractMidpoint | None:
        return self.midpoint

    def order(self, terms: dfx.AbstractTerm) -> int:
        del terms
        return self.degree if self.midpoint is None else self.degree + 1

    def error_order(self, terms: dfx.AbstractTerm) -> int:
        del terms
        return self.degree + 1

    def evaluations(self, adaptive: bool | None) -> tuple[int, int]:
        """Counts Taylor coefficients, each of which costs about one evaluation."""
        if adaptive is None:
            raise ValueError(
                "For a `TaylorLagrangeSolver` pass `adaptive=True` or `False`: it "
                "evaluates an error estimate only if steps are adaptive."
            )
        at_start = self.degree if self.midpoint is None else max(self.degree - 1, 1)
        at_midpoint = 0 if self.midpoint is None else self.degree
        return 0, at_start + at_midpoint + 2 * int(adaptive)

    def init(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> TaylorLagrangeState:
        del t0, t1, args
        check_time_driven(terms)
        if self.midpoint is not None:
            check_not_backsolve(y0)
        zero = jnp.zeros((), real_dtype(y0))
        return TaylorLagrangeState(
            zero, zero, None if self.regularizer is None else zero
        )

    def step(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: TaylorLagrangeState,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, Y, DenseInfo, TaylorLagrangeState, dfx.RESULTS]:
        del made_jump
        control = terms.contr(t0, t1)

        field = vector_field(terms, args, control)
        h = t1 - t0
        series = SolutionSeries(field, t0, h, y0)
        if self.midpoint is None:
            remainder = series.coefficient(self.degree)
        else:
            remainder = self._remainder(series, field, t0, t1, control, args)
        lower = [series.coefficient(k) for k in range(self.degree)]
        coefficients = [*lower, remainder]

        num_expanded = self.degree + int(self.midpoint is None)
        kept = _up_to_singular(coefficients, num_expanded)
        y1 = _sum(kept)
        y_error = _error_estimate(field, t0, h, kept)
        stacked = jtu.tree_map(lambda *c: jnp.stack(c), *kept)
        integral = solver_state.regularizer
        if self.regularizer is not None and integral is not None:
            order = self.regularizer.order
            integral = integral + _step_integral(coefficients, h, order)
            integral = nan_as(integral, y1)
        state = TaylorLagrangeState(
            solver_state.midpoint_penalty + mean_square(remainder),
            solver_state.absolute_midpoint_penalty + mean_absolute(remainder),
            integral,
        )
        return y1, y_error, dict(coefficients=stacked), state, dfx.RESULTS.successful

    def _remainder(
        self,
        series: SolutionSeries,
        field: VectorField,
        t0: RealScalarLike,
        t1: RealScalarLike,
        control: PyTree,
        args: Args,
    ) -> PyTree[Array]:
        assert self.midpoint is not None
        y0, dy = series.coefficient(0), series.coefficient(1)
        offset = midpoint_offset(self.midpoint, t0, t1, control, y0, dy, args)
        h, fraction = t1 - t0, 1 / (self.degree + 1)
        midpoint = (y0**ω + fraction * (dy**ω + offset**ω)).ω
        at_midpoint = SolutionSeries(field, t0 + fraction * h, h, midpoint)
        return at_midpoint.coefficient(self.degree)

    def func(
        self, terms: dfx.AbstractTerm, t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return terms.vf(t0, y0, args)


def _up_to_singular(
    coefficients: Sequence[PyTree[Array]], num_expanded: int
) -> list[PyTree[Array]]:
    """Replaces the first coefficient that is not finite, and all after it, by zeros.

    If the solution is not smooth, this makes a step of lower order, and the error
    estimate is larger. Only the first `num_expanded` coefficients are checked, without
    the value and the slope: a remainder of a midpoint has to be finite.
    """
    kept = list(coefficients[:2])
    valid = jtu.tree_map(lambda c: jnp.ones(c.shape, bool), coefficients[0])
    for k, coefficient in enumerate(coefficients[2:], 2):
        if k < num_expanded:
            finite = jtu.tree_map(jnp.isfinite, coefficient)
            valid = jtu.tree_map(jnp.logical_and, valid, finite)
        kept.append(jtu.tree_map(lambda v, c: jnp.where(v, c, 0), valid, coefficient))
    return kept


def _error_estimate(
    field: VectorField,
    t0: RealScalarLike,
    h: RealScalarLike,
    coefficients: Sequence[PyTree[Array]],
) -> PyTree[Array]:
    """Computes the larger of the polynomial's defects within a step and at its end."""

    def defect(s: float, t: RealScalarLike) -> PyTree[Array]:
        y = _sum([(s**k * c**ω).ω for k, c in enumerate(coefficients)])
        powers = [k * s ** (k - 1) for k in range(1, len(coefficients))]
        slope = _sum([(w * c**ω).ω for w, c in zip(powers, coefficients[1:])])
        return (field(t, y) ** ω - slope**ω).ω

    # Evaluated before a kink or a jump at which the step ends.
    end = defect(1.0, just_after(t0 + h, -h, h))
    within = defect(WITHIN_STEP, t0 + WITHIN_STEP * h)
    return larger(end, within)


def _step_integral(
    coefficients: Sequence[PyTree[Array]], h: RealScalarLike, order: int
) -> Real[Array, ""]:
    """Computes the integral of the mean square of a derivative of a step's polynomial.

    The Gauss-Legendre quadrature has enough nodes to be exact.
    """
    factors = [math.perm(k, order) for k in range(order, len(coefficients))]
    nodes, weights = np.polynomial.legendre.leggauss(len(factors))
    dtype = real_dtype(coefficients[0])
    h, total = jnp.asarray(h, dtype), jnp.zeros((), dtype)
    # Under `jax.vmap`, samples that have finished wait for the others in steps of size
    # zero. Diffrax discards those, but 0 / 0 would still be in the gradient.
    divisor = jnp.where(h == 0, 1, h) ** order
    for node, weight in zip((nodes + 1) / 2, weights / 2):
        terms = [
            (float(factor * node**i) * c**ω).ω
            for i, (factor, c) in enumerate(zip(factors, coefficients[order:]))
        ]
        # Divided before it is squared, so that small steps do not underflow.
        derivative = jtu.tree_map(lambda x: x / divisor.astype(x.dtype), _sum(terms))
        total += float(weight) * mean_square(derivative)
    return total * jnp.abs(h)


def _sum(trees: Sequence[PyTree[Array]]) -> PyTree[Array]:
    return jtu.tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
