"""Ways to compute the K-th total time derivative of the solution of an ODE.

Each is a function `(field, t, y, order) -> dy^K/dt^K`, without factors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
from jax.experimental.jet import jet
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from probdiffeq import probdiffeq


class VectorField(NamedTuple):
    """`autonomous` fields ignore the time."""

    function: Callable[[Float[Array, ""], PyTree[Array]], PyTree[Array]]
    autonomous: bool

    def __call__(self, t: Float[Array, ""], y: PyTree[Array]) -> PyTree[Array]:
        return self.function(t, y)


Contestant: TypeAlias = Callable[
    [VectorField, Float[Array, ""], PyTree[Array], int], PyTree[Array]
]


def speedreg(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    """This package's."""
    term = dfx.ODETerm(lambda t, y, args: field(jnp.asarray(t), y))
    return dsr.total_derivative(term, t, y, order=order)


def nested_jvp(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    """`jax.jvp` of `jax.jvp`, along the solution.

    To begin with the state instead of the field, to differentiate along a polynomial,
    or to hand on all lower derivatives makes no difference to the gradient's time:
    XLA finds what is common to them.
    """

    def differentiate(function: Callable) -> Callable:
        def derivative(t: Array, y: PyTree[Array]) -> PyTree[Array]:
            return jax.jvp(function, (t, y), (jnp.ones_like(t), field(t, y)))[1]

        return derivative

    function: Callable = field
    for _ in range(order - 1):
        function = differentiate(function)
    return function(t, y)


def jet_per_order(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    return jet_first_and_last(field, t, y, order)[1]


def jet_first_and_last(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> tuple[PyTree[Array], PyTree[Array]]:
    """The first and the K-th derivative, by `jax.experimental.jet` once for each order,
    as TayNODE does it.

    The scheme of `sol_recursive` in easy-neural-ode's `mnist.py`: on a flat vector,
    each call gets the derivatives that the one before has found, and one more entry,
    on which only an output depends that is not looked at. There, time is always among
    the state; here it is if the field needs it.
    """
    state, field_of, without_time = _autonomous(field, t, y)
    flat, unravel = ravel_pytree(state)

    def flat_field(flat: Array) -> Array:
        return ravel_pytree(field_of(unravel(flat)))[0]

    series: list[Array] = [jnp.ones_like(flat)]
    for _ in range(order):
        first, rest = jet(flat_field, (flat,), (series,))
        series = [first, *rest]
    first, last = (without_time(unravel(series[k])) for k in (0, order - 1))
    return first, last


def jetexpand_unroll(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    return _probdiffeq(probdiffeq.jetexpand_ode_unroll(num=order), field, t, y, order)


def jetexpand_padded_scan(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    expand = probdiffeq.jetexpand_ode_padded_scan(num=order)
    return _probdiffeq(expand, field, t, y, order)


def jetexpand_doubling(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    """The number of known orders goes from 0 to 2, 6, 14: twice as many, and 2."""
    num_doublings = (order + 1).bit_length() - 1
    expand = probdiffeq.jetexpand_ode_doubling_unroll(num_doublings=num_doublings)
    return _probdiffeq(expand, field, t, y, order)


def jetexpand_via_jvp(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    return _probdiffeq(probdiffeq.jetexpand_ode_via_jvp(num=order), field, t, y, order)


def _probdiffeq(
    expand: Callable[..., Any],
    field: VectorField,
    t: Float[Array, ""],
    y: PyTree[Array],
    order: int,
) -> PyTree[Array]:
    """[probdiffeq](https://github.com/pnkraemer/probdiffeq)'s, by its public interface.

    It keeps the time that it is told fixed. A field that varies with time therefore
    gets it as a part of the state.
    """
    state, field_of, without_time = _autonomous(field, t, y)
    derivatives, _ = expand(probdiffeq.ode_autonomous(field_of), (state,), t=t)
    return without_time(derivatives[order])


def _autonomous(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array]
) -> tuple[PyTree[Array], Callable[[PyTree[Array]], PyTree[Array]], Callable]:
    """A state, a field of it alone, and what takes time out of such a state again."""
    if field.autonomous:
        return y, lambda y: field(t, y), lambda y: y

    def field_of(state: tuple[PyTree[Array], Array]) -> tuple[PyTree[Array], Array]:
        y, t = state
        return field(t, y), jnp.ones_like(t)

    return (y, t), field_of, lambda state: state[0]


CONTESTANTS: dict[str, Contestant] = {
    "speedreg": speedreg,
    "nested jvp": nested_jvp,
    "jet": jet_per_order,
    "jetexpand unroll": jetexpand_unroll,
    "jetexpand scan": jetexpand_padded_scan,
    "jetexpand doubling": jetexpand_doubling,
    "jetexpand jvp": jetexpand_via_jvp,
}
OURS = "speedreg"
# Where these are at their best: doubling takes as long for orders 3 to 5 as for 6, and
# for 7 to 13 as for 14.
ONLY_AT = {"jetexpand doubling": (2, 6)}
