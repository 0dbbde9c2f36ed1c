"""What the package promises as a whole."""

import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jaxtyping
import pytest


_root = Path(__file__).parents[1]
_package = Path(dsr.__file__).parent
_project = tomllib.loads((_root / "pyproject.toml").read_text())["project"]
_public = {
    name: value
    for name, value in vars(dsr).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}


def test_type_checks_are_on():
    order: Any = "3"
    with pytest.raises(jaxtyping.TypeCheckError, match="order"):
        dsr.SpeedRegularizedTerm(dfx.ODETerm(lambda t, y, args: y), order)


def test_version():
    assert dsr.__version__ == _project["version"]
    assert dsr.__version__ == importlib.metadata.version("diffrax-speedreg")


def test_typed():
    assert (_package / "py.typed").exists()


def test_only_public_interfaces():
    private = re.compile(r"jax\._src|(diffrax|equinox|optax|optimistix)\._|\bhasattr\(")
    internal = re.compile(r"equinox\.internal import (?!ω\n)|equinox\.internal as")
    for path in _package.rglob("*.py"):
        text = path.read_text()
        assert not private.search(text), path
        assert not internal.search(text), path


@pytest.mark.parametrize("name", sorted(_public))
def test_docstring(name):
    value = _public[name]
    doc = inspect.getdoc(value)
    assert doc
    if inspect.isfunction(value):
        assert "**Arguments" in doc
        for parameter in inspect.signature(value).parameters:
            refers_to_another = "as [`" in doc
            assert refers_to_another or f"`{parameter}`" in doc, parameter


def test_readme_runs():
    """In a process of its own, as a user would: in float32 and without type checks."""
    text = (_root / "README.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    code += "\nassert value > 0 and report.finite\nprint(state.step)"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "2\n"


def test_readme_table_is_that_of_the_results():
    results = (_root / "experiments" / "results" / "gains.md").read_text()
    table, _ = results.split("\n\n", 1)
    assert table in (_root / "README.md").read_text()


def test_readme_states_the_python_version():
    (version,) = re.findall(
        r"Python (\d\.\d+) or later", (_root / "README.md").read_text()
    )
    assert _project["requires-python"] == f">={version}"
