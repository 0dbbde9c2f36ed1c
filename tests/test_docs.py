"""The pages of the documentation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


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


def _code(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.parametrize(
    "page",
    # That on training is run in `test_training_docs.py`, with a look at its output.
    [page for page in _pages if _code(page) and page.stem != "training"],
    ids=lambda page: page.stem,
)
def test_code_runs(page):
    """In a process of its own, as a user would: in float32 and without type checks."""
    command = [sys.executable, "-W", "error", "-c", _code(page)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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
