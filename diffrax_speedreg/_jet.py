import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ._engine import constant, Expansion, polynomial, Series


def jet(
    fun: Callable[..., PyTree[Any]],
    primals: Sequence[PyTree[Any]],
    series: Sequence[Any],
    factorial_scaled: bool = True,
) -> tuple[PyTree[Array], PyTree[list[Array]]]:
    r"""Computes the derivatives of a function along a curve, up to any order.

    These are the derivatives of $f(x(s))$ at $s = 0$, from those of the curve $x(s)$.
    Use it for high derivatives of networks, such as Laplacians. It has the signature of
    `jax.experimental.jet.jet`, but takes any function that `jax.jvp` can differentiate,
    and pytrees as arguments and outputs.

    !!! example

        ```python
        # The first two derivatives along the line x + s v.
        value, (first, second) = dsr.jet(f, (x,), ([v, None],))
        ```

    **Arguments:**

    - `fun`: the function $f$.
    - `primals`: the arguments of `fun` at $s = 0$, a tuple of pytrees of arrays.
    - `series`: a tuple with one list for each argument: its first, second, ..., K-th
        derivatives, each a pytree like the argument. `None` or the number 0, in place
        of a list, a derivative or an array, is a zero that costs nothing.
    - `factorial_scaled`: if `False`, inputs and outputs are Taylor coefficients, that
        is derivatives divided by the factorials of their orders.

    **Returns:**

    A pair: `fun(*primals)`, and a pytree like it with a list of K derivatives in place
    of each array. At kinks of `abs`, `maximum`, `minimum` and `clip` of real numbers,
    these are the derivatives for $s > 0$. The derivatives of integers and of
    `stop_gradient` are zero.

    **Raises:**

    A `ValueError` if the lists have different lengths, or if a derivative differs from
    its argument in structure, shape or dtype. (Derivatives of integers are integers,
    which are ignored.)

    **Cost:** about K evaluations of the function, since each product with a constant
    matrix is made once for each order. Within loops, branches and `jax.checkpoint`, it
    is K (K + 1) / 2 evaluations.

    ??? cite "Reference"

        Bettencourt, Johnson and Duvenaud, "Taylor-Mode Automatic Differentiation for
        Higher-Order Derivatives in JAX", NeurIPS 2019 workshop "Program Transformations
        for ML". Kelly, Bettencourt, Johnson and Duvenaud, "Learning Differential
        Equations that are Easy to Solve", NeurIPS 2020.
    """
    orders = {len(terms) for terms in series if not _is_zero(terms)}
    if len(primals) != len(series) or len(orders) != 1:
        raise ValueError(
            "`series` must have a list of derivatives, or `None`, for each of the "
            f"{len(primals)} `primals`, all of the same length, but got {series!r}."
        )
    ks = range(1, orders.pop() + 1)
    scales = [float(math.factorial(k)) if factorial_scaled else 1.0 for k in ks]
    curves = [_curve(x, terms, scales) for x, terms in zip(primals, series)]
    closed, out = jax.make_jaxpr(fun, return_shape=True)(*primals)
    outputs = Expansion(stops=True).interpret(closed, jtu.tree_leaves(curves))
    derivatives = [
        [y.array(k) * c if y.inexact else y.array(k) for k, c in zip(ks, scales)]
        for y in outputs
    ]
    unflatten = jtu.tree_structure(out).unflatten
    return unflatten([y.array(0) for y in outputs]), unflatten(derivatives)


def _is_zero(term: Any) -> bool:
    return term is None or (isinstance(term, int | float) and term == 0)


def _curve(x: PyTree[Any], terms: Any, scales: Sequence[float]) -> PyTree[Series]:
    """Makes the series of each array in an argument."""

    def of_array(x: Any, *terms: Any) -> Series:
        x = jnp.asarray(x)
        row = [None if _is_zero(d) else jnp.asarray(d) for d in terms]
        for d in row:
            if d is not None and (d.shape != x.shape or _kind(d) > _kind(x)):
                raise ValueError(
                    f"A derivative in `series` must be like its argument, {x.dtype} of "
                    f"shape {x.shape}, but got {d.dtype} of shape {d.shape}."
                )
        if not any(_kind(x)) or all(d is None for d in row):
            return constant(x)
        cast = [d if d is None else d.astype(x.dtype) / c for d, c in zip(row, scales)]
        return polynomial(x, *cast)

    zero = jtu.tree_map(lambda leaf: None, x)
    terms = [None] * len(scales) if _is_zero(terms) else terms
    return jtu.tree_map(of_array, x, *(zero if _is_zero(d) else d for d in terms))


def _kind(array: Array) -> list[bool]:
    return [jnp.issubdtype(array.dtype, k) for k in (jnp.inexact, jnp.complexfloating)]
