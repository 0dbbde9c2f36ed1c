"""What the command lines of all benchmarks share."""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from experiments.report import HelpFormatter, positive, seed, writable_folder

from .runs import save
from .timing import hardware, versions


PACKAGES = ("diffrax-speedreg", "jax", "jaxlib", "diffrax", "equinox", "probdiffeq")


class Benchmark(NamedTuple):
    """What the command line runs.

    **Attributes:**

    - `name`: how files with its results begin.
    - `begin`: results of nothing yet, for the options.
    - `fill`: adds to results, and yields whenever there is more of them.
    - `load`: results from a file.
    - `render`: their tables, in Markdown.
    - `draw`: writes a picture of them.
    """

    name: str
    begin: Callable[[argparse.Namespace], Any]
    fill: Callable[[Any, argparse.Namespace], Iterator[None]]
    load: Callable[[Path], Any]
    render: Callable[[Any], str]
    draw: Callable[[Any, Path], None]


def run(benchmark: Benchmark, options: argparse.Namespace) -> None:
    """Measures, or only renders again, as the options say."""
    if options.render is not None:
        _write(benchmark, benchmark.load(options.render), options.render)
        return
    _configure(options)
    path = _figures_path(benchmark.name, options)
    results = benchmark.begin(options)
    for _ in benchmark.fill(results, options):
        # Each time: what has been measured should survive an interruption.
        save(results, path)
    _write(benchmark, results, path)
    print(path.with_suffix(".md").read_text())


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


def _configure(options: argparse.Namespace) -> None:
    """JAX: in single precision, and with nothing remembered from earlier runs."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_default_matmul_precision", options.precision)


def _figures_path(name: str, options: argparse.Namespace) -> Path:
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


def _write(benchmark: Benchmark, results: Any, path: Path) -> None:
    """The tables and the picture, beside the figures."""
    path.with_suffix(".md").write_text(benchmark.render(results))
    benchmark.draw(results, path.with_suffix(".png"))
    print(f"Tables: {path.with_suffix('.md')}", file=sys.stderr)
