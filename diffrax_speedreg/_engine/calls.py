"""Functions that are called in a special way, which their expansions keep."""

from collections.abc import Sequence

import jax
import jax.extend.core.primitives as jexp

from .bodies import (
    body_constants,
    Coefficients,
    coefficients_of,
    expand_body,
    of_order,
)
from .expand import as_closed, Expansion
from .operation import Operation
from .registry import register, Rule
from .series import Coefficient, Recurrence, Series


def _checkpoint(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """`jax.checkpoint`: what is computed again on the way back are the lower orders
    too, at a cost of K (K + 1) / 2 evaluations for K orders."""
    params = operation.params

    def recurrence(order: int) -> Sequence[Coefficient]:
        def expand(known: list[Coefficients]) -> list[Coefficients]:
            return expand_body(as_closed(params["jaxpr"]), known, outputs, order)

        checkpointed = jax.checkpoint(
            expand, prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        known = [coefficients_of(s, order) for s in inputs]
        return of_order(order, checkpointed(known), outputs)

    return recurrence


def _checkpoint_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    body = as_closed(operation.params["jaxpr"])
    return body_constants(body, [s.constant for s in inputs])


def _custom_vjp(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    """`jax.custom_vjp`: there is no JVP rule, but what the function computes can be
    expanded. Its value, the zeroth coefficient, keeps the user's VJP rule."""
    del outputs
    expanded: list[Series] = []

    def recurrence(order: int) -> Sequence[Coefficient]:
        if not expanded:
            body = as_closed(operation.params["call_jaxpr"])
            expanded.extend(Expansion(effects=False).interpret(body, inputs))
        return [s.coefficient(order) for s in expanded]

    return recurrence


def _custom_vjp_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    body = as_closed(operation.params["call_jaxpr"])
    return body_constants(body, [s.constant for s in inputs])


# By name, for lack of a public one.
register("remat2", Rule(_checkpoint, constants=_checkpoint_constants))
register(jexp.custom_vjp_call_p, Rule(_custom_vjp, constants=_custom_vjp_constants))
