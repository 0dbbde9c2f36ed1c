import math
from collections.abc import Callable
from typing import Any, final, TypeAlias

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
from ._custom_types import Args, Coefficients, Control, RealScalarLike, VF, Y
from ._engine import Expansion, Integral, polynomial
from ._misc import just_after


# A function `(t, y) -> dy`, or `(t, y) -> (dy, aux)`.
VectorField: TypeAlias = Callable[[RealScalarLike, PyTree[Array]], PyTree[Any]]


@final
class SolutionSeries:
    r"""The power series in $s$ of the solution of a differential equation.

    It solves $\mathrm{d}y/\mathrm{d}s = g(t, y)$ with $t = t_0 + s \Delta t$ and
    $y(0) = y_0$, by $y_{k + 1} = g_k / (k + 1)$: the series of $y$ refers to that of
    $g$ and vice versa. Coefficients are computed when they are first needed. Each
    coefficient of each intermediate value of $g$ is computed once, so that K of them
    cost about K evaluations of $g$.

    **Arguments:**

    - `field`: $g$, as a function `(t, y) -> dy/ds`.
    - `t0`, `dt`: the time at $s = 0$, and the time that $s = 1$ is later.
    - `y0`: the state at $s = 0$: a pytree of arrays of inexact dtype.
    - `has_aux`: whether `field` returns a pair `(dy/ds, aux)` instead.
    - `has_length`: whether $\Delta t$ is the length of a step, and not an arbitrary
        unit. Its roundings are then the scale on which times are compared.

    **Attributes:**

    - `aux`: the second output of `field`, at $s = 0$; `None` if there is none.
    """

    def __init__(
        self,
        field: VectorField,
        t0: RealScalarLike,
        dt: RealScalarLike,
        y0: PyTree[Array],
        *,
        has_aux: bool = False,
        has_length: bool = True,
    ):
        t0 = jnp.asarray(t0)
        if not jnp.issubdtype(t0.dtype, jnp.inexact):
            t0 = t0.astype(jnp.result_type(float))
        closed, struct = jax.make_jaxpr(field, return_shape=True)(t0, y0)
        dy_struct, aux_struct = struct if has_aux else (struct, None)
        check_like_state(dy_struct, y0, "The vector field")
        leaves, self._structure = jtu.tree_flatten(y0)
        integrals = [Integral(leaf) for leaf in leaves]
        self._leaves = [integral.series for integral in integrals]
        # The solution starts after any kink in time at `t0`.
        shifted = lambda: just_after(t0, dt, dt if has_length else 0.0)
        time = polynomial(t0, jnp.asarray(dt, t0.dtype), shifted=shifted)
        expansion = Expansion()
        outputs = expansion.interpret(closed, [time, *self._leaves])
        for integral, output in zip(integrals, outputs):
            integral.close(output)
        self.aux = jtu.tree_unflatten(
            jtu.tree_structure(aux_struct),
            [output.array(0) for output in outputs[len(integrals) :]],
        )
        if has_aux and expansion.one_sided:
            # At a jump, the value of the field differs from the slope just after it.
            _, self.aux = field(t0, y0)

    def coefficient(self, order: int) -> PyTree[Array]:
        r"""Computes $y_k = \frac{1}{k!} \mathrm{d}^k y / \mathrm{d}s^k$ at $s = 0$."""
        return jtu.tree_unflatten(
            self._structure, [leaf.array(order) for leaf in self._leaves]
        )


def vector_field(
    term: dfx.AbstractTerm, args: Args, control: PyTree[Any], *, has_aux: bool = False
) -> VectorField:
    """Makes the function `(t, y) -> dy` of a term for a control.

    Its results have the state's precision.

    The size and the direction of a step are part of the control. (An expansion of
    `term.vf` along `(1, f)` would be of order 1 for a solve that runs backwards, in
    which the term runs in negative time.)

    With `has_aux` it is `(t, y) -> (dy, vf)`, in the precision that the term returns.
    """

    def field(t: RealScalarLike, y: PyTree[Array]) -> PyTree[Any]:
        if has_aux:
            vf = term.vf(t, y, args)
            return term.prod(vf, control), vf
        dy = term.vf_prod(t, y, args, control)
        return jtu.tree_map(_with_precision_of, y, dy)

    return field


def _with_precision_of(state: Array, dy: Array) -> Array:
    """Converts `dy` to the precision of the state, if time has a higher one.

    Complex numbers are left as they are where the state is real: the check of the field
    raises an error then.
    """
    if jnp.iscomplexobj(dy) and not jnp.iscomplexobj(state):
        return dy
    return dy.astype(state.dtype)


def unit_control(
    term: dfx.AbstractTerm, y: PyTree[Array], unit: float = 1.0
) -> Control:
    """Computes the control of a unit of time, for derivatives of states like `y`."""
    # It has the lowest precision, so that it promotes no leaf of the state.
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jtu.tree_leaves(y)]
    dtype = min(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    return term.contr(jnp.zeros((), dtype), jnp.asarray(unit, dtype))


def _solution_series(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args, unit: float
) -> SolutionSeries:
    """Makes the series in time from `t` on, with the term's vector field as `aux`."""
    y = as_state(y)
    field = vector_field(term, args, unit_control(term, y, unit), has_aux=True)
    return SolutionSeries(field, t, unit, y, has_aux=True, has_length=False)


def derivative_and_field(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args, order: int
) -> tuple[PyTree[Array], VF]:
    r"""Computes a total derivative in time, and the term's vector field.

    In a unit of time $\tau$ with $\tau^K \approx K!$ the K-th coefficient is about as
    large as the K-th derivative. So it is in the range of the state's precision if the
    derivative is. The unit is a power of 2, which does not add to roundoff.
    """
    factorial = math.factorial(order)
    exponent = round(math.log2(factorial) / order)
    series = _solution_series(term, t, y, args, 2.0**exponent)
    factor = factorial / 2 ** (exponent * order)
    return (series.coefficient(order) ** ω * factor).ω, series.aux


# Compiled, so that a second call outside of `jax.jit` does not trace again.


@eqx.filter_jit
def _coefficients(
    term: dfx.AbstractTerm, t: Array, y: Y, args: Args, order: int
) -> list[PyTree[Array]]:
    check_time_driven(term)
    series = _solution_series(term, t, y, args, 1.0)
    return [series.coefficient(k) for k in range(order + 1)]


@eqx.filter_jit
def _derivative(
    term: dfx.AbstractTerm, t: Array, y: Y, args: Args, order: int
) -> PyTree[Array]:
    check_time_driven(term)
    return derivative_and_field(term, t, y, args, order)[0]


def taylor_coefficients(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args = None, *, order: int
) -> Coefficients:
    r"""Computes the Taylor coefficients of the solution of a differential equation.

    These are $\frac{1}{k!} \frac{\mathrm{d}^k y}{\mathrm{d} t^k}$ for $k = 0, \ldots,
    K$, for the solution of $\frac{\mathrm{d} y}{\mathrm{d} t} = f(t, y)$ that passes
    through the state $y$ at time $t$. The derivatives are total: the first is $f$, and
    the second is $\partial_t f + (\partial_y f) f$. If the vector field has a kink or a
    jump in time at $t$, the coefficients are those of the solution after it.

    !!! example

        ```python
        term = diffrax.ODETerm(lambda t, y, args: -y)
        taylor_coefficients(term, 0.0, jnp.array(1.0), order=3)
        # [1, -1, 1/2, -1/6]
        ```

    **Arguments:**

    - `term`: a term of the form $f(t, y, \text{args})\,\mathrm{d}t$, such as
        `diffrax.ODETerm` or a `diffrax.MultiTerm` of these. `jax.jvp` must be able to
        differentiate its vector field.
    - `t`: the time, a scalar.
    - `y`: the state at that time, a pytree of arrays of floating-point or complex
        dtype.
    - `args`: the arguments of the vector field.
    - `order`: $K$, a positive integer.

    **Returns:**

    A pytree like `y`. Each leaf has a new first axis of size `order + 1`, whose entry
    $k$ is the coefficient of order $k$. Multiply it by $k!$ to get the derivative, or
    use [`diffrax_speedreg.total_derivative`][].

    **Raises:**

    A `ValueError` if `order` is not a positive integer, if `y` has leaves of another
    dtype, if the term is not of the form $f\,\mathrm{d}t$, or if its vector field
    returns something unlike `y`.

    **Cost:** about `order` vector field evaluations, since each matrix product is made
    once for each order. Within loops and branches, it is `order * (order + 1) / 2`
    evaluations.
    """
    order = check_positive_integer(order, "order")
    coefficients = _coefficients(term, as_time(t), as_state(y), args, order)
    return jtu.tree_map(lambda *leaves: jnp.stack(leaves), *coefficients)


def total_derivative(
    term: dfx.AbstractTerm, t: RealScalarLike, y: Y, args: Args = None, *, order: int
) -> PyTree[Array]:
    r"""Computes the K-th time derivative of the solution of a differential equation.

    This is $\frac{\mathrm{d}^K y}{\mathrm{d} t^K}$ for the solution of
    $\frac{\mathrm{d} y}{\mathrm{d} t} = f(t, y)$ that passes through the state $y$ at
    time $t$.

    **Arguments:**

    - `term`, `t`, `y`, `args`, `order`: as for
        [`diffrax_speedreg.taylor_coefficients`][]; $K$ is the `order`.

    **Returns:**

    A pytree like `y`. It does not overflow or underflow if the derivative itself is in
    the range of the dtype, even if the Taylor coefficient or the factorial is not.

    Errors and costs are those of [`diffrax_speedreg.taylor_coefficients`][].
    """
    order = check_positive_integer(order, "order")
    return _derivative(term, as_time(t), as_state(y), args, order)
