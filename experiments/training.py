"""Training loops that the experiments share."""

import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree
from tqdm import tqdm


Model = TypeVar("Model", bound=eqx.Module)
State = TypeVar("State")
Loss = Callable[[Any, Any, Key[Array, ""]], Array]


class Curves(eqx.Module):
    """What is recorded over a training; not a number where it has not come to."""

    losses: Float[np.ndarray, " steps"]
    seconds: Float[np.ndarray, " steps"]
    nfe: Float[np.ndarray, " epochs"]


class Recorder:
    """Shows progress, measures the time that each step takes, every epoch counts the
    evaluations that a solve takes, and writes checkpoints of all that."""

    def __init__(
        self,
        name: str,
        epochs: int,
        per_epoch: int,
        count: Callable[[Any], Array],
        checkpoints: dsr.Checkpoints | None = None,
        counted: str = "nfe",
    ):
        """**Arguments:**

        - `name`: of what is trained.
        - `epochs`, `per_epoch`: the number of epochs, and of steps in each.
        - `count`: from the model to the number of evaluations.
        - `checkpoints`: where to go on from, and to write some: at their interval, and
            after the last step.
        - `counted`: what to call that which `count` returns, if it is something else.
        """
        self.steps = epochs * per_epoch
        self.per_epoch = per_epoch
        self.count = count
        self.counted = counted
        self.checkpoints = checkpoints
        self.step = 0
        unknown = lambda size: np.full(size, np.nan)
        self._curves = Curves(unknown(self.steps), unknown(self.steps), unknown(epochs))
        self._bar = tqdm(total=self.steps, desc=name, unit="step", disable=None)
        self._start = self._written = time.perf_counter()

    @property
    def counts(self) -> list[float]:
        """By epoch."""
        return self._curves.nfe[: self.step // self.per_epoch].tolist()

    @property
    def nfe(self) -> list[float]:
        return self.counts

    @property
    def seconds(self) -> list[float]:
        return self._curves.seconds[: self.step].tolist()

    @property
    def loss_by_epoch(self) -> list[float]:
        epochs = self.step // self.per_epoch
        losses = self._curves.losses[: epochs * self.per_epoch]
        return losses.reshape(epochs, self.per_epoch).mean(axis=1).tolist()

    def restore(self, state: State) -> State:
        """Takes up what was recorded up to the latest checkpoint.

        **Arguments:**

        - `state`: the one at the start of the training.

        **Returns:**

        The state of that checkpoint; the one passed, if there are none.
        """
        if self.checkpoints is not None:
            saved = (state, self._curves, self.step)
            state, self._curves, self.step = self.checkpoints.restore(saved)
        self._bar.initial = self._bar.n = self.step
        self._bar.refresh()
        self._start = self._written = time.perf_counter()
        return state

    def __call__(
        self, model: Any, loss: float | Float[np.ndarray, " steps"], state: Any
    ) -> None:
        """**Arguments:**

        - `model`: after a step, or several.
        - `loss`: of that step, or of each of them. Several must not go beyond the end
            of an epoch.
        - `state`: what it takes to go on from there, the model included.
        """
        losses = np.atleast_1d(loss)
        made = slice(self.step, self.step + len(losses))
        self._curves.seconds[made] = (time.perf_counter() - self._start) / len(losses)
        self._curves.losses[made] = losses
        self.step += len(losses)
        self._bar.update(len(losses))
        if self.step % self.per_epoch == 0:
            with dsr.solving(self.step):
                count = float(self.count(model))
            self._curves.nfe[self.step // self.per_epoch - 1] = count
            shown = {"loss": f"{losses[-1]:.4g}", self.counted: f"{count:.4g}"}
            self._bar.set_postfix(shown)
        self._maybe_write(state)
        self._start = time.perf_counter()

    def _maybe_write(self, state: Any) -> None:
        """Only warns if it can't be done: a long training goes on."""
        if self.checkpoints is None:
            return
        waited = time.perf_counter() - self._written
        if waited >= self.checkpoints.seconds or self.step == self.steps:
            try:
                self.checkpoints.save((state, self._curves, self.step), self.step)
            except dsr.CheckpointError as error:
                warnings.warn(f"{error} The training goes on without.")
            self._written = time.perf_counter()

    def close(self) -> None:
        """Leaves the progress bar as it is."""
        self._bar.close()


def train_adaptively(
    loss: Loss,
    model: Model,
    batches: Callable[[int], PyTree[Array]],
    optimizer: optax.GradientTransformation,
    record: Recorder,
    *,
    key: Key[Array, ""],
) -> Model:
    """Trains a model by a loss of its own, a step for each batch.

    **Arguments:**

    - `loss`: `(model, batch, key)` to a scalar, with a new key in each step.
    - `batches`: from the number of steps made to a batch.
    - `record`: decides about the number of steps, and where to go on from.
    - `key`: decides about all keys.

    **Raises:**

    `dsr.TrainingDiverged` once the loss is not finite, or an equation can't be solved;
    or if the model is not finite at the end.
    """

    @eqx.filter_jit
    def step(model, state, batch, key):
        value, grads = eqx.filter_value_and_grad(loss)(model, batch, key)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, value

    start = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    model, state = record.restore((model, start))
    for number in range(record.step + 1, record.steps + 1):
        batch = batches(number - 1)
        with dsr.solving(number):
            model, state, value = step(model, state, batch, jr.fold_in(key, number))
        dsr.check_finite(value, number)
        record(model, float(value), (model, state))
    record.close()
    if not _all_finite(model):
        raise dsr.TrainingDiverged(
            f"Training diverged: the model is not finite after step {record.steps}."
        )
    return model


def train_alternating(
    trainer: dsr.AlternatingTrainer,
    model: Any,
    solver: dsr.TaylorLagrangeSolver | dsr.HyperSolver,
    batches: Callable[[int], PyTree[Array]],
    record: Recorder,
    *,
    key: Key[Array, ""],
    remainder_every: int,
) -> tuple[Any, dsr.TaylorLagrangeSolver | dsr.HyperSolver]:
    """Trains a model through a few steps of a solver, and the solver in turn.

    **Arguments:**

    - `trainer`, `remainder_every`: as for `dsr.fit`.
    - `model`, `solver`: to start from.
    - `batches`: from the number of steps made to a batch.
    - `record`: decides about the number of steps, and where to go on from.

    **Raises:**

    As `train_adaptively`.
    """

    def callback(progress: dsr.Progress) -> None:
        state, loss = progress.state, progress.dynamics.terms.loss
        record(state.model, float(loss), state)

    # The library's own checkpoints would be without the curves.
    state = dsr.fit(
        trainer,
        record.restore(trainer.init(model, solver, key=key)),
        lambda key, step: batches(step),
        until=record.steps,
        remainder_every=remainder_every,
        callbacks=[callback],
    )
    record.close()
    return state.model, state.solver


def train_in_rounds(
    trainer: dsr.AlternatingTrainer,
    model: Any,
    solver: dsr.TaylorLagrangeSolver | dsr.HyperSolver,
    batches: Callable[[int], PyTree[np.ndarray]],
    record: Recorder,
    *,
    key: Key[Array, ""],
    remainder_every: int,
    remainder_batch: Callable[[PyTree[np.ndarray]], PyTree[np.ndarray]],
) -> tuple[Any, dsr.TaylorLagrangeSolver | dsr.HyperSolver]:
    """As `train_alternating`, but all dynamics steps from one remainder step to the
    next are one computation, and the recorder counts for the model and the solver.

    For small networks, where it takes longer to start a computation than to make it.

    **Arguments:**

    - `remainder_batch`: from the batches since the last remainder step, along a first
        axis, to the one for the next.
    """

    @eqx.filter_jit
    def dynamics_steps(state, batches):
        arrays, rest = eqx.partition(state, eqx.is_array)

        def step(arrays, batch):
            after, report = trainer.dynamics_step(eqx.combine(arrays, rest), batch)
            return eqx.filter(after, eqx.is_array), (report.terms.loss, report.finite)

        arrays, (losses, finite) = jax.lax.scan(step, arrays, batches)
        return eqx.combine(arrays, rest), losses, finite

    state = record.restore(trainer.init(model, solver, key=key))
    while record.step < record.steps:
        left = record.per_epoch - record.step % record.per_epoch
        size = min(remainder_every - record.step % remainder_every, left)
        parts = [batches(record.step + i) for i in range(size)]
        stacked = jtu.tree_map(lambda *leaves: np.stack(leaves), *parts)
        with dsr.solving(record.step + size):
            state, losses, finite = dynamics_steps(state, stacked)
            losses, finite = np.asarray(losses), np.asarray(finite)
            if not finite.all():
                first = int(np.argmin(finite))
                raise dsr.TrainingDiverged(
                    f"Training diverged: the loss is {losses[first]:.4g} at step "
                    f"{record.step + first + 1}, and it, or the model, is not finite."
                )
            complete = (record.step + size) % remainder_every == 0
            if state.solver.remainder is not None and complete:
                batch = remainder_batch(stacked)
                targets = trainer.targets(state, batch)
                state, report = trainer.remainder_step(state, batch, targets)
                dsr.check_finite(report.error, record.step + size, "solver's error")
        record((state.model, state.solver), losses, state)
    record.close()
    return state.model, state.solver


def _all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    arrays = jtu.tree_leaves(eqx.filter(tree, eqx.is_inexact_array))
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))
