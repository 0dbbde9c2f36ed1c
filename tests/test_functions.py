"""Fields made of the functions in the table, against nested `jax.jvp`."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import numpy as np
import pytest
from diffrax_speedreg._engine import registry
from tools import coverage

from .helpers import nested_coefficients
from .helpers.table import UNDIFFERENTIABLE
from .helpers.table.fields import (
    ALL,
    ENTRIES,
    evaluate,
    field,
    nested,
    point,
    primitives,
    promotion,
    references,
)


_references = references()
# The thorough tests try all of them, and the default tests a sample, which has at least
# one case of each rule.
_sample = {
    *list(ENTRIES)[::5],
    "jax.numpy, indexing: at[].get(mode='fill')",
    "Loops: scan(constant at first)",
    "Loops: vmap of while_loop",
}


def _sampled(names):
    return [
        name if name in _sample else pytest.param(name, marks=pytest.mark.thorough)
        for name in names
    ]


def _coefficients(entry, order, dtype):
    function: Any = field(entry, entry.function)
    term = dfx.ODETerm(lambda t, y, args: function(t, y))
    return evaluate(
        entry, lambda t, y: dsr.taylor_coefficients(term, t, y, order=order), dtype
    )


def _error(actual, expected):
    """Computes the error relative to the largest element of each coefficient."""
    actual, expected = np.asarray(actual, float), np.asarray(expected, float)
    scale = 1e-3 + np.abs(expected).max(axis=1)
    return (np.abs(actual - expected).max(axis=1) / scale).max()


@pytest.mark.all_sets
@pytest.mark.parametrize("name", _sampled(ENTRIES))
def test_expansion(name):
    entry = ENTRIES[name]
    expected = _references[name]
    assert expected.shape == (entry.order + 1, 4)
    actual = _coefficients(entry, entry.order, jnp.float64)
    assert actual.dtype == jnp.float64
    assert _error(actual, expected) < entry.tolerance * 2e-12
    if entry.single:
        single = _coefficients(entry, min(entry.order, 3), jnp.float32)
        assert single.dtype == jnp.float32
        assert _error(single, expected[: len(single)]) < entry.tolerance * 1e-3


# `python -m tools.references` computes all of them.
@pytest.mark.thorough
@pytest.mark.parametrize("name", list(ENTRIES)[::4])
def test_reference(name):
    entry = ENTRIES[name]
    computed = nested(entry)
    assert np.isfinite(computed).all()
    assert _error(_references[name], computed) < entry.tolerance * 2e-12


def test_references_are_those_of_the_table():
    assert set(_references) == set(ALL), "run `python -m tools.references`"


@pytest.mark.thorough
def test_sample_has_all_rules():
    """The default tests use all rules that the whole table uses."""
    everywhere, sampled = (
        set().union(*(primitives(ENTRIES[name]) for name in names))
        for names in (ENTRIES, _sample)
    )
    names = {primitive.name for primitive in registry._rules}
    with_rules = everywhere & (names | set(registry._rules_by_name))
    assert with_rules - sampled == set()
    assert len(with_rules) > 30


@pytest.mark.parametrize("name", UNDIFFERENTIABLE)
def test_not_differentiable(name):
    entry = UNDIFFERENTIABLE[name]
    function = field(entry, entry.function)
    with pytest.raises(Exception, match="(?i)differentiat|gradient|JVP|jvp"):
        with promotion(entry):
            nested_coefficients(function, *point(float), 3)


def test_page_is_right():
    assert coverage.PAGE.read_text() == coverage.page()
