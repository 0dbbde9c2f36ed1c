"""Jaxprs within equations: their expansion for all orders at once."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.extend.core as jex
from jaxtyping import Array

from .expand import Expansion
from .operation import avals
from .series import Coefficient, constant, Node, polynomial, Series


# The coefficients 0, ..., k of a series; of a constant, the first one alone.
Coefficients: TypeAlias = list[Array]


def body_constants(body: jex.ClosedJaxpr, flags: Sequence[bool]) -> list[bool]:
    def unknown(aval: jax.ShapeDtypeStruct, is_constant: bool) -> Series:
        def recurrence(order: int) -> Sequence[Coefficient]:
            raise AssertionError("no coefficients are asked for")

        return Series(Node((), recurrence, constant=is_constant), 0, aval)

    inputs = list(map(unknown, avals(body.jaxpr.invars), flags))
    return [s.constant for s in Expansion(effects=False).interpret(body, inputs)]


def expand_body(
    body: jex.ClosedJaxpr,
    known: Sequence[Coefficients],
    like: Sequence[Series],
    order: int,
) -> list[Coefficients]:
    inputs = [constant(c[0]) if len(c) == 1 else polynomial(*c) for c in known]
    outputs = Expansion(effects=False).interpret(body, inputs)
    return [coefficients_of(output, order, like=s) for output, s in zip(outputs, like)]


def coefficients_of(
    series: Series, order: int, *, like: Series | None = None
) -> Coefficients:
    """The coefficients of a series, or all of them where another one varies."""
    varies = not (series if like is None else like).constant
    return [series.array(k) for k in range(order + 1 if varies else 1)]


def of_order(
    order: int, coefficients: Sequence[Coefficients], outputs: Sequence[Series]
) -> list[Coefficient]:
    # Also constants have a coefficient of order 0, if one of the inputs has none.
    return [
        None if order > 0 and output.constant else c[order]
        for c, output in zip(coefficients, outputs)
    ]
