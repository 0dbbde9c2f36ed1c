"""Compares ways to compute total derivatives of ODE solutions.

For vector fields of neural ODEs: run time of the K-th derivative and of its gradient,
compile time, memory, and whether the numbers agree, of this package, nested `jax.jvp`,
`jax.experimental.jet` and probdiffeq. Writes the figures as JSON, and tables and a
picture of them.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from experiments.report import positive
from jaxtyping import Array, Key

from . import command, fields, loops
from .contestants import Contestant, CONTESTANTS, OURS
from .goals import NESTED
from .measure import Limits, measure
from .plot import draw
from .problem import Problem
from .records import load, Results
from .report import render
from .timing import Rounds


class Plan(NamedTuple):
    """How a field is measured: at the batches given, up to the orders given."""

    problem: Callable[[int, Key[Array, ""]], Problem]
    batches: dict[int, int]
    contestants: dict[str, Contestant]


_ALL = CONTESTANTS
# `jet`, and with it probdiffeq's, knows no loops.
_FOR_LOOPS = {name: CONTESTANTS[name] for name in (OURS, NESTED)}
_tanh = functools.partial(fields.blocks, jnp.tanh)
_softplus = functools.partial(fields.blocks, jax.nn.softplus)
PLANS = {
    "tanh": Plan(_tanh, {512: 8, 1: 4}, _ALL),
    "softplus": Plan(_softplus, {512: 8, 1: 4}, _ALL),
    "mnist": Plan(fields.mnist, {100: 4, 500: 4}, _ALL),
    "ffjord": Plan(fields.ffjord, {100: 3}, _ALL),
    "conv": Plan(fields.conv, {32: 3}, _ALL),
    "layer": Plan(loops.layer, {128: 6}, _FOR_LOOPS),
    "scan": Plan(loops.scan, {128: 6}, _FOR_LOOPS),
    "while": Plan(loops.while_loop, {128: 6}, _FOR_LOOPS),
    "cond": Plan(loops.cond, {128: 6}, _FOR_LOOPS),
}


def fill(results: Results, options: argparse.Namespace) -> Iterator[None]:
    """Adds to the results, and yields whenever there is more of them."""
    rounds = Rounds(repeats=options.repeats, most_seconds=options.seconds)
    limits = Limits(rounds, options.compile_limit, 1 if options.quick else 3)
    for name in options.fields:
        plan = PLANS[name]
        batches = options.batch or list(plan.batches)
        for batch in batches:
            highest = plan.batches.get(batch, max(plan.batches.values()))
            orders = options.orders or range(1, highest + 1)
            problem = plan.problem(batch, jr.key(options.seed))
            for measurements in measure(
                name, batch, problem, orders, plan.contestants, limits
            ):
                order = measurements[0].order
                print(f"{name}, batch {batch}, K = {order}", file=sys.stderr)
                results.measurements.extend(measurements)
                yield


def arguments() -> argparse.Namespace:
    parser = command.parser("taylor", __doc__, PLANS, seconds=5.0)
    add = parser.add_argument
    add(
        "--compile-limit",
        type=positive(float),
        default=20.0,
        metavar="SECONDS",
        help="who takes longer to compile an order is not tried at higher ones",
    )
    add(
        "--tolerance",
        type=positive(float),
        default=1e-3,
        help="how far numbers may differ, in parts of the largest",
    )
    options = parser.parse_args()
    if options.quick:
        options.orders = options.orders or [2, 3]
        options.batch = options.batch or [4]
        options.repeats, options.seconds = 3, 0.1
    return options


def begin(options: argparse.Namespace) -> Results:
    return Results(**command.circumstances(options), measurements=[])


def main() -> None:
    benchmark = command.Benchmark("taylor", begin, fill, load, render, draw)
    command.run(benchmark, arguments())


if __name__ == "__main__":
    main()
