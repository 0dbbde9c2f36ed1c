"""Records of runs: the one layout of all results, as JSON."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from benchmarks import harness


PACKAGE = "diffrax-speedreg"


@dataclasses.dataclass(frozen=True)
class Record:
    """Result of a run of a task by a method with a seed.

    **Attributes:**

    - `task`, `method`, `seed`, `options`: the settings.
    - `versions`, `hardware`: those of the run.
    - `metrics`: named numbers.
    - `curves`: numbers by epoch.
    - `picture`: arrays for the picture of the task.
    - `rows`: the rows of a table, for a task that has several for each run.
    - `tolerances`: evaluations of the trained equation over the solver's tolerance.
    - `failure`: the message of the error that ended the run.
    - `finished`: whether all rows are there.
    """

    task: str
    method: str
    seed: int
    options: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    picture: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tolerances: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failure: str | None = None
    finished: bool = True

    @property
    def version(self) -> str:
        return self.versions[PACKAGE]

    @property
    def settings(self) -> tuple[str, str, int, str]:
        """The settings, as a key."""
        options = json.dumps(plain(self.options), sort_keys=True)
        return self.task, self.method, self.seed, options

    def save(self, path: Path) -> None:
        """Writes the record to a file, at once or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(as_text(dataclasses.asdict(self)))
        unfinished.replace(path)


def new(task: str, method: str, seed: int, options: dict[str, Any]) -> Record:
    """Makes an empty record, with the versions and the hardware of this process."""
    versions, hardware = harness.circumstances()
    return Record(task, method, seed, options, versions, hardware, finished=False)


def load(folder: Path) -> list[Record]:
    """Loads all records in a folder."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> Record:
    return Record(**json.loads(path.read_text()))


def slug(*words: Any) -> str:
    """Converts words to the name of a file."""
    return re.sub(r"[^a-z0-9_.±-]+", "-", "-".join(map(str, words)).lower())


def newest(records: Iterable[Record]) -> list[Record]:
    """Selects the records of the newest version."""
    records = list(records)
    version = max((_numbers(r.version) for r in records), default=())
    return [r for r in records if _numbers(r.version) == version]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def plain(value: Any) -> Any:
    """Converts a value for JSON: six digits, and `None` for a number not finite."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def as_text(content: dict[str, Any]) -> str:
    """Converts a record to JSON, with lists of numbers and rows on one line each."""
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    for innermost in (r"\[[^][{}]*\]", r"\{[^][{}]*\}"):
        text = re.sub(innermost, lambda match: " ".join(match[0].split()), text)
    return f"{text}\n"
