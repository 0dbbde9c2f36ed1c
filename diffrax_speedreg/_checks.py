"""What the public interfaces ask of their arguments, and how they say so."""

import operator
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from ._custom_types import RealScalarLike


def check_positive_integer(value: Any, name: str) -> int:
    try:
        integer = operator.index(value)
    except TypeError:
        integer = 0
    if isinstance(value, bool) or integer < 1:
        raise ValueError(
            f"`{name}` must be a positive integer, such as `{name}=3`, but got "
            f"{value!r}."
        )
    return integer


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


def as_time(t: RealScalarLike) -> Array:
    """An integer of Python becomes a number that adapts to the state's precision."""
    time = jnp.asarray(float(t) if isinstance(t, int) else t)
    if time.ndim > 0:
        raise ValueError(
            f"`t` must be a scalar, but has the shape {time.shape}. Use `jax.vmap` for "
            "several times."
        )
    return time


def check_like_state(
    tree: PyTree[Any], y: PyTree[Array], name: str, *, dtypes: bool = True
) -> None:
    """Checks that something has the structure and shapes of the state.

    And its dtypes: or else at least no complex numbers where the state is real.
    """
    structure, expected = jtu.tree_structure(tree), jtu.tree_structure(y)
    if structure != expected:
        raise ValueError(
            f"{name} must return a pytree of the same structure as the state. It "
            f"returned {structure}, but the state is {expected}."
        )

    def check(path: Any, leaf: Any, state: Array) -> None:
        if dtypes:
            same_dtype = leaf.dtype == state.dtype
        else:
            same_dtype = jnp.iscomplexobj(state) or not jnp.iscomplexobj(leaf)
        if leaf.shape != state.shape or not same_dtype:
            wanted = "shapes and dtypes" if dtypes or not same_dtype else "shapes"
            raise ValueError(
                f"{name} must return arrays of the {wanted} of the state. At "
                f"`y{jtu.keystr(path)}` it returned {_short(leaf)}, but the state is "
                f"{_short(state)}."
            )

    jtu.tree_map_with_path(check, tree, y)


def check_solver(solver: Any) -> None:
    """Checks that a solver is one, and not its class."""
    if isinstance(solver, type):
        raise ValueError(
            f"`solver` must be an instance of a Diffrax solver, but got the class "
            f"`{solver.__name__}`. Call it: `{solver.__name__}(...)`."
        )
    if not isinstance(solver, dfx.AbstractSolver):
        raise ValueError(
            "`solver` must be a Diffrax solver, such as `diffrax.Tsit5()`, but got "
            f"{solver!r}."
        )


def check_not_backsolve(y0: PyTree[Any]) -> None:
    """Checks that a solve is not the one that `BacksolveAdjoint` makes backwards.

    Its state holds the state, the adjoints of this, and those of the term.
    """
    is_term = lambda x: isinstance(x, dfx.AbstractTerm)
    if any(map(is_term, jtu.tree_leaves(y0, is_leaf=is_term))):
        raise ValueError(
            "A solver with a correction has learned the equation's own states, and "
            "`diffrax.BacksolveAdjoint` solves for larger ones. Use another adjoint, "
            "such as `diffrax.RecursiveCheckpointAdjoint()`; or no correction."
        )


def check_time_driven(term: Any) -> None:
    """Checks that a term is of the form `vf(t, y, args) dt`."""
    if not isinstance(term, dfx.AbstractTerm):
        raise ValueError(
            f"Expected a Diffrax term, but got {term!r}. Wrap a vector field "
            "`f(t, y, args)` as `diffrax.ODETerm(f)`."
        )
    # `ControlTerm.to_ode()` is an `ODETerm` that holds the control: look no deeper.
    opaque = (dfx.ODETerm, dfx.ControlTerm, dfx.AbstractPath)
    parts = jtu.tree_leaves(term, is_leaf=lambda x: isinstance(x, opaque))
    paths = [p for p in parts if isinstance(p, opaque[1:])]
    if any(isinstance(p, dfx.ControlTerm | dfx.AbstractBrownianPath) for p in paths):
        driven_by_time = False
    else:
        driven_by_time = _is_proportional_to_time(term.contr, otherwise=not paths)
    if not driven_by_time:
        raise ValueError(
            "The term must be driven by time, that is of the form `f(t, y, args) dt`, "
            f"but {type(term).__name__} is driven by "
            f"{' and '.join(type(p).__name__ for p in paths) or 'something else'}. "
            "Stochastic differential equations have no Taylor series; for a "
            "differentiable control use `diffrax.ControlTerm(...).to_ode()`."
        )


def _is_proportional_to_time(
    contr: Callable[[float, float], PyTree[ArrayLike]], *, otherwise: bool
) -> bool:
    """Whether a control is a multiple of `t1 - t0`; `otherwise`, if it is traced."""
    intervals = ((0.0, 1.0), (2.0, 3.0), (0.25, 0.75))
    with jax.ensure_compile_time_eval():
        controls = [jtu.tree_leaves(contr(t0, t1)) for t0, t1 in intervals]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in sum(controls, [])):
        return otherwise
    return all(
        np.shape(unit) == () and np.allclose([later, 2 * half], unit)
        for unit, later, half in zip(*controls)
    )


def _short(leaf: Any) -> str:
    return eqx.tree_pformat(leaf, struct_as_array=True)
