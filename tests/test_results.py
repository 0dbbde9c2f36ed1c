"""The page of results, and the tables of which it is made."""

import importlib
import json
from argparse import Namespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from experiments import dynamics_training, gains, mnist, orders, quick, records, results
from experiments.data import DataUnavailable


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


def _record(method, **others):
    trajectory = records.Trajectory(*map(np.array, ([0.0, 1], [[0.0], [1]], [1.0])))
    figures: dict[str, Any] = dict(
        accuracy=0.975,
        nfe=104.2,
        solve_seconds=0.2,
        step_seconds=0.05,
        training_seconds=30.0,
        nfe_by_epoch=[91.0, 104.0],
        loss_by_epoch=[2.0, 1.0],
        trajectory=trajectory,
    )
    return records.Result(method, **(figures | others))


def _options(**others):
    """Those by default, but for others, which the command line might have had."""
    with mock.patch("sys.argv", ["mnist", "--output", "/tmp"]):
        given = vars(mnist.parser().options())
    return Namespace(**(given | dict(epochs=2, resume=True) | others))


def _cells(table, method):
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_page_is_what_the_generator_writes():
    assert results.PAGE.read_text() == results.page(results.RESULTS), (
        "run `python -m experiments.results`"
    )


def test_gains_are_what_the_generator_writes():
    text = results.GAINS.read_text()
    assert text == gains.table(results.RESULTS), "run `python -m experiments.results`"
    assert text.count("→") == 2 * len(gains.COMPARISONS)


def test_every_module_has_a_table(tmp_path):
    """And none where there are no results."""
    assert [module.table(tmp_path) for module in results.modules()] == [None] * len(
        results.MODULES
    )
    assert "\n| " not in results.page(tmp_path)


def test_mnist_table(tmp_path):
    def save(outcome, method, **others):
        options = _options(**others)
        records.save(tmp_path / mnist.file_name(method, options), options, outcome)

    fast = dict(solve_seconds=0.01, training_seconds=3.0, nfe=44.0)
    save(_record("plain"), "plain")
    save(_record("RNODE"), "RNODE")
    save(_record("Taylor-Lagrange", **fast), "Taylor-Lagrange")
    save(_record("Taylor-Lagrange"), "Taylor-Lagrange", penalty=1.0)
    save(_record("quadrature R_K"), "quadrature R_K", order=2, scheme="TayNODE")
    save("Training diverged: the loss is nan at step 7.", "hypersolver")
    table = mnist.table(tmp_path)
    command = "`python -m experiments.mnist {} --epochs 2{}`"
    assert _cells(table, "plain") == (
        ["plain", "reduced", "2", "97.50 %", "104.2", "0.2 s (1)", "30 s (1)"]
        + ["1", "110", "1", "1", "derived", command.format("plain", "")]
    )
    assert _cells(table, "Taylor-Lagrange, penalty 10.0") == (
        ["Taylor-Lagrange, penalty 10.0", "reduced", "2", "97.50 %", "44"]
        + ["0.01 s (0.05)", "3 s (0.1)", "1.0037", "62", "0.0638", "0.0684"]
        + ["derived", command.format("Taylor-Lagrange", "")]
    )
    other = _cells(table, "Taylor-Lagrange, penalty 1.0")
    assert other[-1] == command.format("Taylor-Lagrange", " --penalty 1.0")
    quadrature = _cells(table, "quadrature R_2, λ = 1.0")
    assert quadrature[1] == "TayNODE"
    assert _cells(table, "RNODE, 0.1 and 0.1")[7:12] == ["-"] * 5
    assert "Training diverged" in _cells(table, "hypersolver, penalty 10.0")[3]


def test_mnist_table_without_plain(tmp_path):
    options = _options(scheme="Taylor-Lagrange")
    records.save(
        tmp_path / mnist.file_name("RNODE", options), options, _record("RNODE")
    )
    cells = _cells(mnist.table(tmp_path), "RNODE, 0.1 and 0.1")
    assert cells[1:7] == ["Taylor-Lagrange", "2", "97.50 %", "104.2", "0.2 s", "30 s"]
    assert cells[-1].endswith("RNODE --epochs 2 --scheme Taylor-Lagrange`")


@pytest.mark.parametrize(
    "recorded, expected",
    [
        (dict(epochs="10", quick="False", order="3"), "plain"),
        (dict(epochs="3", full="True"), "plain --epochs 3 --full"),
        (dict(seed="1", output="/somewhere", resume="True"), "plain --seed 1"),
        (dict(scheme="Taylor-Lagrange"), "plain --scheme Taylor-Lagrange"),
    ],
)
def test_command(recorded, expected):
    command = mnist.parser().command(recorded, "plain")
    assert command == f"python -m experiments.mnist {expected}"


def test_circumstances(tmp_path):
    """Files of the same circumstances share a line; those of others are left out."""
    versions = dict(jax="0.7.0")
    for name, cores in {"a-x": 2, "a-y": 2, "a": 4, "ab": 8}.items():
        record = dict(hardware=dict(cores=cores), versions=versions)
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    first, second = results.circumstances(tmp_path, "a").splitlines()
    assert first.startswith("Measured on cores 2, jax 0.7.0: [a-x.json]")
    assert "[a-y.json]" in first
    assert second.startswith("Measured on cores 4, jax 0.7.0: [a.json]")


def test_quick_leaves_out_what_has_no_data(monkeypatch, tmp_path):
    def load():
        raise DataUnavailable("Put files there.")

    monkeypatch.setitem(quick.DATA, "mnist", load)
    assert quick.run("mnist", tmp_path) == "left out. Put files there."


def test_quick_fails_as_an_experiment_does(monkeypatch, tmp_path):
    monkeypatch.setitem(quick.METHODS, "orders", ("R_9",))
    with pytest.raises(SystemExit, match="the methods are R_2, .*, but got 'R_9'"):
        quick.run("orders", tmp_path)


def test_quick_runs_methods_that_there_are():
    assert set(quick.METHODS) | set(quick.DATA) <= set(results.MODULES)
    dynamics = dict.fromkeys(
        ("stiff", "vanderpol", "brusselator"), dynamics_training.METHODS
    )
    listed = dynamics | {"orders": orders.ORDERS}
    for name, methods in quick.METHODS.items():
        known = listed.get(name)
        if known is None:
            known = importlib.import_module(f"experiments.{name}").METHODS
        assert set(methods) <= set(known)
