"""Renders results as tables."""

from collections.abc import Callable, Iterator, Sequence

from .contestants import OURS
from .goals import goals, in_evaluations, ours_to
from .records import Results, YARDSTICK
from .runs import build_seconds, memory, Run, seconds
from .tables import circumstances_table, goals_table, number, table


INTRODUCTION = """\
*Forward* is the K-th total time derivative of the solution, *gradient* the mean of its
squares with the gradient in the parameters and the state. Run times are medians of
interleaved rounds, in K times the field's own, which is given beside K. Compile times
include tracing. Memory is what temporaries and outputs take. Each figure is followed,
in brackets, by this package's in parts of it: below 1 where this package is better."""


def render(results: Results) -> str:
    """The whole report, in Markdown."""
    parts = ["# Taylor series of solutions", INTRODUCTION, circumstances_table(results)]
    parts += ["## Goals", goals_table(goals(results))]
    fields = dict.fromkeys(m.field for m in results.measurements)
    for field in fields:
        for batch in results.batches(field):
            parts += [f"## `{field}`, batch {batch}", *_problem(results, field, batch)]
    return "\n\n".join(parts) + "\n"


def _problem(results: Results, field: str, batch: int) -> Iterator[str]:
    runs = [m for m in results.measurements if m[:2] == (field, batch)]
    kinds = [k for k in ("forward", "gradient") if any(getattr(m, k) for m in runs)]
    names = [n for n in dict.fromkeys(m.contestant for m in runs) if n != YARDSTICK]
    for kind in kinds:
        yield f"Run time, {kind}, in K times the field's:"
        yield _times(results, kind, field, batch, names)
        yield f"Compile time, {kind}, s:"
        yield _builds(results, kind, build_seconds, 1, field, batch, names)
    for kind in kinds[-1:]:
        yield f"Memory, {kind}, MiB:"
        yield _builds(results, kind, memory, 2**20, field, batch, names)
    remarks = [*_differences(results, field, batch, names)]
    remarks += [
        f"- {m.contestant}, K = {m.order}: {m.failure}" for m in runs if m.failure
    ]
    if remarks:
        yield "\n".join(remarks)


def _times(
    results: Results, kind: str, field: str, batch: int, names: Sequence[str]
) -> str:
    rows = [["K", "field", *names]]
    for order in results.orders(field, batch):
        once = getattr(results.find(field, batch, order, YARDSTICK), kind)
        row = [str(order), "–" if once is None else f"{1e3 * once.seconds:.3f} ms"]
        for name in names:
            figure = in_evaluations(results, kind, field, batch, order, name)
            relative = ours_to(results, seconds, kind, field, batch, order, name)
            row.append(_cell(figure, relative, name))
        rows.append(row)
    return table(rows)


def _builds(
    results: Results,
    kind: str,
    quantity: Callable[[Run | None], float | None],
    unit: float,
    field: str,
    batch: int,
    names: Sequence[str],
) -> str:
    rows = [["K", "field", *names]]
    for order in results.orders(field, batch):
        row = [str(order)]
        for name in (YARDSTICK, *names):
            run = getattr(results.find(field, batch, order, name), kind)
            value = quantity(run)
            relative = ours_to(results, quantity, kind, field, batch, order, name)
            figure = None if value is None else value / unit
            row.append(_cell(figure, relative, name))
        rows.append(row)
    return table(rows)


def _differences(
    results: Results, field: str, batch: int, names: Sequence[str]
) -> Iterator[str]:
    """How far the contestants' numbers are from this package's, over all orders."""
    tolerance = results.settings["tolerance"]
    for name in names:
        found = [
            results.find(field, batch, order, name)
            for order in results.orders(field, batch)
        ]
        errors = [
            e for m in found for e in (m.error, m.gradient_error) if e is not None
        ]
        if errors:
            # Not `max(errors) > tolerance`, which NaN would pass.
            agrees = all(error <= tolerance for error in errors)
            remark = "" if agrees else " **DISAGREES**"
            yield f"- {name}: numbers differ by {max(errors):.1e} at most{remark}"


def _cell(figure: float | None, relative: float | None, name: str) -> str:
    if figure is None or relative is None or name in (OURS, YARDSTICK):
        return number(figure)
    return f"{number(figure)} ({number(relative)})"
