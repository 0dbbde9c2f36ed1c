"""Trains a neural-ODE classifier of handwritten digits in three ways.

`plain` solves the equation adaptively; `speed` does so too and penalizes the speed R_K;
`taylor` makes a few coarse Taylor-Lagrange steps, and trains their midpoint in turn.
Writes a table, a picture and a file of results.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from . import report


SOLVER = dfx.Dopri5()
TOLERANCE = 1e-6
MAX_STEPS = 64
TAYLOR_STEPS = 2
REMAINDER_EVERY = 10
BATCH_SIZE = 128
PIXELS, CLASSES, WIDTH = 64, 10, 100


class Batch(NamedTuple):
    images: Float[Array, "batch pixels"]
    labels: Int[Array, " batch"]


class Field(eqx.Module):
    """The vector field of a whole batch of images, as one state."""

    mlp: eqx.nn.MLP

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, "batch pixels"], args: None
    ) -> Float[Array, "batch pixels"]:
        time = jnp.full((len(y), 1), t, y.dtype)
        return jax.vmap(self.mlp)(jnp.concatenate([y, time], axis=1))


class Classifier(eqx.Module):
    field: Field
    readout: eqx.nn.Linear

    def __init__(self, key: Key[Array, ""]):
        field_key, readout_key = jr.split(key)
        mlp = eqx.nn.MLP(PIXELS + 1, PIXELS, WIDTH, 2, jax.nn.tanh, key=field_key)
        self.field = Field(mlp)
        self.readout = eqx.nn.Linear(PIXELS, CLASSES, key=readout_key)

    def logits(self, y1: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
        return jax.vmap(self.readout)(y1)


def problem(model: Classifier, batch: Batch) -> dsr.InitialValueProblem:
    return dsr.InitialValueProblem(dfx.ODETerm(model.field), batch.images)


def solve(model: Classifier, batch: Batch) -> dfx.Solution:
    return dsr.solve_adaptive(
        problem(model, batch), SOLVER, TOLERANCE, max_steps=MAX_STEPS
    )


def cross_entropy(
    model: Classifier, y1: Float[Array, "batch pixels"], batch: Batch
) -> Float[Array, ""]:
    return dsr.cross_entropy(model.logits(y1), batch.labels)


def plain_loss(model: Classifier, batch: Batch) -> Float[Array, ""]:
    return cross_entropy(model, dsr.final_state(solve(model, batch)), batch)


def speed_loss(
    model: Classifier, batch: Batch, order: int, weight: float
) -> Float[Array, ""]:
    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(model.field), order)
    regularized = dsr.InitialValueProblem(term, term.init(batch.images))
    solution = dsr.solve_adaptive(
        regularized, SOLVER, TOLERANCE, norm=term.norm, max_steps=MAX_STEPS
    )
    y1, speed = term.split(dsr.final_state(solution))
    return cross_entropy(model, y1, batch) + weight * speed


def train_adaptively(
    loss: Callable[[Classifier, Batch], Float[Array, ""]],
    model: Classifier,
    batches: Iterator[Batch],
    learning_rate: float,
    record: "Recorder",
) -> Classifier:
    optimizer = optax.adam(learning_rate)

    @eqx.filter_jit
    def step(model, state, batch):
        value, grads = eqx.filter_value_and_grad(loss)(model, batch)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, updates), state, value

    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    for number, batch in enumerate(batches, start=1):
        with dsr.solving(number):
            model, state, value = step(model, state, batch)
        dsr.check_finite(value, number)
        record(model, float(value))
    return model


def train_alternating(
    model: Classifier,
    solver: dsr.TaylorLagrangeSolver,
    batches: Iterator[Batch],
    learning_rate: float,
    record: "Recorder",
) -> tuple[Classifier, dsr.TaylorLagrangeSolver | dsr.HyperSolver]:
    trainer = dsr.AlternatingTrainer(
        problem=problem,
        loss=cross_entropy,
        num_steps=TAYLOR_STEPS,
        model_optimizer=optax.adam(learning_rate),
        solver_optimizer=optax.adam(1e-3),
        penalty=1.0,
    )
    # The other methods get them one by one, in the same order.
    listed = list(batches)
    state = dsr.fit(
        trainer,
        trainer.init(model, solver, key=jr.key(0)),
        lambda key, step: listed[step],
        until=len(listed),
        remainder_every=REMAINDER_EVERY,
        callbacks=[lambda p: record(p.state.model, float(p.dynamics.terms.loss))],
    )
    return state.model, state.solver


class Recorder:
    """Shows progress, measures the time that each step takes, and every epoch counts
    the evaluations that a solve takes on the test set."""

    def __init__(self, name: str, steps: int, steps_per_epoch: int, test: Batch):
        self.bar = tqdm(total=steps, desc=name, unit="step", disable=None)
        self.steps_per_epoch = steps_per_epoch
        self.test = test
        self.nfe: list[int] = []
        self.seconds: list[float] = []
        self._start = time.perf_counter()

    def __call__(self, model: Classifier, loss: float) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        self.bar.update()
        if len(self.seconds) % self.steps_per_epoch == 0:
            with dsr.solving(len(self.seconds)):
                self.nfe.append(int(count_evaluations(model, self.test)))
            self.bar.set_postfix(loss=f"{loss:.4f}", nfe=self.nfe[-1])
        if len(self.seconds) == self.bar.total:
            self.bar.close()
        self._start = time.perf_counter()


@eqx.filter_jit
def count_evaluations(model: Classifier, batch: Batch) -> Int[Array, ""]:
    """Evaluations of the trained field in an adaptive solve, without a regularizer."""
    return dsr.nfe(SOLVER, solve(model, batch))


@eqx.filter_jit
def trajectory(model: Classifier, batch: Batch) -> report.Trajectory:
    """The state of the first image at 101 times, and where the solver stepped to."""
    ivp = problem(model, Batch(batch.images[:1], batch.labels[:1]))
    saveat = dfx.SaveAt(steps=True, dense=True)
    solution = dfx.diffeqsolve(
        ivp.term,
        SOLVER,
        ivp.t0,
        ivp.t1,
        None,
        ivp.y0,
        saveat=saveat,
        stepsize_controller=dfx.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        max_steps=MAX_STEPS,
    )
    assert solution.ts is not None
    times = jnp.linspace(ivp.t0, ivp.t1, 101)
    return report.Trajectory(
        times, jax.vmap(solution.evaluate)(times)[:, 0], solution.ts
    )


def load(seed: int) -> tuple[Batch, Batch]:
    """The training and the test set."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, split)
    return Batch(train_images, train_labels), Batch(test_images, test_labels)


def batches_of(data: Batch, epochs: int, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data.labels))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            index = order[start : start + BATCH_SIZE]
            yield Batch(data.images[index], data.labels[index])


def evaluate(
    method: str,
    model: Classifier,
    solve: Callable[[Classifier, Batch], dfx.Solution],
    record: Recorder,
) -> report.Result:
    """Measures a trained model on the test set, solved by `solve`."""
    test = record.test
    jitted = eqx.filter_jit(lambda model, batch: dsr.final_state(solve(model, batch)))
    predicted = jnp.argmax(model.logits(jitted(model, test)), axis=1)
    return report.Result(
        method,
        accuracy=float(jnp.mean(predicted == test.labels)),
        nfe=record.nfe[-1],
        solve_seconds=report.median_seconds(lambda: jitted(model, test)),
        step_seconds=float(np.median(record.seconds)),
        training_seconds=sum(record.seconds),
        nfe_by_epoch=record.nfe,
        trajectory=trajectory(model, test),
    )


def run(options: argparse.Namespace) -> list[report.Result]:
    train, test = load(options.seed)
    per_epoch = len(train.labels) // BATCH_SIZE
    model_key, midpoint_key = jr.split(jr.key(options.seed))
    model = Classifier(model_key)
    rate = options.learning_rate

    def start(method: str) -> tuple[Iterator[Batch], Recorder]:
        batches = batches_of(train, options.epochs, options.seed)
        return batches, Recorder(method, options.epochs * per_epoch, per_epoch, test)

    batches, record = start("plain")
    plain = train_adaptively(plain_loss, model, batches, rate, record)
    results = [evaluate("plain", plain, solve, record)]

    method = f"speed R_{options.order}"
    batches, record = start(method)
    loss = functools.partial(
        speed_loss, order=options.order, weight=options.regularization
    )
    fast = train_adaptively(loss, model, batches, rate, record)
    results.append(evaluate(method, fast, solve, record))

    method = f"Taylor-Lagrange {options.solver_order}"
    batches, record = start(method)
    midpoint = dsr.CorrectionMLP(PIXELS, key=midpoint_key)
    solver = dsr.TaylorLagrangeSolver(options.solver_order, midpoint)
    taylor, solver = train_alternating(model, solver, batches, rate, record)

    def solve_taylor(model: Classifier, batch: Batch) -> dfx.Solution:
        return dsr.solve_fixed(problem(model, batch), solver, TAYLOR_STEPS)

    results.append(evaluate(method, taylor, solve_taylor, record))
    return results


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.digits",
        description=__doc__,
        formatter_class=report.HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seed", type=report.seed, default=0, help="decides everything")
    add("--epochs", type=report.positive(int), default=60, help="passes over the data")
    add("--learning-rate", type=report.positive(float), default=3e-3, help="Adam's")
    add("--order", type=report.positive(int), default=3, help="K of the speed R_K")
    add(
        "--lambda",
        type=report.nonnegative(float),
        default=0.1,
        dest="regularization",
        metavar="LAMBDA",
        help="weight of the speed in the loss",
    )
    add(
        "--solver-order",
        type=report.positive(int),
        default=2,
        help="order p of the Taylor-Lagrange solver",
    )
    add(
        "--output",
        type=report.writable_folder,
        default="demo-output",
        help="folder for the results",
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    try:
        results = run(options)
    except dsr.TrainingDiverged as error:
        sys.exit(f"error: {error}")
    caption = (
        f"NFE: evaluations that {type(SOLVER).__name__} needs for the test set as one "
        f"state, at rtol = atol = {TOLERANCE:g}. Solve: time for the test set, by the "
        "method's own solver. Training step: the median. Training: all steps, with "
        "compilation."
    )
    report.write("digits", results, caption, options)


if __name__ == "__main__":
    main()
