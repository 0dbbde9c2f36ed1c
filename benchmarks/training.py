"""Measures the costs of alternating training in addition to its model steps.

For networks of the size of the papers' one for MNIST, of the demo's, and of that for
stiff dynamics: the loop itself, with batches and a progress bar, a weight that follows
a budget, solver steps and their reference solve, checkpoints, and steps on one and two
devices of the CPU.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Key, PyTree

from . import problems
from .harness import interleave, Options, Record, Row, Timing
from .problems import Problem
from .report import Benchmark, relative


CLASSES, DEGREE = 10, 2
# A turn has so many steps of `fit` that its fixed costs do not matter.
STEPS_PER_TURN, ROUNDS_PER_TURN = 50, 5
PER_STEP = ("bare", "budget", "supplied", "fit")
BUDGET = 5  # Less than the evaluations of a solve, so that the weight follows.
SCALING_BATCH = 2048
# The numbers of devices and cores.
LAYOUTS = ((1, 1), (1, 2), (2, 2))
# The cadences of TL-NODE, and the default of `fit`: n model steps, m solver steps.
CADENCES = ((400, 1), (100, 1), (10, 1), (10, 4))


@dataclasses.dataclass(frozen=True)
class Task:
    """Training of a network, by a few Taylor-Lagrange steps on random data.

    A readout may `classify` the final state. `steps_per_round` and `scan` are options
    of `fit`.
    """

    problem: Callable[[int, Key[Array, ""]], Problem]
    batch: int
    classify: bool = True
    t1: float = 1.0
    num_steps: int = 2
    steps_per_round: int = 10
    scan: bool = False


def _stiff(batch: int, key: Key[Array, ""]) -> Problem:
    """Makes a vector field with two layers and no activation."""
    y = jr.uniform(key, (batch, 2))
    params = problems.dense(key, 2, 64, 2)
    return Problem(lambda params, t, y: params[1](params[0](y)), params, y)


# The papers' network for MNIST, a small one like that of this package's demo, and that
# of the stiff system, whose steps take less than a millisecond.
TASKS = {
    "mnist": Task(problems.mnist, 100),
    "digits": Task(functools.partial(problems.mnist, pixels=64), 128),
    "stiff": Task(_stiff, 500, False, 0.01, 1, steps_per_round=50, scan=True),
}


class Model(eqx.Module):
    """Parameters of a vector field, and a readout if the task is to classify."""

    params: PyTree[Array]
    readout: eqx.nn.Linear | None

    def loss(self, y1: Float[Array, "batch state"], targets: Array) -> Array:
        if self.readout is None:
            return jnp.mean((y1 - targets) ** 2)
        logits = jax.vmap(self.readout)(y1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses)


def _training(
    task: Task, batch: int, seed: int, budget: dsr.NFEBudget | None = None
) -> tuple[dsr.training.Trainer, dsr.training.TrainingState, dsr.training.Batches]:
    """Makes the inputs of `fit`, with data that fill four batches."""
    problem_key, readout_key, midpoint_key, key = jr.split(jr.key(seed), 4)
    problem = task.problem(batch, problem_key)
    size = problem.y.shape[-1]

    def loss(model: Model, solver: Any, batch: tuple[Array, Array]) -> Any:
        settings = 0.0, task.t1, task.num_steps, batch[0], model.params
        solution = dsr.fixed_step_solve(problem.term, solver, *settings)
        assert solution.ys is not None and solution.solver_state is not None
        penalty = solution.solver_state.midpoint_penalty
        value = model.loss(solution.ys[-1], batch[1])
        if budget is None:
            return value + penalty
        nfe = dsr.nfe(solver, solution, adaptive=False)
        return dsr.training.RegularizedLoss(value, penalty, nfe)

    def equation(model: Model, batch: tuple[Array, Array]) -> Any:
        inputs = dict(t1=task.t1, args=model.params)
        return dsr.training.InitialValueProblem(problem.term, batch[0], **inputs)

    first, second = optax.adam(1e-3), optax.adam(1e-4)
    reference = dsr.training.Reference(task.num_steps)
    trainer = dsr.training.Trainer(loss, first, equation, second, reference)
    readout = eqx.nn.Linear(size, CLASSES, key=readout_key) if task.classify else None
    midpoint = dsr.MidpointMLP(size, key=midpoint_key)
    solver = dsr.TaylorLagrangeSolver(DEGREE, midpoint)
    state = trainer.init(Model(problem.params, readout), solver, key=key, budget=budget)
    rng, samples = np.random.default_rng(seed), 4 * batch
    inputs = rng.uniform(size=(samples, size)).astype(np.float32)
    labels = rng.integers(CLASSES, size=samples)
    data = inputs, labels if task.classify else inputs[::-1].copy()
    return trainer, state, dsr.training.Batches(data, batch)


def rows(options: Options) -> Iterator[tuple[str, list[Row]]]:
    tasks = options.choose(TASKS)
    for name, task in tasks.items():
        for batch in options.batches(task.batch):
            yield "parts", _parts(name, task, batch, options)
    if not hasattr(os, "sched_getaffinity"):
        return
    name, (batch, *_) = next(iter(tasks)), options.batches(SCALING_BATCH)
    for devices, cores in LAYOUTS:
        if cores <= len(os.sched_getaffinity(0)):
            columns = dict(field=name, batch=batch, degree=DEGREE)
            columns |= dict(devices=devices, cores=cores)
            # The number of devices can be set only once in a process.
            with concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), _restrict, (devices, cores)
            ) as pool:
                timing = pool.submit(_mesh_step, name, batch, options).result()
            yield "devices", [columns | vars(timing)]


def _parts(name: str, task: Task, batch: int, options: Options) -> list[Row]:
    """Measures the parts of a training run."""
    trainer, state, batches = _training(task, batch, options.seed)
    first = jax.device_put(batches(state.key, 0))
    reference = trainer.solve_reference(state, first)
    num_steps = max(STEPS_PER_TURN, ROUNDS_PER_TURN * task.steps_per_round)
    budget = dsr.NFEBudget(BUDGET)
    with_budget, at_start, _ = _training(task, batch, options.seed, budget)

    def bare(
        batches: Callable[[int], PyTree[Array]],
        trainer: dsr.training.Trainer = trainer,
        after: dsr.training.TrainingState = state,
    ) -> PyTree[Array]:
        for step in range(num_steps):
            after, _ = trainer.model_step(after, batches(step))
        return after.step

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        path = Path(folder) / "state.ckpt"

        def checkpoint() -> PyTree[Array]:
            dsr.training.save_checkpoint(path, state)
            return state.step

        def fit() -> PyTree[Array]:
            settings: dict[str, Any] = dict(file=nowhere, disable=False)
            with dsr.training.ProgressBar(num_steps, **settings) as bar:
                return dsr.training.fit(
                    *(trainer, state, batches),
                    num_steps=num_steps,
                    steps_per_round=task.steps_per_round,
                    scan=task.scan,
                    # Solver steps are measured separately.
                    solver_every=num_steps + 1,
                    callbacks=[bar],
                ).step

        calls = dict(
            bare=lambda: bare(lambda step: first),
            budget=lambda: bare(lambda step: first, with_budget, at_start),
            supplied=lambda: bare(functools.partial(batches, state.key)),
            fit=fit,
            reference=lambda: trainer.solve_reference(state, first).y1,
            solver=lambda: trainer.solver_step(state, first, reference)[1],
            checkpoint=checkpoint,
        )
        for call in calls.values():
            call()  # Compiles.
        timings = dict(zip(calls, interleave([*calls.values()], options)))
        size = path.stat().st_size
    columns = dict(field=name, batch=batch, degree=DEGREE)
    columns |= dict(steps_per_round=task.steps_per_round, scan=task.scan)
    found = []
    for part, timing in timings.items():
        steps = num_steps if part in PER_STEP else 1
        times = {k: v and v / steps for k, v in vars(timing).items()}
        if part == "checkpoint":  # It waits for the disk.
            times |= dict(cpu_seconds=None, bytes=size)
        found.append(columns | dict(part=part) | times)
    return found


def _restrict(devices: int, cores: int) -> None:
    """Restricts a process to some cores, before JAX starts its threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_compilation_cache", False)


def _mesh_step(name: str, batch: int, options: Options) -> Timing:
    """Times a model step on all devices of the process."""
    mesh = dsr.training.data_mesh()
    trainer, state, batches = _training(TASKS[name], batch, options.seed)
    state = dsr.training.replicate(state, mesh)
    sharded = dsr.training.shard_batch(batches(state.key, 0), mesh)
    trainer.model_step(state, sharded)  # Compiles.
    (timing,) = interleave([lambda: trainer.model_step(state, sharded)[1]], options)
    return timing


def frames(record: Record) -> dict[str, pd.DataFrame]:
    """Makes frames with the ratios of the goals, and of training at some cadences."""
    parts, devices = record.frame("parts"), record.frame("devices")
    same, index = "field batch degree", ["field", "batch", "degree"]
    parts = parts.assign(
        of_a_minute=parts["seconds"] / 60,
        to_bare=relative(parts, "seconds", same, part="bare"),
        to_supplied=relative(parts, "seconds", same, part="supplied"),
    )
    times = parts.pivot(index=index, columns="part", values="seconds").reset_index()
    for n, m in CADENCES:
        solver = times["reference"] + m * times["solver"]
        times[f"n = {n}, m = {m}"] = 1 + solver / (n * times["bare"])
    to_one = relative(devices, "seconds", same, devices=1, cores=1)
    return dict(parts=parts, cadences=times, devices=devices.assign(to_one=to_one))


BENCHMARK = Benchmark("training", __doc__, rows, frames)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
