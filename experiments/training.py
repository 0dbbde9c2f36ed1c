"""Training loops that the experiments share."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import diffrax_speedreg as dsr
import equinox as eqx
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree
from tqdm import tqdm


Model = TypeVar("Model", bound=eqx.Module)
Loss = Callable[[Any, Any, Key[Array, ""]], Array]


class Recorder:
    """Shows progress, measures the time that each step takes, and every epoch counts
    the evaluations that a solve takes."""

    def __init__(
        self, name: str, epochs: int, per_epoch: int, count: Callable[[Any], Array]
    ):
        """**Arguments:**

        - `name`: of what is trained.
        - `epochs`, `per_epoch`: the number of epochs, and of steps in each.
        - `count`: from the model to the number of evaluations.
        """
        self.steps = epochs * per_epoch
        self.bar = tqdm(total=self.steps, desc=name, unit="step", disable=None)
        self.per_epoch = per_epoch
        self.count = count
        self.nfe: list[int] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._start = time.perf_counter()

    @property
    def loss_by_epoch(self) -> list[float]:
        return np.reshape(self.losses, (-1, self.per_epoch)).mean(axis=1).tolist()

    def __call__(self, model: Any, loss: float) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.append(loss)
        self.bar.update()
        if len(self.seconds) % self.per_epoch == 0:
            with dsr.solving(len(self.seconds)):
                self.nfe.append(int(self.count(model)))
            self.bar.set_postfix(loss=f"{loss:.4f}", nfe=self.nfe[-1])
        if len(self.seconds) == self.steps:
            self.bar.close()
        self._start = time.perf_counter()


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
    - `key`: decides about all keys.

    **Raises:**

    `dsr.TrainingDiverged` once the loss is not finite, or an equation can't be solved.
    """

    @eqx.filter_jit
    def step(model, state, batch, key):
        value, grads = eqx.filter_value_and_grad(loss)(model, batch, key)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, value

    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for number in range(1, record.steps + 1):
        batch = batches(number - 1)
        with dsr.solving(number):
            model, state, value = step(model, state, batch, jr.fold_in(key, number))
        dsr.check_finite(value, number)
        record(model, float(value))
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

    **Raises:**

    As `train_adaptively`.
    """
    state = dsr.fit(
        trainer,
        trainer.init(model, solver, key=key),
        lambda key, step: batches(step),
        until=record.steps,
        remainder_every=remainder_every,
        callbacks=[lambda p: record(p.state.model, float(p.dynamics.terms.loss))],
    )
    return state.model, state.solver
