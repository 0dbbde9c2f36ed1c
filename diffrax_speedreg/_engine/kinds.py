"""The rules of JAX's primitives, by algebraic kind."""

from collections.abc import Callable, Sequence

import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .operation import Operation
from .registry import MakeRecurrence, register, Rule
from .series import Coefficient, derivative, Node, Recurrence, scale, Series


def cauchy_product(
    product: Callable[[Array, Array], Array],
    left: Series,
    right: Series,
    order: int,
    left_orders: range | None = None,
) -> Coefficient:
    r"""A coefficient of a product of series.

    Computes $\sum_{j = 0}^{k} a_j \cdot b_{k - j}$ for the order $k$, leaving out what
    is zero by structure.

    **Arguments:**

    - `product`: a bilinear function of two arrays.
    - `left`, `right`: the series $a$ and $b$.
    - `order`: $k$.
    - `left_orders`: the values of $j$, if not all.

    **Returns:**

    An array, or `None` if all terms are zero.
    """
    terms: list[Coefficient] = []
    for j in range(order + 1) if left_orders is None else left_orders:
        a = left.coefficient(j)
        b = None if a is None else right.coefficient(order - j)
        terms.append(None if a is None or b is None else product(a, b))
    return _total(terms)


def _total(terms: Sequence[Coefficient]) -> Coefficient:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


def _linear(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """Linear in all inputs of inexact dtype together; the others are indices."""

    def recurrence(order: int) -> Sequence[Coefficient]:
        if all(s.coefficient(order) is None for s in inputs if s.inexact):
            return [None] * len(outputs)
        return operation.bind(*(s.array(order if s.inexact else 0) for s in inputs))

    return recurrence


def _gather(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    # What is out of bounds is a constant, whose higher coefficients vanish.
    return _linear(operation.replace(fill_value=0), inputs, outputs)


def _sum(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """Linear, and what is zero need not be added."""
    (output,) = outputs
    left, right = inputs

    def recurrence(order: int) -> Sequence[Coefficient]:
        a, b = left.coefficient(order), right.coefficient(order)
        if a is None and b is None:
            return [None]
        elif b is None and left.aval == output.aval:
            return [a]
        elif a is None and right.aval == output.aval:
            return [scale(b, -1) if operation.primitive is jexp.sub_p else b]
        # With both of them, or with a scalar that has to be broadcast.
        return operation.bind(left.array(order), right.array(order))

    return recurrence


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
        return _square(operation, [left], outputs)
    return _bilinear(operation, inputs, outputs)


def _square(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    del operation, outputs
    (base,) = inputs
    return lambda order: [_square_coefficient(base, order)]


def _integer_pow(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    return _square(operation, inputs, outputs) if operation.params["y"] == 2 else None


def _square_coefficient(base: Series, order: int) -> Coefficient:
    """A Cauchy product whose terms come in equal pairs."""
    half = range((order + 1) // 2)
    pairs = cauchy_product(jnp.multiply, base, base, order, half)
    middle = None if order % 2 else base.coefficient(order // 2)
    return _total([scale(pairs, 2), None if middle is None else jnp.square(middle)])


def _riccati(slope: Callable[[Array], Array], *, linear: bool) -> MakeRecurrence:
    r"""Functions that obey $v' = g(v)\, u'$ with $g(v) = \text{const} - v^2$, and $+ v$
    if `linear`.

    The JVP rules of `tanh` and `logistic` say so too, but in more products, none of
    which is a square; and what products cost is memory traffic.
    """

    def make(
        operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
    ) -> Recurrence:
        (u,), (v,) = inputs, outputs

        def slopes(order: int) -> list[Coefficient]:
            if order == 0:
                return [slope(v.array(0))]
            # Not as a difference, for XLA would factor that, and then fuse it worse.
            terms = [_square_coefficient(v, order)]
            if linear:
                terms.append(scale(v.coefficient(order), -1))
            return [scale(_total(terms), -1)]

        g = Series(Node([v], slopes), 0, v.aval)
        du = derivative(u)

        def recurrence(order: int) -> Sequence[Coefficient]:
            product = cauchy_product(jnp.multiply, g, du, order - 1)
            return [scale(product, 1 / order)]

        return recurrence

    return make


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
        # Of the triangle that is looked at, and the diagonal if it is.
        offset = 1 if params["unit_diagonal"] else 0
        a = jnp.tril(a, -offset) if params["lower"] else jnp.triu(a, offset)
        a = jnp.conj(a) if params["conjugate_a"] else a
        a = jnp.swapaxes(a, -1, -2) if params["transpose_a"] else a
        # The precision that JAX's own derivative has.
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
    r"""From $a x = b$: $a_0 x_k = b_k - \sum_{j \geq 1} a_j x_{k - j}$."""

    def recurrence(order: int) -> Sequence[Coefficient]:
        known = cauchy_product(product, a, x, order, range(1, order + 1))
        remaining = _total([b.coefficient(order), None if known is None else -known])
        return [None] if remaining is None else solve(remaining)

    return recurrence


linear = Rule(_linear, is_zero=all)
"""The rule of a primitive that is linear in all of its inputs together, such as a sum
or a reshape: it is evaluated at each order."""

bilinear = Rule(_bilinear, is_zero=any)
"""The rule of a primitive that is linear in each of two inputs, such as a product: a
Cauchy product, of which a single term is left if one of them is constant."""

for _primitive in (
    jexp.broadcast_in_dim_p,
    jexp.complex_p,
    jexp.concatenate_p,
    jexp.conj_p,
    jexp.convert_element_type_p,
    jexp.copy_p,
    jexp.cumsum_p,
    jexp.dynamic_slice_p,
    jexp.dynamic_update_slice_p,
    jexp.fft_p,
    jexp.imag_p,
    jexp.neg_p,
    jexp.pad_p,
    jexp.real_p,
    jexp.reduce_sum_p,
    jexp.reduce_window_sum_p,
    jexp.reshape_p,
    jexp.rev_p,
    jexp.scatter_add_p,
    jexp.select_n_p,
    jexp.slice_p,
    jexp.squeeze_p,
    jexp.transpose_p,
):
    register(_primitive, linear)
register(jexp.gather_p, Rule(_gather, is_zero=all))
for _primitive in (jexp.add_p, jexp.add_jaxvals_p, jexp.sub_p):
    register(_primitive, Rule(_sum, is_zero=all))

for _primitive in (jexp.conv_general_dilated_p, jexp.dot_general_p):
    register(_primitive, bilinear)
register(jexp.mul_p, Rule(_mul, is_zero=any))
register(jexp.square_p, Rule(_square, is_zero=all))
register(jexp.integer_pow_p, Rule(_integer_pow))
register(jexp.div_p, Rule(_quotient, is_zero=lambda zeros: zeros[0]))
register(jexp.triangular_solve_p, Rule(_triangular_solve))

register(jexp.tanh_p, Rule(_riccati(lambda v: 1 - jnp.square(v), linear=False)))
register(jexp.logistic_p, Rule(_riccati(lambda v: -(jnp.square(v) - v), linear=True)))

register(
    jexp.stop_gradient_p,
    Rule(_linear, constants=lambda operation, inputs: [True]),
)
