"""Fields made of the functions in the table, against nested `jax.jvp`."""

import contextlib

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from tools import coverage

from .helpers import equations, nested_coefficients
from .table import TABLE, UNDIFFERENTIABLE


_time = np.float32(0.23)
_state = np.float32([1.23, -0.71, 0.54, 1.87])
_matrix = np.float32([[3, -5, 2, 1], [-2, 1, 4, -3], [5, 2, -1, 2], [1, 3, -2, -4]]) / 8
_drift = np.float32([0.3, -0.5, 0.7, 1.1])
_entries = {
    f"{group}: {name}": entry
    for group, entries in TABLE.items()
    for name, entry in entries.items()
    if entry.since <= jax.__version_info__
}


def _field(entry, function):
    """The function of a mixture of state and time, and as many mixtures of its
    outputs as there are states."""

    def field(t, y):
        x = _matrix.astype(y.dtype) @ y + _drift.astype(y.dtype) * t
        leaves = map(jnp.ravel, jtu.tree_leaves(entry.applied(function, x)))
        parts = [part for leaf in leaves for part in (leaf.real, leaf.imag)]
        outputs = jnp.concatenate([part.astype(y.dtype) for part in parts])
        angles = np.add.outer(2.0 * np.arange(4), np.arange(outputs.size))
        weights = np.cos(angles + 0.5) / max(outputs.size, 1)
        return jnp.asarray(weights, y.dtype) @ outputs

    return field


def _point(dtype):
    return jnp.asarray(_time, dtype), jnp.asarray(_state, dtype)


def _primitives_of(entry):
    with _promotion(entry):
        field = _field(entry, entry.function)
        jaxpr = jax.make_jaxpr(field)(*_point(float)).jaxpr
        return {eqn.primitive.name for eqn in equations(jaxpr)}


def _promotion(entry):
    stack = contextlib.ExitStack()
    if not entry.strict:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


def _evaluate(function, *args, compiled):
    """Operations one by one are compiled once for all functions; but loops would be
    compiled whenever they are met."""
    if compiled:
        return jax.jit(function)(*args)
    with jax.disable_jit():
        return function(*args)


def _coefficients(entry, order, dtype, compiled):
    field = _field(entry, entry.function)
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    return _evaluate(
        lambda t, y: dsr.taylor_coefficients(term, t, y, order=order),
        *_point(dtype),
        compiled=compiled,
    )


def _expected(entry, compiled):
    field = _field(entry, entry.reference or entry.function)
    return _evaluate(
        lambda t, y: nested_coefficients(field, t, y, entry.order),
        *_point(jnp.float64),
        compiled=compiled,
    )


def _error(actual, expected):
    """Relative to the largest element of each coefficient."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    scale = 1e-3 + np.abs(expected).max(axis=1)
    return (np.abs(actual - expected).max(axis=1) / scale).max()


def _sampled(names, step=4):
    """All of them, of which but a sample is tried where time is short."""
    return [
        name if i % step == 0 else pytest.param(name, marks=pytest.mark.thorough)
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", _sampled(_entries))
def test_expansion(name):
    entry = _entries[name]
    compiled = not _primitives_of(entry).isdisjoint(_compiled)
    with _promotion(entry):
        expected = _expected(entry, compiled)
        actual = _coefficients(entry, entry.order, jnp.float64, compiled)
        assert np.isfinite(expected).all()
        assert actual.dtype == jnp.float64
        assert _error(actual, expected) < entry.tolerance * 2e-12
        if entry.single:
            single = _coefficients(entry, min(entry.order, 3), jnp.float32, compiled)
            assert single.dtype == jnp.float32
            assert _error(single, actual[: len(single)]) < entry.tolerance * 1e-3


_compiled = {"cond", "scan", "shard_map", "while"}


@pytest.mark.parametrize("name", UNDIFFERENTIABLE)
def test_not_differentiable(name):
    entry = UNDIFFERENTIABLE[name]
    field = _field(entry, entry.function)
    with pytest.raises(Exception, match="(?i)differentiat|gradient|JVP|jvp"):
        with _promotion(entry):
            nested_coefficients(field, *_point(float), 3)


def test_page_is_right():
    assert coverage.PAGE.read_text() == coverage.page()
