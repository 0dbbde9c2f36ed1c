"""Compares ways to regularize the speed of neural ODEs during training.

For the papers' vector fields: what a gradient step takes with the speed beside the
state, by this package and by `jax.experimental.jet`, by quadrature after the solve, and
inside of a Taylor solver, in parts of the same step without it; and how accurate that
is. Writes the figures as JSON, and tables and a picture of them.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.random as jr
from experiments.report import nonnegative, positive
from jaxtyping import Array, Key

from . import command, fields
from .problem import Problem, rescale
from .regularization_accuracy import (
    ACTIVATIONS,
    norm_steps,
    precise_speed,
    quadrature_errors,
)
from .regularization_measure import Conditions, measure
from .regularization_plot import draw
from .regularization_records import Case, GradientStep, load, Results
from .regularization_report import render
from .regularization_ways import TAYLOR, WAYS
from .timing import Rounds


class Plan(NamedTuple):
    """How a field is measured.

    **Attributes:**

    - `problem`: the field and its states, by batch size.
    - `scale`: what the weights and biases are multiplied by.
    - `batches`: the batch sizes.
    - `orders`: the orders, by the solver.
    """

    problem: Callable[[int, Key[Array, ""]], Problem]
    scale: float
    batches: Sequence[int]
    orders: Mapping[str, Sequence[int]]


# Scaled such that a solve takes about ten steps. Dopri5 makes as many evaluations in a
# step as Tsit5: one order is enough to see that.
PLANS = {
    "mnist": Plan(
        fields.mnist,
        8.0,
        (100, 500),
        {"Tsit5": (2, 3, 4), "Dopri5": (3,), TAYLOR: (2, 3, 4)},
    ),
    "ffjord": Plan(fields.ffjord, 1.5, (100,), {"Tsit5": (2, 3), TAYLOR: (3,)}),
}
SECTIONS = ("steps", "accuracy")
NODES = (1, 2, 4, 8, 16, 32)
TOLERANCES = (1e-4, 1e-6)


def gradient_steps(options: argparse.Namespace) -> Iterator[GradientStep]:
    problem_key, random_key = jr.split(jr.key(options.seed))
    rounds = Rounds(repeats=options.repeats, most_seconds=options.seconds)
    conditions = Conditions(
        options.tolerance, options.max_steps, options.weight, random_key, rounds
    )
    for name in options.fields:
        plan = PLANS[name]
        for batch in options.batch or plan.batches:
            problem = rescale(plan.problem(batch, problem_key), plan.scale)
            exact = functools.cache(functools.partial(precise_speed, problem))
            solvers = [solver for solver in plan.orders if solver in options.solvers]
            for solver in solvers:
                for order in options.orders or plan.orders[solver]:
                    case = Case(name, batch, solver, order)
                    print(*case, file=sys.stderr)
                    yield from measure(case, problem, exact(order), conditions)


def fill(results: Results, options: argparse.Namespace) -> Iterator[None]:
    """Adds to the results, and yields whenever there is more of them."""
    if "steps" in options.sections:
        for step in gradient_steps(options):
            results.steps.append(step)
            yield
    if "accuracy" in options.sections:
        print("accuracy", file=sys.stderr)
        order, nodes = 3, NODES[:3] if options.quick else NODES
        for activation in ACTIVATIONS:
            results.quadrature.extend(
                quadrature_errors(activation, order, nodes, options.seed)
            )
        results.norms.extend(norm_steps(order, tol, options.seed) for tol in TOLERANCES)
        yield


def arguments() -> argparse.Namespace:
    parser = command.parser("regularization", __doc__, PLANS, seconds=10.0)
    add = parser.add_argument
    add(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help="which parts",
    )
    add(
        "--solvers",
        nargs="+",
        choices=WAYS,
        default=list(WAYS),
        metavar="SOLVER",
        help="which solvers",
    )
    add(
        "--tolerance",
        type=positive(float),
        default=1e-6,
        help="of adaptive solves, relative and absolute",
    )
    add(
        "--max-steps",
        type=positive(int),
        default=64,
        metavar="STEPS",
        help="of adaptive solves, for which there is room",
    )
    add(
        "--weight",
        type=nonnegative(float),
        default=1e-4,
        help="of the speed in the loss",
    )
    options = parser.parse_args()
    if options.quick:
        options.orders = options.orders or [3]
        options.batch = options.batch or [4]
        options.repeats, options.seconds = 3, 0.1
    return options


def begin(options: argparse.Namespace) -> Results:
    options.scale = {name: PLANS[name].scale for name in options.fields}
    record = command.circumstances(options)
    return Results(**record, steps=[], quadrature=[], norms=[])


def main() -> None:
    benchmark = command.Benchmark("regularization", begin, fill, load, render, draw)
    command.run(benchmark, arguments())


if __name__ == "__main__":
    main()
