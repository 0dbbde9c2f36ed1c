import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact


def phi_functions(
    matrix: Inexact[Array, "*batch n n"], order: int
) -> Inexact[Array, "*batch functions n n"]:
    r"""Computes the functions of exponential integrators of a matrix.

    They are $\varphi_k(A) = \sum_j A^j / (j + k)!$ for $k = 0, \ldots, m$; the first is
    $e^A$. Computes Taylor series at $A / 2^s$, whose norm is at most 1/2, and doubles
    the argument $s$ times (Skaflestad and Wright, "The scaling and modified squaring
    method for matrix functions related to the exponential", 2009).

    The result is exact for a matrix that differs from $A$ by roundings. It is NaN if
    these are as large as 1: if the norm is not finite, or above $1 / \epsilon$.
    """
    batch, size = matrix.shape[:-2], matrix.shape[-1]
    # Elementwise operations on small matrices are fast with the batch as last axis.
    last = jnp.moveaxis(matrix.reshape(math.prod(batch), size, size), 0, -1)
    info = jnp.finfo(matrix.dtype)
    sums = jnp.sum(jnp.abs(lax.stop_gradient(last)), axis=1)
    norm = jnp.max(sums, axis=0, initial=0)
    # Written so that it does not hold for NaN.
    valid = norm < 2.0**info.nmant
    _, exponent = jnp.frexp(jnp.where(valid, norm, 1))
    doublings = jnp.maximum(exponent + 1, 0)
    scale = jnp.where(valid, 0.5 ** doublings.astype(norm.dtype), jnp.nan)
    phis = _series(last * scale[None, None], order)
    most = jnp.max(doublings, initial=0)

    def double(phis: Array, i: Array) -> tuple[Array, None]:
        active = (i < doublings)[None, None, None]
        return jnp.where(active, _of_double(phis), phis), None

    # A bounded loop, for gradients, whose idle blocks are skipped.
    def doubled_by_block(phis: Array, start: Array) -> tuple[Array, None]:
        def doubled(phis: Array) -> Array:
            steps = start + jnp.arange(_BLOCK, dtype=start.dtype)
            return lax.scan(double, phis, steps)[0]

        return lax.cond(start < most, doubled, lambda phis: phis, phis), None

    starts = jnp.arange(0, info.nmant + 1, _BLOCK, dtype=doublings.dtype)
    # A gradient keeps only the start of a block.
    block = jax.checkpoint(doubled_by_block, prevent_cse=False)
    phis = lax.scan(block, phis, starts)[0]
    return jnp.moveaxis(phis, -1, 0).reshape(*batch, order + 1, size, size)


_BLOCK = 4


def phi_functions_of_double(
    phis: Inexact[Array, "*batch functions n n"],
) -> Inexact[Array, "*batch functions n n"]:
    """Computes the functions of $2 A$ from those of $A$."""
    shape = phis.shape
    batch = math.prod(shape[:-3])
    last = jnp.moveaxis(phis.reshape(batch, *shape[-3:]), 0, -1)
    return jnp.moveaxis(_of_double(last), -1, 0).reshape(shape)


def _of_double(
    phis: Inexact[Array, "functions n n batch"],
) -> Inexact[Array, "functions n n batch"]:
    r"""Computes $\varphi_k(2 A)$, which is $2^{-k}$ times
    $\varphi_0 \varphi_k + \sum_j \varphi_j / (k - j)!$ with $1 \le j \le k$."""
    ks = range(len(phis))
    table = [
        [0.5**k / math.factorial(k - j) if 1 <= j <= k else 0.0 for j in ks] for k in ks
    ]
    halves = jnp.array([0.5**k for k in ks], phis.dtype)[:, None, None, None]
    products = halves * _multiply(phis[0], phis)
    if phis[0].size > _FEW:
        weights = jnp.array(table, phis.dtype)
        return products + jnp.einsum("kj,jabn->kabn", weights, phis)
    # For a few entries, another matrix product takes longer than all the rest. A
    # reduction would be slow under `jax.vmap`.
    terms = [[table[k][j] * phis[j] for j in range(1, k + 1)] for k in ks]
    return products + jnp.stack([sum(t, jnp.zeros_like(phis[0])) for t in terms])


_FEW = 32


def _multiply(
    a: Inexact[Array, "n n batch"], b: Inexact[Array, "functions n n batch"]
) -> Inexact[Array, "functions n n batch"]:
    if len(a) > _SMALL:
        return jnp.einsum("ijb,fjkb->fikb", a, b)
    terms = [a[None, :, j, None] * b[:, None, j] for j in range(len(a))]
    return sum(terms, jnp.zeros_like(b))


_SMALL = 4


def _series(
    matrix: Inexact[Array, "n n batch"], order: int
) -> Inexact[Array, "functions n n batch"]:
    """Computes the functions of a matrix with a norm of at most 1/2.

    It takes the Taylor series of the last one, from which the others follow.
    """
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)[:, :, None]
    identity = jnp.broadcast_to(identity, matrix.shape)
    epsilon = float(jnp.finfo(matrix.dtype).eps)
    degree, term = 0, 1.0
    while term > epsilon / 2:
        degree += 1
        term *= 0.5 / (degree + order)
    phi = identity / math.factorial(degree + order)
    phis = []
    for k in reversed(range(degree + order)):
        phi = identity / math.factorial(k) + _multiply(matrix, phi[None])[0]
        if k <= order:
            phis.append(phi)
    return jnp.stack(phis[::-1])
