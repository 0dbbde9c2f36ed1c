"""Renders the results of solvers as tables, with their goals."""

from collections.abc import Iterable, Iterator

from .runs import build_seconds, memory, ratio, seconds
from .solver_goals import goals
from .solver_records import NetworkSolve, Results, SmoothSolve
from .tables import circumstances_table, goals_table, number, table


INTRODUCTION = """\
Run times are medians of interleaved rounds. *Compile* includes tracing. *Evaluations*
are those of the vector field; of Taylor methods, the coefficients computed, each of
which costs about as much. Memory is what temporaries and outputs take."""
FLOORS = """\
Taylor-Lagrange methods with an elementwise midpoint network, by `diffrax.diffeqsolve`
(*solver*) and in a `lax.scan` of the same arithmetic (*scan*), on the MNIST network of
the papers, in single precision. A *gradient* step is the mean square of the final state
with its gradient in the parameters of both networks and the initial state; both make
each step again for it."""
NETWORKS = """\
The same network, untrained; and *scaled*, with weights and biases so much larger that
Dopri5 needs about as many evaluations as for the trained one of the papers. The
midpoint network is untrained, with which the method is of order p + 1; or *fitted* for
two steps, on other initial states. *Error* is the root mean square of that of the final
state. Adaptive solves keep the state before each step for the gradient."""
SMOOTH = """\
In double precision, one trajectory. The truncated Taylor methods, Dopri8 and Tsit5 run
in `diffrax.diffeqsolve` with the same controller, that of Diffrax's defaults; heyoka
runs its own adaptive Taylor method, which chooses its order by the tolerance. *Error*
is the largest of the final state's entries, in parts of its largest entry. Steps
include rejected ones. For systems that small, run time is that of the many kernels that
XLA makes of a step rather than of their arithmetic, which heyoka compiles into one
piece: see the time of an evaluation. Where one of Tsit5 is much cheaper than those of
the others, it may be the fastest method in spite of its order."""


def render(results: Results) -> str:
    """The whole report, in Markdown."""
    parts = ["# Solvers", INTRODUCTION, circumstances_table(results)]
    parts += ["## Goals", goals_table([*goals(results)])]
    if results.floors:
        parts += ["## Overhead", FLOORS, _floors(results)]
    if results.networks:
        parts += ["## Networks", NETWORKS, *_networks(results)]
    if results.smooth:
        parts += ["## Smooth problems", SMOOTH, *_smooth(results)]
    return "\n\n".join(parts) + "\n"


def _floors(results: Results) -> str:
    rows = [
        ["batch", "p", "steps", "kind", "solver ms", "scan ms", "ratio", "compile s"]
        + ["compile s, scan", "memory MiB", "memory MiB, scan"]
    ]
    for one in results.floors:
        rows.append(
            [
                *map(str, one[:4]),
                number(1e3 * one.solver.seconds),
                number(1e3 * one.scan.seconds),
                number(one.ratio),
                *(number(build_seconds(run)) for run in (one.solver, one.scan)),
                *(_mebibytes(memory(run)) for run in (one.solver, one.scan)),
            ]
        )
    return table(rows)


def _networks(results: Results) -> Iterator[str]:
    for group in dict.fromkeys(one[:3] for one in results.networks):
        solves = [one for one in results.networks if one[:3] == group]
        network, batch, kind = group
        yield f"### {network.capitalize()}, batch {batch}, {kind}"
        yield _network(solves)
        yield from _failures(solves)


def _network(solves: Iterable[NetworkSolve]) -> str:
    rows = [["method", "steps or tolerance", "ms", "evaluations", "error"]]
    rows[0] += ["compile s", "memory MiB"]
    for one in solves:
        rows.append(
            [
                one.method,
                f"{one.setting:g}",
                _scaled(seconds(one.run), 1e3),
                _count(one.evaluations),
                _scientific(one.error),
                number(build_seconds(one.run)),
                _mebibytes(memory(one.run)),
            ]
        )
    return table(rows)


def _smooth(results: Results) -> Iterator[str]:
    for problem in dict.fromkeys(one.problem for one in results.smooth):
        solves = [one for one in results.smooth if one.problem == problem]
        yield f"### {problem.capitalize()}"
        yield _problem(sorted(solves, key=lambda one: -one.tolerance))
        yield from _failures(solves)


def _problem(solves: Iterable[SmoothSolve]) -> str:
    rows = [["tolerance", "method", "µs", "steps", "evaluations", "ns / evaluation"]]
    rows[0] += ["error", "compile s"]
    for one in solves:
        rows.append(
            [
                f"{one.tolerance:.0e}",
                one.method,
                _scaled(seconds(one.run), 1e6),
                _count(one.steps),
                _count(one.evaluations),
                _scaled(ratio(seconds(one.run), one.evaluations), 1e9),
                _scientific(one.error),
                number(build_seconds(one.run)),
            ]
        )
    return table(rows)


def _failures(solves: Iterable[NetworkSolve | SmoothSolve]) -> Iterator[str]:
    failed = {one.method: one.failure for one in solves if one.failure is not None}
    if failed:
        yield "\n".join(f"- {method}: {failure}" for method, failure in failed.items())


def _scaled(value: float | None, factor: float) -> str:
    return number(None if value is None else value * factor)


def _mebibytes(value: float | None) -> str:
    return _scaled(value, 2**-20)


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
