"""Vector fields that are made of the functions in the table."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from ..jaxprs import equations
from ..numerics import nested_coefficients
from .contents import TABLE
from .entry import Entry, Function


# Coefficients by nested `jax.jvp`, written by `python -m tools.references`.
REFERENCES = Path(__file__).with_name("references.npz")

ALL = {
    f"{group}: {name}": entry
    for group, entries in TABLE.items()
    for name, entry in entries.items()
}
# The entries that this release of JAX has.
ENTRIES = {
    name: entry for name, entry in ALL.items() if entry.since <= jax.__version_info__
}

_time = np.float32(0.23)
_state = np.array([1.23, -0.71, 0.54, 1.87], np.float32)
_matrix = np.array([[3, -5, 2, 1], [-2, 1, 4, -3], [5, 2, -1, 2], [1, 3, -2, -4]]) / 8
_drift = np.array([0.3, -0.5, 0.7, 1.1], np.float32)


def field(entry: Entry, function: Function) -> Callable[[Array, Array], Array]:
    """Makes a vector field of an entry.

    The function gets a mixture of state and time. Mixtures of its outputs are the
    entries of the slope.
    """

    def field(t: Array, y: Array) -> Array:
        x: Any = _matrix.astype(y.dtype) @ y + _drift.astype(y.dtype) * t
        leaves = map(jnp.ravel, jtu.tree_leaves(entry.applied(function, x)))
        parts = [part for leaf in leaves for part in (leaf.real, leaf.imag)]
        outputs = jnp.concatenate([part.astype(y.dtype) for part in parts])
        angles = np.add.outer(2.0 * np.arange(4), np.arange(outputs.size))
        weights = np.cos(angles + 0.5) / max(outputs.size, 1)
        return jnp.asarray(weights, y.dtype) @ outputs

    return field


def point(dtype: Any) -> tuple[Array, Array]:
    return jnp.asarray(_time, dtype), jnp.asarray(_state, dtype)


def promotion(entry: Entry) -> contextlib.ExitStack:
    """Context with the promotion of types that the function needs."""
    stack = contextlib.ExitStack()
    if not entry.strict:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


@functools.cache
def primitives(entry: Entry) -> set[str]:
    with promotion(entry):
        jaxpr = jax.make_jaxpr(field(entry, entry.function))(*point(float)).jaxpr
    return {eqn.primitive.name for eqn in equations(jaxpr)}


def evaluate(entry: Entry, function: Callable[..., Any], dtype: Any) -> Any:
    """Evaluates a function of time and state, which is made of the entry's field.

    Single operations are compiled once for all fields, but loops would be compiled each
    time.
    """
    arguments = point(dtype)
    with promotion(entry):
        if not primitives(entry).isdisjoint(_compiled):
            return jax.jit(function)(*arguments)
        with jax.disable_jit():
            return function(*arguments)


_compiled = {"cond", "scan", "shard_map", "while"}


def nested(entry: Entry) -> Float[np.ndarray, "orders 4"]:
    """Computes Taylor coefficients of the entry's field, by nested `jax.jvp`."""
    function = field(entry, entry.reference or entry.function)
    coefficients = evaluate(
        entry,
        lambda t, y: nested_coefficients(function, t, y, entry.order),
        jnp.float64,
    )
    return np.asarray(coefficients)


def references() -> dict[str, Float[np.ndarray, "orders 4"]]:
    """Loads the stored results of `nested`, by the names of the entries."""
    with np.load(REFERENCES) as file:
        names, coefficients = file["names"], file["coefficients"]
    return {
        name: rows[~np.isnan(rows).any(axis=1)]
        for name, rows in zip(names.tolist(), coefficients)
    }
