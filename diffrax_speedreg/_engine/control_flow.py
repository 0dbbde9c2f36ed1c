"""Loops and branches, whose bodies are expanded for all orders at once.

By their JVP rules they would be expanded exactly too, but each order would double the
body. Here the k-th coefficients take one loop, which carries those of order 0, ..., k:
together, K orders cost K (K + 1) / 2 evaluations of the body.
"""

from collections.abc import Sequence

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
from jax import lax
from jaxtyping import Array

from .expand import Expansion
from .operation import avals, Operation
from .rules import rules
from .series import Coefficient, constant, polynomial, Recurrence, Series


# The coefficients 0, ..., k of a series; of a constant, the first one alone.
_Coefficients = list[Array]


def _scan(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    body = operation.params["jaxpr"]
    # What is scanned over has one axis more outside than inside. (The parameters that
    # count it are not the same in all releases of JAX.)
    ins, outs = avals(body.jaxpr.invars), avals(body.jaxpr.outvars)
    num_scanned = sum(a.ndim != b.ndim for a, b in zip(operation.ins, ins))
    num_carry = sum(a.ndim == b.ndim for a, b in zip(operation.outs, outs))
    num_consts = len(ins) - num_carry - num_scanned
    carried = inputs[num_consts : num_consts + num_carry]
    scanned = inputs[num_consts + num_carry :]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [_known(s, order) for s in inputs[:num_consts]]

        def step(
            carry: list[_Coefficients], x: list[_Coefficients]
        ) -> tuple[list[_Coefficients], list[_Coefficients]]:
            out = _expand(body, [*consts, *carry, *x], order)
            return out[:num_carry], out[num_carry:]

        carry, y = lax.scan(
            step,
            [_instantiated(s, order) for s in carried],
            [_known(s, order) for s in scanned],
            length=operation.params["length"],
            reverse=operation.params["reverse"],
            unroll=operation.params["unroll"],
        )
        return _of_order(order, [*carry, *y], outputs)

    return recurrence


def _while(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence:
    params = operation.params
    condition = jex.jaxpr_as_fun(params["cond_jaxpr"])
    num_condition, num_consts = params["cond_nconsts"], params["body_nconsts"]
    condition_consts = inputs[:num_condition]
    body_consts = inputs[num_condition : num_condition + num_consts]
    carried = inputs[num_condition + num_consts :]

    def recurrence(order: int) -> Sequence[Coefficient]:
        consts = [_known(s, order) for s in body_consts]

        def proceeds(carry: list[_Coefficients]) -> Array:
            primals = [coefficients[0] for coefficients in carry]
            return condition(*(s.array(0) for s in condition_consts), *primals)[0]

        def step(carry: list[_Coefficients]) -> list[_Coefficients]:
            return _expand(params["body_jaxpr"], [*consts, *carry], order)

        init = [_instantiated(s, order) for s in carried]
        return _of_order(order, lax.while_loop(proceeds, step, init), outputs)

    return recurrence


def _cond(
    operation: Operation, inputs: Sequence[Series], outputs: Sequence[Series]
) -> Recurrence | None:
    if len(operation.params) > 1:
        # `lax.platform_dependent`, which is decided while it is compiled.
        return None
    index, *operands = inputs

    def recurrence(order: int) -> Sequence[Coefficient]:
        def make(branch: jex.ClosedJaxpr):
            return lambda known: _expand(branch, known, order)

        branches = [make(branch) for branch in operation.params["branches"]]
        known = [_known(s, order) for s in operands]
        return _of_order(order, lax.switch(index.array(0), branches, known), outputs)

    return recurrence


def _expand(
    body: jex.ClosedJaxpr, known: Sequence[_Coefficients], order: int
) -> list[_Coefficients]:
    inputs = [constant(c[0]) if len(c) == 1 else polynomial(*c) for c in known]
    outputs = Expansion().interpret(body, inputs)
    return [_instantiated(output, order) for output in outputs]


def _known(series: Series, order: int) -> _Coefficients:
    return [series.array(0)] if series.constant else _instantiated(series, order)


def _instantiated(series: Series, order: int) -> _Coefficients:
    """With all coefficients, as what a loop carries may start out as a constant."""
    return [series.array(k) for k in range(order + 1 if series.inexact else 1)]


def _of_order(
    order: int, coefficients: Sequence[_Coefficients], outputs: Sequence[Series]
) -> list[Coefficient]:
    return [
        c[order] if output.inexact else None for c, output in zip(coefficients, outputs)
    ]


rules.update({jexp.scan_p: _scan, jexp.while_p: _while, jexp.cond_p: _cond})
