"""Learns the map z(1) = z + z^3 by a neural ODE, plain and with the speed penalized.

Many fields have this map; the penalized one is cheap to solve. (The first figure of
Kelly et al., "Learning Differential Equations that are Easy to Solve", NeurIPS 2020.)

Both start from the same field, of weights that are larger than usual, so that there is
something to straighten. Writes a picture of trajectories with the times at which the
adaptive solver evaluates the field, and a file of results.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from . import command_line, records, report
from .training import Loss, Recorder, train_adaptively


SOLVER = dfx.Dopri5()
TOLERANCE = 1e-6
# For training, whose buffers have this size; and for what is only solved.
MAX_STEPS, MOST_STEPS = 128, 4096
# By which evaluations are counted; that in the picture has the order of the speed R_3.
DRAWN = "Bosh3"
COUNTED = {"Dopri5": SOLVER, DRAWN: dfx.Bosh3()}
# How much larger the initial weights are than usual.
INITIAL_SCALE = 3.0
BATCH_SIZE, STEPS_PER_EPOCH = 200, 100
SHOWN = 9
WIDEST = 2.0


class Field(eqx.Module):
    """The field of one sample, whose state is a number."""

    mlp: eqx.nn.MLP

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, ""], args: None
    ) -> Float[Array, ""]:
        return self.mlp(jnp.stack([y, jnp.asarray(t, y.dtype)]))


class Outcome(NamedTuple):
    """What was measured of one method.

    **Attributes:**

    - `error`: root mean square of the final states, on samples not trained on.
    - `nfe`: for each solver, the mean over these samples, each solved alone.
    - `speed`: the regularizer's mean over them.
    - `times`, `states`: trajectories.
    - `evaluations`: for each of them the times at which the field was evaluated.
    """

    method: str
    error: float
    nfe: dict[str, float]
    speed: float
    training_seconds: float
    nfe_by_epoch: list[float]
    loss_by_epoch: list[float]
    times: list[float]
    states: list[list[float]]
    evaluations: list[list[float]]


def target(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return z + z**3


def samples(step: int, seed: int) -> Float[Array, " batch"]:
    key = jr.fold_in(jr.key(seed), step)
    return jr.uniform(key, (BATCH_SIZE,), minval=-WIDEST, maxval=WIDEST)


def initial_field(key: Key[Array, ""]) -> Field:
    mlp = eqx.nn.MLP(2, "scalar", 32, 2, jax.nn.tanh, key=key)
    params, static = eqx.partition(mlp, eqx.is_inexact_array)
    params = jtu.tree_map(lambda leaf: INITIAL_SCALE * leaf, params)
    return Field(eqx.combine(params, static))


def solve(field: Field, solver: dfx.AbstractERK, z: Float[Array, ""]) -> dfx.Solution:
    problem = dsr.InitialValueProblem(dfx.ODETerm(field), z)
    return dsr.solve_adaptive(problem, solver, TOLERANCE, max_steps=MOST_STEPS)


def count(
    field: Field, solver: dfx.AbstractERK, z: Float[Array, " samples"]
) -> Int[Array, " samples"]:
    """The evaluations from each of some initial states."""
    return jax.vmap(lambda z: dsr.nfe(solver, solve(field, solver, z)))(z)


def final_states(field: Field, z: Float[Array, " samples"]) -> Float[Array, " samples"]:
    return jax.vmap(lambda z: dsr.final_state(solve(field, SOLVER, z)))(z)


def solve_with_speed(
    field: Field, z: Float[Array, ""], order: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The final state from one initial state, and the solution's speed."""
    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(field), order)
    problem = dsr.InitialValueProblem(term, term.init(z))
    solution = dsr.solve_adaptive(
        problem, SOLVER, TOLERANCE, norm=term.norm, max_steps=MAX_STEPS
    )
    return term.split(dsr.final_state(solution))


def loss_of(order: int, weight: float) -> Loss:
    def loss(
        field: Field, batch: Float[Array, " batch"], key: Key[Array, ""]
    ) -> Float[Array, ""]:
        del key

        def one(z: Float[Array, ""]) -> Float[Array, ""]:
            if weight == 0:
                problem = dsr.InitialValueProblem(dfx.ODETerm(field), z)
                solution = dsr.solve_adaptive(
                    problem, SOLVER, TOLERANCE, max_steps=MAX_STEPS
                )
                return (dsr.final_state(solution) - target(z)) ** 2
            z1, speed = solve_with_speed(field, z, order)
            return (z1 - target(z)) ** 2 + weight * speed

        return jnp.mean(jax.vmap(one)(batch))

    return loss


def evaluation_times(ts: np.ndarray) -> list[float]:
    """When the solver evaluates the field in the accepted steps between some times."""
    stages = np.array([0, *COUNTED[DRAWN].tableau.c])
    ts = ts[np.isfinite(ts)]
    times = [t0 + stages * (t1 - t0) for t0, t1 in zip(ts, ts[1:])]
    return np.unique(np.round(np.concatenate(times), 6)).tolist()


def trajectories(
    field: Field,
) -> tuple[
    Float[Array, " times"], Float[Array, "shown times"], Float[Array, "shown n"]
]:
    """Some solutions, and where the solver stepped to."""
    times = jnp.linspace(0, 1, 101)

    def one(z: Float[Array, ""]) -> tuple[Array, Array]:
        solution = dfx.diffeqsolve(
            dfx.ODETerm(field),
            COUNTED[DRAWN],
            0.0,
            1.0,
            None,
            z,
            saveat=dfx.SaveAt(t0=True, steps=True, dense=True),
            stepsize_controller=dfx.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            max_steps=MOST_STEPS,
        )
        assert solution.ts is not None
        return jax.vmap(solution.evaluate)(times), solution.ts

    return times, *jax.vmap(one)(jnp.linspace(-WIDEST, WIDEST, SHOWN))


def run(method: str, weight: float, options: argparse.Namespace) -> Outcome:
    model_key, key = jr.split(jr.key(options.seed))
    field = initial_field(model_key)
    # A seed of their own, so that these are not among the samples trained on.
    test = jr.uniform(jr.fold_in(key, 2**31), (1000,), minval=-WIDEST, maxval=WIDEST)

    counts = {
        name: eqx.filter_jit(lambda field, solver=solver: count(field, solver, test))
        for name, solver in COUNTED.items()
    }
    record = Recorder(
        method,
        options.epochs,
        STEPS_PER_EPOCH,
        lambda field: jnp.mean(counts["Dopri5"](field)),
        command_line.checkpoints(options, f"toy {method}"),
    )
    schedule = optax.cosine_decay_schedule(options.learning_rate, record.steps)
    field = train_adaptively(
        loss_of(options.order, weight),
        field,
        lambda step: samples(step, options.seed),
        optax.adam(schedule),
        record,
        key=key,
    )

    @eqx.filter_jit
    def final(field: Field) -> tuple[Array, Array]:
        return jax.vmap(lambda z: solve_with_speed(field, z, options.order))(test)

    with dsr.solving(record.steps):
        z1, speed = map(np.asarray, final(field))
        nfe = {name: float(jnp.mean(of(field))) for name, of in counts.items()}
        times, states, steps = map(np.asarray, eqx.filter_jit(trajectories)(field))
    return Outcome(
        method,
        float(np.sqrt(np.mean((z1 - target(test)) ** 2))),
        nfe,
        float(np.mean(speed)),
        sum(record.seconds),
        record.nfe,
        record.loss_by_epoch,
        times.tolist(),
        np.round(states, 5).tolist(),
        [evaluation_times(ts) for ts in steps],
    )


def draw(outcomes: list[Outcome], path: Path) -> None:
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
    for axes, outcome in zip(panels, outcomes):
        for states, evaluations in zip(outcome.states, outcome.evaluations):
            (line,) = axes.plot(outcome.times, states, linewidth=1)
            at = np.interp(evaluations, outcome.times, states)
            axes.plot(evaluations, at, ".", color=line.get_color(), markersize=4)
        axes.set(title=f"{outcome.method}: NFE {outcome.nfe[DRAWN]:.1f} by {DRAWN}")
        axes.set_xlabel("time")
    panels[0].set_ylabel("state, and where the field is evaluated")
    figure.savefig(path, dpi=150)


def table(folder: Path) -> str | None:
    """Both methods, in Markdown; the paper's figure has no numbers."""
    path = folder / "toy.json"
    if not path.exists():
        return None
    rows = [["method", "error", *(f"NFE by {n}" for n in COUNTED), "R_K", "training"]]
    for result in json.loads(path.read_text())["results"]:
        if "failure" in result:
            rows.append([result["method"], result["failure"], *[""] * 4])
            continue
        counts = [f"{result['nfe'][name]:.1f}" for name in COUNTED]
        measured = [f"{result['error']:.2g}", *counts, f"{result['speed']:.3g}"]
        seconds = f"{result['training_seconds']:.0f} s"
        rows.append([result["method"], *measured, seconds])
    command = parser().command(records.options(path))
    return (
        f"{report.table(rows)}\n\nError: root mean square of z(1), of z from "
        f"{-WIDEST:g} to {WIDEST:g}. NFE: mean over 1000 samples, each solved alone, "
        f"at rtol = atol = {TOLERANCE:g}. The paper's figure has no numbers: it shows "
        f"fewer evaluations with R_3 (seen). All rows: `{command}`\n\n"
        "![Trajectories, and where the field is evaluated]"
        "(../experiments/results/toy.png)"
    )


def parser() -> command_line.Parser:
    made = command_line.Parser("toy", __doc__, epochs=30, quick="one epoch")
    add, positive = made.add_argument, command_line.positive
    add("--learning-rate", type=positive(float), default=1e-2, help="Adam's")
    add("--order", type=positive(int), default=3, help="K of the speed R_K")
    made.add_weights(1e-2)
    return made


def main() -> None:
    options = parser().options()
    if options.quick:
        options.epochs = 1
    jax.config.update("jax_enable_x64", True)
    weights = {"plain": 0.0, f"speed R_{options.order}": options.regularization}
    outcomes, results = [], []
    for method, weight in weights.items():
        outcome = command_line.attempt(lambda: run(method, weight, options))
        if isinstance(outcome, str):
            results.append(dict(method=method, failure=outcome))
        else:
            outcomes.append(outcome)
            results.append(outcome._asdict())
    record = records.circumstances(options) | dict(results=results)
    (options.output / "toy.json").write_text(json.dumps(record) + "\n")
    if outcomes:
        draw(outcomes, options.output / "toy.png")
    print(f"\n{table(options.output)}")


if __name__ == "__main__":
    main()
