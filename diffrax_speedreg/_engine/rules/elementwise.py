"""Rules of elementwise functions of a single array."""

from collections.abc import Callable, Sequence

import jax.extend.core.primitives as jexp
import jax.numpy as jnp
from jaxtyping import Array

from ..operation import Operation
from ..registry import MakeRecurrence, register, Rule
from ..series import Coefficient, derivative, Node, Recurrence, scale, Series
from .bilinear import cauchy_product, square_coefficient, total


def _square(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    del operation, outputs
    (base,) = inputs
    return lambda order: [square_coefficient(base, order)]


def _integer_pow(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    return _square(operation, inputs, outputs) if operation.params["y"] == 2 else None


def _riccati(slope: Callable[[Array], Array], *, linear: bool) -> MakeRecurrence:
    r"""Rule of functions with $v' = g(v)\, u'$, where $g(v) = \text{const} - v^2$, and
    $+ v$ if `linear`.

    The JVP rules of `tanh` and `logistic` give the same, but with more products, none
    of which is a square. The cost of a product is its memory traffic.
    """

    def make(
        operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
    ) -> Recurrence:
        del operation
        (u,), (v,) = inputs, outputs

        def slopes(order: int) -> list[Coefficient]:
            if order == 0:
                return [slope(v.array(0))]
            # Not written as a difference: XLA would factor it, and fuse it less well.
            terms = [square_coefficient(v, order)]
            if linear:
                terms.append(scale(v.coefficient(order), -1))
            return [scale(total(terms), -1)]

        g = Series(Node([v], slopes), 0, v.aval)
        du = derivative(u)

        def recurrence(order: int) -> Sequence[Coefficient]:
            product = cauchy_product(jnp.multiply, g, du, order - 1)
            return [scale(product, 1 / order)]

        return recurrence

    return make


register(jexp.square_p, Rule(_square, is_zero=all))
register(jexp.integer_pow_p, Rule(_integer_pow))
register(jexp.tanh_p, Rule(_riccati(lambda v: 1 - jnp.square(v), linear=False)))
register(jexp.logistic_p, Rule(_riccati(lambda v: -(jnp.square(v) - v), linear=True)))
