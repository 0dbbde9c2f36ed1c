r"""Rules of functions with a kink, where the expansion depends on the side.

At the kink they are expanded for $s > 0$, for real numbers. The derivatives that JAX
gives there belong to neither side: `abs` has 0 and `max` the mean. With these, even
$|u|^2$ would have a wrong second derivative at $u = 0$.
"""

from collections.abc import Sequence

import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jaxtyping import Array

from ..operation import Operation
from ..registry import MakeRecurrence, register, Rule
from ..series import Coefficient, Recurrence, Series


class _Sign:
    """The sign of a difference of series for small $s > 0$.

    This is the sign of the first coefficient that is not zero.
    """

    def __init__(self, left: Series, right: Series | None = None):
        self._left, self._right = left, right
        self._signs: list[Array] = []

    def up_to(self, order: int) -> Array:
        """Computes the sign from the coefficients up to and including the order.

        It is zero where these are equal.
        """
        while len(self._signs) <= order:
            k = len(self._signs)
            difference = self._left.array(k)
            if self._right is not None:
                difference = difference - self._right.array(k)
            sign = jnp.sign(difference)
            last = self._signs[-1] if self._signs else jnp.zeros_like(sign)
            self._signs.append(jnp.where(last == 0, sign, last))
        return self._signs[order]


def _abs(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    del operation, outputs
    (u,) = inputs
    if _is_complex(u):
        return None
    sign = _Sign(u)

    def recurrence(order: int) -> Sequence[Coefficient]:
        coefficient = u.coefficient(order)
        return [None if coefficient is None else sign.up_to(order) * coefficient]

    return recurrence


def _extremum(factor: int) -> MakeRecurrence:
    """Rule of the larger of two series, or of the smaller one for a factor of -1."""

    def make(
        operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
    ) -> Recurrence | None:
        del operation
        left, right = inputs
        if _is_complex(left):
            return None
        sign = _Sign(left, right)

        def recurrence(order: int) -> Sequence[Coefficient]:
            first = factor * sign.up_to(order) > 0
            chosen = jnp.where(first, left.array(order), right.array(order))
            return [_nan_as(outputs[0], chosen)]

        return recurrence

    return make


def _clamp(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    low, u, high = inputs
    if _is_complex(u):
        return None
    from_low, from_high = _Sign(u, low), _Sign(u, high)

    def recurrence(order: int) -> Sequence[Coefficient]:
        bounded = jnp.where(from_low.up_to(order) < 0, low.array(order), u.array(order))
        bounded = jnp.where(from_high.up_to(order) > 0, high.array(order), bounded)
        return [_nan_as(outputs[0], bounded)]

    return recurrence


def _nan_as(output: Series, coefficient: Array) -> Array:
    """Makes a coefficient NaN where the output is NaN.

    No comparison holds for NaN, so that one of the sides would be selected.
    """
    value = output.array(0)
    return jnp.where(jnp.isnan(value), value, coefficient)


def _is_complex(series: Series) -> bool:
    return jnp.issubdtype(series.aval.dtype, jnp.complexfloating)


register(jexp.abs_p, Rule(_abs))
register(jexp.max_p, Rule(_extremum(1)))
register(jexp.min_p, Rule(_extremum(-1)))
register(jexp.clamp_p, Rule(_clamp))
