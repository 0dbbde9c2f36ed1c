"""Compares Taylor-Lagrange solvers with others.

On the papers' MNIST network: with the same arithmetic in a hand-written loop, with the
adaptive solvers of the papers, and with Runge-Kutta methods in constant steps. On small
smooth problems in double precision: truncated Taylor methods with Runge-Kutta methods,
and with heyoka, where it is installed. Writes the figures as JSON, and tables and a
picture of them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import diffrax_speedreg as dsr
import jax.random as jr
from experiments.report import positive

from . import command, fields, solver_smooth
from .problem import rescale
from .solver_fit import fit
from .solver_measure import exact_state, floor, measure
from .solver_plot import draw
from .solver_problems import PROBLEMS
from .solver_records import Floor, KINDS, load, NetworkSolve, Results, SmoothSolve
from .solver_report import render
from .solver_ways import evaluation_ways, FEWEST_STEPS, gradient_ways, Setting
from .timing import Rounds


NETWORK = "mnist"
# The factors of weights and biases. A network like the papers' trained ones, of which
# Dopri5 needs about 110 evaluations at a tolerance of 1.4e-8, is one scaled so.
SCALES = {"untrained": 1.0, "scaled": 8.0}
BATCH, FIT_BATCH = 500, 100
NETWORK_ORDERS, NUMS_STEPS = (1, 2, 3), (2, 4, 8)
TOLERANCES = tuple(10.0**-k for k in range(4, 13))
SECTIONS = ("floor", "networks", "smooth")


def _setting(options: argparse.Namespace, batch: int, scale: float) -> Setting:
    """The network with a midpoint as in the papers: elementwise, and untrained."""
    problem_key, correction_key = jr.split(jr.key(options.seed))
    problem = rescale(fields.mnist(batch, problem_key), scale)
    size = problem.y.shape[-1]
    return Setting(problem, dsr.CorrectionMLP(size, key=correction_key))


def floors(options: argparse.Namespace, rounds: Rounds) -> Iterator[Floor]:
    for batch in options.batch or [BATCH]:
        setting = _setting(options, batch, SCALES["untrained"])
        for order in options.orders or NETWORK_ORDERS:
            for num_steps in NUMS_STEPS[:1] if options.quick else NUMS_STEPS:
                print("floor", batch, order, num_steps, file=sys.stderr)
                for kind in KINDS:
                    yield floor(order, num_steps, kind, setting, rounds)


def networks(options: argparse.Namespace, rounds: Rounds) -> Iterator[NetworkSolve]:
    orders = tuple(options.orders or NETWORK_ORDERS)
    for network, scale in SCALES.items():
        corrections = _corrections(options, network, orders)
        ways = dict(
            evaluation=evaluation_ways(orders, corrections, options.max_steps),
            gradient=gradient_ways(orders, options.max_steps),
        )
        for batch in options.batch or [BATCH]:
            setting = _setting(options, batch, scale)
            exact = exact_state(setting.problem)
            for kind in KINDS:
                print("network", network, batch, kind, file=sys.stderr)
                yield from measure(network, kind, setting, ways[kind], exact, rounds)


def _corrections(
    options: argparse.Namespace, network: str, orders: Sequence[int]
) -> dict[int, dsr.AbstractCorrection]:
    key = jr.fold_in(jr.key(options.seed), 1)
    setting = _setting(options, FIT_BATCH, SCALES[network])
    corrections = {}
    for order in orders:
        print("fit", network, order, file=sys.stderr)
        corrections[order] = fit(setting, order, FEWEST_STEPS, options.updates, key)
    return corrections


def smooth(options: argparse.Namespace, rounds: Rounds) -> Iterator[SmoothSolve]:
    orders = options.smooth_orders
    tolerances = TOLERANCES[::4] if options.quick else TOLERANCES
    for name in PROBLEMS:
        if name in options.fields:
            print(name, file=sys.stderr)
            yield from solver_smooth.measure(name, orders, tolerances, rounds)


def fill(results: Results, options: argparse.Namespace) -> Iterator[None]:
    """Adds to the results, and yields whenever there is more of them."""
    rounds = Rounds(repeats=options.repeats, most_seconds=options.seconds)
    sections = options.sections
    if "floor" in sections and NETWORK in options.fields:
        for one in floors(options, rounds):
            results.floors.append(one)
            yield
    if "networks" in sections and NETWORK in options.fields:
        for one in networks(options, rounds):
            results.networks.append(one)
            yield
    if "smooth" in sections:
        for one in smooth(options, rounds):
            results.smooth.append(one)
            yield


def arguments() -> argparse.Namespace:
    parser = command.parser("solver", __doc__, [NETWORK, *PROBLEMS], seconds=4.0)
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
        "--smooth-orders",
        nargs="+",
        type=positive(int),
        default=[8, 12, 16],
        metavar="P",
        help="of truncated Taylor methods, for the smooth problems",
    )
    add(
        "--updates",
        type=positive(int),
        default=300,
        help="to fit a midpoint network by",
    )
    add(
        "--max-steps",
        type=positive(int),
        default=32,
        metavar="STEPS",
        help="of adaptive solves of networks, for which there is room",
    )
    options = parser.parse_args()
    if options.quick:
        options.orders = options.orders or [1]
        options.batch = options.batch or [4]
        options.smooth_orders = options.smooth_orders[:1]
        options.repeats, options.seconds, options.updates = 3, 0.1, 3
    return options


def begin(options: argparse.Namespace) -> Results:
    options.scale = SCALES
    record = command.circumstances(options, "optax", "heyoka")
    return Results(**record, floors=[], networks=[], smooth=[])


def main() -> None:
    benchmark = command.Benchmark("solver", begin, fill, load, render, draw)
    command.run(benchmark, arguments())


if __name__ == "__main__":
    main()
