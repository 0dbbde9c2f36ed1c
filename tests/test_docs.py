"""The pages of the documentation."""

import operator
import re
from pathlib import Path

import diffrax_speedreg as dsr
import numpy as np
import pytest

from .helpers.scripts import run_code


_root = Path(__file__).parents[1]
_pages = sorted((_root / "docs").glob("*.md"))
# Those of the results are generated, which `test_experiments.py` is about.
_written = [p for p in _pages if p.stem not in ("results", "where_it_pays")]
_written.append(_root / "README.md")
_texts = [*sorted((_root / "docs").rglob("*.md")), _root / "README.md"]
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
    assert names["state"].step == 42
    assert np.isfinite(names["report"].loss)
    fitted = names["fitted"]
    assert names["best"] in fitted.runge_kutta and fitted.errors.shape == (20,)
    files = [path.name for path in names["checkpoints"].folder.iterdir()]
    assert files == ["step-0000000040.ckpt"]
    (loss,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"loss 0\.\d+, penalty \S+", loss)


def test_loop_of_your_own_is_short():
    _, section = _training.read_text().split("## A loop of your own")
    (code, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert "model_step" in code and "solver_step" in code
    assert len(code.splitlines()) < 40


@pytest.mark.parametrize("page", _written, ids=lambda page: page.stem)
def test_measured_tables_are_those_of_the_results(page):
    """Rows with numbers that have a decimal point or an exponent."""
    rows = re.findall(r"^\|.*\|$", page.read_text(), re.MULTILINE)
    measured = [row for row in rows if re.search(r"\d(\.\d|e-\d)", row)]
    assert [row for row in measured if row not in _results] == []


@pytest.mark.parametrize(
    "page",
    [*_texts, *sorted((_root / "notebooks").glob("*.ipynb"))],
    ids=lambda page: str(page.relative_to(_root)),
)
def test_names_exist(page):
    # Code for earlier versions is marked as `py`.
    text = re.sub(r"```py\n.*?```", "", page.read_text(), flags=re.DOTALL)
    names = re.findall(r"\b(?:dsr|diffrax_speedreg)((?:\.[A-Za-z]\w*)+)", text)
    # Files have the name of the package, too.
    names = {name[1:] for name in names if not name.endswith((".py", ".md"))}

    def exists(name):
        try:
            return operator.attrgetter(name)(dsr) is not None
        except AttributeError:
            return False

    assert [name for name in sorted(names) if not exists(name)] == []


@pytest.mark.parametrize("page", _texts, ids=lambda page: str(page.relative_to(_root)))
def test_links_to_files(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]*)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
