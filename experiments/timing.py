"""Times of training steps and of solves, of all methods side by side.

The models are those that training runs have kept at several epochs. All are measured
in one process, in turn, so that whatever slows the machine down slows all of them.
"""

import dataclasses
import functools as ft
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import numpy as np

from . import record
from .config import differences, Options, UsageError
from .record import Record
from .task import Task
from .training import Experiment, KEPT, Run


ROUNDS = 20
# A row is refused if something else used the processor meanwhile.
MOST_WAITING = 1.15


@dataclasses.dataclass
class Timed:
    """Function with the times of its calls, of the wall and of the processor.

    A call makes some training steps, or a solve.
    """

    function: Callable[[], Any]
    steps: int = 1
    compilation: float = 0.0
    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)

    def compile(self) -> None:
        start = time.perf_counter()
        jax.block_until_ready(self.function())
        first = time.perf_counter() - start
        self.call()
        self.compilation = max(0.0, first - self.wall.pop())
        self.processor.clear()

    def call(self) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(self.function())
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    @property
    def waited(self) -> bool:
        # With an accelerator, the processor waits for it.
        on_cpu = jax.default_backend() == "cpu"
        return on_cpu and sum(self.wall) > MOST_WAITING * sum(self.processor)

    @property
    def seconds(self) -> float:
        return float(np.median(self.wall)) / self.steps


def measure(task: Task, options: Options) -> None:
    """Times all methods that have kept models, and saves a record for each seed."""
    if task.build is None:
        raise UsageError(f"{task.name} has no methods to be timed")
    for seed in options.seeds:
        settings = dataclasses.replace(options, seeds=(seed,))
        built = [(run, task.build(run)) for run in task.runs(settings)]
        timed = [
            (run.method, experiment, epoch, group)
            for run, experiment in built
            for epoch, group in _functions(run, experiment)
        ]
        if not timed:
            raise UsageError(
                f"{options.folder} has no kept models: first run {task.name}"
            )
        functions = [function for *_, group in timed for function in group.values()]
        for function in functions:
            function.compile()
        for _ in range(2 if options.quick else ROUNDS):
            for function in functions:
                function.call()
        made = record.new("timing", task.name, seed, options.recorded(()))
        rows = [_row(*part) for part in timed]
        made = dataclasses.replace(made, rows=rows, finished=True)
        changes = differences(task.options, made.options).items()
        words = [f"{name}-{value}" for name, value in changes]
        name = record.slug("timing", task.name, *words, seed)
        made.save(options.folder / f"{name}.json")


def _functions(
    run: Run, experiment: Experiment
) -> Iterator[tuple[int, dict[str, Timed]]]:
    """Makes the functions to be timed, for each epoch of which a model was kept.

    Training steps are those of `dsr.training.fit`, with the solver steps among them.
    The optimizer's part of a model step is timed by itself, too, unless steps are so
    short that a call takes as long.
    """
    problem, method = experiment.problem, experiment.method
    trainer = experiment.trainer
    kept = trainer.init(problem.model, method.solver, key=run.key, budget=method.budget)
    steps = method.fit.get("steps_per_round", 1)
    if trainer.trains_solver(kept):
        steps = method.fit["solver_every"]
    solve = eqx.filter_jit(lambda m, s, b: experiment.own_loss(m, s, b))
    # The time of an update does not depend on the gradients.
    arrays = eqx.filter(kept.model, eqx.is_inexact_array)
    optimize = eqx.filter_jit(experiment.optimizer.update)
    update = ft.partial(optimize, arrays, kept.model_opt_state, arrays)
    epochs = sorted(int(p.stem[6:]) for p in run.states.glob("epoch-*.model"))
    for epoch in epochs[-KEPT:]:
        path = run.states / f"epoch-{epoch}.model"
        pair = dsr.training.load_checkpoint(path, (kept.model, kept.solver))
        state = dataclasses.replace(kept, model=pair[0], solver=pair[1])
        fit = ft.partial(
            *(dsr.training.fit, trainer, state, problem.batch),
            num_steps=steps,
            **method.fit,
        )
        own = ft.partial(solve, *pair, problem.test[0])
        group = dict(step=Timed(lambda fit=fit: fit().model, steps), solve=Timed(own))
        if not method.fit.get("scan"):
            group["optimizer"] = Timed(update)
        yield epoch, group


def _row(
    method: str, experiment: Experiment, epoch: int, group: dict[str, Timed]
) -> dict[str, Any]:
    refused = any(function.waited for function in group.values())
    times = {k: None if refused else f.seconds for k, f in group.items()}
    step = times["step"]
    steps = experiment.epochs * experiment.problem.per_epoch
    return dict(
        method=method,
        epoch=epoch,
        refused=refused,
        training=None if step is None else steps * step,
        **times,
        compilation=group["step"].compilation,
        waiting=max(sum(f.wall) / sum(f.processor) for f in group.values()),
    )


def with_times(records: Sequence[Record]) -> list[Record]:
    """Adds the times that were measured side by side to the records of their runs.

    Steps get slower in training, so that the times are means over the epochs.
    """
    times = [r for r in records if r.task == "timing"]
    return [
        dataclasses.replace(made, metrics=made.metrics | _times(made, times))
        for made in records
    ]


def _times(made: Record, times: Sequence[Record]) -> dict[str, float | None]:
    rows = [
        row
        for r in times
        if (r.method, r.seed, r.version) == (made.task, made.seed, made.version)
        and made.options.items() <= r.options.items()
        for row in r.rows
        if row["method"] == made.method
    ]

    def mean(name: str) -> float | None:
        known = [row[name] for row in rows if not row["refused"]]
        return float(np.mean(known)) if known else None

    found = {f"{name}_seconds": mean(name) for name in ("step", "training", "solve")}
    # Older records have times of runs in company.
    return {k: v for k, v in found.items() if v is not None or k in made.metrics}
