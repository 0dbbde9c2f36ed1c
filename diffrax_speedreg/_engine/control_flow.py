"""Loops and branches, whose bodies are expanded for all orders at once.

By their JVP rules they would be expanded exactly too, but each order would double the
body. Here the k-th coefficients take one loop, which carries those of order 0, ..., k:
together, K orders cost K (K + 1) / 2 evaluations of the body.
"""

from collections.abc import Sequence

import jax
import jax.extend.core as jex
import jax.extend.core.primitives as jexp
from jax import lax
from jaxtyping import Array

from .expand import Expansion
from .operation import avals, Operation
from .rules import constant_outputs, rules
from .series import Coefficient, constant, Node, polynomial, Recurrence, Series


# The coefficients 0, ..., k of a series; of a constant, the first one alone.
_Coefficients = list[Array]


def _scan(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    num_consts, num_carry = _scan_counts(operation)
    carried = inputs[num_consts : num_consts + num_carry]
    scanned = inputs[num_consts + num_carry :]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [_known(s, order) for s in inputs[:num_consts]]

        def step(
            carry: list[_Coefficients], x: list[_Coefficients]
        ) -> tuple[list[_Coefficients], list[_Coefficients]]:
            body = operation.params["jaxpr"]
            out = _expand(body, [*consts, *carry, *x], outputs, order)
            return out[:num_carry], out[num_carry:]

        carry, y = lax.scan(
            step,
            [_known(s, order, like=out) for s, out in zip(carried, outputs)],
            [_known(s, order) for s in scanned],
            length=operation.params["length"],
            reverse=operation.params["reverse"],
            unroll=operation.params["unroll"],
        )
        return _of_order(order, [*carry, *y], outputs)

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
    (proceeds,) = avals(params["cond_jaxpr"].jaxpr.outvars)
    if proceeds.ndim > 0:
        # Under `jax.vmap`: some samples have finished, which is left to the JVP rule.
        return None
    num_condition = params["cond_nconsts"]
    num_body = params["body_nconsts"]
    condition_consts, rest = inputs[:num_condition], inputs[num_condition:]
    body_consts, carried = rest[:num_body], rest[num_body:]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [_known(s, order) for s in body_consts]

        def proceed(carry: list[_Coefficients]) -> Array:
            primals = [coefficients[0] for coefficients in carry]
            return condition(*(s.array(0) for s in condition_consts), *primals)[0]

        def step(carry: list[_Coefficients]) -> list[_Coefficients]:
            return _expand(params["body_jaxpr"], [*consts, *carry], outputs, order)

        init = [_known(s, order, like=out) for s, out in zip(carried, outputs)]
        return _of_order(order, lax.while_loop(proceed, step, init), outputs)

    return recurrence


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
            return lambda known: _expand(branch, known, outputs, order)

        branches = [make(branch) for branch in operation.params["branches"]]
        known = [_known(s, order) for s in operands]
        return _of_order(order, lax.switch(index.array(0), branches, known), outputs)

    return recurrence


def _cond_constants(operation: Operation, inputs: Sequence[Series]) -> list[bool]:
    flags = [s.constant for s in inputs[1:]]
    branches = [_body_constants(b, flags) for b in operation.params["branches"]]
    return [all(constants) for constants in zip(*branches)]


def _loop_constants(
    body: jex.ClosedJaxpr, flags: list[bool], num_consts: int, num_carry: int
) -> list[bool]:
    """Which outputs of a loop are constants: a carry that one iteration makes vary is
    none for the next."""
    flags = list(flags)
    carried = slice(num_consts, num_consts + num_carry)
    while True:
        constants = _body_constants(body, flags)
        carry = [a and b for a, b in zip(flags[carried], constants)]
        if carry == flags[carried]:
            return [*carry, *constants[num_carry:]]
        flags[carried] = carry


def _body_constants(body: jex.ClosedJaxpr, flags: Sequence[bool]) -> list[bool]:
    def unknown(aval: jax.ShapeDtypeStruct, is_constant: bool) -> Series:
        def recurrence(order: int) -> Sequence[Coefficient]:
            raise AssertionError("no coefficients are asked for")

        return Series(Node((), recurrence, constant=is_constant), 0, aval)

    inputs = list(map(unknown, avals(body.jaxpr.invars), flags))
    return [s.constant for s in Expansion(effects=False).interpret(body, inputs)]


def _expand(
    body: jex.ClosedJaxpr,
    known: Sequence[_Coefficients],
    like: Sequence[Series],
    order: int,
) -> list[_Coefficients]:
    inputs = [constant(c[0]) if len(c) == 1 else polynomial(*c) for c in known]
    outputs = Expansion().interpret(body, inputs)
    return [_known(output, order, like=s) for output, s in zip(outputs, like)]


def _known(series: Series, order: int, *, like: Series | None = None) -> _Coefficients:
    """The coefficients of a series, or all of them where another one varies."""
    varies = not (series if like is None else like).constant
    return [series.array(k) for k in range(order + 1 if varies else 1)]


def _of_order(
    order: int, coefficients: Sequence[_Coefficients], outputs: Sequence[Series]
) -> list[Coefficient]:
    return [
        None if output.constant else c[order]
        for c, output in zip(coefficients, outputs)
    ]


rules.update({jexp.scan_p: _scan, jexp.while_p: _while, jexp.cond_p: _cond})
constant_outputs.update(
    {
        jexp.scan_p: _scan_constants,
        jexp.while_p: _while_constants,
        jexp.cond_p: _cond_constants,
    }
)
