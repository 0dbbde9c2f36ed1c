"""Hashable descriptions of jaxprs, so that equal computations can be recognized.

Two equations with the same description and the same inputs compute the same series. A
description may tell equal computations apart (which costs time); it must never identify
different ones.
"""

from collections.abc import Hashable, Sequence
from typing import Any, final

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
from jaxtyping import Array

from .operation import avals, is_mutable, literal_value, Operation


@final
class Identity:
    """Compares by identity, and keeps what it compares alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def describe_operation(operation: Operation, rules: bool = True) -> Hashable:
    """A description of a primitive with its parameters.

    Among these a `custom_jvp` function has its rule, as an opaque callable that is new
    in every trace. Without `rules` it is known by what it computes alone.
    """
    params = dict(operation.params)
    if operation.primitive is jexp.custom_jvp_call_p and not rules:
        del params["jvp_jaxpr_fun"]
    return operation.primitive, _describe(params, rules)


def refers_to_itself(
    operation: Operation,
    primals: Sequence[Array],
    active: Sequence[bool],
    jvp_jaxpr: jex.ClosedJaxpr,
) -> jex.JaxprEqn | None:
    """The equation within a `custom_jvp` function's rule that calls the function
    itself, for the rule's own primal outputs.

    This is how most rules get hold of the function's value. The opaque callables can't
    be compared; but both functions are called with the same inputs, compute the same
    there, and have tangents that compute the same.
    """
    if operation.primitive is not jexp.custom_jvp_call_p:
        return None
    jaxpr = jvp_jaxpr.jaxpr
    arguments = jaxpr.invars[: len(operation.ins)]
    results = jaxpr.outvars[: len(operation.outs)]
    for eqn in jaxpr.eqns:
        if list(eqn.invars) == arguments and list(eqn.outvars) == results:
            called = Operation.from_equation(eqn)
            same_function = describe_operation(
                called, rules=False
            ) == describe_operation(operation, rules=False)
            if same_function and _describe(
                called.jvp_jaxpr(primals, active), rules=False
            ) == _describe(jvp_jaxpr, rules=False):
                return eqn
    return None


def describe_literal(literal: jex.Literal) -> Hashable:
    value = literal_value(literal)
    return value.dtype, value.shape, value.tobytes()


def _describe(value: Any, rules: bool) -> Hashable:
    if isinstance(value, jex.ClosedJaxpr):
        consts = tuple(Identity(c) for c in value.consts)
        return _describe_jaxpr(value.jaxpr, rules), consts
    elif isinstance(value, jex.Jaxpr):
        return _describe_jaxpr(value, rules)
    elif isinstance(value, dict):
        return tuple((k, _describe(v, rules)) for k, v in value.items())
    elif isinstance(value, tuple | list):
        return type(value), tuple(_describe(v, rules) for v in value)
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    # The type as well, for `1 == 1.0 == True`.
    return type(value), value


def _describe_jaxpr(jaxpr: jex.Jaxpr, rules: bool) -> Hashable:
    if is_mutable(*jaxpr.constvars, *jaxpr.invars):
        # What a kernel does to its references depends on their order.
        return Identity(jaxpr)
    numbers: dict[jex.Var, int] = {}

    def number(var: jex.Var) -> Hashable:
        (aval,) = avals([var])
        return numbers.setdefault(var, len(numbers)), aval.shape, aval.dtype

    def read(atom: jex.Var | jex.Literal) -> Hashable:
        if isinstance(atom, jex.Literal):
            return describe_literal(atom)
        return numbers[atom]

    inputs = tuple(number(var) for var in [*jaxpr.constvars, *jaxpr.invars])
    equations = tuple(
        (
            describe_operation(Operation.from_equation(eqn), rules),
            tuple(read(atom) for atom in eqn.invars),
            tuple(number(var) for var in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, equations, tuple(read(atom) for atom in jaxpr.outvars)
