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
from benchmarks import harness

from . import record
from .config import differences, Options, UsageError
from .record import Record
from .task import Task
from .training import Experiment, KEPT, Run


# A function, and how many training steps a call of it makes.
Timed = tuple[Callable[[], Any], int]


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
        functions = [call for *_, group in timed for call, _ in group.values()]
        first = list(map(_first_call, functions))
        # All of the 20 rounds, however long they take.
        rounds = harness.Options(quick=options.quick, seconds=1e6)
        measured = iter(zip(first, harness.interleave(functions, rounds)))
        rows = [_row(*part, measured) for part in timed]
        made = record.new("timing", task.name, seed, options.recorded(()))
        made = dataclasses.replace(made, rows=rows, finished=True)
        changes = differences(task.options, made.options).items()
        words = [f"{name}-{value}" for name, value in changes]
        name = record.slug("timing", task.name, *words, seed)
        made.save(options.folder / f"{name}.json")


def _first_call(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


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
        group: dict[str, Timed] = dict(
            step=(lambda fit=fit: fit().model, steps), solve=(own, 1)
        )
        if not method.fit.get("scan"):
            group["optimizer"] = update, 1
        yield epoch, group


def _row(
    method: str,
    experiment: Experiment,
    epoch: int,
    group: dict[str, Timed],
    measured: Iterator[tuple[float, harness.Timing]],
) -> dict[str, Any]:
    """Makes a row of the next measurements. A disturbed one has no times."""
    found = dict(zip(group, measured))
    refused = any(timing.disturbed for _, timing in found.values())
    times = {
        name: None if refused else timing.seconds / group[name][1]
        for name, (_, timing) in found.items()
    }
    first, timing = found["step"]
    steps = experiment.epochs * experiment.problem.per_epoch
    return dict(
        method=method,
        epoch=epoch,
        refused=refused,
        training=None if times["step"] is None else steps * times["step"],
        **times,
        compilation=max(0.0, first - timing.seconds),
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


def _times(made: Record, times: Sequence[Record]) -> dict[str, float]:
    rows = [
        row
        for r in times
        if (r.method, r.seed, r.version) == (made.task, made.seed, made.version)
        and made.options.items() <= r.options.items()
        for row in r.rows
        if row["method"] == made.method
    ]

    known = [row for row in rows if not row["refused"]]
    return {
        f"{name}_seconds": float(np.mean([row[name] for row in known]))
        for name in ("step", "training", "solve")
        if known
    }
