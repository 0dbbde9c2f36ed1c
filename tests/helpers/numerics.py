import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree


def tree_allclose(x: PyTree[Any], y: PyTree[Any], *, rtol: float, atol: float) -> bool:
    """Returns whether pytrees of equal structure, shapes and dtypes are close."""
    return bool(eqx.tree_equal(x, y, typematch=True, rtol=rtol, atol=atol))


def tolerance(dtype: Any, factor: float = 1e4) -> dict[str, float]:
    """Returns a multiple of the dtype's precision, for tests of all dtypes."""
    eps = factor * float(jnp.finfo(dtype).eps)
    return dict(rtol=eps, atol=eps)


def nested_coefficients(
    field: Callable[[Array, PyTree[Array]], PyTree[Array]],
    t: ArrayLike,
    y: PyTree[Array],
    order: int,
) -> PyTree[Array]:
    """Computes Taylor coefficients the slow way, by nested `jax.jvp`."""

    def differentiate(function: Callable) -> Callable:
        """Adds one more derivative to those that the function returns."""

        def derivatives(t: Array, y: PyTree[Array]) -> list[PyTree[Array]]:
            rates = (jnp.ones_like(t), field(t, y))
            values, tangents = jax.jvp(function, (t, y), rates)
            return [*values, tangents[-1]]

        return derivatives

    @jax.jit
    def coefficients(t: Array, y: PyTree[Array]) -> list[PyTree[Array]]:
        function = lambda t, y: [y]
        for _ in range(order):
            function = differentiate(function)
        return [
            jtu.tree_map(lambda x: x / math.factorial(k), derivative)
            for k, derivative in enumerate(function(t, y))
        ]

    return jtu.tree_map(lambda *xs: jnp.stack(xs), *coefficients(jnp.asarray(t), y))


def finite_difference(
    function: Callable[[Array], Array], x: Array, direction: Array, step: float = 1e-5
) -> Array:
    """Computes a directional derivative by central differences of fourth order."""

    def difference(h: float) -> Array:
        return (function(x + h * direction) - function(x - h * direction)) / (2 * h)

    return (4 * difference(step) - difference(2 * step)) / 3


def convergence_orders(errors: list[float]) -> np.ndarray:
    """Computes the observed orders from the errors of solves with halved steps."""
    logs = np.log2(np.asarray(errors))
    return logs[:-1] - logs[1:]
