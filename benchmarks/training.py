"""Measures what alternating training costs beside its dynamics steps.

For classifiers of the size of the papers' one for MNIST and of the demo's: the loop
itself, with batches and a progress bar, remainder steps and their targets, checkpoints,
and steps on one and two devices of the CPU. Writes the figures as JSON, and tables and
a picture of them.
"""

import argparse
import os
import sys
from collections.abc import Iterator

from . import command
from .timing import Rounds
from .training_measure import measure_loop, measure_scaling
from .training_plot import draw
from .training_problem import SIZES
from .training_records import Case, load, Results
from .training_report import render


BATCHES = {"mnist": 500, "digits": 128}
SCALING_BATCH = 2048
# Devices and cores.
LAYOUTS = ((1, 1), (1, 2), (2, 2))


def fill(results: Results, options: argparse.Namespace) -> Iterator[None]:
    """Adds to the results, and yields whenever there is more of them."""
    rounds = Rounds(repeats=options.repeats, most_seconds=options.seconds)
    for name in options.fields:
        for batch in options.batch or [BATCHES[name]]:
            for order in options.orders or [2]:
                case = Case(name, batch, order)
                print(*case, file=sys.stderr)
                results.loops.append(measure_loop(case, options.seed, rounds))
                yield
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    case = Case(
        options.fields[0], options.batch[0] if options.batch else SCALING_BATCH, 2
    )
    for devices, used in LAYOUTS:
        if used <= cores:
            print(*case, f"{devices} devices, {used} cores", file=sys.stderr)
            scaling = measure_scaling(case, devices, used, options.seed)
            results.scalings.append(scaling)
            yield


def arguments() -> argparse.Namespace:
    options = command.parser("training", __doc__, SIZES, seconds=20.0).parse_args()
    if options.quick:
        options.batch = options.batch or [16]
        options.repeats, options.seconds = 3, 0.1
    return options


def begin(options: argparse.Namespace) -> Results:
    return Results(**command.circumstances(options), loops=[], scalings=[])


def main() -> None:
    benchmark = command.Benchmark("training", begin, fill, load, render, draw)
    command.run(benchmark, arguments())


if __name__ == "__main__":
    main()
