"""Renders the results of regularization as tables, with its goals."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .regularization_records import GradientStep, Results
from .regularization_ways import AUGMENTED, FREE, GAUSS, PLAIN, RANDOM_NODE, TAYLOR
from .runs import build_seconds, memory, seconds
from .tables import circumstances_table, Goal, goals_table, number, table


INTRODUCTION = f"""\
A *gradient step* is the mean square of the final state, plus the weighted speed, with
the gradient in the parameters and the initial state. Run times are medians of
interleaved rounds; *ratio* is that to the step of the same solver without the speed
(*{PLAIN}*). *Compile* includes tracing. Memory is what temporaries and outputs take.
*Error* is that of the speed, in parts of a precise one, which was integrated beside the
state in double precision; that of the random node is of a single draw. Steps of
adaptive solvers include rejected ones. *{TAYLOR}* is the truncated Taylor method of
order 4 in equal steps, and the speed there that of its polynomials."""
ACCURACY = """\
In double precision, on a small network (four layers of width 100, one sample). Error of
the speed by Gauss-Legendre quadrature with n nodes, in parts of one integrated beside
the state:"""
NORMS = """\
Steps of Tsit5 with `tanh`, without the speed (*plain*), and with the speed beside the
state, where the controller's norm is `term.norm`, or Diffrax's default:"""
# At which the goals are set.
_GOAL_ORDER = 3


class _Limit(NamedTuple):
    way: str
    statement: str
    limit: float


_LIMITS = (
    _Limit(GAUSS, "quadrature of 8 nodes", 1.15),
    _Limit(RANDOM_NODE, "one random node", 1.05),
    _Limit(AUGMENTED, "augmented state", 2.0),
    _Limit(FREE, "inside of a Taylor solver", 1.05),
)


def render(results: Results) -> str:
    """The whole report, in Markdown."""
    parts = ["# Regularization", INTRODUCTION, circumstances_table(results)]
    parts += ["## Goals", goals_table([*goals(results)])]
    for field, batch in dict.fromkeys(step[:2] for step in results.steps):
        parts += [f"## `{field}`, batch {batch}", *_problem(results, field, batch)]
    if results.quadrature:
        parts += ["## Accuracy", ACCURACY, _quadrature(results)]
    if results.norms:
        parts += [NORMS, _norms(results)]
    return "\n\n".join(parts) + "\n"


def goals(results: Results) -> Iterator[Goal]:
    for field in dict.fromkeys(step.field for step in results.steps):
        for way, statement, limit in _LIMITS:
            figures = {
                f"batch {step.batch}, {step.solver}": results.ratio(*step[:5])
                for step in results.steps
                if (step.field, step.order, step.way) == (field, _GOAL_ORDER, way)
            }
            yield Goal(
                f"`{field}`: {statement}, at K = {_GOAL_ORDER}, at most {limit:g} of "
                "the step without the speed",
                limit,
                figures,
            )


def _problem(results: Results, field: str, batch: int) -> Iterator[str]:
    steps = [step for step in results.steps if step[:2] == (field, batch)]
    for solver in dict.fromkeys(step.solver for step in steps):
        yield f"{solver}:"
        yield _steps(results, [step for step in steps if step.solver == solver])
    failures = [
        f"- {step.solver}, K = {step.order}, {step.way}: {step.failure}"
        for step in steps
        if step.failure is not None
    ]
    if failures:
        yield "\n".join(failures)


def _steps(results: Results, steps: Iterable[GradientStep]) -> str:
    rows = [
        ["K", "way", "step ms", "ratio", "steps"]
        + ["compile s", "memory MiB", "speed", "error"]
    ]
    for step in steps:
        milliseconds = _scaled(seconds(step.run), 1e3)
        mebibytes = _scaled(memory(step.run), 2**-20)
        rows.append(
            [
                str(step.order),
                step.way,
                number(milliseconds),
                number(results.ratio(*step[:5])),
                "–" if step.num_steps is None else str(step.num_steps),
                number(build_seconds(step.run)),
                number(mebibytes),
                _scientific(step.speed, 4),
                _scientific(step.error, 1),
            ]
        )
    return table(rows)


def _quadrature(results: Results) -> str:
    nums_nodes = dict.fromkeys(row.num_nodes for row in results.quadrature)
    rows = [["field", "K", *(f"n = {n}" for n in nums_nodes)]]
    for name, order in dict.fromkeys(row[:2] for row in results.quadrature):
        errors = [row.error for row in results.quadrature if row[:2] == (name, order)]
        rows.append([name, str(order), *(_scientific(error, 1) for error in errors)])
    return table(rows)


def _norms(results: Results) -> str:
    rows = [["K", "rtol = atol", PLAIN, "`term.norm`", "default norm"]]
    for order, tolerance, *counts in results.norms:
        rows.append([str(order), f"{tolerance:g}", *map(str, counts)])
    return table(rows)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _scientific(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}e}"
