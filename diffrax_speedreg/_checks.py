"""What the public interfaces ask of their arguments, and how they say so."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree


def check_order(order: Any, name: str = "order") -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, such as `{name}=3`, but got "
            f"{order!r}."
        )


def as_state(y: PyTree[Any]) -> PyTree[Array]:
    """Checks that all leaves are arrays of real or complex numbers."""

    def check(path: Any, leaf: Any) -> Array:
        numeric = isinstance(
            leaf, jax.Array | np.ndarray | np.generic | float | complex
        )
        if not numeric or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                "The state must consist of floating-point (or complex) arrays, but "
                f"`y{jtu.keystr(path)}` is {_short(leaf)}. Convert it, for example "
                "by `y.astype(float)`; pass what does not evolve through `args`."
            )
        return jnp.asarray(leaf)

    if not jtu.tree_leaves(y):
        raise ValueError(f"The state has no arrays: got {y!r}.")
    return jtu.tree_map_with_path(check, y)


def check_derivative(derivative: PyTree[Any], y: PyTree[Array]) -> None:
    """Checks that a vector field gives what can be added to the state."""
    structure, expected = jtu.tree_structure(derivative), jtu.tree_structure(y)
    if structure != expected:
        raise ValueError(
            "The vector field must return a pytree of the same structure as the "
            f"state. It returned {structure}, but the state is {expected}."
        )

    def check(path: Any, dy: Any, leaf: Any) -> None:
        if dy.shape != leaf.shape or dy.dtype != leaf.dtype:
            raise ValueError(
                "The vector field must return arrays of the shapes and dtypes of the "
                f"state. At `y{jtu.keystr(path)}` it returned {_short(dy)}, but the "
                f"state is {_short(leaf)}."
            )

    jtu.tree_map_with_path(check, derivative, y)


def check_time_driven(term: Any) -> None:
    """Checks that a term is of the form `vf(t, y, args) dt`."""
    if not isinstance(term, dfx.AbstractTerm):
        raise ValueError(
            f"Expected a Diffrax term, but got {term!r}. Wrap a vector field "
            "`f(t, y, args)` as `diffrax.ODETerm(f)`."
        )
    # `ControlTerm.to_ode()` is an `ODETerm` that holds the control: look no deeper.
    opaque = (dfx.ODETerm, dfx.ControlTerm, dfx.AbstractBrownianPath)
    parts = jtu.tree_leaves(term, is_leaf=lambda x: isinstance(x, opaque))
    driven = [p for p in parts if isinstance(p, opaque[1:])]
    time = jnp.zeros(())
    control = eqx.filter_eval_shape(term.contr, time, time)
    if driven or any(leaf.shape != () for leaf in jtu.tree_leaves(control)):
        culprit = driven[0] if driven else term
        raise ValueError(
            "The term must be driven by time, that is of the form `f(t, y, args) dt`, "
            f"but got {type(culprit).__name__}, which is driven by a path. Stochastic "
            "differential equations have no Taylor series; for a differentiable "
            "control use `diffrax.ControlTerm(...).to_ode()`."
        )


def _short(leaf: Any) -> str:
    return eqx.tree_pformat(leaf, struct_as_array=True)
