"""Jaxprs within equations: their expansion for all orders at once."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.extend.core as jex
from jaxtyping import Array

from .expand import Expansion
from .operation import avals, Operation
from .series import Coefficient, constant, Node, polynomial, Series


# The coefficients 0, ..., k of a series, or only the first one of a constant.
Coefficients: TypeAlias = list[Array]


def constant_outputs(
    operation: Operation, subjaxpr: jex.ClosedJaxpr, flags: Sequence[bool]
) -> list[bool]:
    """Returns which outputs are constants. The flags say which inputs are."""

    def placeholder(aval: jax.ShapeDtypeStruct, is_constant: bool) -> Series:
        # Its coefficients are not used.
        return Series(Node((), lambda order: [None], constant=is_constant), 0, aval)

    inputs = list(map(placeholder, avals(subjaxpr.jaxpr.invars), flags))
    return [s.constant for s in interpret_subjaxpr(operation, subjaxpr, inputs)]


def interpret_subjaxpr(
    operation: Operation, subjaxpr: jex.ClosedJaxpr, inputs: Sequence[Series]
) -> list[Series]:
    """Computes the series of the outputs, without effects.

    Effects happen when the operation itself is evaluated.
    """
    expansion = Expansion(effects=False, stops=operation.stops)
    return expansion.interpret(subjaxpr, inputs)


def expand_subjaxpr(
    operation: Operation,
    subjaxpr: jex.ClosedJaxpr,
    coefficients: Sequence[Coefficients],
    like: Sequence[Series],
    order: int,
) -> list[Coefficients]:
    """Computes as many coefficients of the outputs as those in `like` have."""
    inputs = [constant(c[0]) if len(c) == 1 else polynomial(*c) for c in coefficients]
    outputs = interpret_subjaxpr(operation, subjaxpr, inputs)
    return [coefficients_of(output, order, like=s) for output, s in zip(outputs, like)]


def coefficients_of(
    series: Series, order: int, *, like: Series | None = None
) -> Coefficients:
    """Returns the coefficients of a series.

    A constant has only the first one. If `like` is passed, its number of coefficients
    is used.
    """
    varies = not (series if like is None else like).constant
    return [series.array(k) for k in range(order + 1 if varies else 1)]


def of_order(
    order: int, coefficients: Sequence[Coefficients], outputs: Sequence[Series]
) -> list[Coefficient]:
    # Constants have a coefficient of order 0, also if one of the inputs has none.
    return [
        None if order > 0 and output.constant else c[order]
        for c, output in zip(coefficients, outputs)
    ]
