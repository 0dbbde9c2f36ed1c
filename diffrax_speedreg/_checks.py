"""Checks of the arguments of the public functions, with their error messages."""

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
    return check_integer(value, name, 1)


def check_integer(value: Any, name: str, least: int) -> int:
    try:
        integer = operator.index(value)
    except TypeError:
        integer = least - 1
    if isinstance(value, bool | np.bool_) or integer < least:
        wanted = "a positive integer" if least == 1 else f"an integer, at least {least}"
        raise ValueError(
            f"`{name}` must be {wanted}, such as `{name}=3`, but got {value!r}."
        )
    return integer


def check_that(okay: bool, name: str, wanted: str, value: Any) -> None:
    """Raises an error, which names the valid values, if an argument is not `okay`."""
    if not okay:
        raise ValueError(f"`{name}` must be {wanted}, but got {_short(value)}.")


def check_is(value: Any, kind: type, name: str, example: str) -> None:
    check_that(
        isinstance(value, kind),
        name,
        f"a `{kind.__name__}`, such as `{example}`",
        value,
    )


def check_callable(value: Any, name: str, signature: str) -> None:
    check_that(callable(value), name, f"a function `{signature}`", value)


def check_key(value: Any, name: str = "key") -> None:
    """Checks that a value is a single random key, of the old kind or the new kind."""
    okay = isinstance(value, jax.Array | np.ndarray) and (
        value.ndim == 0
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        else value.ndim == 1 and value.dtype == jnp.uint32
    )
    check_that(okay, name, "one random key, such as `jax.random.key(0)`", value)


def check_real_scalar(value: Any, name: str) -> None:
    okay = eqx.is_array_like(value) and jnp.ndim(value) == 0
    check_that(okay and not jnp.iscomplexobj(value), name, "a real scalar", value)


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
    """Converts a time. A Python integer becomes a number without a fixed precision."""
    check_that(eqx.is_array_like(t), "t", "a scalar", t)
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
    """Checks that a pytree has the structure and shapes of the state.

    With `dtypes` it must have the same dtypes. Otherwise it must only be real where the
    state is real.
    """
    structure, expected = jtu.tree_structure(tree), jtu.tree_structure(y)
    if structure != expected:
        raise ValueError(
            f"{name} must be a pytree of the same structure as the state. It is "
            f"{structure}, but the state is {expected}."
        )

    def check(path: Any, leaf: Any, state: Array) -> None:
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            same_dtype = False
        elif dtypes:
            same_dtype = leaf.dtype == state.dtype
        else:
            same_dtype = jnp.iscomplexobj(state) or not jnp.iscomplexobj(leaf)
        if jnp.shape(leaf) != state.shape or not same_dtype:
            wanted = "shapes and dtypes" if dtypes or not same_dtype else "shapes"
            raise ValueError(
                f"{name} must have arrays of the {wanted} of the state. At "
                f"`y{jtu.keystr(path)}` it is {_short(leaf)}, but the state is "
                f"{_short(state)}."
            )

    jtu.tree_map_with_path(check, tree, y)


def check_solver(solver: Any) -> None:
    """Checks that a value is a solver, and not the class of one."""
    if isinstance(solver, type):
        raise ValueError(
            f"`solver` must be an instance of a Diffrax solver, but got the class "
            f"`{solver.__name__}`. Call it: `{solver.__name__}(...)`."
        )
    wanted = "a Diffrax solver, such as `diffrax.Tsit5()`"
    check_that(isinstance(solver, dfx.AbstractSolver), "solver", wanted, solver)


def check_not_backsolve(y0: PyTree[Any]) -> None:
    """Checks that a solve is not the backward one of `BacksolveAdjoint`.

    The state of that solve holds the state and the adjoints of the state and the term.
    """
    is_term = lambda x: isinstance(x, dfx.AbstractTerm)
    if any(map(is_term, jtu.tree_leaves(y0, is_leaf=is_term))):
        raise ValueError(
            "A learned midpoint has learned the equation's own states, and "
            "`diffrax.BacksolveAdjoint` solves for larger ones. Use another adjoint, "
            "such as `diffrax.RecursiveCheckpointAdjoint()`; or no midpoint."
        )


def check_time_driven(term: Any) -> None:
    """Checks that a term is of the form `vf(t, y, args) dt`."""
    if not isinstance(term, dfx.AbstractTerm):
        raise ValueError(
            f"Expected a Diffrax term, but got {term!r}. Wrap a vector field "
            "`f(t, y, args)` as `diffrax.ODETerm(f)`."
        )
    # `ControlTerm.to_ode()` is an `ODETerm` that holds the control: do not look inside.
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
    contr: Callable[[Array, Array], PyTree[ArrayLike]], *, otherwise: bool
) -> bool:
    """Returns whether a control is a multiple of `t1 - t0`, or `otherwise` if that is
    traced."""
    intervals = ((0.0, 1.0), (2.0, 3.0), (0.25, 0.75))
    with jax.ensure_compile_time_eval():
        controls = [
            # Diffrax gives arrays to the control.
            jtu.tree_leaves(contr(jnp.asarray(t0), jnp.asarray(t1)))
            for t0, t1 in intervals
        ]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in sum(controls, [])):
        return otherwise
    numbers = [[np.asarray(leaf) for leaf in leaves] for leaves in controls]
    return all(
        unit.shape == () and np.allclose([later, 2 * half], unit)
        for unit, later, half in zip(*numbers)
    )


def _short(leaf: Any) -> str:
    return eqx.tree_pformat(leaf, struct_as_array=True)
