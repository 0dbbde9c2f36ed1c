"""Benchmarks, and their records as Markdown."""

import dataclasses
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from tools.tables import markdown as table

from .harness import Options, Record, Row


_folder = Path(__file__).parent / "pages"
MISSING = "–"
# The units of columns, and the formats of their numbers, if these are not usual.
UNITS = {"seconds": 1e3, "cpu_seconds": 1e3, "memory_bytes": 2**-20, "bytes": 2**-20}
UNITS |= {"per_evaluation": 1e9}
FORMATS = {"error": ".1e", "tolerance": "g", "setting": "g"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Table of a report, with the columns of a frame by their headings.

    `by` and `label` are formats of columns: the title of a section for each group, and
    the name of a row that failed.
    """

    frame: str
    columns: Mapping[str, str]
    by: str = ""
    label: str = ""

    def render(self, frame: pd.DataFrame) -> str:
        parts = [] if len(frame) else ["Not measured."]
        for title, rows in frame.groupby(labels(frame, self.by), sort=False):
            columns = {k: col for k, col in self.columns.items() if col in rows}
            cells = {name: _cells(rows, col) for name, col in columns.items()}
            parts += [f"### {title}"] * bool(self.by) + [markdown(pd.DataFrame(cells))]
            if self.label:
                failed = rows[rows["failure"].notna()]
                failures = zip(labels(failed, self.label), failed["failure"])
                parts += [f"- {name}: {failure}" for name, failure in failures]
        return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(parts))


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Benchmark, whose page and tables are in the folder `pages`.

    **Attributes:**

    - `name`: the name of its module, and the start of the names of its files.
    - `description`: the description in its help.
    - `measure`: yields rows, with the names of their tables in the record.
    - `frames`: makes frames of a record, with the figures of tables and goals.
    - `options`: the class of its options.
    """

    name: str
    description: str | None
    measure: Callable[[Any], Iterator[tuple[str, list[Row]]]]
    frames: Callable[[Record], Mapping[str, pd.DataFrame]]
    options: type[Options] = Options

    def main(self) -> None:
        """Measures or loads a record, and writes the report."""
        prog = f"python -m benchmarks.{self.name}"
        options = tyro.cli(self.options, prog=prog, description=self.description)
        if options.render is not None:
            path, record = options.render, Record.load(options.render)
        else:
            record, path = Record.begin(options), options.path(self.name)
            for table, rows in self.measure(options):
                print(f"{table}: {len(rows)} rows", file=sys.stderr)
                record.tables.setdefault(table, []).extend(rows)
                record.save(path)  # Measurements survive an interruption.
        text = self.render(record)
        path.with_suffix(".md").write_text(text)
        print(text)

    def render(self, record: Record) -> str:
        frames = self.frames(record)
        listed = tomllib.loads((_folder / f"{self.name}.toml").read_text())
        tables = {name: Table(**entries) for name, entries in listed.items()}
        shown = {**record.hardware, **record.versions, **record.options}
        shown = {k: str(v) for k, v in shown.items() if v not in (None, [])}
        pairs = [(k, v.strip("[]").replace("'", "")) for k, v in shown.items()]
        parts = {name: one.render(frames[one.frame]) for name, one in tables.items()}
        parts["circumstances"] = markdown(pd.DataFrame(pairs, columns=["", " "]))
        parts["goals"] = markdown(goals(self.name, frames))
        return (_folder / f"{self.name}.md").read_text().format(**parts)


def markdown(frame: pd.DataFrame) -> str:
    """Makes a table in Markdown, without the index."""
    return table([*map(str, frame.columns)], frame.astype(str).values.tolist())


def number(value: float, style: str = "") -> str:
    if pd.isna(value):
        return MISSING
    return format(value, style or (".3g" if value < 100 else ".0f"))


def _cells(rows: pd.DataFrame, column: str) -> list[str]:
    """Formats a column; run times with their spreads, where these are known."""
    if not pd.api.types.is_numeric_dtype(rows[column]):
        return [MISSING if value is None else str(value) for value in rows[column]]
    unit, style = UNITS.get(column, 1), FORMATS.get(column, "")
    if unit == 1 and (rows[column].dropna() % 1 == 0).all():
        style = style or ".0f"
    cells = [number(unit * value, style) for value in rows[column]]
    if column == "seconds":
        spreads = [f" ± {number(unit * s)}" if s > 0 else "" for s in rows["spread"]]
        known = rows["seconds"].notna()
        cells = [c + s if k else c for c, s, k in zip(cells, spreads, known)]
    return cells


def labels(frame: pd.DataFrame, style: str) -> list[str]:
    """Formats columns as the label of each row."""
    return [style.format_map(row) for row in frame.to_dict("records")]


def relative(frame: pd.DataFrame, column: str, same: str, **base: Any) -> pd.Series:
    """Divides a column by that of the rows with the entries `base`, which are the same
    in the columns `same`."""
    if frame.empty:
        return pd.Series(dtype=float)
    keys = same.split()
    rows = frame[(frame[[*base]] == pd.Series(base)).all(axis=1)]
    bases = rows[[*keys, column]].dropna().rename(columns={column: "base"})
    merged = frame[[*keys, column]].merge(bases, on=keys, how="left")
    return (merged[column] / merged["base"]).set_axis(frame.index)


def wide(
    frame: pd.DataFrame, index: str, column: str, cells: list[str]
) -> pd.DataFrame:
    """Makes a frame of cells with a column for each entry of `column`."""
    keys = index.split()
    made = frame.assign(cell=cells).pivot(index=keys, columns=column, values="cell")
    rows = frame[keys].drop_duplicates().merge(made.reset_index(), on=keys)
    return rows[[*keys, *frame[column].unique()]]


def goals(name: str, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Compares the figures of a benchmark with its goals, which `goals.csv` lists.

    Each goal is a limit for a column of the rows that a query selects.
    """
    rows = []
    for goal in pd.read_csv(_folder / "goals.csv").to_dict("records"):
        if goal["benchmark"] == name:
            found = frames[goal["table"]]
            found = found if found.empty else found.query(goal["rows"])
            names = labels(found, goal["label"])
            figures = [row[goal["figure"]] for row in found.to_dict("records")]
            measured = ", ".join(f"{k}: {number(v)}" for k, v in zip(names, figures))
            met = "yes" if figures and not any(map(pd.isna, figures)) else "not known"
            met = "no" if any(figure > goal["limit"] for figure in figures) else met
            limit = f"{goal['limit']:g}"
            rows.append((goal["goal"], limit, measured or MISSING, met))
    return pd.DataFrame(rows, columns=["goal", "limit", "measured", "met"])
