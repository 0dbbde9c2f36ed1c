"""Loops and branches, whose bodies are expanded for all orders at once.

By their JVP rules they would be expanded exactly too, but each order would double the
body. Here the k-th coefficients take one loop, which carries those of order 0, ..., k:
together, K orders cost K (K + 1) / 2 evaluations of the body.
"""

from collections.abc import Sequence
from functools import partial

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array

from .bodies import (
    body_constants,
    Coefficients,
    coefficients_of,
    expand_body,
    of_order,
)
from .operation import avals, Operation
from .registry import register, Rule
from .series import Coefficient, Recurrence, Series


def _scan(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    num_consts, num_carry = _scan_counts(operation)
    carried = inputs[num_consts : num_consts + num_carry]
    scanned = inputs[num_consts + num_carry :]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [coefficients_of(s, order) for s in inputs[:num_consts]]

        def step(
            carry: list[Coefficients], x: list[Coefficients]
        ) -> tuple[list[Coefficients], list[Coefficients]]:
            body = operation.params["jaxpr"]
            out = expand_body(body, [*consts, *carry, *x], outputs, order)
            return out[:num_carry], out[num_carry:]

        carry, y = lax.scan(
            step,
            [coefficients_of(s, order, like=out) for s, out in zip(carried, outputs)],
            [coefficients_of(s, order) for s in scanned],
            length=operation.params["length"],
            reverse=operation.params["reverse"],
            unroll=operation.params["unroll"],
        )
        return of_order(order, [*carry, *y], outputs)

    return recurrence


def _scan_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    num_consts, num_carry = _scan_counts(operation)
    flags = [s.constant for s in inputs]
    return _loop_constants(operation.params["jaxpr"], flags, num_consts, num_carry)


def _scan_counts(operation: Operation) -> tuple[int, int]:
    """How many inputs are constants of the loop, and how many are carried.

    What is scanned over has one axis more outside than inside. (The parameters that
    count it are not the same in all releases of JAX.)
    """
    body = operation.params["jaxpr"].jaxpr
    ins, outs = avals(body.invars), avals(body.outvars)
    num_scanned = sum(a.ndim != b.ndim for a, b in zip(operation.ins, ins))
    num_carry = sum(a.ndim == b.ndim for a, b in zip(operation.outs, outs))
    return len(ins) - num_carry - num_scanned, num_carry


def _while(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    params = operation.params
    condition = jex.jaxpr_as_fun(params["cond_jaxpr"])
    (decision,) = avals(params["cond_jaxpr"].jaxpr.outvars)
    num_condition = params["cond_nconsts"]
    num_body = params["body_nconsts"]
    condition_consts, rest = inputs[:num_condition], inputs[num_condition:]
    body_consts, carried = rest[:num_body], rest[num_body:]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [coefficients_of(s, order) for s in body_consts]

        def proceeding(carry: list[Coefficients]) -> Array:
            primals = [coefficients[0] for coefficients in carry]
            return condition(*(s.array(0) for s in condition_consts), *primals)[0]

        def step(carry: list[Coefficients]) -> list[Coefficients]:
            out = expand_body(params["body_jaxpr"], [*consts, *carry], outputs, order)
            if decision.ndim == 0:
                return out
            # Under `jax.vmap`, samples that have finished wait for the others.
            return jtu.tree_map(partial(_select, proceeding(carry)), out, carry)

        init = [coefficients_of(s, order, like=out) for s, out in zip(carried, outputs)]
        final = lax.while_loop(lambda carry: jnp.any(proceeding(carry)), step, init)
        return of_order(order, final, outputs)

    return recurrence


def _select(chosen: Array, x: Array, y: Array) -> Array:
    """By leading axes."""
    trailing = tuple(range(chosen.ndim, x.ndim))
    return lax.select(
        jnp.broadcast_to(jnp.expand_dims(chosen, trailing), x.shape), x, y
    )


def _while_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    params = operation.params
    flags = [s.constant for s in inputs[params["cond_nconsts"] :]]
    num_consts = params["body_nconsts"]
    num_carry = len(operation.outs)
    return _loop_constants(params["body_jaxpr"], flags, num_consts, num_carry)


def _cond(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    if len(operation.params) > 1:
        # `lax.platform_dependent`, which is decided while it is compiled.
        return None
    index, *operands = inputs

    def recurrence(order: int) -> Sequence[Coefficient]:
        def make(branch: jex.ClosedJaxpr):
            return lambda known: expand_body(branch, known, outputs, order)

        branches = [make(branch) for branch in operation.params["branches"]]
        known = [coefficients_of(s, order) for s in operands]
        return of_order(order, lax.switch(index.array(0), branches, known), outputs)

    return recurrence


def _cond_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    flags = [s.constant for s in inputs[1:]]
    branches = [body_constants(b, flags) for b in operation.params["branches"]]
    return [all(constants) for constants in zip(*branches)]


def _loop_constants(
    body: jex.ClosedJaxpr, flags: list[bool], num_consts: int, num_carry: int
) -> list[bool]:
    """Which outputs of a loop are constants: a carry that one iteration makes vary is
    none for the next."""
    flags = list(flags)
    carried = slice(num_consts, num_consts + num_carry)
    while True:
        constants = body_constants(body, flags)
        carry = [a and b for a, b in zip(flags[carried], constants)]
        if carry == flags[carried]:
            return [*carry, *constants[num_carry:]]
        flags[carried] = carry


register(jexp.scan_p, Rule(_scan, constants=_scan_constants))
register(jexp.while_p, Rule(_while, constants=_while_constants))
register(jexp.cond_p, Rule(_cond, constants=_cond_constants))
