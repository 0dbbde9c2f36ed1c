"""What the reports of all benchmarks share: tables, goals, circumstances."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Goal(NamedTuple):
    """That none of the figures exceeds the limit."""

    statement: str
    limit: float
    figures: Mapping[str, float | None]

    @property
    def met(self) -> bool | None:
        """`None` if a figure is missing, and none of the others exceeds the limit."""
        known = [figure for figure in self.figures.values() if figure is not None]
        if any(figure > self.limit for figure in known):
            return False
        return True if known and len(known) == len(self.figures) else None


class Circumstances(Protocol):
    """Results of any benchmark, as far as they tell how they came about."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    @property
    def hardware(self) -> Mapping[str, str | int]: ...


def table(rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |"
        for row in (rows[0], rule, *rows[1:])
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def circumstances_table(results: Circumstances) -> str:
    entries = {**results.hardware, **results.versions, **results.settings}
    return table([["", ""], *([key, str(value)] for key, value in entries.items())])


def goals_table(listed: Sequence[Goal]) -> str:
    verdicts = {True: "yes", False: "no", None: "not known"}
    rows = [["goal", "limit", "measured", "met"]]
    for goal in listed:
        figures = ", ".join(f"{k}: {number(v)}" for k, v in goal.figures.items())
        rows.append(
            [goal.statement, f"{goal.limit:g}", figures or "–", verdicts[goal.met]]
        )
    return table(rows)
