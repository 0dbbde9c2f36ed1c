"""Tables of records: means over seeds, in Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from tools.tables import markdown as table

from .record import Record
from .task import Task


def number(value: float, spec: str) -> str:
    """Formats a number. The formats "ms" and "s" are for seconds."""
    if spec == "ms":
        return f"{1e3 * value:.3g} ms"
    if spec == "s":
        return f"{value:.3g} s"
    return f"{value:{spec}}"


def values(records: Sequence[Record], metric: str) -> np.ndarray:
    """Returns a metric of those records that have it.

    The metric "nfe at 1e-7" is the NFE in double precision, at that tolerance.
    """
    name, _, tolerance = metric.partition(" at ")
    if tolerance:
        rows = (row for made in records for row in made.tolerances)
        at = dict(tolerance=float(tolerance), dtype="float64")
        found = [row[name] for row in rows if at.items() <= row.items()]
    else:
        found = [made.metrics.get(name) for made in records]
    return np.array([value for value in found if value is not None], float)


def mean(numbers: Sequence[float] | np.ndarray, spec: str) -> str:
    """Formats a mean, with the standard deviation if there are several numbers."""
    if len(numbers) == 0:
        return "-"
    text = number(float(np.mean(numbers)), spec)
    if len(numbers) == 1:
        return text
    # Two digits of a deviation are enough, where a format counts digits.
    spread = re.sub(r"^\.\d+g$", ".2g", spec)
    return f"{text} ± {number(float(np.std(numbers, ddof=1)), spread)}"


def is_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether means differ by less than the scatter, and the ranges overlap."""
    if min(len(one), len(other)) < 2:
        return False
    scatter = np.hypot(np.std(one, ddof=1), np.std(other, ddof=1))
    overlap = max(one.min(), other.min()) <= min(one.max(), other.max())
    return bool(overlap and abs(np.mean(one) - np.mean(other)) < scatter)


def method_table(task: Task, records: Sequence[Record]) -> pd.DataFrame:
    """Makes the table of a task: a row for each method and its options.

    A number may be called equal to that of the first row. The format "x" makes a ratio:
    that of the first row relative to it.
    """
    groups = task.groups(records)
    rows = []
    first = next(iter(groups.values()), [])
    for label, group in groups.items():
        row = {"method": label}
        failed = [r.failure for r in group if r.failure is not None]
        for column, (metric, spec) in task.columns.items():
            found, others = values(group, metric), values(first, metric)
            if spec == "x":
                some = len(found) and len(others)
                ratio = np.mean(others) / np.mean(found) if some else np.nan
                row[column] = f"{ratio:.2g}x" if some else "-"
            else:
                row[column] = mean(found, spec)
                if group is not first and is_equal(found, others):
                    row[column] += " (equal)"
        if failed:
            column = next(iter(task.columns))
            row[column] = f"{len(failed)} of {len(group)} failed: {failed[0]}"
        rows.append(row)
    return known(pd.DataFrame(rows))


def known(frame: pd.DataFrame) -> pd.DataFrame:
    """Leaves out columns without numbers: not all records have all times."""
    return frame.loc[:, [bool((frame[c] != "-").any()) for c in frame.columns]]


def savings(tasks: Iterable[Task], records: Sequence[Record]) -> pd.DataFrame:
    """Makes the table of evaluations in double precision, over the tolerance.

    A cell has the mean for plain training, and that for a regularizer or a learned
    solver.
    """
    rows = []
    for task in tasks:
        groups = task.groups(records)
        first = groups.get("plain", [])
        plain = _counts(first)
        for label, group in groups.items():
            counts = _counts(group)
            # A longer training, or a wider network, is another task.
            alike = first and first[0].options.items() <= group[0].options.items()
            if group[0].method != "plain" and alike and plain and counts:
                cells = {
                    f"{tolerance:.0e}": f"{plain[tolerance]:.0f} → {count:.0f}"
                    for tolerance, count in counts.items()
                    if tolerance in plain
                }
                rows.append({"task and method": f"{task.name}, {label}"} | cells)
    return pd.DataFrame(rows).fillna("-")


def _counts(records: Sequence[Record]) -> dict[float, float]:
    """Computes the mean NFE in double precision, for each tolerance at which no solve
    failed."""
    found: dict[float, list[float | None]] = {}
    for row in (row for made in records for row in made.tolerances):
        if row["dtype"] == "float64":
            found.setdefault(row["tolerance"], []).append(row["nfe"])
    return {
        tolerance: float(np.mean(np.array(counts, float)))
        for tolerance, counts in found.items()
        if None not in counts
    }


def markdown(frame: pd.DataFrame) -> str:
    """Makes a table in Markdown."""
    return table([*map(str, frame.columns)], frame.astype(str).values.tolist())


def aligned(text: str) -> str:
    """Aligns the columns of all tables in a text."""

    def align(match: re.Match[str]) -> str:
        header, _, *lines = match[0].strip().splitlines()
        header, *rows = (re.split(r" *\| *", x)[1:-1] for x in (header, *lines))
        return f"{table(header, rows)}\n"

    return re.sub(r"^\|.*\n\|[-| ]*\n(\|.*\n)*", align, text, flags=re.MULTILINE)


def runs(groups: Mapping[str, Sequence[Record]]) -> str:
    """Describes the versions and machines of groups of records."""
    lines: dict[str, list[str]] = {}
    for label, group in groups.items():
        for r in group:
            on = [f"{k} {v}" for k, v in (r.versions | r.hardware).items()]
            lines.setdefault(", ".join(on), []).append(label)
    return "\n".join(
        f"- {'; '.join(dict.fromkeys(labels))}: {on}." for on, labels in lines.items()
    )
