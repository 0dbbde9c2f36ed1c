"""The quick modes of experiments that no other test runs."""

import warnings

import pytest
from experiments import quick, results
from experiments.data import DataUnavailable

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

_tested_closer = {"digits", "existing_model", "ffjord", "latent_ode", "stiff", "toy"}


@pytest.mark.parametrize("name", sorted(set(results.MODULES) - _tested_closer))
def test_quick_mode(name, tmp_path):
    try:
        with warnings.catch_warnings(action="ignore"):  # Of downloads that fail.
            quick.DATA.get(name, lambda: None)()
    except DataUnavailable as error:
        pytest.skip(str(error))
    methods = quick.METHODS.get(name, ())
    result = run(f"experiments.{name}", *methods, "--quick", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"experiments.{name}" in result.stdout or "|" in result.stdout
    assert any(path.suffix == ".json" for path in tmp_path.iterdir())
