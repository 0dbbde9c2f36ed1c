"""Fingerprints of jaxprs, by which equal computations are recognized.

Two equations with the same fingerprint and the same inputs compute the same series. A
fingerprint is hashable. Equal computations may have different fingerprints, which costs
time. Different computations must never have the same one.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
from jaxtyping import Array

from .operation import avals, is_mutable, literal_value, Operation


@final
@dataclass(slots=True, eq=False)
class Identity:
    """Key that compares a value by identity, and keeps the value alive."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def operation_fingerprint(operation: Operation, jvp_rules: bool = True) -> Hashable:
    """Computes the fingerprint of a primitive with its parameters.

    The parameters of a `custom_jvp` function include its rule, an opaque callable that
    is a new object in every trace. Without `jvp_rules` this is left out: the function
    is then identified by its jaxpr.
    """
    params = dict(operation.params)
    if operation.primitive is jexp.custom_jvp_call_p and not jvp_rules:
        del params["jvp_jaxpr_fun"]
    return operation.primitive, _fingerprint(params, jvp_rules)


def self_call(
    operation: Operation,
    primals: Sequence[Array],
    active: Sequence[bool],
    jvp_jaxpr: jex.ClosedJaxpr,
) -> jex.JaxprEqn | None:
    """Finds the equation within a `custom_jvp` function's rule that calls the function
    itself, for the rule's own primal outputs.

    Most rules compute the function's value in this way. The opaque callables can't be
    compared. But the two functions are called with the same inputs, have the same
    jaxpr, and have tangents with the same jaxpr.
    """
    if operation.primitive is not jexp.custom_jvp_call_p:
        return None
    jaxpr = jvp_jaxpr.jaxpr
    arguments = jaxpr.invars[: len(operation.ins)]
    results = jaxpr.outvars[: len(operation.outs)]
    for eqn in jaxpr.eqns:
        if list(eqn.invars) == arguments and list(eqn.outvars) == results:
            call = Operation.from_equation(eqn)
            functions = [operation_fingerprint(o, False) for o in (call, operation)]
            if functions[0] != functions[1]:
                continue
            call_jvp = call.jvp_jaxpr(primals, active)
            if _fingerprint(call_jvp, False) == _fingerprint(jvp_jaxpr, False):
                return eqn
    return None


def literal_fingerprint(literal: jex.Literal) -> Hashable:
    value = literal_value(literal)
    return value.dtype, value.shape, value.tobytes()


def _fingerprint(value: Any, jvp_rules: bool) -> Hashable:
    if isinstance(value, jex.ClosedJaxpr):
        consts = tuple(Identity(c) for c in value.consts)
        return _jaxpr_fingerprint(value.jaxpr, jvp_rules), consts
    elif isinstance(value, jex.Jaxpr):
        return _jaxpr_fingerprint(value, jvp_rules)
    elif isinstance(value, dict):
        return tuple((k, _fingerprint(v, jvp_rules)) for k, v in value.items())
    elif isinstance(value, tuple | list):
        return type(value), tuple(_fingerprint(v, jvp_rules) for v in value)
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    # The type is needed as well, since `1 == 1.0 == True`.
    return type(value), value


def _jaxpr_fingerprint(jaxpr: jex.Jaxpr, jvp_rules: bool) -> Hashable:
    if is_mutable(*jaxpr.constvars, *jaxpr.invars):
        # The effects of a kernel on its references depend on their order.
        return Identity(jaxpr)
    numbers: dict[jex.Var, int] = {}

    def number(var: jex.Var) -> Hashable:
        (aval,) = avals([var])
        return numbers.setdefault(var, len(numbers)), aval.shape, aval.dtype

    def read(atom: jex.Var | jex.Literal) -> Hashable:
        if isinstance(atom, jex.Literal):
            return literal_fingerprint(atom)
        return numbers[atom]

    inputs = tuple(number(var) for var in [*jaxpr.constvars, *jaxpr.invars])
    equations = tuple(
        (
            operation_fingerprint(Operation.from_equation(eqn), jvp_rules),
            tuple(read(atom) for atom in eqn.invars),
            tuple(number(var) for var in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, equations, tuple(read(atom) for atom in jaxpr.outvars)
