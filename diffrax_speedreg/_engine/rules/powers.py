"""The rule of a power with a constant exponent."""

from collections.abc import Sequence
from functools import cache

import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jaxtyping import Array

from ..operation import Operation
from ..registry import register, Rule
from ..series import Coefficient, Recurrence, Series
from .bilinear import total


def _power(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    r"""Rule by the binomial series, with $d = u - u_0$:

    $$u^r = \sum_m \binom{r}{m} u_0^{r - m} d^m.$$

    It ends at $m = r$ for the natural numbers, also at $u_0 = 0$, where the recurrence
    that follows from $u v' = r u' v$ divides by zero, and JAX's JVP rule has terms
    $0 \cdot u_0^{-1}$.
    """
    base, exponent = inputs
    if not exponent.constant:
        return None
    dtype = outputs[0].aval.dtype
    # For each m, the k-th coefficients of d**m for all orders k so far.
    powers: dict[int, dict[int, Coefficient]] = {}

    @cache
    def factor(m: int) -> Array:
        u, r = base.array(0), exponent.array(0)
        number = r.astype(dtype)
        if not exponent.inexact:
            r = r.astype(jnp.int32)  # Narrower integers do not hold r - m.
        binomial = jnp.ones_like(number)
        for i in range(m):
            binomial = binomial * (number - i) / (i + 1)
        # Here 1 / u**m may overflow, but the derivative of the power is zero.
        small = jnp.abs(u) <= float(jnp.finfo(dtype).max) ** (-1 / m)
        ended = small & ((binomial == 0) | (number == m))
        u = jnp.where(ended, jnp.ones_like(u), u)
        return binomial * operation.bind(u, r - jnp.asarray(m, r.dtype))[0]

    def recurrence(order: int) -> Sequence[Coefficient]:
        terms: list[Coefficient] = []
        for m in range(1, order + 1):
            if m == 1:
                power = base.coefficient(order)
            else:
                power = total(
                    [
                        _product(base.coefficient(j), powers[m - 1][order - j])
                        for j in range(1, order - m + 2)
                    ]
                )
            powers.setdefault(m, {})[order] = power
            terms.append(None if power is None else factor(m) * power)
        return [total(terms)]

    return recurrence


def _product(a: Coefficient, b: Coefficient) -> Coefficient:
    return None if a is None or b is None else a * b


register(jexp.pow_p, Rule(_power))
