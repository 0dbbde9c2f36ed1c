import math

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree


# The golden ratio, which is far from all fractions of small denominators. A forcing
# with the period of the step, or a part of it, has another phase there.
WITHIN_STEP = (math.sqrt(5) - 1) / 2


def larger(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """Computes the larger of two errors in each entry. NaN counts as the larger one."""

    def leaf(a: Array, b: Array) -> Array:
        return jnp.where(jnp.isnan(b) | (jnp.abs(b) > jnp.abs(a)), b, a)

    return jtu.tree_map(leaf, a, b)
