"""Rules of loops and branches, whose bodies are expanded for all orders at once.

Their JVP rules would give the same coefficients, but each order would double the size
of the body. Here the k-th coefficients take one loop, which carries those of order 0,
..., k. Together, K orders cost K (K + 1) / 2 evaluations of the body.
"""

from collections.abc import Sequence
from functools import partial

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array

from ..operation import avals, Operation
from ..registry import register, Rule
from ..series import Coefficient, Recurrence, Series
from ..subjaxprs import (
    Coefficients,
    coefficients_of,
    constant_outputs,
    expand_subjaxpr,
    of_order,
)


def _scan(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    num_consts, num_carry = _scan_counts(operation)
    init, xs = inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [coefficients_of(s, order) for s in inputs[:num_consts]]

        def step(
            carry: list[Coefficients], x: list[Coefficients]
        ) -> tuple[list[Coefficients], list[Coefficients]]:
            body = operation.params["jaxpr"]
            inputs = [*consts, *carry, *x]
            out = expand_subjaxpr(operation, body, inputs, outputs, order)
            return out[:num_carry], out[num_carry:]

        carry, y = lax.scan(
            step,
            [coefficients_of(s, order, like=out) for s, out in zip(init, outputs)],
            [coefficients_of(s, order) for s in xs],
            length=operation.params["length"],
            reverse=operation.params["reverse"],
            unroll=operation.params["unroll"],
        )
        return of_order(order, [*carry, *y], outputs)

    return recurrence


def _scan_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    num_consts, num_carry = _scan_counts(operation)
    flags = [s.constant for s in inputs]
    body = operation.params["jaxpr"]
    return _loop_constants(operation, body, flags, num_consts, num_carry)


def _scan_counts(operation: Operation) -> tuple[int, int]:
    """Returns the number of inputs that are constants of the loop, and of the carries.

    The other inputs have one axis more outside of the loop than inside. (The parameters
    that count these are not the same in all releases of JAX.)
    """
    body = operation.params["jaxpr"].jaxpr
    ins, outs = avals(body.invars), avals(body.outvars)
    num_xs = sum(a.ndim != b.ndim for a, b in zip(operation.ins, ins))
    num_carry = sum(a.ndim == b.ndim for a, b in zip(operation.outs, outs))
    return len(ins) - num_carry - num_xs, num_carry


def _while(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    params = operation.params
    condition = jex.jaxpr_as_fun(params["cond_jaxpr"])
    (decision,) = avals(params["cond_jaxpr"].jaxpr.outvars)
    num_condition = params["cond_nconsts"]
    num_body = params["body_nconsts"]
    condition_consts, rest = inputs[:num_condition], inputs[num_condition:]
    body_consts, init = rest[:num_body], rest[num_body:]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [coefficients_of(s, order) for s in body_consts]

        def predicate(carry: list[Coefficients]) -> Array:
            primals = [coefficients[0] for coefficients in carry]
            return condition(*(s.array(0) for s in condition_consts), *primals)[0]

        def step(carry: list[Coefficients]) -> list[Coefficients]:
            body = params["body_jaxpr"]
            inputs = [*consts, *carry]
            out = expand_subjaxpr(operation, body, inputs, outputs, order)
            if decision.ndim == 0:
                return out
            # Under `jax.vmap`, samples that have finished wait for the others.
            return jtu.tree_map(partial(_select, predicate(carry)), out, carry)

        start = [coefficients_of(s, order, like=out) for s, out in zip(init, outputs)]
        final = lax.while_loop(lambda carry: jnp.any(predicate(carry)), step, start)
        return of_order(order, final, outputs)

    return recurrence


def _select(mask: Array, x: Array, y: Array) -> Array:
    """Selects entries by a mask, whose axes are the leading axes of the arrays."""
    mask = jnp.expand_dims(mask, tuple(range(mask.ndim, x.ndim)))
    return lax.select(jnp.broadcast_to(mask, x.shape), x, y)


def _while_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    params = operation.params
    flags = [s.constant for s in inputs[params["cond_nconsts"] :]]
    num_consts = params["body_nconsts"]
    num_carry = len(operation.outs)
    body = params["body_jaxpr"]
    return _loop_constants(operation, body, flags, num_consts, num_carry)


def _cond(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    if len(operation.params) > 1:
        # `lax.platform_dependent`, whose branch is chosen when it is compiled.
        return None
    index, *operands = inputs

    def recurrence(order: int) -> Sequence[Coefficient]:
        branches = [
            partial(expand_subjaxpr, operation, branch, like=outputs, order=order)
            for branch in operation.params["branches"]
        ]
        coefficients = [coefficients_of(s, order) for s in operands]
        result = lax.switch(index.array(0), branches, coefficients)
        return of_order(order, result, outputs)

    return recurrence


def _cond_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    flags = [s.constant for s in inputs[1:]]
    branches = [
        constant_outputs(operation, b, flags) for b in operation.params["branches"]
    ]
    return [all(constants) for constants in zip(*branches)]


def _loop_constants(
    operation: Operation,
    body: jex.ClosedJaxpr,
    flags: list[bool],
    num_consts: int,
    num_carry: int,
) -> list[bool]:
    """Returns which outputs of a loop are constants.

    A carry is no constant if any iteration makes it vary.
    """
    flags = list(flags)
    positions = slice(num_consts, num_consts + num_carry)
    while True:
        constants = constant_outputs(operation, body, flags)
        carry = [a and b for a, b in zip(flags[positions], constants)]
        if carry == flags[positions]:
            return [*carry, *constants[num_carry:]]
        flags[positions] = carry


register(jexp.scan_p, Rule(_scan, constants=_scan_constants))
register(jexp.while_p, Rule(_while, constants=_while_constants))
register(jexp.cond_p, Rule(_cond, constants=_cond_constants))
