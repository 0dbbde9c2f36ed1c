from collections.abc import Callable, Sequence
from typing import cast, final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


# One coefficient of a series; `None` is a symbolic zero, for which nothing is emitted.
Coefficient: TypeAlias = Array | None
# Maps an order k to the k-th coefficient of every output of an equation.
Recurrence: TypeAlias = Callable[[int], Sequence[Coefficient]]


@final
class Node:
    """An equation between series.

    `recurrence(k)` may use the coefficients `0, ..., k` of `inputs` and the node's own
    coefficients `0, ..., k - 1`. It is called once for each order, in order.

    `primals()` makes arrays of the types that the coefficients have: where those are
    zero by structure, nothing else knows how they are distributed over devices.
    """

    __slots__ = ("inputs", "recurrence", "primals", "known", "constant")

    def __init__(
        self,
        inputs: "Sequence[Series]",
        recurrence: Recurrence,
        primals: Callable[[], Sequence[Array]] | None = None,
        *,
        constant: bool = False,
    ):
        self.inputs = tuple(inputs)
        self.recurrence = recurrence
        self.primals = primals
        self.known: list[Sequence[Coefficient]] = []
        self.constant = constant

    def advance(self, order: int) -> None:
        """Computes all coefficients up to and including `order`.

        An explicit stack, rather than recursion, so that the depth of a vector field
        is not limited by Python's.
        """
        stack: list[Node] = [self]
        while stack:
            node = stack[-1]
            pending = [s.node for s in node.inputs if not s.is_known(order)]
            if len(node.known) > order:
                stack.pop()
            elif pending:
                stack.extend(pending)
            else:
                node.known.append(node.recurrence(len(node.known)))


@final
class Series:
    r"""A power series $u(s) = \sum_k u_k s^k$ in one variable, computed on demand.

    It is one of the outputs of a [`Node`][]: coefficients are computed the first time
    that they are asked for, each once, and may depend on those of any other series
    (including, at lower orders, on this one's own).

    A *constant* has no coefficients above order 0. A *zero* does not have that one
    either: it stands for a tangent that is zero by structure, and products with it are
    dropped (as JAX's own symbolic zeros are).
    """

    __slots__ = ("node", "index", "aval", "zero", "constant")

    def __init__(
        self,
        node: Node,
        index: int,
        aval: jax.ShapeDtypeStruct,
        *,
        zero: bool = False,
        constant: bool = False,
    ):
        self.node = node
        self.index = index
        self.aval = aval
        self.zero = zero
        # Integers and booleans are constants too: comparisons, indices.
        self.constant = constant or node.constant or not self.inexact

    @property
    def inexact(self) -> bool:
        return jnp.issubdtype(self.aval.dtype, jnp.inexact)

    def is_known(self, order: int) -> bool:
        return len(self.node.known) > (0 if self.constant else order)

    def coefficient(self, order: int) -> Coefficient:
        """The coefficient of that `order`, `None` if it is zero by structure."""
        if order > 0 and self.constant:
            return None
        self.node.advance(order)
        return self.node.known[order][self.index]

    def array(self, order: int) -> Array:
        """The coefficient of that `order`, as an array in any case."""
        coefficient = self.coefficient(order)
        return jnp.zeros_like(self.primal()) if coefficient is None else coefficient

    def primal(self) -> Array:
        """The zeroth coefficient, or something of its type if that is zero."""
        primal = self.coefficient(0)
        if primal is None and self.node.primals is not None:
            primal = self.node.primals()[self.index]
        return jnp.zeros(self.aval.shape, self.aval.dtype) if primal is None else primal


def constant(value: Array | np.ndarray) -> Series:
    r"""The series $u_0 + 0 s + 0 s^2 + \cdots$."""
    # NumPy has the only arrays of dtype `float0`, the tangents of integers.
    coefficient = cast(Array, value)
    return Series(Node((), lambda order: [coefficient], constant=True), 0, _aval(value))


def zeros(
    avals: Sequence[jax.ShapeDtypeStruct], primals: Callable[[], Sequence[Array]]
) -> list[Series]:
    """Tangents that are zero by structure."""
    node = Node((), lambda order: [None] * len(avals), primals, constant=True)
    return [Series(node, i, aval, zero=True) for i, aval in enumerate(avals)]


def polynomial(*coefficients: Array) -> Series:
    """The series whose only coefficients are those given, from order 0 up."""

    def recurrence(order: int) -> list[Coefficient]:
        return [coefficients[order] if order < len(coefficients) else None]

    return Series(Node((), recurrence), 0, _aval(coefficients[0]))


def derivative(series: Series) -> Series:
    r"""The series of $u'$, whose k-th coefficient is $(k + 1) u_{k + 1}$."""

    def recurrence(order: int) -> list[Coefficient]:
        return [scale(series.coefficient(order + 1), order + 1)]

    return Series(Node((), recurrence, lambda: [series.primal()]), 0, series.aval)


@final
class Integral:
    r"""The series of $u$ with $u_0$ given and $u'$ another series, set later.

    This is how a differential equation is written down: $u'$ may depend on $u$.
    """

    __slots__ = ("series", "_derivative")

    def __init__(self, initial: Array):
        self._derivative: Series | None = None

        def recurrence(order: int) -> list[Coefficient]:
            if order == 0:
                return [initial]
            assert self._derivative is not None
            return [scale(self._derivative.coefficient(order - 1), 1 / order)]

        node = Node((), recurrence)
        self.series = Series(node, 0, _aval(initial))

    def close(self, derivative: Series) -> None:
        self._derivative = derivative


def scale(coefficient: Coefficient, factor: int | float) -> Coefficient:
    if coefficient is None or factor == 1:
        return coefficient
    return coefficient * factor


def _aval(array: Array | np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
