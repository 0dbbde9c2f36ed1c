"""The demo, by its command line."""

import json

import pytest

from .helpers.scripts import run


def _run(*options):
    return run("experiments.digits", *options)


def test_help():
    result = _run("--help")
    assert result.returncode == 0
    for option in (
        "seed",
        "epochs",
        "learning-rate",
        "order",
        "lambda",
        "solver-order",
        "output",
    ):
        assert f"--{option}" in result.stdout


def test_short_run(tmp_path):
    result = _run("--epochs", 2, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "digits.json").read_text())
    plain, speed, taylor = record["results"]
    assert [plain["method"], speed["method"]] == ["plain", "speed R_3"]
    assert all(len(r["nfe_by_epoch"]) == 2 for r in record["results"])
    assert min(r["accuracy"] for r in record["results"]) > 0.5
    assert taylor["nfe"] > 0
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    assert "| plain" in result.stdout and str(tmp_path / "digits.png") in result.stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (["--epochs", "0"], "--epochs: must be a positive int, but got '0'"),
        (["--seed", "5000000000"], "--seed: must be below 2**32"),
        (["--order", "2.5"], "--order: must be a positive int, but got '2.5'"),
        (["--lambda", "-1"], "--lambda: must be a nonnegative float, but got '-1'"),
        (["--lambda", "nan"], "--lambda: must be a nonnegative float, but got 'nan'"),
        (["--solver", "x"], "unrecognized arguments: --solver x"),
        (["--output", "README.md/here"], "folder that can be written to"),
    ],
)
def test_bad_options(options, message):
    result = _run(*options)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_divergence(tmp_path):
    result = _run("--epochs", 3, "--learning-rate", "1e9", "--output", tmp_path)
    assert result.returncode == 1
    assert "error: Training " in result.stderr
    assert "at step" in result.stderr
    assert "| plain" not in result.stdout
    assert not (tmp_path / "digits.json").exists()
