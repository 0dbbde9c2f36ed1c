"""Trains a neural-ODE classifier of handwritten digits in three ways.

`plain` solves the equation adaptively; `speed` does so too and penalizes the speed R_K;
`taylor` makes a few coarse Taylor-Lagrange steps, and trains their remainder in turn.
Writes a table, a picture and a file of results.
"""

import argparse
import sys
from pathlib import Path

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from . import classification, command_line, records, report
from .classification import Batch, Classifier
from .records import Result
from .training import Recorder, train_adaptively, train_alternating


ADAPTIVE = classification.Adaptive(dfx.Dopri5(), tolerance=1e-6, max_steps=64)
TAYLOR_STEPS = 2
REMAINDER_EVERY = 10
BATCH_SIZE = 128
PIXELS, CLASSES, WIDTH = 64, 10, 100


class Field(eqx.Module):
    """The vector field of a whole batch of images, as one state."""

    mlp: eqx.nn.MLP

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, "batch pixels"], args: None
    ) -> Float[Array, "batch pixels"]:
        return jax.vmap(self.mlp)(classification.append_time(t, y))


def classifier(key: Key[Array, ""]) -> Classifier:
    field_key, readout_key = jr.split(key)
    mlp = eqx.nn.MLP(PIXELS + 1, PIXELS, WIDTH, 2, jax.nn.tanh, key=field_key)
    readout = eqx.nn.Linear(PIXELS, CLASSES, key=readout_key)
    return Classifier(Field(mlp), readout)


def load(seed: int) -> tuple[Batch, Batch]:
    """The training and the test set."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    split = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, split)
    return Batch(train_images, train_labels), Batch(test_images, test_labels)


def run(options: argparse.Namespace) -> list[Result]:
    train, test = load(options.seed)
    model_key, remainder_key = jr.split(jr.key(options.seed))
    model = classifier(model_key)
    optimizer = optax.adam(options.learning_rate)
    count = eqx.filter_jit(ADAPTIVE.nfe)

    def start(method: str) -> tuple[classification.Batches, Recorder]:
        batches = classification.Batches(train, BATCH_SIZE, options.seed)
        return batches, Recorder(
            method,
            options.epochs,
            batches.per_epoch,
            lambda model: count(model, test),
            command_line.checkpoints(options, f"digits {method}"),
        )

    def evaluate(
        method: str, model: Classifier, solve: classification.Solve, record: Recorder
    ) -> Result:
        return classification.evaluate(method, model, solve, ADAPTIVE, [test], record)

    results = []
    speed = ADAPTIVE.augmented_loss(
        lambda key, batch: dsr.Speed(options.order), options.regularization
    )
    losses = {"plain": ADAPTIVE.plain_loss, f"speed R_{options.order}": speed}
    for method, loss in losses.items():
        batches, record = start(method)
        trained = train_adaptively(
            loss, model, batches, optimizer, record, key=model_key
        )
        results.append(evaluate(method, trained, ADAPTIVE.solve, record))

    method = f"Taylor-Lagrange {options.solver_order}"
    batches, record = start(method)
    remainder = dsr.CorrectionMLP(PIXELS, key=remainder_key)
    trainer = dsr.AlternatingTrainer(
        problem=classification.problem,
        loss=classification.cross_entropy,
        num_steps=TAYLOR_STEPS,
        model_optimizer=optimizer,
        solver_optimizer=optax.adam(1e-3),
        penalty=1.0,
    )
    trained, solver = train_alternating(
        trainer,
        model,
        dsr.TaylorLagrangeSolver(options.solver_order, remainder),
        batches,
        record,
        key=model_key,
        remainder_every=REMAINDER_EVERY,
    )
    solve = classification.fixed(solver, TAYLOR_STEPS)
    results.append(evaluate(method, trained, solve, record))
    return results


def table(folder: Path) -> str | None:
    """The methods, in Markdown; the papers do not have this task."""
    path = folder / "digits.json"
    if not path.exists():
        return None
    command = parser().command(records.options(path))
    text = path.with_suffix(".md").read_text().strip()
    return f"{text} No paper has this task. All rows: `{command}`"


def parser() -> command_line.Parser:
    made = command_line.Parser("digits", __doc__, epochs=60, quick="two epochs")
    add, positive = made.add_argument, command_line.positive
    add("--learning-rate", type=positive(float), default=3e-3, help="Adam's")
    add("--order", type=positive(int), default=3, help="K of the speed R_K")
    add(
        "--lambda",
        type=command_line.nonnegative(float),
        default=0.1,
        dest="regularization",
        metavar="LAMBDA",
        help="weight of the speed in the loss",
    )
    add(
        "--solver-order",
        type=positive(int),
        default=2,
        help="order p of the Taylor-Lagrange solver",
    )
    return made


def main() -> None:
    options = parser().options()
    if options.quick:
        options.epochs = 2
    results = command_line.attempt(lambda: run(options))
    if isinstance(results, str):
        sys.exit(f"error: {results}")
    caption = (
        f"NFE: evaluations that {type(ADAPTIVE.solver).__name__} needs for the test "
        f"set as one state, at rtol = atol = {ADAPTIVE.tolerance:g}. Solve: time for "
        "the test set, by the method's own solver. Training step: the median. "
        "Training: all steps, with compilation."
    )
    report.write("digits", results, caption, options)


if __name__ == "__main__":
    main()
