"""Runs the tests on the lowest and on the highest versions that are supported.

The lowest are those that `pyproject.toml` declares, on the lowest Python that it
declares. The highest are those in the registry for the newest Python on this machine. A
missing Python is reported as skipped. Each default test runs with its first set of
parameters; `python tools/test_versions.py --thorough` runs all tests.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIGURATION["project"]
GROUPS = [CONFIGURATION["dependency-groups"][name] for name in ("tests", "experiments")]
TOOLS = [requirement for group in GROUPS for requirement in group]
THOROUGH = "--thorough" in sys.argv[1:]


def interpreters() -> dict[tuple[int, int], str]:
    """Finds the Pythons on the path, and those of pyenv."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders += map(str, sorted(pyenv.glob("versions/*/bin")))
    found = {}
    for minor in range(11, 30):
        for folder in folders:
            python = shutil.which(f"python3.{minor}", path=folder)
            # There may be a shim for a version that is not active.
            if python and _succeeds(python, "-c", "import venv"):
                found.setdefault((3, minor), python)
    return found


def lowest_requirements() -> list[str]:
    requirements = [*PROJECT["dependencies"], *TOOLS]
    return [requirement.replace(">=", "==") for requirement in requirements]


def run_tests(name: str, python: str, requirements: list[str]) -> bool:
    environment = ROOT / f".venv-{name}"
    subprocess.run([python, "-m", "venv", "--clear", environment], check=True)
    inside = environment / "bin" / "python"
    install = [inside, "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*install, "-e", ROOT, *requirements], check=True)
    print(f"{name} versions, {_output(python, '--version')}:", flush=True)
    listing = _output(inside, "-m", "pip", "list", "--format=freeze").splitlines()
    names = {re.split("[>=]", r)[0] for r in PROJECT["dependencies"]}
    print("  " + " ".join(l for l in listing if l.split("==")[0] in names), flush=True)
    options = ["-n", "auto", "--dist", "worksteal", "-q"]
    if not THOROUGH:
        options += ["-m", "not thorough", "--one-each"]
    return _succeeds(inside, "-m", "pytest", *options, show=True)


def _output(*command: str | Path) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.strip()


def _succeeds(*command: str | Path, show: bool = False) -> bool:
    result = subprocess.run(command, cwd=ROOT, capture_output=not show)
    return result.returncode == 0


def main() -> None:
    found = interpreters()
    major, minor = PROJECT["requires-python"].removeprefix(">=").split(".")
    oldest = int(major), int(minor)
    results = {}
    if oldest in found:
        results["lowest"] = run_tests("lowest", found[oldest], lowest_requirements())
    else:
        print(f"skipped: the lowest versions, for want of Python {oldest}")
    if found:
        results["highest"] = run_tests("highest", found[max(found)], TOOLS)
    else:
        sys.exit("failed: no Python was found that the project supports")
    if not all(results.values()):
        sys.exit(f"failed: {[name for name, passed in results.items() if not passed]}")


if __name__ == "__main__":
    main()
