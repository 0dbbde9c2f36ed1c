"""Trains fields by each method, and measures them: the script of all such tasks."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from . import command_line, dynamics_report, records
from .dynamics import (
    Advance,
    by_dopri5,
    by_kvaerno5,
    Field,
    fixed,
    MAX_STEPS,
    mean_error,
    Pairs,
    pairs,
    problem,
    RK4,
    rollout,
    solve_by_dopri5,
    Task,
    TOLERANCE,
    trajectories,
)
from .dynamics_report import Published, Result
from .training import Loss, Recorder, train_adaptively, train_in_rounds


BATCH_SIZE = 500
STEPS_PER_EPOCH, QUICK_STEPS = 400, 60
# In which everything is compiled.
FIRST_STEPS = 50
TEST_TRAJECTORIES, SHOWN_TRAJECTORIES = 10, 2
# The others are Taylor-Lagrange methods, which have a training loop of their own.
BY_LOSS = {
    "adaptive Dopri5": by_dopri5,
    "adaptive Kvaerno5": by_kvaerno5,
    "RK4": fixed(RK4()),
}
METHODS = (*BY_LOSS, "truncated Taylor", "Taylor-Lagrange", "constant midpoint")


def taylor_lagrange(
    method: str, task: Task, key: Key[Array, ""]
) -> dsr.TaylorLagrangeSolver:
    if method == "truncated Taylor":
        return dsr.TaylorLagrangeSolver(2)
    midpoint = task.midpoint(key)
    if method == "constant midpoint":
        return dsr.TaylorLagrangeSolver(2, dsr.ConstantCorrection(2, midpoint.form))
    return dsr.TaylorLagrangeSolver(2, midpoint)


def loss_of(advance: Advance) -> Loss:
    def loss(field: Field, batch: Pairs, key: Key[Array, ""]) -> Float[Array, ""]:
        del key
        return mean_error(advance(field, jnp.asarray(batch.before)), batch.after)

    return loss


def fastest(batches: Pairs) -> Pairs:
    """As many pairs as a batch has: those of several batches that move farthest.

    Where a step is short, it hardly matters where its midpoint is.
    """
    before, after = (np.reshape(x, (-1, x.shape[-1])) for x in batches)
    moved = np.sum(np.abs(after - before), axis=1)
    chosen = np.argpartition(moved, -BATCH_SIZE)[-BATCH_SIZE:]
    return Pairs(before[chosen], after[chosen])


def error_of(
    advance: Advance, field: Field, states: Float[Array, "samples times state"]
) -> Float[Array, ""]:
    """Of a step, from each of the states."""
    errors = jax.lax.map(
        lambda pair: mean_error(advance(field, pair.before), pair.after), pairs(states)
    )
    return jnp.mean(errors)


def recorder(
    method: str,
    task: Task,
    options: argparse.Namespace,
    error: Callable[[Any], Array],
) -> Recorder:
    epochs = task.paper_epochs if options.full else options.epochs
    return Recorder(
        method,
        1 if options.quick else epochs,
        QUICK_STEPS if options.quick else STEPS_PER_EPOCH,
        eqx.filter_jit(error),
        command_line.checkpoints(options, f"{task.name} {method}"),
        counted="error",
    )


def run(method: str, task: Task, options: argparse.Namespace) -> Result:
    data_key, test_key, field_key, solver_key, key = jr.split(jr.key(options.seed), 5)
    data = pairs(trajectories(task, data_key, task.trajectories))
    flat = Pairs(*(np.asarray(x).reshape(-1, x.shape[-1]) for x in data))
    shuffled = dsr.Batches(flat, BATCH_SIZE)
    batches = lambda step: shuffled(key, step)
    held_out = trajectories(task, test_key, TEST_TRAJECTORIES)
    field = Field.untrained(task, field_key)
    if method in BY_LOSS:
        advance = BY_LOSS[method]
        error = lambda field: error_of(advance, field, held_out)
        record = recorder(method, task, options, error)
        optimizer = optimizer_of(options.learning_rate, record.steps)
        loss = loss_of(advance)
        field = train_adaptively(loss, field, batches, optimizer, record, key=key)
    else:
        error = lambda both: error_of(fixed(both[1]), both[0], held_out)
        record = recorder(method, task, options, error)
        field, solver = train_in_rounds(
            trainer_of(options, record.steps),
            field,
            taylor_lagrange(method, task, solver_key),
            batches,
            record,
            key=key,
            remainder_every=options.remainder_every,
            remainder_batch=fastest,
        )
        advance = fixed(solver)
    return evaluate(method, task, field, advance, held_out, record)


def optimizer_of(rate: float, steps: int) -> optax.GradientTransformation:
    """The same for all methods: warmed up, and cooled down to nothing.

    States that move fast are rare in the data, so that the mean gradient is longer
    than Adam's usual.
    """
    warm = max(1, steps // 25)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm, steps)
    return optax.adam(schedule, b1=0.99)


def trainer_of(options: argparse.Namespace, steps: int) -> dsr.AlternatingTrainer:
    updates = max(1, steps // options.remainder_every)
    return dsr.AlternatingTrainer(
        problem=problem,
        loss=lambda field, y1, batch: mean_error(y1, batch.after),
        num_steps=1,
        model_optimizer=optimizer_of(options.learning_rate, steps),
        solver_optimizer=optax.adam(
            optax.cosine_decay_schedule(options.remainder_rate, updates)
        ),
        penalty=options.penalty,
        penalty_mean="absolute",
        reference_solver=dfx.Dopri8(),
        reference_tolerance=TOLERANCE,
        reference_max_steps=MAX_STEPS,
    )


def evaluate(
    method: str,
    task: Task,
    field: Field,
    advance: Advance,
    held_out: Float[Array, "samples times state"],
    record: Recorder,
) -> Result:
    """Measures a trained field on trajectories that were not trained on.

    **Arguments:**

    - `advance`: how the method itself solves the equation.
    """
    shown = held_out[:, : task.shown_steps + 1]

    @eqx.filter_jit
    def predict(field: Field) -> Array:
        return rollout(advance, field, shown[:, 0], task.shown_steps)

    @eqx.filter_jit
    def solve(field: Field) -> tuple[Array, Array]:
        def measure(pair: Pairs) -> tuple[Array, Array]:
            solution = solve_by_dopri5(field, pair.before)
            error = mean_error(dsr.final_state(solution), pair.after)
            return error, dsr.nfe(dfx.Dopri5(), solution)

        errors, counts = jax.lax.map(measure, pairs(held_out))
        return jnp.mean(errors), jnp.mean(counts)

    # A field that is too hard to solve is recorded as such.
    with dsr.solving(record.steps):
        predicted, measured = jax.block_until_ready((predict(field), solve(field)))
    field_error, nfe = measured
    norm = lambda y: jnp.linalg.norm(y, axis=-1)
    distance = norm(predicted - shown) / (norm(predicted) + norm(shown))
    *_, test_error = record.counts
    elapsed = np.cumsum(record.seconds)
    first = min(FIRST_STEPS, record.steps // 2)
    return Result(
        method,
        steps=record.steps,
        test_error=test_error,
        field_error=float(field_error),
        rollout_error=float(jnp.mean(distance)),
        nfe=float(nfe),
        step_seconds=float(np.mean(record.seconds[first:])),
        training_seconds=sum(record.seconds[first:]),
        first_seconds=sum(record.seconds[:first]),
        error_by_epoch=record.counts,
        loss_by_epoch=record.loss_by_epoch,
        seconds_by_epoch=elapsed[record.per_epoch - 1 :: record.per_epoch].tolist(),
        times=task.step * np.arange(task.shown_steps + 1),
        exact=np.asarray(shown[:SHOWN_TRAJECTORIES]),
        predicted=np.asarray(predicted[:SHOWN_TRAJECTORIES]),
    )


def table(folder: Path, task: Task, published: Mapping[str, Published]) -> str | None:
    """Of the results in a folder, in Markdown; `None` if there are none."""
    outcomes = dynamics_report.load_all(folder, task.name, METHODS)
    commands = {}
    for method in outcomes:
        given = records.options(folder / dynamics_report.file_name(task.name, method))
        commands[method] = parser(task, None).command(given, method)
    if not outcomes:
        return None
    return dynamics_report.table(outcomes, commands, published)


def main(
    task: Task, description: str | None, published: Mapping[str, Published]
) -> None:
    """The script of a task: trains by some methods, and shows all results."""
    options = parser(task, description).options()
    jax.config.update("jax_enable_x64", True)
    for method in options.methods:
        outcome = command_line.attempt(lambda: run(method, task, options))
        name = dynamics_report.file_name(task.name, method)
        dynamics_report.save(options.output / name, options, outcome)
    shown = table(options.output, task, published)
    if shown is not None:
        print(f"\n{shown}")
    outcomes = dynamics_report.load_all(options.output, task.name, METHODS)
    results = [outcome for outcome in outcomes.values() if isinstance(outcome, Result)]
    if results:
        dynamics_report.draw(results, options.output / f"{task.name}.png")


def parser(task: Task, description: str | None) -> command_line.Parser:
    made = command_line.Parser(
        task.name,
        description,
        epochs=task.epochs,
        quick=f"{QUICK_STEPS} steps",
        full=f"the paper's {task.paper_epochs} epochs of {STEPS_PER_EPOCH} steps",
        methods=METHODS,
    )
    add, positive = made.add_argument, command_line.positive
    add(
        "--learning-rate",
        type=positive(float),
        default=task.learning_rate,
        help="of the field, at most",
    )
    add(
        "--remainder-rate",
        type=positive(float),
        default=task.remainder_rate,
        help="learning rate of the midpoint, at most",
    )
    add(
        "--remainder-every",
        type=positive(int),
        default=task.remainder_every,
        help="steps of the field for each step of the midpoint",
    )
    add(
        "--penalty",
        type=command_line.nonnegative(float),
        default=task.penalty,
        help="weight of the remainders",
    )
    return made
