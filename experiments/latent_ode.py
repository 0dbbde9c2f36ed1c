"""Trains the papers' latent ODE on intensive care (PhysioNet 2012), and measures it.

Interpolation: from all that was observed of a patient in 48 hours, the encoder finds
where a latent trajectory starts, from which the same is to be predicted. One file of
results for each method and weight; the table and the picture show those of all files
in the folder. Without methods, nothing is trained, and they are made anew.

The data are looked for in $DIFFRAX_SPEEDREG_DATA/physionet2012. All is in double
precision, as in the papers: solves at this tolerance are near single precision's limit.
"""

import argparse
from collections.abc import Sequence
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
from jaxtyping import Array, Float, Int, Key

from . import command_line, latent, records, report
from .data import load_physionet
from .data.physionet import FEATURES, on_grid
from .latent import Adaptive, LatentODE, Series
from .training import Loss, Recorder, train_adaptively


HOURS = 48
BATCH, TEST_BATCH = 50, 100
TOLERANCE, MAX_STEPS = 1.4e-8, 512
NODES = 4
PAPER_EPOCHS = 100
METHODS = ("plain", "quadrature R_K", "augmented R_K")
SHOWN = FEATURES.index("DiasABP")
# Of TayNODE: evaluations in the solve of one trajectory, and what they cost.
PUBLISHED = {"plain": "281", "R_K": "90, loss + 8 %"}
_NOTES = f"""The papers' model and its training, but for the epochs that the table tells
(the paper's: 100; by `--full`), over which the divergence's weight grows, and but for
observations: where there are none, the encoder goes on to the next. MSE: of what was
observed. NFE: by Dopri5 at 1.4e-8, in batches of {TEST_BATCH} patients, three
trajectories of each, as one state, their mean; alone: mean of the trajectories, each
a state of its own, which is how the paper counts. Evaluation: the median time for
such a batch. Step: the median. Training: all steps, with compilation."""


class Batch(NamedTuple):
    """Time series, and the weight that the divergence has in the loss by now."""

    series: Series
    weight: Float[np.ndarray, ""]


class Outcome(NamedTuple):
    """What was measured of one method, on patients that were not trained on.

    **Attributes:**

    - `regularization`: the weight of the speed.
    - `error`: mean square, of what was observed.
    - `loss`: without the speed, with the last weight of the divergence.
    - `nfe`: mean over batches, each of which is solved as one equation.
    - `patient_nfe`: mean over trajectories, each of which is solved alone.
    - `times`, `predicted`, `steps`, `observed_times`, `observed`: of one feature of one
        patient, and where the solver stepped to.
    """

    method: str
    order: int
    regularization: float
    epochs: int
    error: float
    loss: float
    nfe: float
    patient_nfe: float
    solve_seconds: float
    step_seconds: float
    training_seconds: float
    nfe_by_epoch: list[float]
    loss_by_epoch: list[float]
    times: list[float]
    predicted: list[float]
    steps: list[float]
    observed_times: list[float]
    observed: list[float]


def load(quick: bool) -> tuple[Series, Series]:
    """The patients to train and to test on, at every full hour."""
    hours = np.arange(HOURS + 1, dtype=np.float32)
    train, test = (
        Series(*on_grid(part, hours)[1:]) for part in load_physionet(resolution=1.0)
    )
    if quick:
        train, test = (Series(*(x[: 10 * BATCH] for x in s)) for s in (train, test))
    return train, test


def divergence_weight(progress: float) -> float:
    """In the loss: none at first, then it grows. `progress` is from 0 to 1."""
    return max(0.0, 1 - 0.99 ** (PAPER_EPOCHS * progress - 10))


def optimizer() -> optax.GradientTransformation:
    return optax.adamax(optax.exponential_decay(1e-2, 1, 0.999, end_value=1e-3))


def loss_of(method: str, adaptive: Adaptive, order: int, weight: float) -> Loss:
    """With the speed of latent trajectories, where 48 hours are a time of 1."""
    if method == "plain":
        weight = 0.0

    def loss(model: LatentODE, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        start, z0 = adaptive.start(model, batch.series, key)
        term = dfx.ODETerm(model.field)
        if method == "augmented R_K":
            augmented = dsr.SpeedRegularizedTerm(term, order)
            solution = adaptive.solve(
                augmented, augmented.init(z0), norm=augmented.norm
            )
            zs, speeds = augmented.split(latent.states(solution))
            speed = speeds[-1]
        elif method == "quadrature R_K":
            quadrature = dsr.gauss_legendre(adaptive.ts[0], adaptive.ts[-1], NODES)
            saveat = quadrature.saveat(dfx.SaveAt(ts=adaptive.ts))
            solution, nodes = quadrature.split(adaptive.solve(term, z0, saveat))
            zs = latent.states(solution)
            speed = quadrature.integrate(dsr.Speed(order), term, nodes)
        else:
            zs, speed = latent.states(adaptive.solve(term, z0)), 0.0
        predicted = model.decode(zs, adaptive.num_samples)
        bound = latent.bound(predicted, batch.series, start, batch.weight)
        return bound + weight * speed

    return loss


def evaluations(
    adaptive: Adaptive, model: LatentODE, series: Series, key: Key[Array, ""]
) -> Int[Array, ""]:
    """In the solve of a batch as one equation."""
    _, z0 = adaptive.start(model, series, key)
    return dsr.nfe(latent.SOLVER, adaptive.solve(dfx.ODETerm(model.field), z0))


class Measured(NamedTuple):
    """Of a batch; the first three are sums over observations, or over trajectories."""

    squared_errors: Float[Array, ""]
    observations: Float[Array, ""]
    patient_nfe: Float[Array, ""]
    loss: Float[Array, ""]
    nfe: Int[Array, ""]


@eqx.filter_jit
def measure(
    adaptive: Adaptive, model: LatentODE, series: Series, key: Key[Array, ""]
) -> Measured:
    start, z0 = adaptive.start(model, series, key)
    term = dfx.ODETerm(model.field)
    solution = adaptive.solve(term, z0)
    predicted = model.decode(latent.states(solution), adaptive.num_samples)
    alone = jax.vmap(lambda z: dsr.nfe(latent.SOLVER, adaptive.solve(term, z[None])))
    return Measured(
        latent.squared_errors(predicted, series),
        jnp.sum(series.mask),
        jnp.sum(alone(z0)),
        latent.bound(predicted, series, start, divergence_weight(1.0)),
        dsr.nfe(latent.SOLVER, solution),
    )


@eqx.filter_jit
def trajectory(
    adaptive: Adaptive, model: LatentODE, series: Series
) -> tuple[Float[Array, " times"], Float[Array, " times"], Float[Array, " steps"]]:
    """What is predicted from the mean start of one patient, and the solver's steps."""
    z0 = model.encode(adaptive.ts, series).mean
    saveat = dfx.SaveAt(steps=True, dense=True)
    solution = adaptive.solve(dfx.ODETerm(model.field), z0, saveat)
    assert solution.ts is not None
    times = jnp.linspace(adaptive.ts[0], adaptive.ts[-1], 201)
    values = model.decode(jax.vmap(solution.evaluate)(times), num_samples=1)
    return times, values[0, 0, :, SHOWN], solution.ts


def in_batches(series: Series, size: int) -> list[Series]:
    """All patients, in batches that are equal but for the last one."""
    starts = range(0, len(series.mask), size)
    return [Series(*(x[i : i + size] for x in series)) for i in starts]


def in_double_precision(series: Series) -> Series:
    return series._replace(values=np.asarray(series.values, np.float64))


def evaluate(
    method: str,
    options: argparse.Namespace,
    adaptive: Adaptive,
    model: LatentODE,
    test: Series,
    record: Recorder,
    key: Key[Array, ""],
) -> Outcome:
    batches = in_batches(in_double_precision(test), TEST_BATCH)
    parts = [
        measure(adaptive, model, batch, jr.fold_in(key, i))
        for i, batch in enumerate(batches)
    ]
    sums = Measured(*(np.sum(x) for x in zip(*parts)))
    solve = eqx.filter_jit(
        lambda model: (
            adaptive.solve(
                dfx.ODETerm(model.field), adaptive.start(model, batches[0], key)[1]
            ).ys
        )
    )
    most = np.argmax(test.mask[:, :, SHOWN].sum(axis=1))
    shown = Series(*(x[most : most + 1] for x in in_double_precision(test)))
    times, predicted, steps = map(np.asarray, trajectory(adaptive, model, shown))
    observed = shown.mask[0, :, SHOWN]
    return Outcome(
        method,
        options.order,
        0.0 if method == "plain" else options.regularization,
        len(record.nfe),
        error=float(sums.squared_errors / sums.observations),
        loss=float(sums.loss / len(parts)),
        nfe=float(sums.nfe / len(parts)),
        patient_nfe=float(sums.patient_nfe / (len(test.mask) * adaptive.num_samples)),
        solve_seconds=report.median_seconds(lambda: solve(model), repeats=10),
        step_seconds=float(np.median(record.seconds)),
        training_seconds=sum(record.seconds),
        nfe_by_epoch=record.nfe,
        loss_by_epoch=record.loss_by_epoch,
        times=(HOURS * times).tolist(),
        predicted=np.round(predicted, 5).tolist(),
        steps=(HOURS * steps[np.isfinite(steps)]).tolist(),
        observed_times=np.flatnonzero(observed).astype(float).tolist(),
        observed=np.round(shown.values[0, observed, SHOWN], 5).tolist(),
    )


def run(method: str, options: argparse.Namespace) -> Outcome:
    train, test = load(options.quick)
    epochs = 1 if options.quick else PAPER_EPOCHS if options.full else options.epochs
    model_key, data_key, key, test_key = jr.split(jr.key(options.seed), 4)
    adaptive = Adaptive(jnp.linspace(0.0, 1.0, HOURS + 1), TOLERANCE, MAX_STEPS)
    model = LatentODE(len(FEATURES), key=model_key)
    data = dsr.Batches(train, BATCH)
    counted, *_ = in_batches(in_double_precision(test), TEST_BATCH)
    count = eqx.filter_jit(evaluations)
    record = Recorder(
        method,
        epochs,
        data.num_batches,
        lambda model: count(adaptive, model, counted, test_key),
        command_line.checkpoints(options, f"latent_ode {method}"),
    )

    def batches(step: int) -> Batch:
        weight = divergence_weight(step // data.num_batches / epochs)
        return Batch(in_double_precision(data(data_key, step)), np.asarray(weight))

    loss = loss_of(method, adaptive, options.order, options.regularization)
    model = train_adaptively(loss, model, batches, optimizer(), record, key=key)
    return evaluate(method, options, adaptive, model, test, record, test_key)


def file_name(method: str, regularization: float) -> str:
    weight = "" if method == "plain" else f"-{regularization:g}"
    return f"{command_line.file_name(f'latent_ode-{method}')}{weight}.json"


def load_outcomes(folder: Path) -> dict[Path, Outcome | str]:
    """What came of the methods that have a file in a folder, failures at the end."""
    found = {}
    for path in folder.glob("latent_ode-*.json"):
        kept = records.load_figures(path)
        found[path] = kept if isinstance(kept, str) else Outcome(**kept)

    def place(path: Path) -> tuple[bool, float, str]:
        outcome = found[path]
        if isinstance(outcome, str):
            return True, 0.0, path.name
        return False, outcome.regularization, path.name

    return {path: found[path] for path in sorted(found, key=place)}


def successes(folder: Path) -> list[Outcome]:
    return [o for o in load_outcomes(folder).values() if not isinstance(o, str)]


def label(outcome: Outcome) -> str:
    if outcome.method == "plain":
        return "plain"
    name = outcome.method.replace("K", str(outcome.order))
    return f"{name}, λ = {outcome.regularization:g}"


def table(folder: Path) -> str | None:
    """The methods beside the paper's figures, in Markdown."""
    found = load_outcomes(folder)
    rows = [["method", "epochs", "held-out MSE", "loss", "NFE", "NFE alone"]]
    rows[0] += ["evaluation", "step", "training", "paper: NFE alone", "status"]
    rows[0] += ["command"]
    for path, outcome in found.items():
        options = records.options(path)
        (method,) = [m for m in METHODS if path.name.startswith(_stem(m))]
        paper = PUBLISHED["plain" if method == "plain" else "R_K"]
        row = [*_measured(outcome, path), paper, "unverified"]
        rows.append([*row, f"`{parser().command(options, method)}`"])
    return f"{report.table(rows)}\n\n{_NOTES}" if found else None


def _stem(method: str) -> str:
    return command_line.file_name(f"latent_ode-{method}")


def _measured(outcome: Outcome | str, path: Path) -> list[str]:
    if isinstance(outcome, str):
        return [path.stem, "", outcome, *[""] * 6]
    return [
        *(label(outcome), str(outcome.epochs)),
        *(f"{outcome.error:.5f}", f"{outcome.loss:.3f}"),
        *(f"{outcome.nfe:.1f}", f"{outcome.patient_nfe:.1f}"),
        *(f"{1e3 * outcome.solve_seconds:.1f} ms", f"{outcome.step_seconds:.3f} s"),
        f"{outcome.training_seconds:.0f} s",
    ]


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Evaluations over the training, and a patient, with the steps of the solver."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * (1 + len(outcomes)), 3.4), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(outcomes))
    for outcome, axes in zip(outcomes, others):
        epochs = np.arange(1, outcome.epochs + 1)
        left.plot(epochs, outcome.nfe_by_epoch, label=label(outcome))
        axes.plot(outcome.times, outcome.predicted, linewidth=1)
        axes.plot(outcome.observed_times, outcome.observed, ".", markersize=4)
        for step in outcome.steps:
            axes.axvline(step, color="black", alpha=0.2, linewidth=0.8)
        axes.set(title=f"{label(outcome)}: {len(outcome.steps)} steps", xlabel="hours")
        axes.sharey(others[0])
    left.set(title="Evaluations during training", xlabel="epoch", ylabel="NFE")
    left.set_ylim(bottom=0)
    left.legend()
    others[0].set_ylabel(f"{FEATURES[SHOWN]}, scaled; steps of the solver")
    figure.savefig(path, dpi=150)


def show(folder: Path) -> None:
    text = table(folder)
    outcomes = successes(folder)
    if outcomes:
        draw(outcomes, folder / "latent_ode.png")
    print(f"\n{text or f'There are no results in {folder}.'}")


def parser() -> command_line.Parser:
    made = command_line.Parser(
        "latent_ode",
        __doc__,
        epochs=30,
        quick="an epoch on a part of the patients",
        full=f"the {PAPER_EPOCHS} epochs of the paper",
        methods=METHODS,
    )
    add = made.add_argument
    add(
        "--order", type=command_line.positive(int), default=3, help="K of the speed R_K"
    )
    made.add_weights(1e-2)
    return made


def main() -> None:
    options = parser().options()
    jax.config.update("jax_enable_x64", True)
    for method in options.methods:
        outcome = command_line.attempt(lambda: run(method, options))
        path = options.output / file_name(method, options.regularization)
        kept = outcome if isinstance(outcome, str) else outcome._asdict()
        records.save_figures(path, options, kept)
    show(options.output)


if __name__ == "__main__":
    main()
