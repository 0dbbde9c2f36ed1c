from collections.abc import Callable, Sequence
from typing import final, Protocol, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array


# One coefficient of a series; `None` is a symbolic zero, for which nothing is emitted.
Coefficient: TypeAlias = Array | None
# Maps an order k to the k-th coefficient of every output of an equation.
Recurrence: TypeAlias = Callable[[int], Sequence[Coefficient]]


class _ShapedArray(Protocol):
    """An array, or what JAX knows of one before it exists."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> jnp.dtype: ...


@final
class Node:
    """An equation between series.

    `recurrence(k)` may use the coefficients `0, ..., k` of `inputs` and the node's own
    coefficients `0, ..., k - 1`. It is called once for each order, in order.
    """

    __slots__ = ("inputs", "recurrence", "known", "constant")

    def __init__(
        self, inputs: "Sequence[Series]", recurrence: Recurrence, *, constant: bool
    ):
        self.inputs = tuple(inputs)
        self.recurrence = recurrence
        self.known: list[Sequence[Coefficient]] = []
        self.constant = constant

    def advance(self, order: int) -> None:
        """Computes all coefficients up to and including `order`.

        An explicit stack, rather than recursion, so that the depth of a vector field
        is not limited by Python's.
        """
        stack = [self]
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

    __slots__ = ("node", "index", "shape", "dtype", "zero")

    def __init__(self, node: Node, index: int, like: _ShapedArray, zero: bool = False):
        self.node = node
        self.index = index
        self.shape = like.shape
        self.dtype = like.dtype
        self.zero = zero

    @property
    def inexact(self) -> bool:
        return jnp.issubdtype(self.dtype, jnp.inexact)

    @property
    def constant(self) -> bool:
        # Integers and booleans: comparisons, indices.
        return self.node.constant or not self.inexact

    def is_known(self, order: int) -> bool:
        return len(self.node.known) > (0 if self.constant else order)

    def coefficient(self, order: int) -> Coefficient:
        """The coefficient of that order, `None` if it is zero by structure."""
        if order > 0 and self.constant:
            return None
        self.node.advance(order)
        return self.node.known[order][self.index]

    def array(self, order: int) -> Array:
        """The coefficient of that order, as an array in any case."""
        coefficient = self.coefficient(order)
        return self.zeros() if coefficient is None else coefficient

    def zeros(self) -> Array:
        return jnp.zeros(self.shape, self.dtype)


def constant(value: Array) -> Series:
    r"""The series $u_0 + 0 s + 0 s^2 + \cdots$."""
    return Series(Node((), lambda order: [value], constant=True), 0, value)


def zero(like: _ShapedArray) -> Series:
    """A tangent that is zero by structure."""
    node = Node((), lambda order: [None], constant=True)
    return Series(node, 0, like, zero=True)


def polynomial(*coefficients: Array) -> Series:
    """The series whose only coefficients are those given, from order 0 up."""

    def recurrence(order: int) -> list[Coefficient]:
        return [coefficients[order] if order < len(coefficients) else None]

    return Series(Node((), recurrence, constant=False), 0, coefficients[0])


def derivative(series: Series) -> Series:
    r"""The series of $u'$, whose k-th coefficient is $(k + 1) u_{k + 1}$."""

    def recurrence(order: int) -> list[Coefficient]:
        return [scale(series.coefficient(order + 1), order + 1)]

    return Series(Node((), recurrence, constant=False), 0, series)


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

        self.series = Series(Node((), recurrence, constant=False), 0, initial)

    def close(self, derivative: Series) -> None:
        self._derivative = derivative


def scale(coefficient: Coefficient, factor: float) -> Coefficient:
    if coefficient is None or factor == 1:
        return coefficient
    return coefficient * factor
