"""Executes the notebooks, and checks their size: one idea each, told briefly.

A NaN in a computation, an error, or a notebook that takes too long ends with an error.
Written: a line for each, with the time it took; with `--write`, the notebooks too, with
their new outputs.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode


_ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((_ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 120
WORDS = range(250, 401)
LINES, LINES_OF_CELL = 135, 60


def complaints(notebook: NotebookNode) -> list[str]:
    """What is too long or too short in a notebook."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    words = sum(len(text.split()) for text in prose)
    lines = [len(source.splitlines()) for source in code]
    found = []
    if words not in WORDS:
        found.append(f"{words} words, but should have {WORDS.start} to {WORDS[-1]}")
    if sum(lines) > LINES:
        found.append(f"{sum(lines)} lines of code, but at most {LINES}")
    if max(lines) > LINES_OF_CELL:
        found.append(f"a cell of {max(lines)} lines, but at most {LINES_OF_CELL}")
    return found


def execute(notebook: NotebookNode) -> float:
    """Runs all cells, whose outputs are replaced; returns the seconds it took."""
    start = time.perf_counter()
    client = NotebookClient(notebook, timeout=10 * SECONDS, kernel_name="python3")
    # The kernel inherits it.
    os.environ["JAX_DEBUG_NANS"] = "True"
    client.execute()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    parser.add_argument("paths", nargs="*", type=Path, default=NOTEBOOKS)
    options = parser.parse_args()
    failed = False
    for path in options.paths:
        notebook = nbformat.read(path, as_version=4)
        found = complaints(notebook)
        seconds = execute(notebook)
        if seconds > SECONDS:
            found.append(f"takes more than {SECONDS} s")
        print(f"{path.name}: {seconds:.0f} s", *found, sep="; ", flush=True)
        failed |= bool(found)
        if options.write:
            # Metadata of the run, such as times, would change with each.
            for cell in notebook.cells:
                cell.metadata = {}
            nbformat.write(notebook, path)
    if failed:
        sys.exit("failed: see above")


if __name__ == "__main__":
    main()
