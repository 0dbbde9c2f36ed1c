from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
@dataclass(slots=True, eq=False)
class Node:
    """An equation between series.

    `recurrence(k)` may use the coefficients `0, ..., k` of `inputs` and the node's own
    coefficients `0, ..., k - 1`. It is called once for each order, in order.

    `primals()` makes arrays of the types of the coefficients. For symbolic zeros this
    is the only source of their distribution over devices.
    """

    inputs: "Sequence[Series]"
    recurrence: Recurrence
    primals: Callable[[], Sequence[Array]] | None = None
    constant: bool = field(default=False, kw_only=True)
    coefficients: list[Sequence[Coefficient]] = field(default_factory=list, init=False)

    def advance(self, order: int) -> None:
        """Computes all coefficients up to and including `order`.

        It uses an explicit stack and no recursion, so that Python's limit does not
        apply to the depth of a vector field.
        """
        stack: list[Node] = [self]
        while stack:
            node = stack[-1]
            pending = [s.node for s in node.inputs if not s.is_computed(order)]
            if len(node.coefficients) > order:
                stack.pop()
            elif pending:
                stack.extend(pending)
            else:
                node.coefficients.append(node.recurrence(len(node.coefficients)))


@final
@dataclass(slots=True, eq=False)
class Series:
    r"""Power series $u(s) = \sum_k u_k s^k$ in one variable, computed on demand.

    A recurrence gets the series of its inputs and outputs. Each coefficient is computed
    once, when it is first needed. It may depend on any coefficients of other series,
    and on those of lower orders of this series.

    - A *constant* has no coefficients above order 0.
    - A *zero* is a symbolic zero of a tangent, without any coefficients. Products with
        it are left out.
    - A *stopped* series varies only through values that went through `stop_gradient`.
    - A series that depends only on time has `shifted`, a function that returns its
        value just after $s = 0$. This value determines the side of a kink.
    """

    node: Node
    index: int
    aval: jax.ShapeDtypeStruct
    zero: bool = field(default=False, kw_only=True)
    constant: bool = field(default=False, kw_only=True)
    stopped: bool = field(default=False, kw_only=True)
    shifted: Callable[[], Array] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        # Integers and booleans are constants too: comparisons, indices.
        self.constant = self.constant or self.node.constant or not self.inexact
        self.stopped = self.stopped and not self.constant

    @property
    def inexact(self) -> bool:
        return jnp.issubdtype(self.aval.dtype, jnp.inexact)

    def is_computed(self, order: int) -> bool:
        return len(self.node.coefficients) > (0 if self.constant else order)

    def coefficient(self, order: int) -> Coefficient:
        """Returns the coefficient of `order`, or `None` for a symbolic zero."""
        if order > 0 and self.constant:
            return None
        self.node.advance(order)
        return self.node.coefficients[order][self.index]

    def array(self, order: int) -> Array:
        """Returns the coefficient of `order` as an array, even if it is zero."""
        coefficient = self.coefficient(order)
        return jnp.zeros_like(self.primal()) if coefficient is None else coefficient

    def just_after(self) -> Array:
        """Returns the value just after $s = 0$.

        The series is a constant or depends only on time.
        """
        return self.array(0) if self.shifted is None else self.shifted()

    def primal(self) -> Array:
        """Returns the coefficient of order 0 as an array, even if it is zero."""
        primal = self.coefficient(0)
        if primal is None and self.node.primals is not None:
            primal = self.node.primals()[self.index]
        return jnp.zeros(self.aval.shape, self.aval.dtype) if primal is None else primal


def constant(value: Array | np.ndarray) -> Series:
    r"""Makes the series $u_0 + 0 s + 0 s^2 + \cdots$."""
    # Only NumPy has arrays of dtype `float0`, the tangents of integers.
    coefficient = cast(Array, value)
    return Series(Node((), lambda order: [coefficient], constant=True), 0, _aval(value))


def zeros(
    avals: Sequence[jax.ShapeDtypeStruct], primals: Callable[[], Sequence[Array]]
) -> list[Series]:
    """Makes tangents that are symbolic zeros."""
    node = Node((), lambda order: [None] * len(avals), primals, constant=True)
    return [Series(node, i, aval, zero=True) for i, aval in enumerate(avals)]


def polynomial(
    value: Array,
    *higher: Coefficient,
    shifted: Callable[[], Array] | None = None,
) -> Series:
    """Makes the series whose only coefficients are those given, from order 0 up."""
    coefficients = [value, *higher]

    def recurrence(order: int) -> list[Coefficient]:
        return [coefficients[order] if order < len(coefficients) else None]

    return Series(Node((), recurrence), 0, _aval(value), shifted=shifted)


def derivative(series: Series) -> Series:
    r"""Makes the series of $u'$, whose k-th coefficient is $(k + 1) u_{k + 1}$."""

    def recurrence(order: int) -> list[Coefficient]:
        return [scale(series.coefficient(order + 1), order + 1)]

    return Series(Node((), recurrence, lambda: [series.primal()]), 0, series.aval)


@final
class Integral:
    r"""Series of $u$ with $u_0$ given. Its derivative is another series, set later.

    A differential equation is written in this form: $u'$ may depend on $u$.
    """

    __slots__ = ("series", "_initial", "_derivative")

    def __init__(self, initial: Array):
        self.series = Series(Node((), self._recurrence), 0, _aval(initial))
        self._initial = initial
        self._derivative: Series | None = None

    def close(self, derivative: Series) -> None:
        self._derivative = derivative

    def _recurrence(self, order: int) -> list[Coefficient]:
        if order == 0:
            return [self._initial]
        assert self._derivative is not None
        return [scale(self._derivative.coefficient(order - 1), 1 / order)]


def scale(coefficient: Coefficient, factor: int | float) -> Coefficient:
    if coefficient is None or factor == 1:
        return coefficient
    return coefficient * factor


def _aval(array: Array | np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
