import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Inexact, PyTree


def real_dtype(tree: PyTree[Array]) -> jnp.dtype:
    """The real dtype that a mean over all entries of the leaves has."""
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jtu.tree_leaves(tree)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def mean_square(tree: PyTree[Array]) -> Inexact[Array, ""]:
    """The mean of the squared modulus over all entries of all leaves together."""
    dtype = real_dtype(tree)
    leaves = jtu.tree_leaves(tree)
    total = sum(jnp.sum(jnp.real(x * jnp.conj(x))).astype(dtype) for x in leaves)
    return total / sum(leaf.size for leaf in leaves)
