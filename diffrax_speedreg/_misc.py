from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, ArrayLike, Inexact, PyTree

from ._custom_types import RealScalarLike


def real_dtype(tree: PyTree[Array]) -> jnp.dtype:
    """Returns the real dtype of a mean over all entries of the leaves."""
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jtu.tree_leaves(tree)]
    dtypes = dtypes or [jnp.finfo(jnp.result_type(float)).dtype]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def mean_square(tree: PyTree[Array]) -> Inexact[Array, ""]:
    """Computes the mean of the squared modulus over all entries of all leaves together.

    It is zero if there are none.
    """
    return _mean(tree, lambda x: jnp.real(x * jnp.conj(x)))


def mean_absolute(tree: PyTree[Array]) -> Inexact[Array, ""]:
    """Computes the mean of the modulus over all entries of all leaves together.

    It is zero if there are none.
    """
    return _mean(tree, jnp.abs)


def time_dtype(*times: RealScalarLike | Array | None) -> jnp.dtype:
    """Returns the dtype that Diffrax gives to time. `None` is ignored."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*(t for t in times if t is not None))
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)


def as_times(
    t0: RealScalarLike, t1: RealScalarLike, *others: RealScalarLike | Array | None
) -> tuple[Array, Array]:
    """Converts two times to the dtype that Diffrax gives to these and other times."""
    dtype = time_dtype(t0, t1, *others)
    return jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)


def as_time_dependent(y: PyTree[ArrayLike], time: jnp.dtype) -> PyTree[Array]:
    """Converts a state to the types that Diffrax gives it, for times of that dtype."""

    def promote(leaf: ArrayLike) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(leaf, time)
        return jnp.asarray(leaf, dtype)

    return jtu.tree_map(promote, y)


def just_after(
    t: RealScalarLike | Array,
    dt: RealScalarLike | Array,
    length: RealScalarLike | Array,
) -> Array:
    """Computes a time that is a few roundings later than `t`, in the direction of `dt`.

    It lies beyond a kink in time at `t`, even if the time of the kink was rounded
    differently. The roundings are those of times as large as `t` or the `length`.
    """
    t = jnp.asarray(t)
    dt, length = jnp.asarray(dt, t.dtype), jnp.asarray(length, t.dtype)
    info = jnp.finfo(t.dtype)
    size = jnp.maximum(jnp.abs(t), jnp.abs(length))
    # At zero this is a number that may be scaled without an underflow.
    shift = jnp.maximum(2 * float(info.eps) * size, float(info.tiny) / float(info.eps))
    shift = jnp.minimum(shift, jnp.abs(dt) / 4)
    return t + lax.stop_gradient(jnp.sign(dt) * shift)


def nan_as(
    values: Inexact[Array, "*axes"], tree: PyTree[Array]
) -> Inexact[Array, "*axes"]:
    """Makes values NaN where one of the leaves is NaN.

    The leaves have the same leading axes as the values. This is needed since the higher
    derivatives of a NaN may be zero.
    """

    def is_nan(leaf: Array) -> Array:
        return jnp.any(jnp.isnan(leaf), axis=tuple(range(values.ndim, leaf.ndim)))

    for leaf in jtu.tree_leaves(tree):
        values = jnp.where(is_nan(leaf), jnp.asarray(jnp.nan, values.dtype), values)
    return values


def _mean(
    tree: PyTree[Array], function: Callable[[Array], Array]
) -> Inexact[Array, ""]:
    leaves = [_at_least_single(leaf) for leaf in jtu.tree_leaves(tree)]
    dtype = real_dtype(leaves)
    sums = [jnp.sum(function(leaf)).astype(dtype) for leaf in leaves]
    mean = sum(sums, jnp.zeros((), dtype)) / max(sum(leaf.size for leaf in leaves), 1)
    return mean.astype(real_dtype(tree))


def _at_least_single(x: Array) -> Array:
    """Converts half precision to single precision.

    A mean may be in the range of half precision when squares and sums are not.
    """
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
