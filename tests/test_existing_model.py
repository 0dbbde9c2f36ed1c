"""The speed, added to a model that somebody has already."""

from argparse import Namespace
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import numpy as np
import pytest
from experiments import existing_model, records
from experiments.existing_model import Func, NeuralODE, Outcome

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


def test_data(key):
    """y - log(1 + y), summed over both parts, is conserved."""
    data = existing_model.oscillators(5, key)
    assert data.ys.shape == (5, existing_model.TIMES, 2)
    ys = np.asarray(data.ys)
    energy = np.sum(ys - np.log1p(ys), axis=2)
    np.testing.assert_allclose(energy, np.tile(energy[:, :1], 100), rtol=2e-3)


def test_losses(key):
    """They differ by the speed, which is what integration beside the state gives."""
    data = existing_model.oscillators(1, key)
    ts, ys = data.ts, data.ys[0]
    model = NeuralODE(Func(key))
    plain = existing_model.loss(model, ts, ys)
    speedy = existing_model.loss_with_speed(model, ts, ys, weight=10.0)
    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(model.func), 3)
    problem = dsr.InitialValueProblem(term, term.init(ys[0]), ts[0], ts[-1])
    solution = dsr.solve_adaptive(problem, dfx.Tsit5(), 1e-6)
    _, speed = term.split(dsr.final_state(solution))
    assert speed > 0
    np.testing.assert_allclose(speedy - plain, 10 * speed, rtol=2e-2)


def test_changed_lines():
    changed = [x for x in existing_model.changed_lines().splitlines() if x[0] in "+-"]
    removed, *added = changed
    assert removed.startswith("-    return") and len(added) == 2
    assert all(line.startswith("+    ") for line in added)
    assert "dsr.Speed(3)" in added[0] and "weight * speed" in added[1]


def _outcomes():
    states = [[1.0, 2.0]] * 2
    rest = ([3.0, 4.0], [2.0, 1.0], [0.0, 1.0], states, states, [1.0])
    figures = (("plain", 0.0, 4e-3, 80.0, 300.0), ("R_3", 0.5, 4.1e-3, 70.0, 150.0))
    return [Outcome(*figure, 0.02, 9.0, *rest) for figure in figures]


def test_table(tmp_path):
    assert existing_model.table(tmp_path) is None
    options = Namespace(seed=0, epochs=10, quick=False, regularization=0.5)
    for outcome in _outcomes():
        name = existing_model.file_name(outcome.method, outcome.regularization)
        records.save_figures(tmp_path / name, options, outcome._asdict())
    name = existing_model.file_name("R_3", 9.0)
    records.save_figures(tmp_path / name, options, "Training diverged")
    text = existing_model.table(tmp_path)
    assert text is not None
    assert existing_model.changed_lines() in text
    plain, speed, failure = [x for x in text.splitlines() if x[:1] == "|"][2:]
    assert plain.startswith("| plain ") and "4.00e-03" in plain and "80.0" in plain
    assert speed.startswith("| R_3, λ = 0.5 ") and "4.10e-03" in speed
    assert "experiments.existing_model R_3 --lambda 0.5`" in speed
    assert "Training diverged" in failure
    existing_model.draw(_outcomes(), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def _run(*options):
    return run("experiments.existing_model", *options)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--lambda", "-1"], "--lambda: must be a nonnegative float, but got '-1'"),
        (["R_4"], "the methods are plain, R_3, truth, but got 'R_4'"),
        (["--epochs", "x"], "--epochs: must be a positive int, but got 'x'"),
    ],
)
def test_bad_options(options, message):
    result = _run(*options)
    assert result.returncode == 2
    assert message in result.stderr


def test_quick_run(tmp_path):
    result = _run("all", "--quick", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    found: Any = existing_model.load_outcomes(tmp_path)
    outcomes = {outcome.method: outcome for outcome in found.values()}
    assert list(outcomes) == ["plain", "truth", "R_3"]
    assert outcomes["truth"].error < 1e-3 and not outcomes["truth"].nfe_by_epoch
    for outcome in outcomes.values():
        assert outcome.tight_nfe > outcome.nfe > 6
        assert len(outcome.predicted) == len(outcome.times) == existing_model.TIMES
    assert (tmp_path / "existing_model.png").stat().st_size > 10_000
    assert existing_model.changed_lines() in result.stdout
