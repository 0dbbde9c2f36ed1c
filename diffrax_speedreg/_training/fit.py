import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from .._budget import ErrorBudget
from .._checks import (
    check_callable,
    check_is,
    check_positive_integer,
    check_that,
)
from .checkpoints import CheckpointError, Checkpoints
from .divergence import naming_step, raise_diverged, TrainingDiverged
from .mesh import replicate, shard_batch
from .progress import Callback, Progress
from .states import ModelReport, SolverReport, TrainingState
from .trainer import Trainer


def fit(
    trainer: Trainer,
    state: TrainingState,
    batches: Callable[[Key[Array, ""], int], PyTree[Any]],
    *,
    num_steps: int,
    steps_per_round: int = 1,
    scan: bool = False,
    solver_every: int = 10,
    solver_steps: int = 4,
    solver_batch: Callable[[Sequence[PyTree[Any]]], PyTree[Any]] | None = None,
    validate: Callable[[TrainingState], Mapping[str, Any]] | None = None,
    validate_every: int = 100,
    record: Callable[[PyTree[Any], Progress], PyTree[Any]] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    mesh: Mesh | None = None,
) -> TrainingState:
    """Trains a model, and, if there is one, a learned solver in turn.

    This is the training loop of a [`diffrax_speedreg.training.Trainer`][]. After every
    `solver_every` model steps it makes a reference solve for the last batch, and
    `solver_steps` solver steps. There are no solver steps if nothing in the solver is
    trained. A trainer without a loss makes solver steps in each step. The same state
    and batches lead to the same numbers on the same machine.

    !!! example

        ```python
        trainer = dsr.training.Trainer(loss, optax.adam(1e-3))
        state = trainer.init(model, diffrax.Tsit5(), key=key)
        state = dsr.training.fit(trainer, state, batches, num_steps=1000)
        ```

    **Arguments:**

    - `trainer`: the [`diffrax_speedreg.training.Trainer`][].
    - `state`: the state to start from, from `trainer.init`.
    - `batches`: a function `(key, step)` that returns a batch, such as
        [`diffrax_speedreg.training.Batches`][]. Its arguments are the key of the state
        and the number of steps so far. Batches should have equal shapes, since each new
        shape is compiled.
    - `num_steps`: the number of steps of the state at the end. It includes the steps
        that the state has at the start.
    - `steps_per_round`: the number of model steps in a round. The losses are checked at
        the end of a round, so that the host works ahead of the device in longer rounds.
        Choose about 10 if a step takes less than 100 ms. Solver steps and validations
        also end a round.
    - `scan`: if `True`, a round is one computation, by `jax.lax.scan`. Use it with long
        rounds if a step takes less than a few milliseconds. On a CPU, larger networks
        are slower in a scan.
    - `solver_every`: the number of model steps between solver steps.
    - `solver_steps`: the number of solver steps for each reference solve.
    - `solver_batch`: a function of the list of batches since the last solver steps,
        which returns the batch for the next solver steps. The default is the last
        batch.
    - `validate`: a function of the state that returns a dictionary of numbers.
    - `validate_every`: the number of steps between validations. There is one after the
        last step, too.
    - `record`: a function `(aux, progress)` that is called after each round, and
        returns the new `state.aux`. Use it for learning curves, which checkpoints save.
    - `callbacks`: a list of functions of a [`diffrax_speedreg.training.Progress`][],
        which are called after each round. One of them may be a
        [`diffrax_speedreg.training.ProgressBar`][].
    - `checkpoints`: a [`diffrax_speedreg.training.Checkpoints`][]. One is written after
        each of its intervals, at the end, and when an exception or Ctrl-C ends the run.
        If it can't be written, a warning says so, and the next interval tries again.
    - `mesh`: a mesh from [`diffrax_speedreg.training.data_mesh`][]. Batches are split
        over its devices, along the first axes of their arrays.

    **Returns:**

    The state after the last step.

    **Raises:**

    - [`diffrax_speedreg.training.TrainingDiverged`][] if a loss or a trained parameter
        is not finite, or if a solve failed. Its attribute `state` is the state before
        the round that failed, and the latest checkpoint has this state too.
    - [`diffrax_speedreg.training.CheckpointError`][] if the last checkpoint can't be
        written. Its attribute `state` is the state at the end.
    - `ValueError` if there are checkpoints of later steps, or if the state has an
        [`diffrax_speedreg.training.ErrorBudget`][] but there are no solver steps.

    A warning says if the budget of the state was not reached.
    """
    check_is(trainer, Trainer, "trainer", "Trainer(loss, optimizer)")
    check_is(state, TrainingState, "state", "trainer.init(model, solver, key=key)")
    if checkpoints is not None:
        check_is(checkpoints, Checkpoints, "checkpoints", "Checkpoints(folder)")
    check_that(isinstance(callbacks, Sequence), "callbacks", "a list", callbacks)
    if isinstance(state.budget, ErrorBudget) and not trainer.trains_solver(state):
        raise ValueError(
            "An `ErrorBudget` follows the errors in solver steps, but there are none: "
            "the trainer needs `solver_optimizer=...`, and the solver a learned part."
        )
    loop = _Loop(
        *(trainer, batches, num_steps, steps_per_round, scan, solver_every),
        *(solver_steps, solver_batch, validate, validate_every, mesh),
    )
    step = int(state.step)
    writer = _Writer(checkpoints, step)
    solver: SolverReport | None = None
    validation: Mapping[str, Any] = {}
    # The user's arrays take no part in the computations.
    without_aux = lambda state: dataclasses.replace(state, aux=None)
    replicated = replicate(without_aux(state), mesh)
    state = dataclasses.replace(replicated, aux=state.aux)
    try:
        while step < num_steps:
            start = time.perf_counter()
            after, model, error, losses = loop.round(without_aux(state), step)
            state = dataclasses.replace(after, aux=state.aux)
            solver = solver if error is None else error
            step += len(losses)
            seconds = time.perf_counter() - start
            if validate is not None and loop.validates_at(step):
                with naming_step(step):
                    validation = validate(state)
            progress = Progress(step, state, model, solver, losses, seconds, validation)
            if record is not None:
                state = dataclasses.replace(state, aux=record(state.aux, progress))
                progress = dataclasses.replace(progress, state=state)
            for callback in callbacks:
                callback(progress)
            writer.maybe_write(state)
    except BaseException as error:
        # After any error, Ctrl-C too, the steps made so far should not be lost.
        if isinstance(error, TrainingDiverged):
            error.state = state
        writer.try_to_write(state)
        raise
    writer.write(state)
    _warn_of_budget(state)
    return state


def _warn_of_budget(state: TrainingState) -> None:
    budget = state.budget
    if budget is None or not bool(budget.at_limit):
        return
    reason = (
        "the weight of the regularizer is the largest one, "
        f"{float(budget.weight):.3g}. Train for longer, or choose a larger budget, or "
        "a regularizer that the solves depend on."
    )
    if budget.weight == 0:
        reason = (
            "there is no scale for a weight, as the loss or the regularizer was zero "
            "or not finite."
        )
    warnings.warn(f"The budget of {budget.target:g} was not reached: {reason}")


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Loop over rounds of steps."""

    trainer: Trainer
    batches: Callable[[Key[Array, ""], int], PyTree[Any]]
    num_steps: int
    steps_per_round: int
    scan: bool
    solver_every: int
    solver_steps: int
    solver_batch: Callable[[Sequence[PyTree[Any]]], PyTree[Any]] | None
    validate: Callable[[TrainingState], Mapping[str, Any]] | None
    validate_every: int
    mesh: Mesh | None

    def __post_init__(self):
        names = ("num_steps", "steps_per_round", "solver_every", "solver_steps")
        for name in (*names, "validate_every"):
            check_positive_integer(getattr(self, name), name)
        check_callable(self.batches, "batches", "(key, step) -> batch")

    def validates_at(self, step: int) -> bool:
        return step % self.validate_every == 0 or step == self.num_steps

    def round(
        self, state: TrainingState, step: int
    ) -> tuple[
        TrainingState,
        ModelReport | None,
        SolverReport | None,
        Float[np.ndarray, " steps"],
    ]:
        """Makes model steps from a step on, and the solver steps that follow them."""
        trains_solver = self.trainer.trains_solver(state)
        if self.trainer.loss is None:
            batch = self.batches(state.key, step)
            state, error = self._train_solver(state, batch, step + 1)
            state = eqx.tree_at(lambda s: s.step, state, replace_fn=lambda n: n + 1)
            return state, None, error, np.atleast_1d(np.asarray(error.error))
        size = self._round_size(step, trains_solver)
        parts = [self.batches(state.key, step + i) for i in range(size)]
        with naming_step(step + 1, step + size):
            state, model, losses = self._train_model(state, parts, step)
        step += size
        error = None
        if trains_solver and step % self.solver_every == 0:
            batch = self._choose(state.key, parts, step)
            state, error = self._train_solver(state, batch, step)
        return state, model, error, losses

    def _round_size(self, step: int, trains_solver: bool) -> int:
        periods = [self.steps_per_round]
        periods += [self.solver_every] if trains_solver else []
        periods += [self.validate_every] if self.validate is not None else []
        # A resumed run makes them at the same steps.
        until = [period - step % period for period in periods]
        return min(*until, self.num_steps - step)

    def _train_model(
        self, state: TrainingState, parts: Sequence[PyTree[Any]], step: int
    ) -> tuple[TrainingState, ModelReport, Float[np.ndarray, " steps"]]:
        if self.scan:
            stacked = jtu.tree_map(_stack, *parts)
            batch = shard_batch(stacked, self.mesh, axis=1)
            state, report, losses, finite = self.trainer.model_steps(state, batch)
        else:
            reports = []
            for part in parts:
                batch = shard_batch(part, self.mesh)
                state, report = self.trainer.model_step(state, batch)
                state = replicate(state, self.mesh)
                reports.append(report)
            losses, finite = zip(*((r.loss, r.finite) for r in reports))
            report = reports[-1]
        losses, finite = np.asarray(losses), np.asarray(finite)
        if not finite.all():
            first = int(np.argmin(finite))
            names = ("loss", "model")
            raise_diverged(losses[first], *names, step + first + 1, parts[first])
        return replicate(state, self.mesh), report, losses

    def _choose(
        self, key: Key[Array, ""], parts: Sequence[PyTree[Any]], step: int
    ) -> PyTree[Any]:
        if self.solver_batch is None:
            return parts[-1]
        # Some may belong to earlier rounds, or to an interrupted run.
        first, last = step - self.solver_every, step - len(parts)
        earlier = [self.batches(key, i) for i in range(first, last)]
        return self.solver_batch([*earlier, *parts])

    def _train_solver(
        self, state: TrainingState, batch: PyTree[Any], step: int
    ) -> tuple[TrainingState, SolverReport]:
        placed = shard_batch(batch, self.mesh)
        with naming_step(step):
            reference = self.trainer.solve_reference(state, placed)
            reports = []
            for _ in range(self.solver_steps):
                state, report = self.trainer.solver_step(state, placed, reference)
                reports.append(report)
            for report in reports:
                if not report.finite:
                    error = float(report.error)
                    raise_diverged(error, "error of the solver", "solver", step, batch)
        return replicate(state, self.mesh), reports[-1]


def _stack(*leaves: Any) -> Any:
    if isinstance(leaves[0], np.ndarray | np.generic | bool | int | float):
        return np.stack(leaves)
    return jnp.stack(leaves)


class _Writer:
    """Writer of checkpoints at regular intervals."""

    def __init__(self, checkpoints: Checkpoints | None, first_step: int):
        self.checkpoints = checkpoints
        self.last = time.monotonic()
        latest = None if checkpoints is None else checkpoints.latest_step()
        if latest is not None and latest > first_step:
            raise ValueError(
                f"The folder has a checkpoint of step {latest}, but the state is of "
                f"step {first_step}. Continue by `state = checkpoints.restore(state)`, "
                "or choose another folder."
            )

    def maybe_write(self, state: TrainingState) -> None:
        """Writes a checkpoint if it is due.

        If it can't be written, there is only a warning: a long run goes on.
        """
        if self.checkpoints is None:
            return
        if time.monotonic() - self.last >= self.checkpoints.seconds:
            self.try_to_write(state)
            self.last = time.monotonic()

    def try_to_write(self, state: TrainingState) -> None:
        try:
            self.write(state)
        except CheckpointError as error:
            warnings.warn(f"{error} The training run goes on without.")

    def write(self, state: TrainingState) -> None:
        if self.checkpoints is None:
            return
        try:
            self.checkpoints.save(state, int(state.step))
        except CheckpointError as error:
            error.state = state
            raise
