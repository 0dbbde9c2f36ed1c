"""Rules of primitives that are linear in all of their inputs together."""

from collections.abc import Sequence

import jax.extend.core.primitives as jexp

from ..operation import Operation
from ..registry import register, Rule
from ..series import Coefficient, Recurrence, scale, Series


def _linear(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """Rule of primitives that are linear in all inputs of inexact dtype together.

    The other inputs are indices.
    """

    def recurrence(order: int) -> Sequence[Coefficient]:
        if all(s.coefficient(order) is None for s in inputs if s.inexact):
            return [None] * len(outputs)
        return operation.bind(*(s.array(order if s.inexact else 0) for s in inputs))

    return recurrence


def _gather(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    # Entries out of bounds are constants: their higher coefficients are zero.
    return _linear(operation.replace(fill_value=0), inputs, outputs)


def _sum(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """Rule of sums and differences, in which symbolic zeros are left out."""
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
        # Both are there, or one is a scalar that has to be broadcast.
        return operation.bind(left.array(order), right.array(order))

    return recurrence


linear = Rule(_linear, is_zero=all)
"""The rule of a primitive that is linear in all of its inputs together, such as a sum
or a reshape: it is evaluated at each order."""

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
for _primitive in (jexp.add_p, jexp.add_jaxvals_p, jexp.sub_p):
    register(_primitive, Rule(_sum, is_zero=all))
register(jexp.gather_p, Rule(_gather, is_zero=all))
register(
    jexp.stop_gradient_p,
    Rule(_linear, constants=lambda operation, inputs: [operation.stops]),
)
