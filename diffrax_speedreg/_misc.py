from collections.abc import Callable
from typing import Literal, TypeAlias

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Inexact, PyTree


# How the entries of an error or a remainder are averaged.
Mean: TypeAlias = Literal["absolute", "square"]


def real_dtype(tree: PyTree[Array]) -> jnp.dtype:
    """The real dtype that a mean over all entries of the leaves has."""
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jtu.tree_leaves(tree)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def mean_square(tree: PyTree[Array]) -> Inexact[Array, ""]:
    """The mean of the squared modulus over all entries of all leaves together."""
    return _mean(tree, lambda x: jnp.real(x * jnp.conj(x)))


def mean_absolute(tree: PyTree[Array]) -> Inexact[Array, ""]:
    """The mean of the modulus over all entries of all leaves together."""
    return _mean(tree, jnp.abs)


def nan_as(
    values: Inexact[Array, "*axes"], tree: PyTree[Array]
) -> Inexact[Array, "*axes"]:
    """The values, but NaN where one of the leaves, which have the same leading axes,
    is: higher derivatives of what is not a number may be zero."""

    def is_nan(leaf: Array) -> Array:
        return jnp.any(jnp.isnan(leaf), axis=tuple(range(values.ndim, leaf.ndim)))

    invalid = jnp.stack([is_nan(leaf) for leaf in jtu.tree_leaves(tree)]).any(axis=0)
    return jnp.where(invalid, jnp.asarray(jnp.nan, values.dtype), values)


def _mean(
    tree: PyTree[Array], function: Callable[[Array], Array]
) -> Inexact[Array, ""]:
    leaves = [_at_least_single(leaf) for leaf in jtu.tree_leaves(tree)]
    dtype = real_dtype(leaves)
    sums = [jnp.sum(function(leaf)).astype(dtype) for leaf in leaves]
    mean = jnp.sum(jnp.stack(sums)) / sum(leaf.size for leaf in leaves)
    return mean.astype(real_dtype(tree))


def _at_least_single(x: Array) -> Array:
    """A mean may be in the range of a half precision where squares and sums are not."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
