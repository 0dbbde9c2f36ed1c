"""Trains continuous normalizing flows by every method, and measures them.

The densities are two in the plane, of which it draws a picture, and MINIBOONE's. One
file of results for each method, so that methods can be run one by one; the table and
the picture show those of all files in the folder. Without methods, nothing is trained,
and they are made anew.

MINIBOONE is looked for in $DIFFRAX_SPEEDREG_DATA/miniboone, and else fetched from
OpenML.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, Key

from . import command_line, data, flow_report, flow_training, flows, report
from .flow_report import Result
from .flow_training import Adaptive, Batch
from .flows import Field
from .training import Loss, Recorder, train_adaptively, train_alternating


ADAPTIVE = Adaptive(dfx.Dopri5(), tolerance=1.4e-8, max_steps=256)
measure = eqx.filter_jit(ADAPTIVE.measure)
TAYLOR_STEPS = 8
# Of the paper's schedule.
REMAINDER_UPDATES = 120
ORDERS = {"R_2": 2, "R_3": 3, "R_4": 4}
METHODS = ("plain", *ORDERS, "RNODE", "Taylor-Lagrange")
PLANAR = dict(moons=data.moons, pinwheel=data.pinwheel)
TASKS = (*PLANAR, "miniboone")
PUBLISHED = {"miniboone": {"plain": "10.43 nats (FFJORD's paper), unverified"}}


class Settings(NamedTuple):
    """What is trained, and how."""

    width: int
    epochs: int
    batch_size: int
    rate: float


# TayNODE's; the Taylor-Lagrange paper has 400 epochs.
FULL = Settings(width=860, epochs=500, batch_size=1000, rate=1e-3)
REDUCED = Settings(width=64, epochs=45, batch_size=128, rate=3e-2)
IN_PLANE = Settings(width=64, epochs=5, batch_size=256, rate=1e-2)
QUICK = Settings(width=16, epochs=1, batch_size=250, rate=1e-2)
STEPS_IN_PLANE = 100
TEST_BATCHES = 16
# Too large for an option.
TEST_SEED, VALIDATION_SEED = 2**32, 2**32 + 1


class Source(NamedTuple):
    """Where a task's samples come from."""

    batches: Callable[[int], Batch]
    per_epoch: int
    test: Sequence[Float[Array, "batch size"]]
    training_samples: int | None
    partial: bool


def source(options: argparse.Namespace) -> Source:
    size = options.batch_size
    if options.task in PLANAR:
        sampler = PLANAR[options.task]
        per_epoch = 10 if options.quick else STEPS_IN_PLANE
        batches = flow_training.SampledBatches(sampler, size, options.seed)
        seed = VALIDATION_SEED if options.validation else TEST_SEED
        test = jnp.split(planar_test(sampler, seed), TEST_BATCHES)
        return Source(batches, per_epoch, test, None, False)
    tabular = data.load_miniboone()
    train, test = tabular.train, tabular.test
    if options.validation:
        held_out = len(train) // 10 // TEST_BATCHES * TEST_BATCHES
        train, test = train[:-held_out], train[-held_out:]
    train = train[: 2 * size] if options.quick else train
    batches = flow_training.NoisyBatches(train, size, options.seed)
    test = jnp.split(jnp.asarray(test), TEST_BATCHES)
    return Source(batches, batches.per_epoch, test, len(train), tabular.partial)


def planar_test(
    sampler: data.Sampler, seed: int = TEST_SEED
) -> Float[np.ndarray, "count 2"]:
    return sampler(np.random.default_rng(seed), 4000)


def taynode_optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    boundaries = {round(part * steps): 0.1 for part in (0.6, 0.85)}
    schedule = optax.piecewise_constant_schedule(rate, boundaries)
    # The gradient of half the squared norm.
    return optax.chain(optax.add_decayed_weights(1e-6), optax.adam(schedule))


def taylor_lagrange_optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    boundaries = {round(250 / 400 * steps): 1e-2}
    schedule = optax.piecewise_constant_schedule(rate, boundaries)
    return optax.adamw(schedule, weight_decay=1e-3)


def optimizer(
    method: str, options: argparse.Namespace, steps: int
) -> optax.GradientTransformation:
    """That of the method's paper, but for a reduced training on MINIBOONE: Muon."""
    if options.task == "miniboone" and not options.full:
        return optax.contrib.muon(optax.cosine_decay_schedule(options.rate, steps))
    taylor_lagrange = method == "Taylor-Lagrange"
    make = taylor_lagrange_optimizer if taylor_lagrange else taynode_optimizer
    return make(options.rate, steps)


def adaptive_loss(method: str, options: argparse.Namespace) -> Loss:
    def speed(key: Key[Array, ""], batch: Batch) -> dsr.AbstractRegularizer:
        return dsr.Speed(ORDERS[method])

    def rnode(key: Key[Array, ""], batch: Batch) -> dsr.AbstractRegularizer:
        jacobian = dsr.JacobianNorm.draw(key, batch.samples)
        return options.kinetic * dsr.Speed(1) + options.jacobian * jacobian

    if method in ORDERS:
        return ADAPTIVE.loss(speed, options.regularization)
    return ADAPTIVE.loss(rnode if method == "RNODE" else None)


def run(method: str, options: argparse.Namespace) -> Result:
    found = source(options)
    size = found.test[0].shape[1]
    model_key, solver_key, key = jr.split(jr.key(options.seed), 3)
    field = Field(size, options.width, 2, jax.nn.softplus, key=model_key)
    epochs = options.epochs
    if options.full and options.task == "miniboone" and method == "Taylor-Lagrange":
        epochs = round(epochs * 400 / 500)
    record = Recorder(
        f"{options.task}, {method}",
        epochs,
        found.per_epoch,
        lambda field: measure(field, found.test[0])[1],
        command_line.checkpoints(options, f"ffjord {method}"),
    )
    made = optimizer(method, options, record.steps)
    if method == "Taylor-Lagrange":
        trainer = dsr.AlternatingTrainer(
            problem=flow_training.problem,
            loss=flow_training.negative_log_likelihood,
            num_steps=TAYLOR_STEPS,
            model_optimizer=made,
            solver_optimizer=optax.adam(1e-4, 0.999, 0.9999),
            penalty=options.penalty,
            penalty_mean="absolute",
            reference_solver=ADAPTIVE.solver,
            reference_tolerance=ADAPTIVE.tolerance,
            reference_max_steps=ADAPTIVE.max_steps,
        )
        solver = flow_training.taylor_lagrange(size, key=solver_key)
        every = max(1, record.steps // REMAINDER_UPDATES)
        field, solver = train_alternating(
            trainer,
            field,
            solver,
            found.batches,
            record,
            key=key,
            remainder_every=every,
        )
        solve: flows.Solve = lambda ivp: dsr.solve_fixed(ivp, solver, TAYLOR_STEPS)
    else:
        loss = adaptive_loss(method, options)
        field = train_adaptively(loss, field, found.batches, made, record, key=key)
        solve = ADAPTIVE.solve
    return evaluate(method, field, solve, found, record)


@eqx.filter_jit
def nll_by(
    solve: flows.Solve, field: Field, samples: Float[Array, "batch size"]
) -> Float[Array, ""]:
    final = dsr.final_state(solve(flows.problem(field, samples)))
    return flow_training.negative_log_likelihood(field, final, Batch(samples))


def evaluate(
    method: str, field: Field, solve: flows.Solve, found: Source, record: Recorder
) -> Result:
    """Measures a trained flow on the test samples.

    **Arguments:**

    - `solve`: how the method itself solves the equation.
    """

    with dsr.solving(record.steps):
        nll, nfe = np.mean([measure(field, batch) for batch in found.test], axis=0)
        own = float(np.mean([nll_by(solve, field, batch) for batch in found.test]))
    log_density, samples = None, None
    if field.size == 2:
        grid = flow_training.density_on_grid(
            field, ADAPTIVE.solve, flow_report.EXTENT, flow_report.POINTS
        )
        drawn, _ = flows.generate(field, ADAPTIVE.solve, jr.key(0), 1000)
        # In a picture, what is less than this is nothing.
        log_density = np.round(np.maximum(grid, -20), 2).tolist()
        samples = np.round(drawn, 2).tolist()
    return Result(
        method,
        float(nll),
        own,
        float(nfe),
        report.median_seconds(lambda: nll_by(solve, field, found.test[0]), repeats=5),
        float(np.median(record.seconds)),
        sum(record.seconds),
        found.training_samples,
        found.partial,
        record.nfe,
        record.loss_by_epoch,
        log_density,
        samples,
    )


def table(folder: Path) -> str | None:
    """In Markdown, what the files of results in a folder say; `None` without any."""
    runs = {task: flow_report.load(folder, task, METHODS) for task in TASKS}
    if not any(runs.values()):
        return None
    text = flow_report.table(runs, PUBLISHED, command)
    text += (
        "\n\nThe likelihoods are in nats, by exact traces and solves of high accuracy. "
        "The times are of a machine that had other work. Weights of the regularizers "
        "and penalties were chosen by shorter trials: for MINIBOONE, on a tenth of the "
        "training samples, held out (`--validation`); for the planar densities, "
        "on parts of the test samples, to their favor. RNODE's and "
        "R_2's are those of a first trial."
    )
    outcomes = [run.outcome for run in runs["miniboone"].values()]
    partial = [o for o in outcomes if isinstance(o, Result) and o.partial]
    if partial:
        text += (
            f" MINIBOONE was trained on {partial[0].training_samples} samples, a part "
            "of the official training split and most of the validation split; its test "
            "split is whole. Its likelihoods can't be compared with the papers'."
        )
    return text


def show(folder: Path) -> None:
    """Prints the table of all results in the folder, and draws their picture."""
    text = table(folder)
    if text is None:
        return
    print(f"\n{text}")
    runs = {task: flow_report.load(folder, task, METHODS) for task in PLANAR}
    runs = {task: of_task for task, of_task in runs.items() if of_task}
    if runs:
        samples = {task: planar_test(PLANAR[task]) for task in runs}
        flow_report.draw(samples, runs, folder / "ffjord.png")


def usual_options(task: str, *, full: bool, quick: bool) -> dict[str, float]:
    """Of those that depend on the task."""
    settings = IN_PLANE if task in PLANAR else FULL if full else REDUCED
    return (QUICK if quick else settings)._asdict()


def parser() -> command_line.Parser:
    made = command_line.Parser(
        "ffjord",
        __doc__,
        epochs=1,
        quick="a few steps, of a small network",
        full="the papers' settings, for MINIBOONE",
        methods=METHODS,
    )
    add, positive = made.add_argument, command_line.positive
    add("--task", choices=TASKS, default="moons", help="the density to learn")
    # By default, what the task has.
    made.set_defaults(epochs=None)
    for option, kind in (("--width", int), ("--batch-size", int), ("--rate", float)):
        add(option, type=positive(kind), metavar="N", help="if not that of the task")
    add(
        "--validation",
        action="store_true",
        help="hold samples out of the training, and measure on these, not on the test "
        "split: to choose weights by",
    )
    made.add_weights(1e-2, kinetic=0.01, jacobian=0.01, penalty=50.0)
    return made


def arguments() -> argparse.Namespace:
    options = parser().options()
    usual = usual_options(options.task, full=options.full, quick=options.quick)
    given = {name: x for name, x in vars(options).items() if x is not None}
    return argparse.Namespace(**usual | given)


def command(method: str, recorded: Mapping[str, str]) -> str:
    """By which to repeat a run of which these are the options."""
    flags = {name: recorded[name] == "True" for name in ("full", "quick")}
    made = parser()
    made.set_defaults(**usual_options(recorded["task"], **flags))
    return made.command(recorded, method)


def main() -> None:
    options = arguments()
    # Solves at this tolerance see the roundoff of products in less than float32.
    jax.config.update("jax_default_matmul_precision", "highest")
    for method in options.methods:
        outcome = command_line.attempt(lambda: run(method, options))
        flow_report.save(options, method, outcome)
    show(options.output)


if __name__ == "__main__":
    main()
