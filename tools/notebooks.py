"""Executes the notebooks, two at a time, and prints the time that each takes.

A NaN in a computation or an error ends with an error. A notebook that takes too long is
named. With `--write`, it also writes the notebooks with their new outputs.
"""

import argparse
import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient


_ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((_ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 120


def execute(path: Path, *, write: bool) -> None:
    """Runs all cells of a notebook."""
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=10 * SECONDS, kernel_name="python3", coalesce_streams=True
    )
    client.execute()
    seconds = time.perf_counter() - start
    remark = f", which is more than {SECONDS} s" if seconds > SECONDS else ""
    print(f"{path.name}: {seconds:.0f} s{remark}", flush=True)
    if write:
        for cell in notebook.cells:
            # Other metadata, such as times, would change in each run.
            cell.metadata.pop("execution", None)
        nbformat.write(notebook, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the new outputs")
    parser.add_argument("paths", nargs="*", type=Path, default=NOTEBOOKS)
    options = parser.parse_args()
    # The kernels inherit this variable.
    os.environ["JAX_DEBUG_NANS"] = "True"
    with ThreadPoolExecutor(2) as pool:
        run = functools.partial(execute, write=options.write)
        # A list raises the errors.
        list(pool.map(run, options.paths))


if __name__ == "__main__":
    main()
