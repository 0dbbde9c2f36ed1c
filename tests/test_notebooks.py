"""The notebooks as they are stored; `make notebooks` executes them."""

import re
from pathlib import Path

import pytest


# They are the same for all sets of versions, and only one of these can read them.
pytest.importorskip("nbclient")
pytestmark = pytest.mark.thorough

import nbformat
from tools.notebooks import NOTEBOOKS


_root = Path(__file__).parents[1]
_notebooks = {path.name: nbformat.read(path, as_version=4) for path in NOTEBOOKS}


def _prose(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_all_are_in_the_navigation():
    navigation = (_root / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- (.*): notebooks/(.*)$", navigation, re.M)
    titles = {name: title for title, name in listed}
    assert titles == {
        name: _prose(notebook)[0].splitlines()[0].removeprefix("# ")
        for name, notebook in _notebooks.items()
    }


@pytest.mark.parametrize("name", _notebooks)
def test_stored_as_executed(name):
    """All cells are executed in order, with figures, and without errors."""
    code = [cell for cell in _notebooks[name].cells if cell.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    unwanted = [
        x for x in outputs if x.output_type == "error" or x.get("name") == "stderr"
    ]
    assert unwanted == []


@pytest.mark.parametrize("name", _notebooks)
def test_images_have_alternative_texts(name):
    """They are in the metadata of the cell that makes the image."""
    cells = [cell for cell in _notebooks[name].cells if "image/png" in str(cell)]
    assert cells
    assert [cell.source for cell in cells if not cell.metadata.get("alt")] == []


@pytest.mark.parametrize("name", _notebooks)
def test_last_sections(name):
    headings = re.findall(r"^## (.*)$", "\n".join(_prose(_notebooks[name])), re.M)
    assert headings[-2:] == ["To take away", "Mistakes that we did not make"]


@pytest.mark.parametrize("name", _notebooks)
def test_links(name):
    links = re.findall(
        r"\]\((?!https?://|#)([^)#]*)", "\n".join(_prose(_notebooks[name]))
    )
    assert [x for x in links if not (_root / "notebooks" / x).exists()] == []
