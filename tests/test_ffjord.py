"""The experiment on densities: its command line, its files, its table."""

import json
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments import ffjord, flow_report

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


def _run(*options, **environment):
    return run("experiments.ffjord", *options, environment=environment)


def _result(method, nll=2.0, nfe=61.0, partial=False, planar=True):
    points = flow_report.POINTS
    return flow_report.Result(
        method,
        nll,
        own_nll=nll + 0.01,
        nfe=nfe,
        solve_seconds=2e-3,
        step_seconds=3e-3,
        training_seconds=4.0,
        training_samples=4327 if partial else None,
        partial=partial,
        nfe_by_epoch=[31.0, nfe],
        loss_by_epoch=[4.0, nll],
        log_density=np.zeros((points, points)).tolist() if planar else None,
        samples=np.zeros((10, 2)).tolist() if planar else None,
    )


def _options(*words):
    """Those of a command line."""
    with mock.patch("sys.argv", ["ffjord", *map(str, words)]):
        return ffjord.arguments()


def _save(folder, task, method, outcome, *words):
    options = _options(method, "--task", task, *words, "--output", folder)
    flow_report.save(options, method, outcome)


def test_help():
    result = _run("--help")
    assert result.returncode == 0
    for option in ("task", "seed", "epochs", "full", "quick", "lambda", "output"):
        assert f"--{option}" in result.stdout


def test_unknown_method(tmp_path):
    result = _run("plane", "--output", tmp_path)
    assert result.returncode == 2
    assert (
        "the methods are plain, R_2, R_3, R_4, RNODE, Taylor-Lagrange" in result.stderr
    )
    assert "but got 'plane'" in result.stderr


def test_unknown_task(tmp_path):
    result = _run("plain", "--task", "moon", "--output", tmp_path)
    assert result.returncode == 2
    assert "invalid choice: 'moon'" in result.stderr


def test_missing_data(tmp_path):
    folder = tmp_path / "miniboone"
    folder.mkdir()
    (folder / "maf_train_normalised.npy").write_bytes(b"")
    result = _run(
        *("plain", "--task", "miniboone", "--output", tmp_path),
        DIFFRAX_SPEEDREG_DATA=str(tmp_path),
    )
    assert result.returncode == 1
    assert "error: These files of miniboone are missing" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("method", ffjord.METHODS)
def test_quick(tmp_path, method):
    result = _run(method, "--quick", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    (run,) = flow_report.load(tmp_path, "moons", ffjord.METHODS).values()
    outcome = run.outcome
    assert isinstance(outcome, flow_report.Result) and outcome.method == method
    # That of the base, to which the untrained flow is near, is larger.
    assert outcome.nll < 4
    assert outcome.nfe >= 7 and len(outcome.nfe_by_epoch) == 1
    adaptive = method != "Taylor-Lagrange"
    assert abs(outcome.own_nll - outcome.nll) < (1e-4 if adaptive else 0.1)
    assert f"experiments.ffjord {method} --quick" in result.stdout
    assert (tmp_path / "ffjord.png").stat().st_size > 10_000


def test_settings_of_tasks(tmp_path):
    of = lambda *words: _options("plain", "--output", tmp_path, *words)
    full = of("--task", "miniboone", "--full")
    assert (full.width, full.epochs, full.batch_size) == (860, 500, 1000)
    assert full.rate == 1e-3
    reduced = of("--task", "miniboone")
    assert reduced.width < 860
    assert of("--task", "miniboone", "--width", "7").width == 7
    assert of("--quick", "--epochs", "3").epochs == 3


def test_files(tmp_path):
    _save(tmp_path, "moons", "R_2", _result("R_2"), "--epochs", "7")
    _save(tmp_path, "moons", "plain", "Training diverged: it did.")
    runs = flow_report.load(tmp_path, "moons", ffjord.METHODS)
    assert list(runs) == ["plain", "R_2"]
    assert runs["plain"].outcome == "Training diverged: it did."
    assert runs["R_2"].outcome == _result("R_2")
    assert runs["R_2"].options["epochs"] == "7"
    record = json.loads((tmp_path / "ffjord-moons-r_2.json").read_text())
    assert record["versions"].keys() >= {"jax", "diffrax", "diffrax-speedreg"}


def test_command_repeats_a_run(tmp_path):
    words = ["R_2", "--task", "miniboone", "--lambda", "0.5", "--batch-size", "100"]
    options = vars(_options(*words, "--seed", "3", "--output", tmp_path))
    recorded = {k: str(v) for k, v in options.items() if k != "output"}
    again = ffjord.command("R_2", recorded)
    assert again.startswith("python -m experiments.ffjord R_2")
    assert "--width" not in again and "--epochs" not in again
    assert vars(_options(*again.split()[3:], "--output", tmp_path)) == options


def test_table(tmp_path):
    assert ffjord.table(tmp_path) is None
    _save(tmp_path, "moons", "plain", _result("plain"))
    _save(tmp_path, "moons", "R_2", _result("R_2", 2.02, 31.0), "--lambda", "0.5")
    _save(tmp_path, "moons", "RNODE", "Training diverged: it did.")
    text = ffjord.table(tmp_path)
    assert text is not None
    lines = [line for line in text.splitlines() if line.startswith("| moons")]
    plain, speed, rnode = ([c.strip() for c in s.split("|")[1:-1]] for s in lines)
    assert plain[2:5] == ["5 epochs, batch 256, width 64", "2.000", "61"]
    assert speed[3:5] == ["2.020 (+1.0 %)", "31 (0.51 of plain's)"]
    assert speed[-1] == ("`python -m experiments.ffjord R_2 --lambda 0.5`")
    assert rnode[3] == "Training diverged: it did."
    assert "a part of the official training split" not in text
    outcome = _result("plain", 20.0, 100.0, partial=True, planar=False)
    _save(tmp_path, "miniboone", "plain", outcome)
    text = ffjord.table(tmp_path)
    assert text is not None
    assert "unverified" in text
    assert "trained on 4327 samples, a part of the official training split" in text


def test_picture(tmp_path):
    _save(tmp_path, "moons", "plain", _result("plain"))
    _save(tmp_path, "moons", "RNODE", "Training diverged: it did.")
    _save(tmp_path, "pinwheel", "R_2", _result("R_2"))
    ffjord.show(tmp_path)
    assert (tmp_path / "ffjord.png").stat().st_size > 10_000


def test_optimizers():
    """Rates over a training of a thousand steps, from Adam's for a steady gradient."""

    def rates(optimizer):
        params = jnp.zeros(())
        update = jax.jit(optimizer.update)
        state, seen = optimizer.init(params), []
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(1000):
                change, state = update(jnp.ones(()), state, params)
                seen.append(-float(change))
        return np.array(seen)

    taynode = rates(ffjord.taynode_optimizer(1e-3, 1000))
    np.testing.assert_allclose(taynode[[1, 598]], 1e-3, rtol=1e-4)
    np.testing.assert_allclose(taynode[[602, 848]], 1e-4, rtol=1e-4)
    np.testing.assert_allclose(taynode[[852, 999]], 1e-5, rtol=1e-4)
    taylor_lagrange = rates(ffjord.taylor_lagrange_optimizer(1e-3, 1000))
    np.testing.assert_allclose(taylor_lagrange[[1, 623]], 1e-3, rtol=1e-4)
    np.testing.assert_allclose(taylor_lagrange[[627, 999]], 1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "make", (ffjord.taynode_optimizer, ffjord.taylor_lagrange_optimizer)
)
def test_optimizers_decay_weights(make):
    optimizer = make(1e-2, 100)
    params = jnp.full((), 3.0)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jnp.zeros(()), optimizer.init(params), params)
    updated: Any = optax.apply_updates(params, updates)
    assert updated < params
