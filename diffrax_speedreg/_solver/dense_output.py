"""Derivatives of the polynomials that Runge-Kutta steps yield for dense output."""

import functools
import math
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._custom_types import DenseInfo
from .._jet import jet


def largest_order(solver: dfx.AbstractSolver) -> int | None:
    """Returns the largest order of the derivative that a solver's dense output allows.

    It is `None` if the dense output is not a known function of the stages.
    """
    kind = type(innermost(solver))
    if not _is_linear(kind) and not issubclass(kind, dfx.AbstractRungeKutta):
        return None
    try:
        coefficients = _polynomial(kind, jnp.result_type(float))
    except (AttributeError, TypeError, ValueError):
        return None  # A subclass may interpolate in another way.
    degree = len(coefficients) - 1
    return max(min(degree - 1, _accuracy(kind, coefficients)), 1)


def innermost(solver: Any) -> Any:
    """Returns the solver within all solvers that wrap it."""
    # `type`, since for Diffrax a wrapping solver is an instance of the wrapped class.
    while issubclass(type(solver), dfx.AbstractWrappedSolver):
        solver = solver.solver
    return solver


def _is_linear(kind: Any) -> bool:
    # A solver may have it as a field, too.
    found = getattr(kind, "interpolation_cls", None)
    return found is dfx.LocalLinearInterpolation


def _tableaus(kind: Any) -> tuple[dfx.ButcherTableau, ...]:
    tableau = kind.tableau
    multiple = isinstance(tableau, dfx.MultiButcherTableau)
    return tableau.tableaus if multiple else (tableau,)


def stages_of(solver: Any, dense_info: DenseInfo) -> tuple[PyTree[Array], ...]:
    """Returns the increments of the state in which a step's polynomial is linear.

    They are those of the stages, for each tableau, or that of the step.
    """
    kind = type(solver)
    if _is_linear(kind):
        y0, y1 = dense_info["y0"], dense_info["y1"]
        return (jtu.tree_map(lambda x, y: (y - x)[None], y0, y1),)
    k = dense_info["k"]
    # Several tableaus have a pytree each.
    return tuple(k) if isinstance(kind.tableau, dfx.MultiButcherTableau) else (k,)


def _accuracy(kind: Any, coefficients: Float[np.ndarray, "powers k"]) -> int:
    """Computes the largest power of time that the polynomial reproduces, for slopes
    that are functions of time.

    It may be less than the degree: not all cubic polynomials of Diffrax have the slopes
    of the ends.
    """
    if _is_linear(kind):
        return 1
    degree = len(coefficients) - 1
    for power in range(1, degree + 1):
        got = coefficients @ _stages_of_power(kind, power)
        if not np.allclose(got, np.eye(degree + 1)[power], atol=1e-3):
            return power - 1
    return degree


def _stages_of_power(
    kind: Any, power: int, center: float = 0.0
) -> Float[np.ndarray, " k"]:
    """Computes the stages of a step for y = (s - center)**power, with s from 0 to 1."""
    tableaus = _tableaus(kind)
    times = [np.array([0.0 if t.c1 is None else t.c1, *t.c]) for t in tableaus]
    # With several terms, each one is a part of the slope: take their sum.
    slopes = power * (np.concatenate(times) - center) ** (power - 1)
    return slopes / len(tableaus)


def stage_weights(solver: Any, order: int) -> Float[np.ndarray, "n k"]:
    """Computes the weights of the stages in n numbers.

    The mean square of these numbers is that of the derivative over a step.
    """
    return _weights(type(solver), order, jnp.result_type(float))


@functools.cache
def _weights(kind: Any, order: int, dtype: jnp.dtype) -> Float[np.ndarray, "n k"]:
    coefficients = _polynomial(kind, dtype)
    derivative = np.polynomial.polynomial.polyder(coefficients, order)
    if len(derivative) == 2:
        mean, slope = derivative[0] + derivative[1] / 2, derivative[1]
        factor = _slope_factor(kind, order, mean)
        return math.sqrt(2) * np.stack([mean, math.sqrt(factor / 12) * slope])
    # With this number of nodes, Gauss-Legendre quadrature is exact.
    nodes, weights = np.polynomial.legendre.leggauss(len(derivative))
    values = np.polynomial.polynomial.polyval((nodes + 1) / 2, derivative).T
    return values * np.sqrt(weights / 2 * len(derivative))[:, None]


def _slope_factor(kind: Any, order: int, mean: Float[np.ndarray, " k"]) -> float:
    r"""Computes the factor for the square of the slope $b$ of a linear derivative.

    With the derivative's mean $m$, the mean square over a step is $m^2 + b^2 / 12$. The
    mean differs from that of the solution by a multiple $(\mu - 1/24)\, c$ of the
    second derivative $c$ of the K-th one. Integrating by parts, the sum of $2 m c$ over
    many steps is that of $-2 b^2$. A factor of $24 \mu$ for the slopes therefore
    compensates for the errors of the mean. It is 3/5 for quartic polynomials that are
    as accurate as they can be.
    """
    power = order + 2
    unit = _stages_of_power(kind, power, center=0.5) / math.factorial(power)
    return float(np.clip(24 * mean @ unit, 0, 1))


@functools.cache
def _polynomial(kind: Any, dtype: jnp.dtype) -> Float[np.ndarray, "powers k"]:
    """Computes the coefficients of the polynomial of a solver of this class.

    They are those of powers of the step's time, from 0 to 1, for each stage. They are
    computed in the `dtype`.
    """
    if _is_linear(kind):
        return np.array([[0.0], [1.0]])
    tableaus = _tableaus(kind)
    total = sum(tableau.num_stages for tableau in tableaus)

    @jax.jit
    def expand() -> list[Array]:
        # Each stage is one entry of a state that starts at zero.
        ends = np.cumsum([tableau.num_stages for tableau in tableaus])[:-1]
        k = jnp.split(jnp.eye(total, dtype=dtype), ends)
        y1 = jnp.concatenate([jnp.asarray(t.b_sol, dtype) for t in tableaus])
        polynomial = kind.interpolation_cls(
            t0=jnp.zeros((), dtype),
            t1=jnp.ones((), dtype),
            y0=jnp.zeros(total, dtype),
            y1=y1,
            k=k[0] if len(k) == 1 else tuple(k),
        )
        # The degree is at most that of the polynomial of Dopri8.
        curve = [jnp.ones((), dtype), *[None] * 7]
        value, higher = jet(
            polynomial.evaluate,
            (jnp.zeros((), dtype),),
            (curve,),
            factorial_scaled=False,
        )
        return [value, *higher]

    with jax.ensure_compile_time_eval():
        coefficients = np.asarray(jnp.stack(expand()), np.float64)
    sizes = np.abs(coefficients).max(axis=1)
    degree = np.flatnonzero(sizes > 1e-4 * sizes.max()).max()
    return coefficients[: degree + 1]
