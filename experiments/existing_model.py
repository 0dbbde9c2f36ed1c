"""Adds the speed R_3 to a model that somebody has already, Diffrax's own example.

The model is that of the page "Neural ODE" of Diffrax's documentation: nonlinear
oscillators, learned from samples of trajectories, first from short ones and then from
long ones. Neither the model nor its solve is changed, but two lines of the loss: the
trajectories that it has anyway are the nodes at which the speed is integrated. Writes
the changed lines, a table, a picture and a file of results.
"""

import argparse
import ast
import difflib
import functools as ft
import inspect
import json
import sys
from collections.abc import Callable, Sequence
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
from jaxtyping import Array, ArrayLike, Float, Key

from . import report
from .training import Recorder, train_adaptively


SAMPLES, TEST_SAMPLES, BATCH = 256, 256, 32
DURATION, TIMES = 10.0, 100
# For the parts of the training: how much of the trajectories it sees.
LENGTHS = (0.1, 1.0)
STEPS_PER_EPOCH = 50
LEARNING_RATE = 3e-3
TIGHT, TOLERANCE = dfx.Dopri5(), 1.4e-8
SHOWN = 3
COMMAND = "python -m experiments.existing_model"


class Func(eqx.Module):
    """The field, as a user may have it."""

    scale: Float[Array, ""]
    mlp: eqx.nn.MLP

    def __init__(self, key: Key[Array, ""]):
        self.scale = jnp.array(1.0)
        self.mlp = eqx.nn.MLP(2, 2, 64, 2, jax.nn.softplus, jnp.tanh, key=key)

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
    ) -> Float[Array, " state"]:
        return self.scale * self.mlp(y)


class NeuralODE(eqx.Module):
    """The model, as a user may have it: from an initial state to a trajectory."""

    func: Func

    def __call__(
        self, ts: Float[Array, " times"], y0: Float[Array, " state"]
    ) -> Float[Array, "times state"]:
        ys = self.solve(ts, y0).ys
        assert ys is not None
        return ys

    def solve(
        self, ts: Float[Array, " times"], y0: Float[Array, " state"]
    ) -> dfx.Solution:
        return dfx.diffeqsolve(
            dfx.ODETerm(self.func),
            dfx.Tsit5(),
            t0=ts[0],
            t1=ts[-1],
            dt0=ts[1] - ts[0],
            y0=y0,
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-6),
            saveat=dfx.SaveAt(ts=ts),
        )


class Trajectories(NamedTuple):
    ts: Float[Array, " times"]
    ys: Float[Array, "samples times state"]


# Of one trajectory.
LossOfOne = Callable[[NeuralODE, Array, Array], Float[Array, ""]]


class Outcome(NamedTuple):
    """What was measured of one method, on trajectories that were not trained on.

    **Attributes:**

    - `regularization`: the weight of the speed; 0 is the plain model.
    - `error`: mean square, over all times.
    - `nfe`: mean over trajectories, each solved alone, as the model does it.
    - `tight_nfe`: likewise, by Dopri5 with tolerances of 1.4e-8.
    - `times`, `truth`, `predicted`, `steps`: of one of them, and where the solver
        stepped to.
    """

    regularization: float
    error: float
    nfe: float
    tight_nfe: float
    step_seconds: float
    training_seconds: float
    nfe_by_epoch: list[int]
    loss_by_epoch: list[float]
    times: list[float]
    truth: list[list[float]]
    predicted: list[list[float]]
    steps: list[float]


def loss(
    model: NeuralODE, ts: Float[Array, " times"], ys: Float[Array, "times state"]
) -> Float[Array, ""]:
    """Of one trajectory, as a user may have it."""
    y_pred = model(ts, ys[0])
    return jnp.mean((y_pred - ys) ** 2)


def loss_with_speed(
    model: NeuralODE,
    ts: Float[Array, " times"],
    ys: Float[Array, "times state"],
    weight: float,
) -> Float[Array, ""]:
    """The same, with the speed of what is predicted."""
    y_pred = model(ts, ys[0])
    speed = dsr.trapezoidal(ts).integrate(dsr.Speed(3), dfx.ODETerm(model.func), y_pred)
    return jnp.mean((y_pred - ys) ** 2) + weight * speed


def changed_lines() -> str:
    """From the one loss to the other."""
    before, after = map(_statements, (loss, loss_with_speed))
    lines = list(difflib.unified_diff(before, after, lineterm=""))
    # Without the headings, which name files.
    return "\n".join(lines[3:])


def _statements(function: Callable[..., Array]) -> list[str]:
    source = inspect.getsource(function)
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    _, first, *_ = definition.body  # After the docstring.
    return source.splitlines()[first.lineno - 1 :]


def oscillators(num_samples: int, key: Key[Array, ""]) -> Trajectories:
    """Trajectories of dy/dt = (x2, -x1) with x = y / (1 + y)."""
    ts = jnp.linspace(0.0, DURATION, TIMES)

    def field(
        t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
    ) -> Float[Array, " state"]:
        x = y / (1 + y)
        return jnp.stack([x[1], -x[0]])

    def one(y0: Float[Array, " state"]) -> Float[Array, "times state"]:
        ys = dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Tsit5(), 0.0, DURATION, 0.1, y0, saveat=at_times
        ).ys
        assert ys is not None
        return ys

    at_times = dfx.SaveAt(ts=ts)
    y0s = jr.uniform(key, (num_samples, 2), minval=-0.6, maxval=1.0)
    return Trajectories(ts, jax.vmap(one)(y0s))


@eqx.filter_jit
def evaluations(
    model: NeuralODE, data: Trajectories
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean numbers of them, in the solves of the model, and in accurate ones."""

    def tight(y0: Float[Array, " state"]) -> Array:
        problem = dsr.InitialValueProblem(dfx.ODETerm(model.func), y0, 0.0, DURATION)
        return dsr.nfe(TIGHT, dsr.solve_adaptive(problem, TIGHT, TOLERANCE))

    own = lambda y0: dsr.nfe(dfx.Tsit5(), model.solve(data.ts, y0))
    y0s = data.ys[:, 0]
    return jnp.mean(jax.vmap(own)(y0s)), jnp.mean(jax.vmap(tight)(y0s))


@eqx.filter_jit
def trajectories(
    model: NeuralODE, data: Trajectories
) -> Float[Array, "samples times state"]:
    return jax.vmap(lambda y0: model(data.ts, y0))(data.ys[:, 0])


def train(
    name: str,
    model: NeuralODE,
    loss_of_one: LossOfOne,
    data: Trajectories,
    test: Trajectories,
    options: argparse.Namespace,
    key: Key[Array, ""],
) -> tuple[NeuralODE, list[Recorder]]:
    """First on the starts of trajectories, for fear of local minima, then on wholes."""
    batches = dsr.Batches(data.ys, BATCH)
    mean = lambda model, batch, key: jnp.mean(
        jax.vmap(lambda ys: loss_of_one(model, batch.ts, ys))(batch.ys)
    )
    recorders = []
    for length in options.lengths:
        key, own_key = jr.split(key)
        times = int(length * TIMES)
        record = Recorder(
            f"{name}, {length:g} of the time",
            options.epochs,
            STEPS_PER_EPOCH,
            lambda model: evaluations(model, test)[0],
        )
        model = train_adaptively(
            mean,
            model,
            lambda step: Trajectories(
                data.ts[:times], batches(own_key, step)[:, :times]
            ),
            optax.adabelief(LEARNING_RATE),
            record,
            key=own_key,
        )
        recorders.append(record)
    return model, recorders


def run(weight: float, options: argparse.Namespace) -> Outcome:
    data_key, test_key, model_key, key = jr.split(jr.key(options.seed), 4)
    data, test = oscillators(SAMPLES, data_key), oscillators(TEST_SAMPLES, test_key)
    loss_of_one = ft.partial(loss_with_speed, weight=weight) if weight else loss
    model, recorders = train(
        f"λ = {weight:g}",
        NeuralODE(Func(model_key)),
        loss_of_one,
        data,
        test,
        options,
        key,
    )
    predicted = trajectories(model, test)
    nfe, tight_nfe = evaluations(model, test)
    shown = dfx.diffeqsolve(
        dfx.ODETerm(model.func),
        dfx.Tsit5(),
        0.0,
        DURATION,
        data.ts[1],
        test.ys[SHOWN, 0],
        stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-6),
        saveat=dfx.SaveAt(steps=True),
        max_steps=256,
    )
    assert shown.ts is not None
    rounded = lambda x: np.round(np.asarray(x, float), 5).tolist()
    return Outcome(
        regularization=weight,
        error=float(jnp.mean((predicted - test.ys) ** 2)),
        nfe=float(nfe),
        tight_nfe=float(tight_nfe),
        # Of the last part of the training, on whole trajectories.
        step_seconds=float(np.median(recorders[-1].seconds)),
        training_seconds=sum(sum(record.seconds) for record in recorders),
        nfe_by_epoch=[nfe for record in recorders for nfe in record.nfe],
        loss_by_epoch=[x for record in recorders for x in record.loss_by_epoch],
        times=rounded(test.ts),
        truth=rounded(test.ys[SHOWN]),
        predicted=rounded(predicted[SHOWN]),
        steps=rounded(shown.ts[jnp.isfinite(shown.ts)]),
    )


def label(outcome: Outcome) -> str:
    weight = outcome.regularization
    return f"R_3, λ = {weight:g}" if weight else "plain"


def load_outcomes(folder: Path) -> list[Outcome]:
    path = folder / "existing_model.json"
    if not path.exists():
        return []
    return [Outcome(**result) for result in json.loads(path.read_text())["results"]]


def table(folder: Path) -> str | None:
    """Of the results in a folder, in Markdown, with the lines that were changed."""
    outcomes = load_outcomes(folder)
    if not outcomes:
        return None
    rows = [["method", "held-out error", "NFE", "NFE, tight", "step", "training"]]
    for o in outcomes:
        counts = f"{o.nfe:.1f}", f"{o.tight_nfe:.1f}"
        times = f"{1e3 * o.step_seconds:.0f} ms", f"{o.training_seconds:.0f} s"
        rows.append([label(o), f"{o.error:.2e}", *counts, *times])
    lines = "The lines of the loss that were changed:"
    caption = (
        f"On {TEST_SAMPLES} trajectories that were not trained on. NFE: mean number of "
        "evaluations, as the model solves (Tsit5, rtol = 1e-3, atol = 1e-6); tight: "
        f"by Dopri5, rtol = atol = {TOLERANCE:g}. No paper has figures of this. "
        f"Command: `{COMMAND}`."
    )
    diff = f"```diff\n{changed_lines()}\n```"
    return "\n\n".join([lines, diff, report.table(rows), caption])


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Evaluations over the training, and a trajectory with the solver's steps."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * (1 + len(outcomes)), 3.2), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(outcomes))
    for outcome, axes in zip(outcomes, others):
        epochs = np.arange(1, len(outcome.nfe_by_epoch) + 1)
        left.plot(epochs, outcome.nfe_by_epoch, label=label(outcome))
        axes.plot(outcome.times, outcome.truth, ".", color="gray", markersize=2)
        axes.plot(outcome.times, outcome.predicted, linewidth=1)
        for step in outcome.steps:
            axes.axvline(step, color="black", alpha=0.2, linewidth=0.8)
        axes.set(title=f"{label(outcome)}: {len(outcome.steps)} steps", xlabel="time")
        axes.sharey(others[0])
    left.set(title="Evaluations during training", xlabel="epoch", ylabel="NFE")
    left.legend()
    others[0].set_ylabel("a held-out trajectory (dots), and steps")
    figure.savefig(path, dpi=150)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.existing_model",
        description=__doc__,
        formatter_class=report.HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seed", type=report.seed, default=0, help="decides everything")
    help_ = f"of {STEPS_PER_EPOCH} steps each, for either length of trajectories"
    add("--epochs", type=report.positive(int), default=10, help=help_)
    add("--quick", action="store_true", help="one epoch on wholes, one weight")
    add(
        "--lambda",
        type=report.positive(float),
        nargs="+",
        default=[1e-4, 1e-3, 1e-2],
        dest="regularizations",
        metavar="LAMBDA",
        help="weights of the speed in the loss",
    )
    add(
        "--output",
        type=report.writable_folder,
        default="existing-model-output",
        help="folder for the results",
    )
    options = parser.parse_args()
    options.lengths = LENGTHS[-1:] if options.quick else LENGTHS
    if options.quick:
        options.epochs, options.regularizations = 1, options.regularizations[:1]
    return options


def main() -> None:
    options = arguments()
    print(f"The lines of the loss that are changed:\n\n{changed_lines()}\n")
    try:
        outcomes = [run(weight, options) for weight in (0.0, *options.regularizations)]
    except dsr.TrainingDiverged as error:
        sys.exit(f"error: {error}")
    record = report.circumstances(options)
    record |= dict(results=[outcome._asdict() for outcome in outcomes])
    path = options.output / "existing_model.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    draw(outcomes, options.output / "existing_model.png")
    print(f"\n{table(options.output)}")


if __name__ == "__main__":
    main()
