"""The papers' latent ODE on intensive care (PhysioNet 2012).

The task is interpolation: from all observations of a patient in 48 hours, the encoder
computes the start of a latent trajectory, which predicts the same observations. All is
in double precision, as in the papers: solves at this tolerance are near the limit of
single precision.
"""

import dataclasses
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

from . import latent, methods, plots
from .config import Options
from .data import load_physionet
from .data.physionet import FEATURES, HOURS
from .latent import Gaussian, LatentODE, Series
from .methods import Method
from .problem import Batch, Problem, Scalar
from .task import Task
from .training import Experiment, Run, Trained, trajectory


SAMPLES, BATCH, TEST_BATCH = 3, 50, 100
PAPER_EPOCHS = 100


@dataclasses.dataclass(frozen=True)
class LatentOptions(Options):
    epochs: int = 30
    budget: int = 97
    """Evaluations that a solve may take with R_3: half of plain's."""


class Patients(eqx.Module):
    """Time series, and the current weight of the divergence in the loss."""

    series: Series
    weight: Float[Array | np.ndarray, ""]


def divergence_weight(progress: float) -> float:
    """Computes the weight of the divergence in the loss.

    It is zero at first, and then grows. `progress` goes from 0 to 1.
    """
    return max(0.0, 1 - 0.99 ** (PAPER_EPOCHS * progress - 10))


def optimizer() -> optax.GradientTransformation:
    return optax.adamax(optax.exponential_decay(1e-2, 1, 0.999, end_value=1e-3))


def start(
    model: LatentODE, batch: Batch
) -> tuple[Gaussian, Float[Array, "trajectories latent"]]:
    """Computes the distributions of the starts, and samples from them."""
    dtype = model.decoder.weight.dtype
    ts = jnp.linspace(0.0, 1.0, HOURS + 1, dtype=dtype)
    distribution = model.encode(ts, batch.data.series)
    assert batch.key is not None
    z0 = distribution.sample(batch.key, SAMPLES)
    return distribution, z0.reshape(-1, latent.LATENT)


def equation(model: LatentODE, batch: Batch) -> dsr.training.InitialValueProblem:
    term = dfx.ODETerm(model.field)
    return dsr.training.InitialValueProblem(term, start(model, batch)[1])


def loss(model: LatentODE, solution: dfx.Solution, batch: Batch) -> Scalar:
    assert solution.ys is not None
    predicted, patients = model.decode(solution.ys, SAMPLES), batch.data
    beginning, _ = start(model, batch)
    return latent.bound(predicted, patients.series, beginning, patients.weight)


def error(model: LatentODE, solution: dfx.Solution, batch: Batch) -> Scalar:
    """Computes the mean square error of the observations."""
    assert solution.ys is not None
    predicted, series = model.decode(solution.ys, SAMPLES), batch.data.series
    return latent.squared_errors(predicted, series) / jnp.sum(series.mask)


def in_batches(series: Series, key: Key[Array, ""]) -> list[Batch]:
    """Splits all patients into batches, which are equal except for the last one."""
    last = np.asarray(divergence_weight(1.0), series.values.dtype)
    return [
        Batch(
            Patients(jax.tree.map(lambda x: x[i : i + TEST_BATCH], series), last),
            jr.fold_in(key, i),
        )
        for i in range(0, len(series.mask), TEST_BATCH)
    ]


def problem(
    key: Key[Array, ""], epochs: int | None, quick: bool, **options: Any
) -> Problem:
    """Makes the problem. Without epochs, the weight of the divergence is the last."""
    size = 2 * TEST_BATCH if quick else None
    dtype = jnp.result_type(float)
    train, test = (
        Series(part.values[:size].astype(dtype), part.mask[:size])
        for part in load_physionet()
    )
    model_key, test_key = jr.split(key)
    data = dsr.training.Batches(train, BATCH)

    def batches(key: Key[Array, ""], step: int) -> Patients:
        progress = 1.0 if epochs is None else step // data.num_batches / epochs
        weight = divergence_weight(progress)
        return Patients(data(key, step), np.asarray(weight, dtype))

    return Problem(
        LatentODE(len(FEATURES), key=model_key),
        batches,
        data.num_batches,
        equation,
        loss,
        in_batches(test, test_key),
        scores=dict(error=error),
        ts=jnp.linspace(0.0, 1.0, HOURS + 1),
        **options,
    )


def build(run: Run) -> Experiment:
    options = run.options
    epochs = 1 if options.quick else options.epochs
    method = Method()
    if run.method != "plain":
        budget = dsr.NFEBudget(options.budget)
        method = Method(way=methods.derivative(3), budget=budget)
    posed = problem(run.key, epochs, options.quick, tolerance=1.4e-8, max_steps=512)
    return Experiment(posed, method, optimizer(), epochs)


def finish(run: Run, experiment: Experiment, trained: Trained) -> Any:
    """Counts evaluations of single trajectories, too."""
    problem, model = experiment.problem, trained.model

    @eqx.filter_jit
    def count(batch: Batch) -> Scalar:
        term, z0 = dfx.ODETerm(model.field), start(model, batch)[1]

        def alone(z: Float[Array, " latent"]) -> Array:
            arguments = term, problem.solver, 0.0, 1.0, None, z[None]
            solution = dfx.diffeqsolve(*arguments, **problem.options)
            return dsr.nfe(problem.solver, solution)

        return jnp.mean(jax.vmap(alone)(z0))

    alone = float(np.mean([count(batch) for batch in problem.test]))
    return dict(nfe_alone=alone), trajectory(problem, model, problem.test[0])


TASK = Task(
    name="latent_ode",
    options=LatentOptions,
    heeds={"plain": (), "R_3": ("budget",)},
    build=build,
    finish=finish,
    columns={
        "held-out MSE": ("error", ".5f"),
        "loss": ("loss", ".3f"),
        "NFE": ("nfe", ".1f"),
        "NFE alone": ("nfe_alone", ".1f"),
        "solve": ("solve_seconds", "ms"),
        "training": ("training_seconds", "s"),
    },
    draw=plots.trajectories,
    data=load_physionet,
    x64=True,
)
