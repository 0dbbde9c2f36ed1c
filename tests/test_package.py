"""Properties of the package as a whole."""

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
    for module in (dsr, dsr.rules, dsr.training)
    for name, value in vars(module).items()
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


def test_constants_of_modules_leave_the_devices_alone():
    """The number of devices can be set only before JAX has initialized them."""
    program = """if True:
        import diffrax as dfx, diffrax_speedreg as dsr, jax
        methods = dsr.in_solver(), dsr.augmented(), dsr.gauss_legendre(4)
        solvers = dsr.TaylorLagrangeSolver(2), dsr.ExponentialTaylorSolver()
        import experiments.parallel
        jax.config.update("jax_num_cpu_devices", 3)
        assert jax.device_count() == 3
    """
    subprocess.run([sys.executable, "-c", program], cwd=_root, check=True)


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
    if inspect.isfunction(value) and inspect.signature(value).parameters:
        assert "**Arguments" in doc
        for parameter in inspect.signature(value).parameters:
            refers_to_another = "as [`" in doc
            assert refers_to_another or f"`{parameter}`" in doc, parameter


_step_of_the_readme = """
import equinox as eqx
import jax

mlp = eqx.nn.MLP(2, 2, width_size=8, depth=1, key=jax.random.key(0))
y0, target = jax.numpy.array([[1.0, 0.5], [-0.5, 1.0]])
on_mlp = lambda mlp: loss(lambda t, y, args: mlp(y), budget, y0, target)
gradient, measured = eqx.filter_grad(on_mlp, has_aux=True)(mlp)
budget = budget.update(*measured)
print(measured[0], budget.weight)
"""


def test_readme_runs():
    """The code of the README runs in another process: float32, no type checks."""
    text = (_root / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    # The main job, imports included.
    assert "dsr.regularized_solve(" in code
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + _step_of_the_readme],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    nfe, weight = map(float, result.stdout.split())
    assert nfe % 6 == 1  # Tsit5.
    assert (weight > 0) == (nfe > 31)


def test_readme_table_is_that_of_the_results():
    results = (_root / "experiments" / "results" / "gains.md").read_text()
    table, _ = results.split("\n\n", 1)
    assert table in (_root / "README.md").read_text()


def test_readme_states_the_python_version():
    (version,) = re.findall(
        r"Python (\d\.\d+) or later", (_root / "README.md").read_text()
    )
    assert _project["requires-python"] == f">={version}"
