"""Learns the map z(1) = z + z^3 by a neural ODE, plain and with the speed penalized.

Many fields have this map; the penalized one is cheap to solve. (The first figure of
Kelly et al., "Learning Differential Equations that are Easy to Solve", NeurIPS 2020.)
Writes a table, a picture of trajectories with the times at which the adaptive solver
evaluates the field, and a file of results.
"""

import argparse
import json
import sys
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

from . import command_line, report
from .training import Loss, Recorder, train_adaptively


SOLVER = dfx.Dopri5()
TOLERANCE = 1e-6
MAX_STEPS = 128
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
    - `nfe`: mean over these samples, each of which is solved alone.
    - `speed`: the regularizer's mean over them.
    - `times`, `states`: trajectories.
    - `evaluations`: for each of them the times at which the field was evaluated.
    """

    method: str
    error: float
    nfe: float
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


def solve_with_speed(
    field: Field, z: Float[Array, ""], order: int
) -> tuple[dfx.Solution, Float[Array, ""], Float[Array, ""]]:
    """The solution from one initial state, its final state, and its speed."""
    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(field), order)
    problem = dsr.InitialValueProblem(term, term.init(z))
    solution = dsr.solve_adaptive(
        problem, SOLVER, TOLERANCE, norm=term.norm, max_steps=MAX_STEPS
    )
    return solution, *term.split(dsr.final_state(solution))


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
            _, z1, speed = solve_with_speed(field, z, order)
            return (z1 - target(z)) ** 2 + weight * speed

        return jnp.mean(jax.vmap(one)(batch))

    return loss


def evaluation_times(ts: np.ndarray) -> list[float]:
    """When the solver evaluates the field in the accepted steps between some times."""
    stages = np.array([0, *SOLVER.tableau.c])
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
            SOLVER,
            0.0,
            1.0,
            None,
            z,
            saveat=dfx.SaveAt(t0=True, steps=True, dense=True),
            stepsize_controller=dfx.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            max_steps=MAX_STEPS,
        )
        assert solution.ts is not None
        return jax.vmap(solution.evaluate)(times), solution.ts

    return times, *jax.vmap(one)(jnp.linspace(-WIDEST, WIDEST, SHOWN))


def run(method: str, weight: float, options: argparse.Namespace) -> Outcome:
    model_key, key = jr.split(jr.key(options.seed))
    field = Field(eqx.nn.MLP(2, "scalar", 32, 2, jax.nn.tanh, key=model_key))
    # A seed of their own, so that these are not among the samples trained on.
    test = jr.uniform(jr.fold_in(key, 2**31), (1000,), minval=-WIDEST, maxval=WIDEST)

    @eqx.filter_jit
    def measure(field: Field) -> tuple[Array, Array, Array]:
        solution, z1, speed = jax.vmap(
            lambda z: solve_with_speed(field, z, options.order)
        )(test)
        error = jnp.sqrt(jnp.mean((z1 - target(test)) ** 2))
        return error, jnp.mean(dsr.nfe(SOLVER, solution)), jnp.mean(speed)

    record = Recorder(
        method,
        options.epochs,
        STEPS_PER_EPOCH,
        lambda field: measure(field)[1],
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
    error, nfe, speed = map(float, measure(field))
    times, states, steps = map(np.asarray, eqx.filter_jit(trajectories)(field))
    return Outcome(
        method,
        error,
        nfe,
        speed,
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
    panels = figure.subplots(1, len(outcomes), sharey=True)
    for axes, outcome in zip(panels, outcomes):
        for states, evaluations in zip(outcome.states, outcome.evaluations):
            (line,) = axes.plot(outcome.times, states, linewidth=1)
            at = np.interp(evaluations, outcome.times, states)
            axes.plot(evaluations, at, ".", color=line.get_color(), markersize=4)
        axes.set(title=f"{outcome.method}: NFE {outcome.nfe:.1f}", xlabel="time")
    panels[0].set_ylabel("state, and where the field is evaluated")
    figure.savefig(path, dpi=150)


def parser() -> command_line.Parser:
    made = command_line.Parser("toy", __doc__, epochs=30, quick="one epoch")
    add, positive = made.add_argument, command_line.positive
    add("--learning-rate", type=positive(float), default=1e-2, help="Adam's")
    add("--order", type=positive(int), default=3, help="K of the speed R_K")
    add(
        "--lambda",
        type=positive(float),
        default=1e-2,
        dest="regularization",
        metavar="LAMBDA",
        help="weight of the speed in the loss",
    )
    return made


def main() -> None:
    options = parser().options()
    if options.quick:
        options.epochs = 1
    weights = {"plain": 0.0, f"speed R_{options.order}": options.regularization}
    try:
        outcomes = [run(method, weight, options) for method, weight in weights.items()]
    except dsr.TrainingDiverged as error:
        sys.exit(f"error: {error}")
    rows = [["method", "error", "mean NFE", f"R_{options.order}", "training"]]
    for o in outcomes:
        measured = [f"{o.error:.2g}", f"{o.nfe:.1f}", f"{o.speed:.3g}"]
        rows.append([o.method, *measured, f"{o.training_seconds:.0f} s"])
    table = report.table(rows)
    record = report.circumstances(options)
    record |= dict(results=[outcome._asdict() for outcome in outcomes])
    (options.output / "toy.json").write_text(json.dumps(record) + "\n")
    (options.output / "toy.md").write_text(table + "\n")
    draw(outcomes, options.output / "toy.png")
    print(f"\n{table}")


if __name__ == "__main__":
    main()
