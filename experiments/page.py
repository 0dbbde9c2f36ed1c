"""Pages of results: prose in Markdown, with tables and numbers from records.

`pages/*.md` hold the prose. In them, `{{table TASK}}` stands for a table, `{{savings}}`
for the table of evaluations over the tolerance, `{{details TASK}}` for commands,
pictures and files, `{{TASK/METHOD/METRIC:FORMAT}}` for a mean, with its deviation if
the format ends with `±`, and `{{TASK/METHOD/METRIC over TASK/METHOD/METRIC:FORMAT}}`
for a ratio of means.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from . import plots, record, tables, timing
from .config import RESULTS, ROOT, UsageError
from .record import Record
from .task import save_picture, Task
from .tasks import find, TASKS


PAGES = ROOT / "experiments" / "pages"
# The others are parts of pages.
_PAGES = ("results.md", "where_it_pays.md")
_LINK = "../experiments/results"


def write(records: Sequence[Record]) -> Iterator[Path]:
    """Writes all pages."""
    for template in sorted(PAGES.glob("*.md")):
        path = target(template)
        path.write_text(fill(template.read_text(), records))
        yield path


def target(template: Path) -> Path:
    folder = ROOT / "docs" if template.name in _PAGES else RESULTS
    return folder / template.name


def fill(text: str, records: Sequence[Record]) -> str:
    """Fills in a template."""
    records = timing.with_times(records)

    def replace(match: re.Match[str]) -> str:
        kind, *words = match[1].split()
        if kind == "table":
            name, *others = words
            return table(find(name), records, *others)
        if kind == "savings":
            return tables.markdown(tables.savings(TASKS.values(), records))
        if kind == "details":
            return details(find(words[0]), records)
        return _number(match[1], records)

    return tables.aligned(re.sub(r"\{\{(.*?)\}\}", replace, text))


def _number(text: str, records: Sequence[Record]) -> str:
    """Looks up the mean of a metric, or a ratio of two."""
    places, spec = text.split(":")
    means: list[float] = []
    for place in places.split(" over "):
        name, label, metric = place.split("/")
        numbers = tables.values(find(name).groups(records).get(label, []), metric)
        if len(numbers) == 0:
            raise UsageError(f"There is no record for {{{{{text}}}}}")
        if spec.endswith("±"):
            return tables.mean(numbers, spec.removesuffix("±"))
        means.append(float(np.mean(numbers)))
    return tables.number(means[0] / means[1] if means[1:] else means[0], spec)


def table(task: Task, records: Sequence[Record], name: str = "") -> str:
    """Makes a table of a task, by its name if it has several."""
    mine = [r for r in records if r.task == task.name]
    if not mine:
        return f"There are no records of {task.name} yet."
    if task.columns and not name:
        return tables.markdown(tables.method_table(task, records))
    frame: pd.DataFrame = task.tables[name](record.newest(mine))
    return tables.markdown(frame)


def timing_table(task: Task, records: Sequence[Record]) -> str:
    """Makes the table of times that were measured side by side."""
    rows = [
        {
            "method": row["method"],
            "epoch": row["epoch"],
            "compilation": tables.number(row["compilation"], "s"),
            "training step": "refused" if row["refused"] else _ms(row["step"]),
            "optimizer": _ms(row.get("optimizer")),
            "solve": _ms(row["solve"]),
        }
        for made in record.newest(r for r in records if r.task == "timing")
        if made.method == task.name
        for row in made.rows
    ]
    return tables.markdown(tables.known(pd.DataFrame(rows))) if rows else ""


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else tables.number(seconds, "ms")


def section(task: Task, records: Sequence[Record]) -> str:
    """Makes the tables of a task, for the command line."""
    records = timing.with_times(records)
    names = ["", *task.tables] if task.columns else list(task.tables)
    return "\n\n".join(table(task, records, name) for name in names)


def draw(task: Task, records: Sequence[Record], folder: Path) -> None:
    """Draws the pictures of a task, of those records that have the arrays."""
    groups = {
        label: [made for made in group if made.failure is None]
        for label, group in task.groups(records).items()
    }
    drawn = {k: g for k, g in groups.items() if g and (g[0].picture or g[0].rows)}
    if task.draw is not None and drawn:
        figure = task.draw(drawn)
        if figure is not None:
            save_picture(figure, folder / f"{task.name}.png")
    solved = {k: g for k, g in groups.items() if g and g[0].tolerances}
    if solved:
        save_picture(plots.tolerances(solved), folder / f"{task.name}-tolerances.png")


def details(task: Task, records: Sequence[Record]) -> str:
    """Makes the pictures, the times, the commands and the files of a task."""
    groups = task.groups(records)
    commands = "\n".join(task.commands(groups.values()))
    parts = [f"```sh\n{commands}\n```"]
    for suffix, text in (("", "Picture"), ("-tolerances", "NFE over the tolerance")):
        if (RESULTS / f"{task.name}{suffix}.png").exists():
            parts.append(f"![{text} of {task.name}]({_LINK}/{task.name}{suffix}.png)")
    times = timing_table(task, records)
    if times:
        inside = textwrap.indent(times, "    ")
        parts.append(f'??? note "Times, measured side by side"\n{inside}')
    made = "\n".join(f"    {line}" for line in tables.runs(groups).splitlines())
    newer = [r for group in groups.values() for r in group]
    older = [r for r in records if r.task == task.name and r not in newer]
    if older:
        names = ", ".join(f"{r.method} of version {r.version}" for r in older)
        made += f"\n    - Left out, as there are newer ones: {names}."
    parts.append(
        f'??? note "Files, versions and machines"\n{made}\n\n'
        f"    [The records]({_LINK}) are the files `{task.name}-*.json`, and those of "
        f"times `timing-{task.name}*.json`."
    )
    return "\n\n".join(parts)
