"""The command of the experiments: runs, records, tables and pages."""

import dataclasses
import json
import re
import warnings

import jax.random as jr
import numpy as np
import pytest
from experiments import config, page, record, tables, tolerances, toy
from experiments.record import Record
from experiments.tasks import find, TASKS

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


def _run(*words, **environment):
    return run("experiments.__main__", *words, environment=environment)


def _record(method="plain", seed=0, task="digits", version="0.2.0", **others):
    settings = find(task).options().recorded(["budget"])
    versions = {record.PACKAGE: version, "jax": "0.7.0"}
    return Record(task, method, seed, settings, versions, dict(cores=2), **others)


@pytest.mark.parametrize("name", TASKS)
def test_quick_run(name, tmp_path, monkeypatch):
    """A small run of each task makes records, a table and a picture."""
    monkeypatch.setattr("experiments.config.QUICK", tmp_path)
    monkeypatch.setattr("experiments.__main__.QUICK", tmp_path)
    result = _run("quick", name)
    assert result.returncode == 0, result.stderr
    if "left out. " in result.stdout:
        pytest.skip(result.stdout)
    found = record.load(tmp_path)
    assert found and all(r.finished and r.options["quick"] is True for r in found)
    assert "|" in page.section(find(name), found)
    if find(name).build is not None:
        assert len(found[0].tolerances) == 12 and found[0].tolerances[0]["nfe"] > 0
        timed = _run("time", name, "--quick", "--output", tmp_path)
        assert timed.returncode == 0, timed.stderr
        assert "compilation" in timed.stdout
        table = page.section(find(name), record.load(tmp_path))
        assert re.search(r"\d m?s\b", table) or "refused" in timed.stdout


def test_run_again(tmp_path):
    """Records that are there are not made again, except with other settings."""
    words = "run", "midpoints", "--quick", "--output", tmp_path
    assert "finished" in _run(*words).stdout
    again = _run(*words)
    assert again.returncode == 0 and "there already" in again.stdout
    assert "midpoints-one-step-quick-true-1.json" in _run(*words, "--seeds", 1).stdout
    path = tmp_path / "midpoints-one-step-quick-true-0.json"
    made = record.read(path)
    older = made.versions | {record.PACKAGE: "0.1.0"}
    dataclasses.replace(made, versions=older).save(path)
    assert "of another version of the package" in _run(*words).stdout
    assert record.read(path).version == made.version


def test_divergence_is_recorded(tmp_path):
    words = "run", "digits", "plain", "--quick", "--learning-rate", "1e9"
    result = _run(*words, "--output", tmp_path)
    assert result.returncode == 1 and "error: all runs failed" in result.stderr
    (made,) = record.load(tmp_path)
    assert made.failure is not None and made.failure.startswith("Training")
    assert f"1 of 1 failed: {made.failure}" in result.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["runs"], "no command 'runs'"),
        (["run"], "name a task: the tasks are toy, digits"),
        (["run", "moon"], "the tasks are toy, .*, but got 'moon'"),
        (["run", "mnist", "plane"], "the methods are plain, .*, but got 'plane'"),
        (["run", "toy", "--epochs", "0"], "--epochs must be a positive integer, but"),
        (["run", "toy", "--seeds", "-1"], "--seeds must be from 0 to"),
        (["time", "orders"], "orders has no methods to be timed"),
        (["tables", "toy"], "tables has no options"),
    ],
)
def test_bad_words(words, message):
    result = _run(*words)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    with pytest.raises(SystemExit, match=message):
        raise SystemExit(result.stderr)


def test_missing_data(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    words = "run", "mnist", "plain", "--output", tmp_path
    result = _run(*words, DIFFRAX_SPEEDREG_DATA=str(tmp_path))
    assert result.returncode == 1
    assert "error: These files of mnist are missing" in result.stderr


def test_listing(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.__main__.RESULTS", tmp_path)
    _record(version="0.1.0").save(tmp_path / "a.json")
    listed = _run().stdout
    assert "digits:\n  plain: 1 records, of version 0.1.0, not" in listed
    assert "  R_3: missing" in listed


def test_record_in_a_file(tmp_path):
    numbers = dict(loss=0.1234567, own_loss=float("nan"), array=np.arange(3.0))
    made = _record(metrics=numbers, rows=[dict(nfe=dict(Heun=1.5), weight=None)])
    made.save(tmp_path / "a.json")
    (loaded,) = record.load(tmp_path)
    assert loaded.metrics == dict(loss=0.123457, own_loss=None, array=[0.0, 1.0, 2.0])
    assert loaded.rows == made.rows and loaded.settings == made.settings
    assert '"array": [ 0.0, 1.0, 2.0 ]' in (tmp_path / "a.json").read_text()


def test_table():
    """Rows are means over the seeds of the newest version."""
    accuracies = {"plain": (0.5, 0.7), "Taylor-Lagrange 2": (0.55, 0.75)}
    records = [
        _record(method, seed, metrics=dict(own_accuracy=a, training_seconds=2.0))
        for method, pair in accuracies.items()
        for seed, a in enumerate(pair)
    ]
    records.append(_record(version="0.1.0", metrics=dict(own_accuracy=0.0)))
    records.append(_record("R_3", failure="Training diverged."))
    frame = tables.method_table(find("digits"), records)
    rows = {row["method"]: row for row in frame.to_dict("records")}
    assert rows["plain"]["test accuracy"] == "60.00% ± 14.14%"
    equal = rows["Taylor-Lagrange 2"]
    assert equal["test accuracy"] == "65.00% ± 14.14% (equal)"
    assert equal["faster"] == "1x" and "NFE" not in equal
    failed = [row for name, row in rows.items() if name.startswith("R_3")]
    assert failed[0]["test accuracy"] == "1 of 1 failed: Training diverged."
    assert "plain of version 0.1.0" in page.details(find("digits"), records)


@pytest.mark.parametrize(
    "other, equal",
    [
        ((1.1, 2.1, 3.1), True),
        ((1.0,), False),  # There is no scatter.
        ((2.9, 5.0, 7.0), False),  # The means differ by more than the scatter.
        ((3.1, 3.1, 9.0), False),  # The ranges do not overlap.
    ],
)
def test_equal(other, equal):
    assert tables.is_equal(np.array([1.0, 2.0, 3.0]), np.array(other)) is equal


def test_command():
    made = _record(task="moons", method="RNODE")
    options = made.options | dict(budget=50, penalty=1.0)
    changed = dataclasses.replace(made, options=options, seed=2)
    assert find("moons").label(changed) == "RNODE, budget 50"
    assert find("moons").commands([[changed]]) == [
        "python -m experiments run moons RNODE --budget 50 --seeds 2"
    ]


def test_pages_are_those_of_the_records():
    """`make results` changes nothing."""
    records = record.load(config.RESULTS)
    for template in page.PAGES.glob("*.md"):
        text = page.fill(template.read_text(), records)
        assert text == page.target(template).read_text(), "run `make results`"
        for line in text.splitlines():
            assert line.count(" | ") < 8


def test_committed_records_are_of_tasks():
    for made in record.load(config.RESULTS):
        if made.task != "timing":
            task = find(made.task)
            fields = {field.name for field in dataclasses.fields(task.options)}
            assert made.method in task.methods
            assert made.finished and "quick" in made.options
            assert {*made.options} < fields


def test_tolerances_of_a_trivial_problem():
    problem = toy.problem(jr.key(0))
    with warnings.catch_warnings(action="ignore"):
        rows = tolerances.measure(problem, problem.model)
    double = [row["nfe"] for row in rows if row["dtype"] == "float64"]
    assert double == sorted(double) and json.dumps(rows)
