"""What the command lines of all benchmarks share."""

import argparse
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
from experiments.report import HelpFormatter, positive, seed, writable_folder

from .timing import hardware, versions


PACKAGES = ("diffrax-speedreg", "jax", "jaxlib", "diffrax", "equinox", "probdiffeq")


def parser(
    name: str, description: str | None, fields: Collection[str], seconds: float
) -> argparse.ArgumentParser:
    """With the options that all have.

    **Arguments:**

    - `name`, `description`: the benchmark's.
    - `fields`: the names of its vector fields.
    - `seconds`: the default for how long the rounds of one measurement may take.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--quick", action="store_true", help="a short run, to see that it works")
    add(
        "--fields",
        nargs="+",
        choices=fields,
        default=list(fields),
        metavar="FIELD",
        help="which vector fields",
    )
    add(
        "--batch",
        nargs="+",
        type=positive(int),
        help="batch sizes of all fields (if not given, each has its own)",
    )
    add(
        "--orders",
        nargs="+",
        type=positive(int),
        metavar="K",
        help="orders (if not given, those that are affordable for the field)",
    )
    add("--repeats", type=positive(int), default=20, help="rounds of run times")
    add(
        "--seconds",
        type=positive(float),
        default=seconds,
        help="for all rounds of what is compared with each other: fewer are made if "
        "they take longer, but at least 5",
    )
    add(
        "--precision",
        choices=["default", "high", "highest"],
        default="highest",
        help="of matrix products, where the hardware has a choice",
    )
    add("--seed", type=seed, default=0, help="decides parameters and states")
    add(
        "--out",
        type=writable_folder,
        default="benchmarks/results",
        help="folder for the results",
    )
    add(
        "--render",
        type=_existing_file,
        metavar="FILE",
        help="measure nothing; write tables and picture beside this JSON file",
    )
    return made


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"must be a file, but got {text!r}")
    return path


def configure(options: argparse.Namespace) -> None:
    """JAX: in single precision, and with nothing remembered from earlier runs."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_default_matmul_precision", options.precision)


def figures_path(name: str, options: argparse.Namespace) -> Path:
    suffix = "-quick" if options.quick else ""
    return options.out / f"{name}-{jax.default_backend()}{suffix}.json"


def circumstances(
    options: argparse.Namespace, *packages: str
) -> dict[str, dict[str, Any]]:
    """What all results begin with; with the versions of these packages too."""
    unrecorded = ("out", "render")
    settings = {k: v for k, v in vars(options).items() if k not in unrecorded}
    return dict(
        settings=settings, versions=versions(*PACKAGES, *packages), hardware=hardware()
    )


def write(path: Path, tables: str, draw: Callable[[Path], None]) -> None:
    """The tables and the picture, beside the figures."""
    path.with_suffix(".md").write_text(tables)
    draw(path.with_suffix(".png"))
    print(f"Tables: {path.with_suffix('.md')}", file=sys.stderr)
