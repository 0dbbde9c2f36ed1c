"""Unknown dynamics, learned from pairs of states: data, solvers, files and tables."""

import json
from argparse import Namespace
from math import exp
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from experiments import (
    brusselator,
    dynamics,
    dynamics_report,
    dynamics_training,
    midpoints,
    stiff,
    vanderpol,
)
from scipy.integrate import solve_ivp


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

_tasks = pytest.mark.parametrize("module", [stiff, vanderpol, brusselator])


def _stiff_field():
    """The network whose field is the stiff linear system's."""
    matrix = midpoints.of_modes(midpoints.EIGENVALUES) * stiff.TASK.step
    first = jnp.zeros((64, 2)).at[:2].set(jnp.eye(2))
    last = jnp.zeros((2, 64)).at[:, :2].set(matrix)
    field = dynamics.Field.untrained(stiff.TASK, jr.key(0))
    layers: Any = field.network.layers
    return eqx.tree_at(
        lambda f: [p for x in f.network.layers for p in (x.weight, x.bias)],
        field,
        [first, jnp.zeros_like(layers[0].bias), last, jnp.zeros_like(layers[1].bias)],
    )


def test_stiff_data_are_the_exact_solution(key):
    states = dynamics.trajectories(stiff.TASK, key, 3)
    batch: Any = dynamics.pairs(states)
    assert batch.before.shape == (3, stiff.TASK.num_steps, 2)
    expected = midpoints.exact(stiff.TASK.step, batch.before.reshape(-1, 2))
    np.testing.assert_allclose(batch.after.reshape(-1, 2), expected, atol=1e-14)
    assert np.abs(states[:, 0]).max() <= 0.5


@pytest.mark.parametrize("module", [vanderpol, brusselator])
def test_data_solve_the_equation(module, key):
    """Beside SciPy's solver, from the last half of a trajectory on."""
    task = module.TASK
    states = np.asarray(dynamics.trajectories(task, key, 2))
    assert states.shape == (2, task.num_steps + 1, 2)
    assert (states[:, 0] >= task.lowest).all() and (states[:, 0] <= task.highest).all()
    middle = task.num_steps // 2
    for trajectory in states:
        solution = solve_ivp(
            lambda t, y: np.asarray(module.vector_field(t, jnp.asarray(y), None)),
            (0, task.step * (task.num_steps - middle)),
            trajectory[middle],
            method="LSODA",
            rtol=1e-10,
            atol=1e-12,
        )
        np.testing.assert_allclose(trajectory[-1], solution.y[:, -1], atol=1e-6)


def test_adaptive_methods_solve_the_stiff_field(key):
    y = dynamics.trajectories(stiff.TASK, key, 4)[:, 0]
    field = _stiff_field()
    expected = midpoints.exact(stiff.TASK.step, y)
    for name in ("adaptive Dopri5", "adaptive Kvaerno5"):
        advance = dynamics_training.BY_LOSS[name]
        actual = eqx.filter_jit(advance)(field, y)
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_fixed_methods_multiply_modes_by_their_polynomials(key):
    """What a single step of RK4 and of the truncated method makes of each mode."""
    y = jr.normal(key, (5, 2))
    field = eqx.tree_at(lambda f: f.network, _stiff_field(), replace_fn=_slower)
    z = 1e-3 * midpoints.EIGENVALUES * stiff.TASK.step
    fourth = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    second = 1 + z + z**2 / 2
    for solver, multipliers in (
        (dynamics.RK4(), fourth),
        (dsr.TaylorLagrangeSolver(2), second),
    ):
        actual = dynamics.fixed(solver)(field, y)
        expected = y @ midpoints.of_modes(multipliers).T
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def _slower(network):
    return eqx.tree_at(
        lambda n: n.layers[-1].weight, network, replace_fn=lambda w: 1e-3 * w
    )


def test_rk4_has_order_4():
    term = dfx.ODETerm(lambda t, y, args: y * jnp.cos(t))
    errors = []
    for steps in (10, 20):
        problem = dsr.InitialValueProblem(term, jnp.ones(1), 0.0, 2.0)
        solution = dsr.solve_fixed(problem, dynamics.RK4(), steps)
        errors.append(abs(float(dsr.final_state(solution)[0]) - exp(np.sin(2.0))))
    assert 3.7 < np.log2(errors[0] / errors[1]) < 4.3


def test_fast_mode_that_fixed_steps_can_reach():
    """What the docstring of the experiment says."""
    z = np.linspace(-4, 0, 100_001)
    fourth = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    second = 1 + z + z**2 / 2
    assert fourth.min() == pytest.approx(0.27, abs=5e-3)
    assert second.min() == pytest.approx(0.5, abs=1e-6)


@_tasks
def test_networks_are_those_of_the_paper(module):
    field = dynamics.Field.untrained(module.TASK, jr.key(0))
    midpoint = module.TASK.midpoint(jr.key(1))
    sizes = [layer.weight.shape for layer in field.network.layers]
    inner = [layer.weight.shape for layer in midpoint.mlp.layers]
    if module is stiff:
        assert sizes == [(64, 2), (2, 64)]
        assert inner == [(16, 2), (2, 16)]
    else:
        assert sizes == [(64, 2), (64, 64), (2, 64)]
        assert inner == [(16, 2), (16, 16), (4, 16)]
    # A field close to zero: what comes of a step is close to where it started.
    y = jnp.ones((3, 2))
    advanced = dynamics.fixed(dsr.TaylorLagrangeSolver(2, midpoint))(field, y)
    assert 0 < jnp.abs(advanced - y).max() < 0.1


def _result(method, seconds, error):
    return dynamics_report.Result(
        method,
        steps=20,
        test_error=error,
        field_error=2 * error,
        rollout_error=0.5,
        nfe=31.0,
        step_seconds=seconds / 20,
        training_seconds=seconds,
        first_seconds=3.0,
        error_by_epoch=[1.0, error],
        loss_by_epoch=[1.0, 0.5],
        seconds_by_epoch=[1.0, 2.0],
        times=np.linspace(0, 1, 3),
        exact=np.arange(12.0).reshape(2, 3, 2),
        predicted=np.arange(12.0).reshape(2, 3, 2),
    )


@_tasks
def test_table_and_picture_from_files(module, tmp_path):
    assert module.table(tmp_path) is None
    name = module.TASK.name
    outcomes = {
        "adaptive Dopri5": _result("adaptive Dopri5", 600.0, 1e-5),
        "RK4": _result("RK4", 30.0, 4e-5),
        "truncated Taylor": "Training diverged: the loss is nan at step 3.",
        "Taylor-Lagrange": _result("Taylor-Lagrange", 20.0, 2e-6),
    }
    for method, outcome in outcomes.items():
        path = tmp_path / dynamics_report.file_name(name, method)
        dynamics_report.save(path, Namespace(seed=0), outcome)
    header, _, baseline, rk4, truncated, ours, *_ = module.table(tmp_path).splitlines()
    assert header.count("|") == ours.count("|") == truncated.count("|")
    assert "30.0x" in ours and "1 / 20" in ours and "2e-06" in ours
    assert "20.0x" in rk4 and "1.0x" in baseline
    assert "the loss is nan at step 3" in truncated
    assert f"`python -m experiments.{name} Taylor-Lagrange`" in ours
    assert ("609.8 s" in baseline) == (module is stiff)
    picture = tmp_path / "picture.png"
    results = [r for r in outcomes.values() if not isinstance(r, str)]
    dynamics_report.draw(results, picture)
    assert picture.stat().st_size > 10_000


def test_files_of_predictions_that_blew_up(tmp_path):
    result = _result("RK4", 1.0, 1e-3)
    predicted = result.predicted.copy()
    predicted[1, 2] = np.inf
    path = tmp_path / "a.json"
    blown = result._replace(predicted=predicted, rollout_error=float("nan"))
    dynamics_report.save(path, Namespace(seed=0), blown)
    loaded = dynamics_report.load(path)
    assert isinstance(loaded, dynamics_report.Result)
    assert np.isnan(loaded.predicted[1, 2]).all() and np.isnan(loaded.rollout_error)
    np.testing.assert_array_equal(loaded.predicted[0], predicted[0])
    assert loaded.error_by_epoch == result.error_by_epoch


def _options(monkeypatch, module, *options):
    monkeypatch.setattr("sys.argv", ["experiment", *map(str, options)])

    def main():
        # Optax mixes integers and floats.
        with jax.numpy_dtype_promotion("standard"):
            module.main()

    return main


@_tasks
def test_unknown_method(module, monkeypatch, capsys, tmp_path):
    main = _options(monkeypatch, module, "RK5", "--output", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main()
    message = capsys.readouterr().err
    assert "the methods are adaptive Dopri5, adaptive Kvaerno5, RK4" in message
    assert "but got 'RK5'" in message


def test_quick(monkeypatch, capsys, tmp_path):
    """Two methods, from the command line to the table."""
    methods = "RK4", "Taylor-Lagrange"
    _options(monkeypatch, stiff, *methods, "--quick", "--output", tmp_path)()
    for method in methods:
        path = tmp_path / dynamics_report.file_name("stiff", method)
        outcome = dynamics_report.load(path)
        assert isinstance(outcome, dynamics_report.Result)
        assert outcome.steps == dynamics_training.QUICK_STEPS
        assert outcome.test_error == outcome.error_by_epoch[-1] > 0
        assert json.loads(path.read_text())["options"]["seed"] == "0"
    assert "`python -m experiments.stiff RK4 --quick`" in capsys.readouterr().out
    assert (tmp_path / "stiff.png").stat().st_size > 10_000


def test_divergence_is_recorded(monkeypatch, tmp_path):
    rate = ("--learning-rate", "1e38")
    _options(monkeypatch, stiff, "RK4", "--quick", *rate, "--output", tmp_path)()
    outcome = dynamics_report.load(tmp_path / "stiff-rk4.json")
    assert isinstance(outcome, str) and "Training" in outcome
    table = stiff.table(tmp_path)
    assert table is not None and outcome in table
