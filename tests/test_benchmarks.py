"""The benchmarks: their quick modes, records and reports."""

import functools
import importlib
import re
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough
# These are needed by the benchmarks. Only the thorough tests have their environment.
for _package in ("pandas", "probdiffeq", "tyro"):
    pytest.importorskip(_package)

from benchmarks import jet
from benchmarks.derivatives import Point
from benchmarks.harness import Contestant, interleave, measure, Options, Record
from benchmarks.report import goals


_folder = Path(__file__).parents[1] / "benchmarks" / "results"
_fields = dict(
    taylor=("layer", "scan"),
    jet=("layers",),
    regularization=("mnist",),
    solver=("mnist", "lorenz"),
    stiff=("robertson",),
    training=("stiff",),
)


@pytest.mark.parametrize("name", _fields)
def test_quick_mode(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(_folder.parents[1]))  # Of other processes.
    options = "--quick", "--out", tmp_path, "--fields", *_fields[name]
    ended = run(f"benchmarks.{name}", *options)
    assert ended.returncode == 0, ended.stderr
    tables = Record.load(tmp_path / f"{name}-cpu-quick.json").tables
    assert any("seconds" in row for rows in tables.values() for row in rows)
    assert "## Goals" in (tmp_path / f"{name}-cpu-quick.md").read_text()


@pytest.mark.parametrize("name", _fields)
def test_reports_are_those_of_the_records(name):
    benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    report = benchmark.render(Record.load(_folder / f"{name}-cpu.json"))
    assert report == (_folder / f"{name}-cpu.md").read_text()
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert max(line.count(" | ") for line in tables if "`jax.jvp` |" not in line) < 7


def test_record_is_stored_with_a_line_for_each_row(tmp_path):
    rows = [dict(name="a", seconds=1.0), dict(name="b", failure="fails")]
    record = Record(dict(batch=None), {}, dict(cores=2), dict(one=rows, two=[]))
    record.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == record
    text = (tmp_path / "record.json").read_text()
    assert '   {"name": "a", "seconds": 1.0},\n' in text


def test_disturbed_rows_are_refused():
    rows = [dict(seconds=1.0, cpu_seconds=cpu) for cpu in (0.8, 0.9, 2.0, None)]
    frame = Record({}, {}, {}, dict(table=rows)).frame("table")
    np.testing.assert_array_equal(frame["seconds"], [np.nan, 1.0, 1.0, 1.0])
    assert [*frame["failure"].notna()] == [True, False, False, False]


def test_measured_in_turn():
    order = []

    def square(x):
        return x * x

    def fail(x):
        raise ValueError("fails\nwith more lines")

    rows = measure(
        [
            Contestant(dict(name="square"), square, (2.0,), lambda y: dict(y=float(y))),
            Contestant(dict(name="fail"), fail, (2.0,), lambda y: {}),
        ],
        Options(quick=True),
    )
    assert rows[0]["y"] == 4.0 and rows[0]["seconds"] > 0 and rows[0]["spread"] >= 0
    assert rows[0]["compile_seconds"] > 0 and "failure" not in rows[0]
    assert rows[1] == dict(name="fail", failure="ValueError: fails")
    calls = [functools.partial(order.append, k) for k in "ab"]
    timings = interleave(calls, Options(quick=True, repeats=2))
    assert len(timings) == 2
    # Two calls of each to begin with, and then round after round.
    assert re.fullmatch("aabb(a+b+){2}", "".join(order))


@pytest.mark.parametrize(
    "ratio, met", ((0.49, "yes"), (0.51, "no"), (float("nan"), "not known"))
)
def test_goals(ratio, met):
    case = dict(batch=8, order=4, kind="forward")
    rows = [
        case | dict(field=field, contestant=contestant, seconds=seconds)
        for field in ("layers", "pde-tanh", "mnist")
        for contestant, seconds in dict(field=0.3, speedreg=ratio, jet=1.0).items()
    ]
    frames = jet.BENCHMARK.frames(Record({}, {}, {}, dict(derivatives=rows)))
    half, *_ = goals("jet", frames).to_dict("records")
    assert half["met"] == met and half["limit"] == "0.5"
    assert half["measured"].count("K=4") == 3


@pytest.mark.parametrize("name", ("layers", "pde-tanh", "mnist"))
def test_ways_along_curves_agree(name):
    plan = jet.PLANS[name]
    problem = plan.problem(2, jr.key(0))
    at = Point(problem.bind(problem.params), jax.numpy.array(0.5), problem.y, 3)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ours, *others = (jax.jit(lambda: way(at))() for way in plan.ways.values())
    for theirs in others:
        assert all(map(functools.partial(np.allclose, rtol=1e-9), ours, theirs))
