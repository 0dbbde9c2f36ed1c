"""What a solver sees of the equation in one step."""

from collections.abc import Callable
from typing import TypeAlias

import diffrax as dfx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from .._checks import check_like_state
from .._custom_types import Args, RealScalarLike
from .correction import AbstractCorrection


StepField: TypeAlias = Callable[
    [RealScalarLike, PyTree[Array]], tuple[PyTree[Array], None]
]


def step_field(terms: dfx.AbstractTerm, control: PyTree, args: Args) -> StepField:
    """The derivative of the state by the fraction of the step that has been made.

    The step size and the direction of time are part of it. (An expansion of `terms.vf`
    along `(1, f)` would be of order 1 for a solve that runs backwards, in which `terms`
    runs in negative time.)
    """

    def field(t: RealScalarLike, y: PyTree[Array]) -> tuple[PyTree[Array], None]:
        dy = terms.vf_prod(t, y, args, control)
        return jtu.tree_map(_with_precision_of, y, dy), None

    return field


def _with_precision_of(state: Array, dy: Array) -> Array:
    """Where time has a higher precision than the state.

    Complex numbers are left for the check of the field: no real part is as good.
    """
    if jnp.iscomplexobj(dy) and not jnp.iscomplexobj(state):
        return dy
    return dy.astype(state.dtype)


def corrected(
    correction: AbstractCorrection,
    t0: RealScalarLike,
    t1: RealScalarLike,
    control: PyTree,
    y0: PyTree[Array],
    dy: PyTree[Array],
    args: Args,
) -> PyTree[Array]:
    """Asks a correction, in the direction of time that the user knows."""
    # Diffrax runs backward solves in negative time.
    backward = jtu.tree_leaves(control)[0] < 0
    direction = jnp.where(backward, -1, 1).astype(jnp.result_type(t0))
    value = correction(direction * t0, direction * (t1 - t0), y0, dy, args)
    value = jtu.tree_map(jnp.asarray, value)
    check_like_state(value, y0, "The correction", dtypes=False)
    return jtu.tree_map(lambda c, y: c.astype(y.dtype), value, y0)
