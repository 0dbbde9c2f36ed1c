import re
from pathlib import Path

import pytest

from .helpers import support


_page = Path(__file__).parents[1] / "docs" / "support.md"


def _documented(solver, adjoint, saveat):
    """Returns the entry on the page, in the row of the solver or of the saved times."""
    row = solver if saveat == "t1" else saveat
    (line,) = re.findall(rf"^\| `{row}` \|.*$", _page.read_text(), re.MULTILINE)
    outcomes = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    return outcomes[list(support.ADJOINTS).index(adjoint)]


@pytest.mark.thorough
@pytest.mark.parametrize("cell", support.CELLS, ids="-".join)
def test_page_is_right(cell):
    assert support.outcome(*cell) == _documented(*cell)
