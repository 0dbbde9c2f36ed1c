"""Hashable descriptions of jaxprs, so that equal computations can be recognized.

Two equations with the same description and the same inputs compute the same series. A
description may tell equal computations apart (which costs time); it must never identify
different ones.
"""

from collections.abc import Hashable
from typing import Any, final

import jax.extend.core as jex
import jax.extend.core.primitives as jexp
import jax.numpy as jnp
import numpy as np

from .operation import Operation


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


def describe_operation(operation: Operation, depth: int = 1) -> Hashable:
    """A description of a primitive with its parameters.

    A `custom_jvp` function carries its rule as an opaque callable that is new in every
    trace. It is known by what it computes instead: by its own jaxpr and that of its
    tangent, within which other such functions are known by their own jaxpr alone
    (`depth` of 0), for the recursion has to end.
    """
    params = dict(operation.params)
    if operation.primitive is jexp.custom_jvp_call_p:
        del params["jvp_jaxpr_fun"]
        if depth > 0:
            active = [jnp.issubdtype(a.dtype, np.inexact) for a in operation.ins]
            params["tangent"] = operation.tangent_jaxpr(active)
        depth = 0
    return operation.primitive, _describe(params, depth)


def describe_literal(literal: jex.Literal) -> Hashable:
    value = np.asarray(literal.val)
    return literal.aval.dtype, value.shape, value.tobytes()


def _describe(value: Any, depth: int) -> Hashable:
    if isinstance(value, jex.ClosedJaxpr):
        consts = tuple(Identity(c) for c in value.consts)
        return _describe_jaxpr(value.jaxpr, depth), consts
    elif isinstance(value, jex.Jaxpr):
        return _describe_jaxpr(value, depth)
    elif isinstance(value, dict):
        return tuple((k, _describe(v, depth)) for k, v in sorted(value.items()))
    elif isinstance(value, tuple | list):
        return type(value), tuple(_describe(v, depth) for v in value)
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    # The type as well, for `1 == 1.0 == True`.
    return type(value), value


def _describe_jaxpr(jaxpr: jex.Jaxpr, depth: int) -> Hashable:
    numbers: dict[jex.Var, int] = {}

    def number(var: jex.Var) -> Hashable:
        aval = var.aval
        return numbers.setdefault(var, len(numbers)), aval.shape, aval.dtype

    def read(atom: jex.Var | jex.Literal) -> Hashable:
        if isinstance(atom, jex.Literal):
            return describe_literal(atom)
        return numbers[atom]

    inputs = tuple(number(var) for var in [*jaxpr.constvars, *jaxpr.invars])
    equations = tuple(
        (
            describe_operation(Operation.from_equation(eqn), depth),
            tuple(read(atom) for atom in eqn.invars),
            tuple(number(var) for var in eqn.outvars),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, equations, tuple(read(atom) for atom in jaxpr.outvars)
