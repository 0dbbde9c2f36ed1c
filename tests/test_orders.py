"""The study of orders: sweeps of weights, and what is told of them."""

import json
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import orders, toy


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

_z = jnp.linspace(-1, 1, 7)


class _Cubic(eqx.Module):
    """The field t^3, whose solutions are z + t^4 / 4 with third derivative 6 t."""

    def __call__(self, t, y, args):
        return jnp.asarray(t) ** 3 + 0 * y


_cubic: Any = _Cubic()


def test_speed_in_equal_steps():
    z1, speed = orders.solve_with_speed(_cubic, _z, 3)
    np.testing.assert_allclose(z1, _z + 0.25, rtol=1e-12)
    np.testing.assert_allclose(speed, 36 / 3, rtol=1e-6)


def test_counts():
    """As in a solve of one sample: the third derivative decides about Bosh3's steps."""
    counts = toy.count(_cubic, dfx.Bosh3(), _z)
    problem = dsr.InitialValueProblem(dfx.ODETerm(_cubic), _z[2])
    solution = dsr.solve_adaptive(problem, dfx.Bosh3(), toy.TOLERANCE)
    assert counts[2] == 1 + 3 * solution.stats["num_steps"]
    np.testing.assert_allclose(toy.final_states(_cubic, _z), _z + 0.25, atol=1e-5)


def test_weights():
    sweep = orders.weights(3, quick=False)
    np.testing.assert_allclose(sweep, [0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], rtol=1e-12)
    np.testing.assert_allclose(orders.weights(2, quick=True), [0, 10.0])


def test_members_are_trained_apart(key, monkeypatch):
    """The gradient of each is that of its own loss."""
    monkeypatch.setattr(orders, "STEPS", 1)
    monkeypatch.setattr(orders, "NODES", 1)
    ensemble = orders.alike(key, 2)
    sweep = jnp.array([0.0, 0.1])
    loss = orders.loss_of(2, sweep)
    both = eqx.filter_grad(loss)(ensemble, _z, key)

    def alone(field, weight):
        z1, speed = orders.solve_with_speed(field, _z, 2)
        return jnp.mean((z1 - toy.target(_z)) ** 2) + weight * speed

    params = lambda tree: eqx.filter(tree, eqx.is_inexact_array)
    for i, weight in enumerate(sweep):
        field = toy.initial_field(key)
        expected = params(eqx.filter_grad(alone)(field, weight))
        actual = jax.tree_util.tree_map(lambda leaf: leaf[i], params(both.fields))
        assert eqx.tree_equal(actual, expected, rtol=1e-8, atol=1e-8)


def _member(weight, error, nfe):
    return orders.Member(weight, error, 1.0, dict.fromkeys(orders.SOLVERS, nfe))


def test_cheapest_is_not_one_that_learned_nothing():
    plain = _member(0.0, 0.1, 100.0)
    members = [plain, _member(0.1, 0.105, 60.0), _member(1.0, 0.2, 20.0)]
    assert orders.cheapest(members, "Heun") is members[1]
    assert orders.cheapest([plain, _member(0.1, 0.05, 120.0)], "Heun") is plain


def _write(folder, method, **outcome):
    options = dict(epochs="12", seed="3")
    record = dict(options=options, **outcome)
    (folder / orders.file_name(method)).write_text(json.dumps(record))


def test_table_and_picture(tmp_path):
    members = [_member(0.0, 0.1, 100.0), _member(0.1, 0.1, 50.0)]
    result = dict(members=[m._asdict() for m in members], training_seconds=60.0)
    _write(tmp_path, "R_2", result=result)
    _write(tmp_path, "R_4", failure="Training diverged: the loss is nan at step 7.")
    table = orders.table(tmp_path)
    assert table is not None
    assert "| 100.0, 50.0, 0.50 " in table
    assert "`python -m experiments.orders R_2 --seed 3`" in table
    assert "Training diverged" in table
    found = orders.sweeps(tmp_path)
    assert list(found) == ["R_2"] and found["R_2"] == members
    orders.draw(found, tmp_path / "orders.png")
    assert (tmp_path / "orders.png").stat().st_size > 10_000
