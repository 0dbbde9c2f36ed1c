"""Puts faults into the library, one at a time, and runs the default tests on each.

The faults are those of `tools/faults.toml`. A fault is caught if a test fails: first
the files that it names are run, and all of the default tests if these pass. Prints a
line for each fault and a summary. The working tree stays as it is: each fault is put
into a copy.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).parents[1]
PACKAGE = "diffrax_speedreg"


class Fault(NamedTuple):
    """A fault: `old`, which stands once in the `file` of the package, becomes `new`."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def mutated(self) -> str:
        """Returns the text of the file with the fault in it."""
        text = (ROOT / PACKAGE / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(
                f"A fault must replace what stands once in {self.file}, but it stands "
                f"there {text.count(self.old)} times: {self.old!r}. Mend "
                "tools/faults.toml."
            )
        return text.replace(self.old, self.new)


class Outcome(NamedTuple):
    fault: Fault
    verdict: str
    seconds: float


def faults() -> list[Fault]:
    listed = tomllib.loads((ROOT / "tools" / "faults.toml").read_text())["fault"]
    return [Fault(**(entry | dict(tests=tuple(entry["tests"])))) for entry in listed]


def run(fault: Fault, *, named_only: bool) -> Outcome:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        _copy_tree(copy)
        (copy / PACKAGE / fault.file).write_text(fault.mutated())
        named = [f"tests/{name}.py" for name in fault.tests]
        verdict = _verdict(copy, named)
        if verdict is None and not named_only:
            verdict = _verdict(copy, [])
    return Outcome(fault, verdict or "MISSED", time.monotonic() - start)


def _copy_tree(target: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listing.stdout.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def _verdict(copy: Path, paths: Sequence[str]) -> str | None:
    """Returns the first test that fails, or `None` if none does."""
    # The copy is found before the installed package: `-m` puts it first.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not thorough"]
    result = subprocess.run(
        [*command, "-p", "no:xdist", *paths], cwd=copy, capture_output=True, text=True
    )
    if result.returncode == 0:
        return None
    lines = result.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if result.returncode != 1 or not failed:
        raise RuntimeError(f"The tests did not run:\n{result.stdout[-3000:]}")
    return failed[0].split(" - ")[0].split(maxsplit=1)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time")
    parser.add_argument("--only", default="", help="part of the names of files")
    parser.add_argument(
        "--named-only", action="store_true", help="run only the tests that faults name"
    )
    options = parser.parse_args()
    selected = [fault for fault in faults() if options.only in fault.file]
    missed = 0
    with ThreadPoolExecutor(options.jobs) as executor:
        attempt = partial(run, named_only=options.named_only)
        for fault, verdict, seconds in executor.map(attempt, selected):
            missed += verdict == "MISSED"
            old, new = (" ".join(text.split()) for text in (fault.old, fault.new))
            print(
                f"{fault.file}: {old} -> {new}\n    {verdict}, {seconds:.0f} s",
                flush=True,
            )
    print(f"caught: {len(selected) - missed} of {len(selected)}")
    if missed:
        sys.exit("failed: each fault that is missed needs a test")


if __name__ == "__main__":
    main()
