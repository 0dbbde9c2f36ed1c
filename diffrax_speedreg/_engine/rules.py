"""Recurrences for the coefficients of a primitive's outputs, by algebraic kind.

A primitive without an entry here is expanded through its JVP rule, so that an entry is
needed only where it is cheaper than that.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .operation import Operation
from .series import Coefficient, Recurrence, Series, zero


# Makes the recurrence, for orders from 1 up, that gives an operation's outputs; `None`
# if there is none for its parameters.
Rule: TypeAlias = Callable[
    [Operation, Sequence[Series], Sequence[Series]], Recurrence | None
]


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
    """`add` and `sub`: linear, and what is zero need not be added."""
    (output,) = outputs
    left, right = inputs

    def recurrence(order: int) -> Sequence[Coefficient]:
        a, b = left.coefficient(order), right.coefficient(order)
        if a is not None and b is not None:
            return operation.bind(a, b)
        elif b is not None and operation.primitive is jexp.sub_p:
            b = -b
        term = b if a is None else a
        return [None if term is None else jnp.broadcast_to(term, output.aval.shape)]

    return recurrence


def _bilinear(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    del outputs
    left, right = inputs

    def product(a: Array, b: Array) -> Array:
        return operation.bind(a, b)[0]

    return lambda order: [_cauchy(product, left, right, order)]


def _mul(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    left, right = inputs
    if left is right:
        return _square(operation, [left], outputs)
    return _bilinear(operation, inputs, outputs)


def _square(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """A Cauchy product whose terms come in equal pairs."""
    del operation, outputs
    (base,) = inputs

    def recurrence(order: int) -> Sequence[Coefficient]:
        half = range((order + 1) // 2)
        pairs = _cauchy(jnp.multiply, base, base, order, half)
        middle = None if order % 2 else base.coefficient(order // 2)
        terms = [
            None if pairs is None else 2 * pairs,
            None if middle is None else jnp.square(middle),
        ]
        return [_total(terms)]

    return recurrence


def _integer_pow(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    return _square(operation, inputs, outputs) if operation.params["y"] == 2 else None


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
        known = _cauchy(product, a, x, order, range(1, order + 1))
        remaining = _total([b.coefficient(order), None if known is None else -known])
        return [None] if remaining is None else solve(remaining)

    return recurrence


def _cauchy(
    product: Callable[[Array, Array], Array],
    left: Series,
    right: Series,
    order: int,
    left_orders: range | None = None,
) -> Coefficient:
    r"""$\sum_j l_j r_{k - j}$, over all j or those given."""
    terms: list[Coefficient] = []
    for j in range(order + 1) if left_orders is None else left_orders:
        a = left.coefficient(j)
        b = None if a is None else right.coefficient(order - j)
        terms.append(None if a is None or b is None else product(a, b))
    return _total(terms)


def _total(terms: Sequence[Coefficient]) -> Coefficient:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


_linear_primitives = {
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
}
_sum_primitives = {jexp.add_p, jexp.add_jaxvals_p, jexp.sub_p}
_bilinear_primitives = {jexp.conv_general_dilated_p, jexp.dot_general_p}

rules: dict[jex.Primitive, Rule] = {
    **dict.fromkeys(_linear_primitives, _linear),
    **dict.fromkeys(_sum_primitives, _sum),
    **dict.fromkeys(_bilinear_primitives, _bilinear),
    jexp.gather_p: _gather,
    jexp.mul_p: _mul,
    jexp.square_p: _square,
    jexp.integer_pow_p: _integer_pow,
    jexp.div_p: _quotient,
    jexp.triangular_solve_p: _triangular_solve,
}


# Which outputs are constants, of operations that may have some though inputs vary.
constant_outputs: dict[
    jex.Primitive, Callable[[Operation, Sequence[Series]], list[bool]]
] = {jexp.stop_gradient_p: lambda operation, inputs: [True]}


def zero_product(operation: Operation, inputs: Sequence[Series]) -> Series | None:
    """The output, where zeros among the inputs alone decide that it is zero too."""
    rule = rules.get(operation.primitive)
    zeros = [s.zero for s in inputs if s.inexact]
    if rule in (_linear, _gather, _sum, _square):
        is_zero = bool(zeros) and all(zeros)
    elif rule in (_bilinear, _mul):
        is_zero = any(zeros)
    elif rule is _quotient:
        is_zero = inputs[0].zero
    else:
        is_zero = False
    return zero(operation.outs[0]) if is_zero else None


# Equations that only wrap a jaxpr, and the parameter that holds it. By name, for the
# name is what has stayed the same over JAX's releases.
_wrappers = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def wrapped_jaxpr(operation: Operation) -> jex.ClosedJaxpr | None:
    """The jaxpr that the operation evaluates, if this is all that it does."""
    name = operation.primitive.name
    if name not in _wrappers:
        return None
    jaxpr = operation.params[_wrappers[name]]
    # From JAX 0.12 there is only one class of jaxprs, and it is the closed one.
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())
