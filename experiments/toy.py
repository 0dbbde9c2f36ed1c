"""The map z(1) = z + z^3, learned plainly and with a penalty for R_K.

Many vector fields have this map; the penalized one is cheap to solve. (Figure 1 of
Kelly et al., "Learning Differential Equations that are Easy to Solve", NeurIPS 2020.)
All start from the same field, whose weights are larger than usual, so that there is
something to straighten. `orders` compares several K and weights, for solvers of several
orders.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Key

from . import methods, plots
from .config import Options
from .methods import Method
from .problem import Batch, final_state, Problem, Scalar
from .record import Record
from .task import Task
from .training import Experiment, Run, train_briefly, Trained


INITIAL_SCALE = 3.0
BATCH_SIZE, PER_EPOCH, QUICK_STEPS, SHOWN = 200, 100, 5, 9
WIDEST = 2.0
# That of the picture has order 3.
DRAWN = dfx.Bosh3()
ORDERS = {f"R_{order}": order for order in (2, 3, 4, 5)}
SOLVERS = dict(Heun=dfx.Heun(), Bosh3=DRAWN, Dopri5=dfx.Dopri5(), Dopri8=dfx.Dopri8())
# The equal steps of a solve in training of `orders`.
EQUAL_STEPS = 12
# A model is compared with the plain one only if its error is larger by at most this.
SLACK = 1.1


class Field(eqx.Module):
    """Vector field of one sample, whose state is a number."""

    mlp: eqx.nn.MLP

    def __init__(self, key: Key[Array, ""]):
        mlp = eqx.nn.MLP(2, "scalar", 32, 2, jax.nn.tanh, key=key)
        params, static = eqx.partition(mlp, eqx.is_inexact_array)
        params = jax.tree.map(lambda leaf: INITIAL_SCALE * leaf, params)
        self.mlp = eqx.combine(params, static)

    def __call__(self, t: Any, y: Scalar, args: None) -> Scalar:
        return self.mlp(jnp.stack([y, jnp.asarray(t, y.dtype)]))


@dataclasses.dataclass(frozen=True)
class ToyOptions(Options):
    epochs: int = 30
    learning_rate: float = 1e-2
    """Learning rate of Adam, at the start."""
    regularization: float = 1e-2
    """Weight of R_3."""


@dataclasses.dataclass(frozen=True)
class OrdersOptions(Options):
    epochs: int = 12
    learning_rate: float = 1e-2
    """Learning rate of Adam, at the start."""


def target(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return z + z**3


def samples(key: Key[Array, ""], step: int) -> Float[Array, " batch"]:
    key = jr.fold_in(key, step)
    return jr.uniform(key, (BATCH_SIZE,), minval=-WIDEST, maxval=WIDEST)


def problem(key: Key[Array, ""], per_epoch: int = PER_EPOCH) -> Problem:
    model_key, key = jr.split(key)
    # They have another key, so that they are not among the training samples.
    test = jr.uniform(jr.fold_in(key, 2**31), (1000,), minval=-WIDEST, maxval=WIDEST)

    def loss(field: Any, solution: dfx.Solution, batch: Batch) -> Scalar:
        return (final_state(solution) - target(batch.data)) ** 2

    return Problem(
        Field(model_key),
        samples,
        per_epoch,
        lambda field, batch: dsr.training.InitialValueProblem(
            dfx.ODETerm(field), batch.data
        ),
        loss,
        [Batch(test)],
        max_steps=128,
        alone=True,
    )


def sizes(options: ToyOptions | OrdersOptions) -> tuple[int, int]:
    """Returns the number of epochs, and of steps in each."""
    return (1, QUICK_STEPS) if options.quick else (options.epochs, PER_EPOCH)


def build(run: Run) -> Experiment:
    options = run.options
    way, weight = None, 0.0
    if run.method == "R_3":
        way, weight = methods.derivative(3), options.regularization
    epochs, per_epoch = sizes(options)
    schedule = optax.cosine_decay_schedule(options.learning_rate, epochs * per_epoch)
    method = Method(way=way, weight=weight)
    return Experiment(problem(run.key, per_epoch), method, optax.adam(schedule), epochs)


def finish(run: Run, experiment: Experiment, trained: Trained) -> Any:
    problem, field = experiment.problem, trained.model
    (test,) = problem.test

    @eqx.filter_jit
    def measure(field: Field) -> dict[str, Array]:
        integral = lambda b: methods.derivative(3, dsr.augmented())(problem, field, b)
        in_order_3 = dataclasses.replace(problem, solver=DRAWN)
        values = problem.measure(lambda b: problem.solve(field, b), field, test)
        return dict(
            error=jnp.sqrt(values["loss"]),
            nfe_bosh3=in_order_3.nfe(field, test, max_steps=1024),
            r_3=problem.each(lambda b: integral(b)[1], test),
        )

    return {k: float(v) for k, v in measure(field).items()}, _picture(problem, field)


def _picture(problem: Problem, field: Field) -> dict[str, Any]:
    """Computes some solutions with their third derivatives, and the times at which the
    field is evaluated."""
    times = jnp.linspace(0, 1, 101)

    @eqx.filter_jit
    def solve(field: Field) -> tuple[Array, ...]:
        def derivative(t: Scalar, y: Scalar) -> Scalar:
            return dsr.DerivativeNorm(3).evaluate(dfx.ODETerm(field), t, y, None)[1]

        def one(z: Scalar) -> tuple[Array, ...]:
            saveat = dfx.SaveAt(t0=True, steps=True, dense=True)
            solution: Any = problem.solve(
                field, Batch(z), DRAWN, saveat=saveat, max_steps=1024
            )
            states = jax.vmap(solution.evaluate)(times)
            squares = jax.vmap(derivative)(times, states)
            return states, jnp.sqrt(squares), solution.ts

        return jax.vmap(one)(jnp.linspace(-WIDEST, WIDEST, SHOWN))

    def evaluations(ts: np.ndarray) -> np.ndarray:
        stages = np.array([0, *DRAWN.tableau.c])
        ts = ts[np.isfinite(ts)]
        steps = [t0 + stages * (t1 - t0) for t0, t1 in zip(ts, ts[1:])]
        return np.unique(np.round(np.concatenate(steps), 6))

    states, derivatives, steps = map(np.asarray, solve(field))
    return dict(
        times=times,
        states=np.round(states, 5),
        derivatives=derivatives,
        evaluations=[evaluations(ts) for ts in steps],
    )


def weights(order: int, quick: bool) -> list[float]:
    """Returns zero and powers of ten as weights. Higher derivatives are larger."""
    powers = [10.0**k for k in range(-4 - order, 4 - order)]
    return [0.0, *(powers[-1:] if quick else powers)]


def in_equal_steps(order: int) -> methods.Way:
    """Makes the way with R_K by quadrature, in a few equal steps."""

    def way(problem: Problem, model: Field, batch: Batch) -> Any:
        term, solver, t0, t1, _, y0, _ = problem.arguments(model, batch, dfx.Dopri5())
        return dsr.regularized_solve(
            *(term, solver, t0, t1, 1 / EQUAL_STEPS, y0),
            max_steps=EQUAL_STEPS + 1,  # Roundoff may add a step.
            regularizer=dsr.DerivativeNorm(order),
            method=dsr.gauss_legendre(8),
        )

    return way


def execute_orders(run: Run) -> Record:
    """Trains with each weight, and solves the learned equations by each solver."""
    order, (epochs, per_epoch) = ORDERS[run.method], sizes(run.options)
    steps = epochs * per_epoch
    schedule = optax.cosine_decay_schedule(run.options.learning_rate, steps)
    whole = problem(run.key)
    test = Batch(whole.test[0].data[: 10 if run.options.quick else 300])
    posed = dataclasses.replace(whole, test=[test], max_steps=4096)
    for weight in weights(order, run.options.quick):
        if any(row["weight"] == weight for row in run.record.rows):
            continue
        method = Method(way=in_equal_steps(order), weight=weight)
        field, metrics = train_briefly(
            posed, method, optax.adam(schedule), steps, run.key
        )
        counts = {
            name: eqx.filter_jit(dataclasses.replace(posed, solver=solver).nfe)
            for name, solver in SOLVERS.items()
        }
        run = run.with_rows(
            dict(
                weight=weight,
                error=float(np.sqrt(metrics["loss"])),
                nfe={k: float(f(field, test)) for k, f in counts.items()},
                training_seconds=metrics["training_seconds"],
            )
        )
    return run.record


def cheapest(rows: Sequence[dict[str, Any]], solver: str) -> dict[str, Any]:
    """Finds the cheapest model of those that are about as accurate as the plain one."""
    plain, *_ = rows
    near = [row for row in rows if row["error"] <= SLACK * plain["error"]]
    return min(near, key=lambda row: row["nfe"][solver])


def best_table(records: Sequence[Record]) -> pd.DataFrame:
    """Makes the table of evaluations of the plain and the cheapest model."""

    def cell(rows: Sequence[dict[str, Any]], solver: str) -> str:
        plain = rows[0]["nfe"][solver]
        least = cheapest(rows, solver)["nfe"][solver]
        return f"{plain:.1f} → {least:.1f} ({least / plain:.2f})"

    return pd.DataFrame(
        {"K": made.method} | {solver: cell(made.rows, solver) for solver in SOLVERS}
        for made in records
        if made.rows
    )


TOY = Task(
    name="toy",
    options=ToyOptions,
    heeds={"plain": (), "R_3": ("regularization",)},
    build=build,
    finish=finish,
    columns={
        "error": ("error", ".2g"),
        "NFE by Dopri5": ("nfe", ".1f"),
        "NFE by Bosh3": ("nfe_bosh3", ".1f"),
        "R_3": ("r_3", ".3g"),
        "training": ("training_seconds", "s"),
    },
    draw=plots.toy,
    x64=True,
)
ORDERS_TASK = Task(
    name="orders",
    options=OrdersOptions,
    heeds={method: () for method in ORDERS},
    execute=execute_orders,
    tables={"best": best_table},
    draw=plots.orders,
    x64=True,
)
