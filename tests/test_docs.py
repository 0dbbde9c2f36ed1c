"""The pages of the documentation."""

import re
from pathlib import Path

import numpy as np
import pytest

from .helpers.scripts import run_code


_root = Path(__file__).parents[1]
_pages = sorted((_root / "docs").glob("*.md"))
# That of the results is generated, which `test_results.py` is about.
_written = [page for page in _pages if page.stem != "results"]
_written.append(_root / "README.md")
_results = "".join(
    path.read_text()
    for folder in ("benchmarks", "experiments")
    for path in (_root / folder / "results").glob("*.md")
)


_training = _root / "docs" / "training.md"


@pytest.mark.parametrize(
    "page",
    # The page on training has a separate test.
    [p for p in _pages if "```python" in p.read_text() and p != _training],
    ids=lambda page: page.stem,
)
def test_code_runs(page):
    assert run_code(page)


def test_code_of_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_code(_training)
    assert names["state"].step == 40
    assert np.isfinite(names["dynamics"].total)
    files = [path.name for path in names["checkpoints"].folder.iterdir()]
    assert files == ["step-0000000040.ckpt"]
    loss, hyperparameters = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"loss 0\.\d+, remainders \S+", loss)
    expected = dict(seed=0, width=16, samples=256, batch_size=64)
    assert hyperparameters == str(expected)


def test_loop_of_your_own_is_short():
    _, section = _training.read_text().split("## A loop of your own")
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert "dynamics_step" in code and "remainder_step" in code
    assert len(code.splitlines()) < 40


@pytest.mark.parametrize("page", _written, ids=lambda page: page.stem)
def test_measured_tables_are_those_of_the_results(page):
    """Rows with numbers that have a decimal point or an exponent."""
    rows = re.findall(r"^\|.*\|$", page.read_text(), re.MULTILINE)
    measured = [row for row in rows if re.search(r"\d(\.\d|e-\d)", row)]
    assert [row for row in measured if row not in _results] == []


@pytest.mark.parametrize(
    "page", [*_pages, _root / "README.md"], ids=lambda page: page.stem
)
def test_links_to_files(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]*)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
