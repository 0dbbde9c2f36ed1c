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

from .._checks import check_not_backsolve, check_positive_integer, check_time_driven
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._misc import mean_absolute, mean_square, nan_as, real_dtype
from .._regularizers import Speed
from .._solution import SolutionSeries
from .correction import AbstractCorrection
from .field import corrected, step_field, StepField
from .interpolation import TaylorInterpolation


class TaylorLagrangeState(eqx.Module):
    r"""The state of a [`diffrax_speedreg.TaylorLagrangeSolver`][].

    **Attributes:**

    - `penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert^2$, the mean square of the
        remainder's entries, summed over the steps so far.
    - `absolute_penalty`: $\sum_i \frac{1}{N} \lVert r_i \rVert_1$, their mean absolute
        value, which is what the reference implementation penalizes.
    - `speed`: the speed regularizer up to here, `None` if it was not asked for.
    """

    penalty: Real[Array, ""]
    absolute_penalty: Real[Array, ""]
    speed: Real[Array, ""] | None


class TaylorLagrangeSolver(dfx.AbstractAdaptiveSolver[TaylorLagrangeState]):
    r"""Taylor-Lagrange method: a Taylor expansion with a learned remainder.

    Explicit method of order $p + 1$, or $p$ without a midpoint. Expands the solution in
    $s = (t - t_0) / h$ and takes the last coefficient not at $y_0$ but at a midpoint
    $\Gamma$, as Lagrange's form of the remainder suggests:

    $$y_1 = \sum_{k < p} c_k(t_0, y_0) + c_p(t_0 + \theta h, \Gamma),
    \qquad \theta = \frac{1}{p + 1},$$

    where $c_k = \frac{1}{k!} \frac{\mathrm{d}^k y}{\mathrm{d}s^k}$, and

    $$\Gamma = y_0 + \theta\, (1 + \varphi)\, h f(t_0, y_0).$$

    A network $\varphi$ that has learned where $\Gamma$ lies makes a few coarse steps
    accurate: a [`diffrax_speedreg.AbstractCorrection`][], trained by
    [`diffrax_speedreg.AlternatingTrainer`][]. For $p = 1$ an untrained one gives the
    explicit midpoint rule. Without a correction, $\Gamma = y_0$ and $\theta = 0$: the
    truncated Taylor method.

    The error estimate for adaptive steps is the defect of the polynomial at the end of
    the step, $h f(t_1, y_1) - \sum_k k c_k$, which is of order $h^{p + 1}$ whatever
    $\Gamma$ has been learned to be; with constant steps it is not computed. Uses the
    polynomial itself for dense/ts output.

    The remainder's mean square, accumulated over the steps, is in the solver's state:
    use `diffrax.SaveAt(t1=True, solver_state=True)`. So is the speed regularizer $R_K$,
    if one is passed, of the polynomials: their K-th derivatives differ from the
    solution's by $O(h^{p + 1 - K})$.

    **Cost:** a step costs about $2p - 1$ evaluations of the vector field (2 if $p = 1$;
    $p$ without a midpoint), and one more if it is adaptive.

    ??? cite "Reference"

        Djeumou, Neary, Goubault, Putot and Topcu, "Taylor-Lagrange Neural Ordinary
        Differential Equations: Toward Fast Training and Evaluation of Neural ODEs",
        IJCAI 2022. Its reference implementation counts orders from the highest
        coefficient at $y_0$ (`order=1` there is `order=2` here), and starts from
        $\Gamma = y_0$, which is of order $p$ until trained.
    """

    degree: int = eqx.field(static=True)
    remainder: AbstractCorrection | None
    speed: Speed | None

    # `diffeqsolve` wraps the term after checking this, so that a solver never sees the
    # class that the user passed.
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., TaylorInterpolation]] = (
        TaylorInterpolation
    )

    def __init__(
        self,
        order: int = 2,
        remainder: AbstractCorrection | None = None,
        *,
        speed: Speed | None = None,
    ):
        """**Arguments:**

        - `order`: $p$, the degree of the Taylor polynomial, at least 1. (The order of
            convergence is one more with a midpoint.) The time to compile grows by at
            least its square; beyond 20 or so it is rarely worth that.
        - `remainder`: where to take the remainder: a
            [`diffrax_speedreg.AbstractCorrection`][], or `None` for a truncated Taylor
            method.
        - `speed`: a speed regularizer of at most order $p$, to gather without further
            expansions.
        """
        order = check_positive_integer(order, "order")
        if not isinstance(remainder, AbstractCorrection | None):
            raise ValueError(
                "`remainder` must be an `AbstractCorrection`, such as "
                f"`CorrectionMLP`, or `None`, but got {remainder!r}."
            )
        if not isinstance(speed, Speed | None):
            raise ValueError(
                f"`speed` must be a `Speed`, such as `Speed({order})`, or `None`, but "
                f"got {speed!r}. Integrate other regularizers by a `Quadrature` after "
                "the solve, or by a `SpeedRegularizedTerm`."
            )
        if speed is not None and speed.order > order:
            raise ValueError(
                f"The expansion in a solver of order {order} has no derivative of "
                f"order {speed.order}. Use `Speed({order})` or lower, a solver of "
                f"order {speed.order}, or a `Quadrature` after the solve."
            )
        self.degree = order
        self.remainder = remainder
        self.speed = speed

    def order(self, terms: dfx.AbstractTerm) -> int:
        del terms
        return self.degree if self.remainder is None else self.degree + 1

    def error_order(self, terms: dfx.AbstractTerm) -> int:
        del terms
        return self.degree + 1

    def coefficients_per_step(self, adaptive: bool) -> int:
        """How many Taylor coefficients a step computes, with those of the error
        estimate if steps are adaptive."""
        at_start = self.degree if self.remainder is None else max(self.degree - 1, 1)
        at_midpoint = 0 if self.remainder is None else self.degree
        return at_start + at_midpoint + int(adaptive)

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
        if self.remainder is not None:
            check_not_backsolve(y0)
        nothing = jnp.zeros((), real_dtype(y0))
        speed = None if self.speed is None else nothing
        return TaylorLagrangeState(nothing, nothing, speed)

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

        field = step_field(terms, control, args)
        series = SolutionSeries(field, t0, t1 - t0, y0)
        if self.remainder is None:
            remainder = series.coefficient(self.degree)
        else:
            remainder = self._remainder(series, field, t0, t1, control, args)
        lower = [series.coefficient(k) for k in range(self.degree)]
        coefficients = [*lower, remainder]

        y1 = _sum(coefficients)
        end_slope = _sum([(k * c**ω).ω for k, c in enumerate(coefficients)])
        slope, _ = field(t1, y1)
        y_error = (slope**ω - end_slope**ω).ω
        stacked = jtu.tree_map(lambda *c: jnp.stack(c), *coefficients)
        penalty = solver_state.penalty + mean_square(remainder)
        absolute = solver_state.absolute_penalty + mean_absolute(remainder)
        speed = solver_state.speed
        if self.speed is not None and speed is not None:
            speed = speed + _step_speed(coefficients, t1 - t0, self.speed.order)
            speed = nan_as(speed, y1)
        state = TaylorLagrangeState(penalty, absolute, speed)
        return y1, y_error, dict(coefficients=stacked), state, dfx.RESULTS.successful

    def _remainder(
        self,
        series: SolutionSeries,
        field: StepField,
        t0: RealScalarLike,
        t1: RealScalarLike,
        control: PyTree,
        args: Args,
    ) -> PyTree[Array]:
        assert self.remainder is not None
        y0, dy = series.coefficient(0), series.coefficient(1)
        correction = corrected(self.remainder, t0, t1, control, y0, dy, args)
        h, fraction = t1 - t0, 1 / (self.degree + 1)
        midpoint = (y0**ω + fraction * (dy**ω + correction**ω)).ω
        at_midpoint = SolutionSeries(field, t0 + fraction * h, h, midpoint)
        return at_midpoint.coefficient(self.degree)

    def func(
        self, terms: dfx.AbstractTerm, t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return terms.vf(t0, y0, args)


def _step_speed(
    coefficients: Sequence[PyTree[Array]], h: RealScalarLike, order: int
) -> Real[Array, ""]:
    """The integral of the mean square of a derivative of a step's polynomial.

    By Gauss-Legendre quadrature with as many nodes as make it exact.
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
        # Divided before it is squared, lest a small step underflow.
        derivative = jtu.tree_map(lambda x: x / divisor.astype(x.dtype), _sum(terms))
        total += float(weight) * mean_square(derivative)
    return total * jnp.abs(h)


def _sum(trees: Sequence[PyTree[Array]]) -> PyTree[Array]:
    return jtu.tree_map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
