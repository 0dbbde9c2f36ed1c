"""Training runs of all tasks: `dsr.training.fit`, with curves and checkpoints."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from . import record
from .config import differences
from .methods import Method
from .problem import Batch, Problem, Scalar
from .record import Record


# The number of epochs at which models are kept, to be timed.
KEPT = 3
# The largest number of steps in a measurement.
MOST_STEPS = 1024


@dataclasses.dataclass(frozen=True)
class Run:
    """Run of a task by a method: its record so far, and the options of the command."""

    record: Record
    options: Any

    @property
    def method(self) -> str:
        return self.record.method

    @property
    def key(self) -> Key[Array, ""]:
        return jr.key(self.record.seed)

    @property
    def path(self) -> Path:
        """The file of the record."""
        changes = differences(type(self.options), self.record.options)
        words = [f"{k}-{v}" for k, v in changes.items()]
        name = record.slug(self.record.task, self.method, *words, self.record.seed)
        return self.options.folder / f"{name}.json"

    @property
    def states(self) -> Path:
        """The folder of checkpoints, and of the models that are kept."""
        name = f"{self.path.stem}-{self.record.version}"
        return self.path.parent / "checkpoints" / name

    def with_rows(self, row: dict[str, Any]) -> "Run":
        """Adds a row, and saves the record."""
        rows = [*self.record.rows, record.plain(row)]
        made = dataclasses.replace(self.record, rows=rows)
        made.save(self.path)
        return dataclasses.replace(self, record=made)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Problem with a method, and the settings of the training run.

    After each epoch it counts the NFE of a test batch, or measures the error: the loss
    by the method's own solve of all test batches.
    """

    problem: Problem
    method: Method
    optimizer: optax.GradientTransformation
    epochs: int
    counted: Literal["nfe", "error"] = "nfe"

    @property
    def trainer(self) -> dsr.training.Trainer:
        return self.method.trainer(self.problem, self.optimizer)

    def own_loss(self, model: Any, solver: Any, batch: Batch) -> Scalar:
        """Computes the loss by the method's own solve."""
        solve = lambda b: self.method.solve(self.problem, model, solver, b)
        return self.problem.measure(solve, model, batch)["loss"]


class Curves(eqx.Module):
    """Learning curves, with NaN for the steps that the run has not made."""

    losses: Float[np.ndarray, " steps"]
    counts: Float[np.ndarray, " epochs"]

    @classmethod
    def empty(cls, epochs: int, per_epoch: int) -> "Curves":
        return cls(np.full(epochs * per_epoch, np.nan), np.full(epochs, np.nan))

    def by_epoch(self, counted: str) -> dict[str, Any]:
        losses = self.losses.reshape(len(self.counts), -1).mean(axis=1)
        return {counted: self.counts, "loss": losses}


class Trained(eqx.Module):
    """Trained model, the solver that was trained with it, and the curves."""

    model: PyTree[Any]
    solver: dfx.AbstractSolver | None
    curves: Curves


def train(
    run: Run,
    trainer: dsr.training.Trainer,
    model: PyTree[Any],
    solver: dfx.AbstractSolver | None,
    batches: Callable[[Key[Array, ""], int], PyTree[Any]],
    count: Callable[[Any, Any], Any],
    *,
    epochs: int,
    per_epoch: int,
    budget: dsr.NFEBudget | None = None,
    **fit: Any,
) -> Trained:
    """Trains a model, and a learned solver in turn.

    A function of the model and the solver is called after each epoch. Further arguments
    are those of `dsr.training.fit`, whose errors are raised.
    """
    if run.options.restart and run.states.exists():
        shutil.rmtree(run.states)
    curves = Curves.empty(epochs, per_epoch)
    state = trainer.init(model, solver, key=run.key, aux=curves, budget=budget)
    checkpoints = dsr.training.Checkpoints(run.states, run.record.options, keep=2)
    state = checkpoints.restore(state)
    kept = {round(i * epochs / KEPT) for i in range(1, KEPT + 1)}

    def save_curves(curves: Curves, progress: dsr.training.Progress) -> Curves:
        first = progress.step - len(progress.losses)
        curves.losses[first : progress.step] = progress.losses
        epoch, rest = divmod(progress.step, per_epoch)
        if rest == 0:
            curves.counts[epoch - 1] = float(progress.validation["count"])
            if epoch in kept:
                path = run.states / f"epoch-{epoch}.model"
                pair = progress.state.model, progress.state.solver
                dsr.training.save_checkpoint(path, pair)
        return curves

    description = f"{run.record.task} {run.method} {run.record.seed}"
    with dsr.training.ProgressBar(epochs * per_epoch, desc=description) as bar:
        state = dsr.training.fit(
            trainer,
            state,
            batches,
            num_steps=epochs * per_epoch,
            validate=lambda state: dict(count=count(state.model, state.solver)),
            validate_every=per_epoch,
            record=save_curves,
            callbacks=[bar],
            checkpoints=checkpoints,
            **fit,
        )
    return Trained(state.model, state.solver, state.aux)


def train_method(run: Run, experiment: Experiment) -> Trained:
    problem, method = experiment.problem, experiment.method
    own = eqx.filter_jit(lambda m, s, b: experiment.own_loss(m, s, b))
    nfe = eqx.filter_jit(lambda model: problem.nfe(model, problem.test[0]))

    def count(model: Any, solver: Any) -> Any:
        if experiment.counted == "nfe":
            return nfe(model)
        return np.mean([own(model, solver, batch) for batch in problem.test])

    return train(
        *(run, experiment.trainer, problem.model, method.solver, problem.batch, count),
        epochs=experiment.epochs,
        per_epoch=problem.per_epoch,
        budget=method.budget,
        **method.fit,
    )


def evaluate(experiment: Experiment, trained: Trained) -> dict[str, float]:
    """Measures a trained model on held-out batches: means.

    `loss`, the scores and `nfe` are those of an accurate solve. The same with the
    prefix `own_` are those of the method's own solve.
    """
    problem, method = experiment.problem, experiment.method

    @eqx.filter_jit
    def measure(trained: Trained, batch: Batch) -> dict[str, Array]:
        model, solver = trained.model, trained.solver
        own = lambda b: method.solve(problem, model, solver, b)
        values = problem.measure(own, model, batch)
        values = {f"own_{name}": value for name, value in values.items()}
        return values | problem.accurate(model, batch, MOST_STEPS)

    return _means(lambda batch: measure(trained, batch), problem)


def _means(
    measure: Callable[[Batch], dict[str, Array]], problem: Problem
) -> dict[str, float]:
    parts = [measure(batch) for batch in problem.test]
    return {k: float(np.mean([part[k] for part in parts])) for k in parts[0]}


def train_briefly(
    problem: Problem,
    method: Method,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: Key[Array, ""],
) -> tuple[PyTree[Any], dict[str, float]]:
    """Trains without checkpoints, for sweeps over many short runs.

    Returns the model and its measurements. The times are those of the processor, of the
    median step, and of all but the first, in which the step is compiled.
    """
    trainer = method.trainer(problem, optimizer)
    state = trainer.init(problem.model, method.solver, key=key, budget=method.budget)
    clock = [time.process_time()]
    tick = lambda progress: clock.append(time.process_time())
    state = dsr.training.fit(
        trainer, state, problem.batch, num_steps=steps, callbacks=[tick]
    )
    measure = eqx.filter_jit(lambda m, b: problem.accurate(m, b, MOST_STEPS))
    return state.model, _means(
        lambda batch: measure(state.model, batch), problem
    ) | dict(
        final_weight=float(
            method.weight if state.budget is None else state.budget.weight
        ),
        step_seconds=float(np.median(np.diff(clock))),
        training_seconds=clock[-1] - clock[1],
    )


def trajectory(problem: Problem, model: Any, batch: Batch, entries: int = 8) -> Any:
    """Computes some entries of a solution at 101 times, and the ends of its steps.

    The entries are those of the first sample that move most.
    """

    @eqx.filter_jit
    def solve(model: Any, batch: Batch) -> tuple[Array, Array]:
        saveat = dfx.SaveAt(steps=True, dense=True)
        solution: Any = problem.solve(model, batch, saveat=saveat)
        times = jnp.linspace(0.0, 1.0, 101)
        return jax.vmap(solution.evaluate)(times)[:, 0], solution.ts

    one = jax.tree.map(lambda x: x[:1] if np.ndim(x) else x, batch.data)
    states, steps = map(np.asarray, solve(model, Batch(one, batch.key)))
    moved = np.argsort(np.ptp(states, axis=0))[-entries:]
    return dict(
        times=np.linspace(0, 1, len(states)),
        states=np.round(states[:, moved], 4),
        steps=steps[np.isfinite(steps)],
    )


def failure_of(error: Exception) -> str:
    """Returns the message of an error that ends a run, in one line."""
    # Without the stack and the advice that Equinox puts around it.
    *_, message = str(error).split("EquinoxRuntimeError: ")
    return message.strip().splitlines()[0]
