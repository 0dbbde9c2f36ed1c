"""Tasks: options, methods, and runs that are skipped if their record is there."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import pandas as pd
from matplotlib.figure import Figure

from . import plots, record, tolerances
from .config import command, differences, Options, UsageError
from .record import Record
from .training import (
    evaluate,
    Experiment,
    failure_of,
    Run,
    train_method,
    Trained,
    trajectory,
)


Finish = Callable[[Run, Experiment, Trained], tuple[dict[str, Any], dict[str, Any]]]
Table = Callable[[Sequence[Record]], pd.DataFrame]


def finish(run: Run, experiment: Experiment, trained: Trained) -> Any:
    """Computes a solution for the picture."""
    problem = experiment.problem
    return {}, trajectory(problem, trained.model, problem.test[0])


@dataclasses.dataclass(frozen=True)
class Task:
    """Task of the experiments.

    **Attributes:**

    - `name`: its name on the command line.
    - `options`: the class of its options.
    - `heeds`: for each method the options that only some methods heed.
    - `build`: makes the experiment of a run.
    - `finish`: makes further metrics, and the arrays for the picture.
    - `execute`: makes the record of a run without an experiment.
    - `columns`: for each column of the table a metric and its format.
    - `tables`: other tables, by name.
    - `draw`: draws the picture.
    - `data`: loads data that may not be there.
    - `x64`: whether all is in double precision.
    """

    name: str
    options: type[Options]
    heeds: Mapping[str, Sequence[str]]
    build: Callable[[Run], Experiment] | None = None
    finish: Finish = finish
    execute: Callable[[Run], Record] | None = None
    columns: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    draw: Callable[[plots.Records], Figure | None] | None = None
    data: Callable[[], Any] | None = None
    x64: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.heeds)

    def choose(self, methods: Sequence[str]) -> Sequence[str]:
        """Returns the chosen methods, all by default.

        **Raises:**

        A `UsageError` with the list of methods, for an unknown one.
        """
        for method in methods:
            if method not in self.heeds:
                known = ", ".join(self.methods)
                raise UsageError(f"the methods are {known}, but got {method!r}")
        return methods or self.methods

    def run(self, options: Options, method: str, seed: int) -> Run:
        """Makes a run, with the rows that an unfinished record has."""
        others = {name for names in self.heeds.values() for name in names}
        settings = options.recorded(sorted(others - set(self.heeds[method])))
        empty = record.new(self.name, method, seed, settings)
        run = Run(empty, options)
        if options.restart or not run.path.exists():
            return run
        earlier = record.read(run.path)
        same = (earlier.settings, earlier.version) == (empty.settings, empty.version)
        return Run(earlier, options) if same else run

    def runs(self, options: Options) -> Iterator[Run]:
        """Makes the runs that options ask for, in their order."""
        for method in self.choose(options.methods):
            for seed in options.seeds:
                yield self.run(options, method, seed)

    def make(self, run: Run) -> Record:
        """Makes a run, and saves its record. A run that fails records that it did.

        **Raises:**

        `DataUnavailable` if there are no data.
        """
        try:
            made = self._execute(run) if self.execute is None else self.execute(run)
        except (dsr.training.TrainingDiverged, eqx.EquinoxRuntimeError) as error:
            made = dataclasses.replace(run.record, failure=failure_of(error))
        made = dataclasses.replace(made, finished=True)
        made.save(run.path)
        jax.clear_caches()
        return made

    def _execute(self, run: Run) -> Record:
        assert self.build is not None
        experiment = self.build(run)
        trained = train_method(run, experiment)
        metrics, picture = self.finish(run, experiment, trained)
        return dataclasses.replace(
            run.record,
            metrics=evaluate(experiment, trained) | metrics,
            curves=trained.curves.by_epoch(experiment.counted),
            picture=picture,
            tolerances=tolerances.measure(experiment.problem, trained.model),
        )

    def configure(self) -> None:
        """Configures JAX. At tight tolerances, products in less than float32 are too
        inaccurate."""
        jax.config.update("jax_enable_x64", self.x64)
        jax.config.update("jax_default_matmul_precision", "highest")

    def label(self, made: Record) -> str:
        """Returns the method, with its options that are not the default."""
        changes = differences(self.options, made.options)
        words = [f"{k.replace('_', ' ')} {v}" for k, v in changes.items()]
        words = [word for word in words if word != "quick True"]
        return ", ".join([made.method, *words])

    def groups(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Groups the records of this task by label: those of the newest version."""
        mine = [r for r in records if r.task == self.name and r.method in self.heeds]
        mine.sort(key=lambda r: (self.methods.index(r.method), self.label(r), r.seed))
        labels = dict.fromkeys(map(self.label, mine))
        return {
            name: record.newest(r for r in mine if self.label(r) == name)
            for name in labels
        }

    def commands(self, groups: Iterable[Sequence[Record]]) -> list[str]:
        """Makes the commands that repeat groups of records."""
        together: dict[str, list[str]] = {}
        for group in groups:
            changes = differences(self.options, group[0].options)
            seeds = [made.seed for made in group]
            if seeds != list(self.options().seeds):
                changes["seeds"] = seeds
            together.setdefault(json.dumps(changes), []).append(group[0].method)
        return [
            command(self.name, list(dict.fromkeys(methods)), json.loads(changes))
            for changes, methods in together.items()
        ]


def save_picture(figure: Figure, path: Path) -> None:
    # Without metadata, equal pictures are equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})
