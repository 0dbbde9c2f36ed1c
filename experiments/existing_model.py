"""Adds the speed R_3 to a model that somebody has already, Diffrax's own example.

The model is that of the page "Neural ODE" of Diffrax's documentation: nonlinear
oscillators, learned from samples of trajectories, first from short ones and then from
long ones. Neither the model nor its solve is changed, but two lines of the loss: the
trajectories that it has anyway are the nodes at which the speed is integrated.

One file of results for each method and weight; the changed lines, the table and the
picture, of all files in the folder, follow. Without methods, nothing is trained.
"""

import argparse
import ast
import difflib
import functools as ft
import inspect
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

from . import command_line, records, report
from .training import Recorder, train_adaptively


SAMPLES, TEST_SAMPLES, BATCH = 256, 256, 32
DURATION, TIMES = 10.0, 100
# For the parts of the training: how much of the trajectories it sees.
LENGTHS = (0.1, 1.0)
STEPS_PER_EPOCH = 50
LEARNING_RATE = 3e-3
TIGHT, TOLERANCE = dfx.Dopri5(), 1.4e-8
SHOWN = 3
METHODS = ("plain", "R_3", "truth")
_NOTES = f"""On trajectories that were not trained on. NFE: mean of the trajectories,
each solved as the model does it, by Tsit5 with rtol = 1e-3 and atol = 1e-6; tight: by
Dopri5 with both {TOLERANCE:g}. Step: the median, on whole trajectories. Training: all
steps, with compilation. Truth: the oscillators themselves, which nobody trained. No
paper has figures of this."""


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

    func: Callable[..., Float[Array, " state"]]

    def __call__(
        self, ts: Float[Array, " times"], y0: Float[Array, " state"]
    ) -> Float[Array, "times state"]:
        ys = self.solve(ts, y0).ys
        assert ys is not None
        return ys

    def solve(
        self,
        ts: Float[Array, " times"],
        y0: Float[Array, " state"],
        saveat: dfx.SaveAt | None = None,
    ) -> dfx.Solution:
        return dfx.diffeqsolve(
            dfx.ODETerm(self.func),
            dfx.Tsit5(),
            t0=ts[0],
            t1=ts[-1],
            dt0=ts[1] - ts[0],
            y0=y0,
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-6),
            saveat=dfx.SaveAt(ts=ts) if saveat is None else saveat,
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

    method: str
    regularization: float
    error: float
    nfe: float
    tight_nfe: float
    step_seconds: float | None
    training_seconds: float
    nfe_by_epoch: list[float]
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


class Oscillator(eqx.Module):
    """What is to be learned: dy/dt = (x2, -x1) with x = y / (1 + y)."""

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
    ) -> Float[Array, " state"]:
        x = y / (1 + y)
        return jnp.stack([x[1], -x[0]])


def oscillators(num_samples: int, key: Key[Array, ""]) -> Trajectories:
    ts = jnp.linspace(0.0, DURATION, TIMES)

    def one(y0: Float[Array, " state"]) -> Float[Array, "times state"]:
        ys = dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, DURATION, 0.1, y0, saveat=at_times
        ).ys
        assert ys is not None
        return ys

    term, at_times = dfx.ODETerm(Oscillator()), dfx.SaveAt(ts=ts)
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
    method: str,
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
    for length in LENGTHS[-1:] if options.quick else LENGTHS:
        key, own_key = jr.split(key)
        times = int(length * TIMES)
        record = Recorder(
            f"{method}, {length:g} of the time",
            1 if options.quick else options.epochs,
            STEPS_PER_EPOCH,
            lambda model: evaluations(model, test)[0],
            command_line.checkpoints(options, f"existing_model {method} {length:g}"),
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


def run(method: str, options: argparse.Namespace) -> Outcome:
    weight = options.regularization if method == "R_3" else 0.0
    data_key, test_key, model_key, key = jr.split(jr.key(options.seed), 4)
    data, test = oscillators(SAMPLES, data_key), oscillators(TEST_SAMPLES, test_key)
    loss_of_one = (
        loss if method == "plain" else ft.partial(loss_with_speed, weight=weight)
    )
    if method == "truth":
        model, recorders = NeuralODE(Oscillator()), []
    else:
        model, recorders = train(
            method,
            NeuralODE(Func(model_key)),
            loss_of_one,
            data,
            test,
            options,
            key,
        )
    predicted = trajectories(model, test)
    nfe, tight_nfe = evaluations(model, test)
    steps = model.solve(test.ts, test.ys[SHOWN, 0], dfx.SaveAt(steps=True)).ts
    assert steps is not None
    rounded = lambda x: np.round(np.asarray(x, float), 5).tolist()
    return Outcome(
        method,
        weight,
        error=float(jnp.mean((predicted - test.ys) ** 2)),
        nfe=float(nfe),
        tight_nfe=float(tight_nfe),
        # Of the last part of the training, on whole trajectories.
        step_seconds=float(np.median(recorders[-1].seconds)) if recorders else None,
        training_seconds=sum(sum(record.seconds) for record in recorders),
        nfe_by_epoch=[nfe for record in recorders for nfe in record.nfe],
        loss_by_epoch=[x for record in recorders for x in record.loss_by_epoch],
        times=rounded(test.ts),
        truth=rounded(test.ys[SHOWN]),
        predicted=rounded(predicted[SHOWN]),
        steps=rounded(steps[jnp.isfinite(steps)]),
    )


def file_name(method: str, regularization: float) -> str:
    weight = f"-{regularization:g}" if method == "R_3" else ""
    return f"{_stem(method)}{weight}.json"


def _stem(method: str) -> str:
    return command_line.file_name(f"existing_model-{method}")


def label(outcome: Outcome) -> str:
    weight = f", λ = {outcome.regularization:g}" if outcome.method == "R_3" else ""
    return f"{outcome.method}{weight}"


def load_outcomes(folder: Path) -> dict[Path, Outcome | str]:
    """What came of the methods that have a file in a folder, the plain one first."""
    kept = {p: records.load_figures(p) for p in folder.glob("existing_model-*.json")}
    found = {p: k if isinstance(k, str) else Outcome(**k) for p, k in kept.items()}
    place = lambda path: (getattr(found[path], "regularization", np.inf), path.name)
    return {path: found[path] for path in sorted(found, key=place)}


def table(folder: Path) -> str | None:
    """The lines of the loss that were changed, and what came of it, in Markdown."""
    found = load_outcomes(folder)
    rows = [["method", "held-out MSE", "NFE", "NFE, tight", "step", "training"]]
    rows[0] += ["command"]
    for path, outcome in found.items():
        options = records.options(path)
        method = next(m for m in METHODS if path.name.startswith(_stem(m)))
        command = f"`{parser().command(options, method)}`"
        rows.append([*_measured(outcome, path), command])
    diff = f"```diff\n{changed_lines()}\n```"
    return "\n\n".join([diff, report.table(rows), _NOTES]) if found else None


def _measured(outcome: Outcome | str, path: Path) -> list[str]:
    if isinstance(outcome, str):
        return [path.stem, outcome, *[""] * 4]
    step, training = outcome.step_seconds, outcome.training_seconds
    times = ["", ""] if step is None else [f"{1e3 * step:.0f} ms", f"{training:.0f} s"]
    return [
        *(label(outcome), f"{outcome.error:.2e}"),
        *(f"{outcome.nfe:.1f}", f"{outcome.tight_nfe:.1f}"),
        *times,
    ]


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Evaluations over the training, and a trajectory with the solver's steps."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * (1 + len(outcomes)), 3.2), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(outcomes))
    for outcome, axes in zip(outcomes, others):
        epochs = np.arange(1, len(outcome.nfe_by_epoch) + 1)
        if len(epochs):
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


def parser() -> command_line.Parser:
    made = command_line.Parser(
        "existing_model",
        __doc__,
        epochs=10,
        quick="one epoch, on whole trajectories",
        methods=METHODS,
    )
    made.add_weights(1e-3)
    return made


def main() -> None:
    options = parser().options()
    for method in options.methods:
        outcome = command_line.attempt(lambda: run(method, options))
        path = options.output / file_name(method, options.regularization)
        kept = outcome if isinstance(outcome, str) else outcome._asdict()
        records.save_figures(path, options, kept)
    found = load_outcomes(options.output).values()
    outcomes = [outcome for outcome in found if not isinstance(outcome, str)]
    if outcomes:
        draw(outcomes, options.output / "existing_model.png")
    print(f"The lines of the loss that are changed:\n\n{changed_lines()}")
    print(f"\n{table(options.output) or 'There are no results.'}")


if __name__ == "__main__":
    main()
