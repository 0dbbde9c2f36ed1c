"""Runs the quick mode of all experiments, as the checks do: that they work at all.

Those whose data can't be had are left out, with a message.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from . import command_line, data, results


# Of the experiments with methods, some that differ in what they run; all of the others.
METHODS = {
    "mnist": ("quadrature R_K", "Taylor-Lagrange"),
    "orders": ("R_2",),
    "stiff": ("Taylor-Lagrange",),
    "vanderpol": ("Taylor-Lagrange",),
    "brusselator": ("Taylor-Lagrange",),
    "ffjord": ("R_3",),
    "latent_ode": ("quadrature R_K",),
    "existing_model": ("R_3",),
}
DATA = {"mnist": data.load_mnist, "latent_ode": data.load_physionet}


def run(name: str, folder: Path) -> str:
    """Runs an experiment, and returns what there is to tell."""
    try:
        DATA.get(name, lambda: None)()
    except data.DataUnavailable as error:
        return f"left out. {error}"
    start = time.monotonic()
    module = f"{__package__}.{name}"
    options = ["--quick", "--output", str(folder / name)]
    command = [sys.executable, "-m", module, *METHODS.get(name, ()), *options]
    # What it prints is of interest only if it fails.
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: failed\n{done.stdout}\n{done.stderr}")
    return f"{time.monotonic() - start:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quick",
        description=__doc__,
        formatter_class=command_line.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output",
        type=command_line.writable_folder,
        default="quick-output",
        help="folder for the results",
    )
    options = parser.parse_args()
    for name in results.MODULES:
        print(f"{name}: {run(name, options.output)}", flush=True)


if __name__ == "__main__":
    main()
