r"""Samples from frozen flow-matching models in four and in eight evaluations.

A velocity field $v(t, x)$ is trained by flow matching (Lipman et al., "Flow Matching
for Generative Modeling", ICLR 2023): along $x_t = (1 - t) x_0 + t x_1$, from noise
$x_0$ to data $x_1$, it learns the mean velocity $x_1 - x_0$. Then it is fixed. Solvers
learn to end, after few evaluations, where an accurate solve ends. They start from
noise; for digits the class is given, too.
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
from jaxtyping import Array, Float, Int, Key
from matplotlib.figure import Figure

from . import plots, tables
from .classification import digits_data
from .config import Options
from .data import moons
from .record import Record
from .task import Task
from .training import Run, train


WIDTH, DEPTH, BATCH = 128, 3, 256
NFES = (4, 8)
FIELD_STEPS, SOLVER_BATCHES, SOLVER_STEPS, QUICK_STEPS = 4000, 200, 4, 10


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    epochs: int = 1
    """Multiple of the usual number of training steps."""
    rate: float = 5e-3
    """Learning rate of the solver, at most."""


class Velocity(eqx.Module):
    """Velocity field of a batch of samples. The `args` are their classes."""

    mlp: eqx.nn.MLP
    classes: int = eqx.field(static=True)

    def __init__(self, size: int, classes: int, *, key: Key[Array, ""]):
        inputs = size + classes + 1
        self.mlp = eqx.nn.MLP(inputs, size, WIDTH, DEPTH, jax.nn.silu, key=key)
        self.classes = classes

    def __call__(
        self, t: Any, x: Float[Array, "batch size"], labels: Int[Array, " batch"]
    ) -> Float[Array, "batch size"]:
        time = jnp.broadcast_to(jnp.asarray(t, x.dtype).reshape(-1, 1), (len(x), 1))
        kinds = jax.nn.one_hot(labels, self.classes, dtype=x.dtype)
        return jax.vmap(self.mlp)(jnp.concatenate([x, time, kinds], axis=1))


class Samples(eqx.Module):
    """Samples, of noise or of data, and their classes."""

    x: Float[Array | np.ndarray, "batch size"]
    labels: Int[Array | np.ndarray, " batch"]

    @property
    def size(self) -> int:
        return self.x.shape[1]

    @property
    def classes(self) -> int:
        return 1 + int(max(self.labels))


def noise(data: Samples, key: Key[Array, ""], count: int = BATCH) -> Samples:
    noise_key, label_key = jr.split(key)
    labels = jr.randint(label_key, (count,), 0, data.classes)
    return Samples(jr.normal(noise_key, (count, data.size)), labels)


def load(name: str, seed: int) -> Samples:
    if name == "moons":
        x = moons(np.random.default_rng(seed), 10_000)
        return Samples(x, np.zeros(len(x), int))
    images, _ = digits_data(seed)
    # The pixels are from -1 to 1, on the scale of the noise.
    return Samples(2 * images.images - 1, images.labels)


def train_field(run: Run, data: Samples, steps: int) -> Velocity:
    def loss(field: Velocity, solver: None, batch: Any) -> Array:
        samples, key = batch
        time_key, noise_key = jr.split(key)
        t = jr.uniform(time_key, (len(samples.x), 1))
        noise = jr.normal(noise_key, samples.x.shape)
        x = (1 - t) * noise + t * samples.x
        velocity = field(t[:, 0], x, samples.labels)
        return jnp.mean((velocity - (samples.x - noise)) ** 2)

    batches = dsr.training.Batches(data, BATCH)
    rate = optax.cosine_decay_schedule(1e-3, steps)
    trained = train(
        run,
        dsr.training.Trainer(loss, optax.adam(rate)),
        Velocity(data.size, data.classes, key=run.key),
        None,
        lambda key, step: (batches(key, step), jr.fold_in(key, step)),
        lambda field, solver: jnp.zeros(()),
        epochs=1,
        per_epoch=steps,
    )
    return trained.model


def solvers(size: int, nfe: int, key: Key[Array, ""]) -> dict[str, tuple[Any, int]]:
    """Makes solvers of that many evaluations, and their numbers of steps."""
    sample = jnp.zeros(size)
    network = dsr.MidpointMLP(sample, inputs=("t", "y"), key=key)
    constant = dsr.ConstantMidpoint(sample, form="scalar")
    return {
        "learned Runge-Kutta": (dsr.LearnedRungeKutta(dfx.Midpoint(), nfe // 2), 1),
        "constant midpoint": (dsr.TaylorLagrangeSolver(1, constant), nfe // 2),
        "midpoint network": (dsr.TaylorLagrangeSolver(1, network), nfe // 2),
    }


def equation(field: Velocity, noise: Samples) -> dsr.training.InitialValueProblem:
    x, labels = jnp.asarray(noise.x), noise.labels
    return dsr.training.InitialValueProblem(dfx.ODETerm(field), x, args=labels)


@eqx.filter_jit
def sample(
    field: Velocity, solver: dfx.AbstractSolver, num_steps: int, noise: Samples
) -> Float[Array, "batch size"]:
    p = equation(field, noise)
    solution: Any = dsr.fixed_step_solve(
        *(p.term, solver, p.t0, p.t1, num_steps, p.y0, p.args)
    )
    return solution.ys[-1]


def fit(
    run: Run,
    field: Velocity,
    data: Samples,
    solver: Any,
    num_steps: int,
    held_out: Samples,
) -> dsr.training.SolverFit:
    batches = QUICK_STEPS if run.options.quick else run.options.epochs * SOLVER_BATCHES
    rate = optax.cosine_decay_schedule(run.options.rate, batches * SOLVER_STEPS)
    return dsr.training.fit_solver(
        solver,
        lambda noise: equation(field, noise),
        lambda key, step: noise(data, jr.fold_in(key, step)),
        num_steps=batches,
        solver_steps=SOLVER_STEPS,
        optimizer=optax.adam(rate),
        reference=dsr.training.Reference(num_steps, rtol=1e-5, atol=1e-5),
        validation=held_out,
        key=run.key,
    )


def execute(run: Run) -> Record:
    data = load(run.method, run.record.seed)
    steps = QUICK_STEPS if run.options.quick else run.options.epochs * FIELD_STEPS
    field = train_field(run, data, steps)
    held_out = noise(data, jr.fold_in(run.key, 2**31 - 1), 1000)
    # The noise of the picture: for each class, or many samples in the plane.
    shown = noise(data, jr.key(1), 10 if data.size > 2 else 1000)
    shown = Samples(shown.x, jnp.arange(len(shown.x)) % data.classes)
    pictures, rows = {}, []
    for nfe in NFES:
        for label, (solver, steps) in solvers(data.size, nfe, run.key).items():
            fitted = fit(run, field, data, solver, steps, held_out)
            learned: Any = fitted.solver
            numbers = jax.tree.leaves(eqx.filter(learned.learned, eqx.is_inexact_array))
            rows.append(
                dict(
                    nfe=nfe,
                    solver=label,
                    numbers=sum(x.size for x in numbers),
                    error=fitted.error,
                    runge_kutta=fitted.runge_kutta,
                )
            )
            pictures[f"{label}, {nfe}"] = sample(field, learned, steps, shown)
        rule = sample(field, dfx.Midpoint(), nfe // 2, shown)
        pictures[f"midpoint rule, {nfe}"] = rule
    pictures["exact"] = sample(field, dfx.Dopri5(), 40, shown)
    picture = {k: np.round(x, 2) for k, x in pictures.items()}
    return dataclasses.replace(run.record, rows=rows, picture=picture)


def errors_table(records: Sequence[Record]) -> pd.DataFrame:
    """Makes the table with a row for each task, number of evaluations and solver."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for made in records:
        for row in made.rows:
            key = made.method, row["nfe"], row["solver"]
            groups.setdefault(key, []).append(row)
    rows = []
    for (name, nfe, label), group in groups.items():
        best = [min(row["runge_kutta"].items(), key=lambda x: x[1]) for row in group]
        errors = [row["error"] for row in group]
        ratio = np.mean([error / other for error, (_, other) in zip(errors, best)])
        names = "/".join(sorted({method for method, _ in best}))
        other = tables.mean([error for _, error in best], ".2g")
        rows.append(
            {
                "task": name,
                "NFE": nfe,
                "solver": label,
                "numbers": group[0]["numbers"],
                "error": tables.mean(errors, ".2g"),
                "best Runge-Kutta": f"{names}, {other} (× {ratio:.2f})",
            }
        )
    return pd.DataFrame(rows)


def draw(records: plots.Records) -> Figure | None:
    group = records.get("digits", [])
    return plots.samples(group[0].picture) if group and group[0].picture else None


TASK = Task(
    name="sampling",
    options=SamplingOptions,
    heeds={"moons": (), "digits": ()},
    execute=execute,
    tables={"errors": errors_table},
    draw=draw,
)
