"""Rules of products, and of solves of equations with a product, such as division."""

from collections.abc import Callable, Sequence

import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ..operation import Operation
from ..registry import register, Rule
from ..series import Coefficient, Recurrence, scale, Series


def cauchy_product(
    product: Callable[[Array, Array], Array],
    left: Series,
    right: Series,
    order: int,
    left_orders: range | None = None,
) -> Coefficient:
    r"""Computes a coefficient of the product of two series.

    Use it in the recurrence of a [`diffrax_speedreg.rules.Rule`][]. The coefficient is
    $\sum_{j = 0}^{k} a_j \cdot b_{k - j}$, without terms that are symbolic zeros.

    **Arguments:**

    - `product`: a bilinear function of two arrays.
    - `left`, `right`: the series $a$ and $b$.
    - `order`: the order $k$ of the coefficient.
    - `left_orders`: the values of $j$. By default, all from 0 to $k$.

    **Returns:**

    An array, or `None` if all terms are zero.
    """
    terms: list[Coefficient] = []
    for j in range(order + 1) if left_orders is None else left_orders:
        a = left.coefficient(j)
        b = None if a is None else right.coefficient(order - j)
        terms.append(None if a is None or b is None else product(a, b))
    return total(terms)


def square_coefficient(base: Series, order: int) -> Coefficient:
    """Computes a coefficient of a square, a product with pairs of equal terms."""
    half = range((order + 1) // 2)
    pairs = cauchy_product(jnp.multiply, base, base, order, half)
    middle = None if order % 2 else base.coefficient(order // 2)
    return total([scale(pairs, 2), None if middle is None else jnp.square(middle)])


def total(terms: Sequence[Coefficient]) -> Coefficient:
    arrays = [term for term in terms if term is not None]
    return sum(arrays[1:], arrays[0]) if arrays else None


def _bilinear(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    del outputs
    left, right = inputs

    def product(a: Array, b: Array) -> Array:
        return operation.bind(a, b)[0]

    return lambda order: [cauchy_product(product, left, right, order)]


def _mul(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    left, right = inputs
    if left is right and left.aval.dtype == outputs[0].aval.dtype:
        return lambda order: [square_coefficient(left, order)]
    return _bilinear(operation, inputs, outputs)


def _quotient(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    numerator, denominator = inputs
    (quotient,) = outputs

    def divide(a: Array) -> list[Array]:
        return operation.bind(a, denominator.array(0))

    return _inverse_product(jnp.multiply, denominator, quotient, numerator, divide)


def _triangular_solve(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    matrix, right_hand_side = inputs
    (solution,) = outputs
    params = operation.params

    def product(a: Array, x: Array) -> Array:
        # The product with the triangle that the solve uses, with or without diagonal.
        offset = 1 if params["unit_diagonal"] else 0
        a = jnp.tril(a, -offset) if params["lower"] else jnp.triu(a, offset)
        a = jnp.conj(a) if params["conjugate_a"] else a
        a = jnp.swapaxes(a, -1, -2) if params["transpose_a"] else a
        # JAX's own derivative has this precision.
        left, right = (a, x) if params["left_side"] else (x, a)
        return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)

    def solve(b: Array) -> list[Array]:
        return operation.bind(matrix.array(0), b)

    return _inverse_product(product, matrix, solution, right_hand_side, solve)


def _inverse_product(
    product: Callable[[Array, Array], Array],
    a: Series,
    x: Series,
    b: Series,
    solve: Callable[[Array], list[Array]],
) -> Recurrence:
    r"""Solves $a x = b$ for $x$ by $a_0 x_k = b_k - \sum_{j \geq 1} a_j x_{k - j}$."""

    def recurrence(order: int) -> Sequence[Coefficient]:
        others = cauchy_product(product, a, x, order, range(1, order + 1))
        remainder = total([b.coefficient(order), None if others is None else -others])
        return [None] if remainder is None else solve(remainder)

    return recurrence


bilinear = Rule(_bilinear, is_zero=any)
"""The rule of a primitive that is linear in each of two inputs, such as a product: a
Cauchy product, of which a single term is left if one of them is constant."""

for _primitive in (jexp.conv_general_dilated_p, jexp.dot_general_p):
    register(_primitive, bilinear)
register(jexp.mul_p, Rule(_mul, is_zero=any))
register(jexp.div_p, Rule(_quotient, is_zero=lambda zeros: zeros[0]))
register(jexp.triangular_solve_p, Rule(_triangular_solve))
