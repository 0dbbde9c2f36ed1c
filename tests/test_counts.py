"""The size of the public interface: names, calls and lines of the jobs."""

import re
from pathlib import Path

from tools import counts


_root = Path(__file__).parents[1]


def test_names():
    names = counts.top_level_names()
    assert len(names) <= 30
    assert {"regularized_solve", "training", "rules"} <= set(names)


def test_way_from_fit_to_the_loss():
    way = counts.way_to_the_loss()
    assert way[0] == ("fit.py", "fit") and way[-1][0] == "trainer.py"
    assert len(way) <= 10
    assert counts.times_entered(way) == 1


def test_table_of_jobs_is_that_of_the_code():
    table = counts.jobs_table()
    assert len(table.splitlines()) == 6
    assert table in counts.PAGE.read_text()
    for row in table.splitlines()[2:]:
        before, after, names_before, names_after = map(int, row.split("|")[2:-1])
        assert after <= before
        if "returns y(t1)" in row:
            assert names_after < names_before


def test_no_script_has_a_training_loop():
    """Only a notebook about such a loop, and the timing of bare steps, have one."""
    loops = re.compile(r"apply_updates|\.update\(grad|_step\((?:state|after)")
    folders = (
        ("experiments", "*.py"),
        ("benchmarks", "*.py"),
        ("notebooks", "*.ipynb"),
    )
    paths = [p for folder, kind in folders for p in (_root / folder).rglob(kind)]
    assert len(paths) > 30
    found = {path for path in paths if loops.search(path.read_text())}
    assert {str(path.relative_to(_root)) for path in found} == {
        "benchmarks/training.py",
        "notebooks/06_alternating_training.ipynb",
    }
