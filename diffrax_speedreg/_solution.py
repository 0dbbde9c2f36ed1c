import math
from collections.abc import Callable
from typing import Any, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from equinox.internal import ω
from jaxtyping import Array, PyTree

from ._checks import (
    as_state,
    as_time,
    check_like_state,
    check_positive_integer,
    check_time_driven,
)
from ._custom_types import Args, Coefficients, RealScalarLike, VF, Y
from ._engine import Expansion, Integral, polynomial


@final
class SolutionSeries:
    r"""The power series in $s$ of the solution of a differential equation.

    It solves $\mathrm{d}y/\mathrm{d}s = g(t, y)$ with $t = t_0 + s \Delta t$ and
    $y(0) = y_0$, by $y_{k + 1} = g_k / (k + 1)$: the series of $y$ refers to that of
    $g$ and the other way round. Coefficients are computed when they are first asked
    for, and each coefficient of each intermediate value of $g$ once, so that K of them
    cost about K evaluations of $g$.

    **Arguments:**

    - `field`: $g$, as a function `(t, y) -> (dy/ds, aux)`.
    - `t0`, `dt`: the time at $s = 0$, and the time that $s = 1$ is later.
    - `y0`: the state at $s = 0$: a pytree of arrays of inexact dtype.

    **Attributes:**

    - `aux`: the second output of `field`, at $s = 0$.
    """

    def __init__(
        self,
        field: Callable[
            [RealScalarLike, PyTree[Array]], tuple[PyTree[Array], PyTree[Any]]
        ],
        t0: RealScalarLike,
        dt: RealScalarLike,
        y0: PyTree[Array],
    ):
        t0 = jnp.asarray(t0)
        if not jnp.issubdtype(t0.dtype, jnp.inexact):
            t0 = t0.astype(jnp.result_type(float))
        closed, (dy_struct, aux_struct) = jax.make_jaxpr(field, return_shape=True)(
            t0, y0
        )
        check_like_state(dy_struct, y0, "The vector field")
        leaves, self._structure = jtu.tree_flatten(y0)
        integrals = [Integral(leaf) for leaf in leaves]
        self._leaves = [integral.series for integral in integrals]
        time = polynomial(t0, jnp.asarray(dt, t0.dtype))
        outputs = Expansion().interpret(closed, [time, *self._leaves])
        for integral, output in zip(integrals, outputs):
            integral.close(output)
        self.aux = jtu.tree_unflatten(
            jtu.tree_structure(aux_struct),
            [output.array(0) for output in outputs[len(integrals) :]],
        )

    def coefficient(self, order: int) -> PyTree[Array]:
        r"""$y_k = \frac{1}{k!} \mathrm{d}^k y / \mathrm{d}s^k$ at $s = 0$."""
        return jtu.tree_unflatten(
            self._structure, [leaf.array(order) for leaf in self._leaves]
        )


def time_field(
    term: dfx.AbstractTerm, y: Y, args: Args
) -> Callable[[RealScalarLike, PyTree[Array]], tuple[PyTree[Array], VF]]:
    """The function `(t, y) -> (dy/dt, vf)` of a term, for states like `y`."""
    check_time_driven(term)
    # Of the lowest precision, so that no leaf of the state is promoted by it.
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jtu.tree_leaves(y)]
    dtype = min(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    unit = term.contr(jnp.zeros((), dtype), jnp.ones((), dtype))

    def field(t: RealScalarLike, y: PyTree[Array]) -> tuple[PyTree[Array], VF]:
        vf = term.vf(t, y, args)
        return term.prod(vf, unit), vf

    return field


def solution_series(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args
) -> SolutionSeries:
    """The series in time from `t` on, with the term's vector field there as `aux`."""
    y = as_state(y)
    return SolutionSeries(time_field(term, y, args), t, 1.0, y)


@eqx.filter_jit
def _coefficients(
    term: dfx.AbstractTerm, t: Array, y: Y, args: Args, orders: tuple[int, ...]
) -> list[PyTree[Array]]:
    """Compiled, so that a second call outside of `jax.jit` does not trace again."""
    series = solution_series(term, t, y, args)
    return [series.coefficient(k) for k in orders]


def taylor_coefficients(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args = None, *, order: int
) -> Coefficients:
    r"""Taylor coefficients of the solution through a point.

    Computes $\frac{1}{k!} \frac{\mathrm{d}^k y}{\mathrm{d} t^k}$ for $k = 0, \ldots, K$
    at time $t$, for the solution of $\frac{\mathrm{d} y}{\mathrm{d} t} = f(t, y)$ that
    passes through $y$ then. These are total derivatives: the first is $f$, the second
    half of $\partial_t f + (\partial_y f) f$, and so on.

    !!! example

        ```python
        term = diffrax.ODETerm(lambda t, y, args: -y)
        taylor_coefficients(term, 0.0, jnp.array(1.0), order=3)
        # [1, -1, 1/2, -1/6]
        ```

    **Arguments:**

    - `term`: a term of the form $f(t, y, \text{args})\,\mathrm{d}t$, such as
        `diffrax.ODETerm` or a `diffrax.MultiTerm` of these. It may do anything that
        `jax.jvp` can differentiate.
    - `t`: the time, a scalar.
    - `y`: the state at that time: a pytree of arrays of any shapes, of floating-point
        or complex dtype.
    - `args`: passed to the vector field.
    - `order`: $K$, at least 1.

    **Returns:**

    A pytree like `y`, each of whose leaves has a new first axis of size `order + 1`;
    entry $k$ has the units of $y$ divided by those of time to the power $k$. For the
    derivatives themselves multiply by $k!$, or see
    [`diffrax_speedreg.total_derivative`][].

    **Raises:**

    A `ValueError` if `order` is not a positive integer, if `y` has leaves that cannot
    evolve (integers, say), if the term is not driven by time, or if it returns
    something that is not like `y`.

    **Cost:** about that of `order` evaluations of the vector field, as each matrix
    product in it is made once for each order; within loops and branches, that of
    `order * (order + 1) / 2`.
    """
    order = check_positive_integer(order, "order")
    coefficients = _coefficients(
        term, as_time(t), as_state(y), args, tuple(range(order + 1))
    )
    return jtu.tree_map(lambda *leaves: jnp.stack(leaves), *coefficients)


def total_derivative(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args = None, *, order: int
) -> PyTree[Array]:
    r"""A total time derivative of the solution through a point.

    Computes $\frac{\mathrm{d}^K y}{\mathrm{d} t^K}$ at time $t$, for the solution of
    $\frac{\mathrm{d} y}{\mathrm{d} t} = f(t, y)$ that passes through $y$ then.

    **Arguments:**

    - `term`, `t`, `y`, `args`, `order`: as for
        [`diffrax_speedreg.taylor_coefficients`][]; $K$ is the `order`.

    **Returns:**

    A pytree like `y`, in the units of $y$ divided by those of time to the power
    `order`.

    **Raises** and **costs** what [`diffrax_speedreg.taylor_coefficients`][] does.
    """
    order = check_positive_integer(order, "order")
    (coefficient,) = _coefficients(term, as_time(t), as_state(y), args, (order,))
    return (coefficient**ω * float(math.factorial(order))).ω
