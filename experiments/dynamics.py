"""Unknown dynamics, learned from pairs of states a step apart: what the tasks share.

A field is learned such that a solver comes from each state to the next one, in a single
step if it is one of fixed steps. (The experiments on dynamics of the Taylor-Lagrange
paper, Djeumou et al., IJCAI 2022.)
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key

from . import command_line, dynamics_report
from .dynamics_report import Published, Result
from .training import Loss, Recorder, train_adaptively, train_alternating


TOLERANCE = 1e-8
MAX_STEPS = 512
BATCH_SIZE = 500
STEPS_PER_EPOCH, QUICK_STEPS = 400, 60
# In which everything is compiled.
FIRST_STEPS = 50
TEST_TRAJECTORIES, SHOWN_TRAJECTORIES = 10, 2
METHODS = (
    "adaptive Dopri5",
    "adaptive Kvaerno5",
    "RK4",
    "truncated Taylor",
    "Taylor-Lagrange",
    "constant midpoint",
)


class Pairs(NamedTuple):
    """States, and the states a step later."""

    before: Float[Array | np.ndarray, "*batch state"]
    after: Float[Array | np.ndarray, "*batch state"]


Solution = Callable[
    [Float[Array, "samples state"], Float[Array, " times"]],
    Float[Array, "samples times state"],
]


class Task(NamedTuple):
    """What is to be learned, by which networks, and how they are trained.

    **Attributes:**

    - `name`: of the experiment's module.
    - `solution`: from initial states and times to the states at these times.
    - `lowest`, `highest`: the box from which initial states are drawn.
    - `step`: the time from a state to the next.
    - `num_steps`: of a trajectory.
    - `shown_steps`: of those that are predicted from their initial states.
    - `trajectories`: how many to train on.
    - `network`: from a key to the field, in units of states per step.
    - `midpoint`: from a key to the correction that makes the midpoint.
    - `epochs`, `paper_epochs`: the defaults, of 400 steps each.
    - `learning_rate`: of the field, at most.
    - `remainder_rate`, `remainder_every`, `penalty`: of Taylor-Lagrange methods.
    """

    name: str
    solution: Solution
    lowest: tuple[float, float]
    highest: tuple[float, float]
    step: float
    num_steps: int
    shown_steps: int
    trajectories: int
    network: Callable[[Key[Array, ""]], eqx.nn.MLP]
    midpoint: Callable[[Key[Array, ""]], dsr.CorrectionMLP]
    epochs: int
    paper_epochs: int
    learning_rate: float
    remainder_rate: float
    remainder_every: int
    penalty: float


class Field(eqx.Module):
    """A network, divided by the step: a unit of its output changes a step by one.

    Its last layer starts close to zero. A solver of fixed steps can get from state to
    state by fields that are far from slow, too, and training would end at these.
    """

    network: eqx.nn.MLP
    step: float = eqx.field(static=True)

    @classmethod
    def untrained(cls, task: Task, key: Key[Array, ""]) -> "Field":
        network = eqx.tree_at(
            lambda network: (network.layers[-1].weight, network.layers[-1].bias),
            task.network(key),
            replace_fn=lambda parameter: 0.01 * parameter,
        )
        return cls(network, task.step)

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
    ) -> Float[Array, " state"]:
        del t, args
        return self.network(y) / self.step

    def of_batch(
        self, t: Float[ArrayLike, ""], y: Float[Array, "batch state"], args: None
    ) -> Float[Array, "batch state"]:
        return jax.vmap(lambda y: self(t, y, args))(y)


Advance = Callable[[Field, Float[Array, "batch state"]], Float[Array, "batch state"]]


class RK4(dfx.AbstractERK):
    """The classical Runge-Kutta method, for fixed steps."""

    tableau: ClassVar[dfx.ButcherTableau] = dfx.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0, 0.5]), np.array([0.0, 0, 1])),
        b_sol=np.array([1, 2, 2, 1]) / 6,
        b_error=np.zeros(4),
        c=np.array([0.5, 0.5, 1]),
    )
    interpolation_cls: ClassVar[
        Callable[..., dfx.ThirdOrderHermitePolynomialInterpolation]
    ] = dfx.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: dfx.AbstractTerm) -> int:
        del terms
        return 4


def network(key: Key[Array, ""]) -> eqx.nn.MLP:
    """The field of a nonlinear system."""
    return eqx.nn.MLP(2, 2, 64, 2, activation=jax.nn.gelu, key=key)


def matrix_midpoint(key: Key[Array, ""]) -> dsr.CorrectionMLP:
    """Its midpoint, by a full matrix."""
    return dsr.CorrectionMLP(
        2, "matrix", inputs=("y",), width=16, depth=2, activation=jax.nn.gelu, key=key
    )


def solution_of(term: dfx.AbstractTerm) -> Solution:
    """Of known dynamics, for the data, to nearly round-off."""

    def solve(y0: Array, times: Array) -> Array:
        solution = dfx.diffeqsolve(
            term,
            dfx.Dopri8(),
            times[0],
            times[-1],
            None,
            y0,
            saveat=dfx.SaveAt(ts=times),
            stepsize_controller=dfx.PIDController(rtol=1e-12, atol=1e-12),
            max_steps=16**5,
        )
        assert solution.ys is not None
        return solution.ys

    return eqx.filter_jit(jax.vmap(solve, in_axes=(0, None)))


def trajectories(
    task: Task, key: Key[Array, ""], count: int
) -> Float[Array, "samples times state"]:
    y0 = jr.uniform(
        key,
        (count, 2),
        minval=jnp.asarray(task.lowest),
        maxval=jnp.asarray(task.highest),
    )
    return task.solution(y0, task.step * jnp.arange(task.num_steps + 1))


def pairs(states: Float[Array, "samples times state"]) -> Pairs:
    return Pairs(states[:, :-1], states[:, 1:])


def problem(field: Field, batch: Pairs) -> dsr.InitialValueProblem:
    term = dfx.ODETerm(field.of_batch)
    return dsr.InitialValueProblem(term, batch.before, 0.0, field.step)


def mean_error(
    actual: Float[Array, "*batch state"],
    expected: Float[Array | np.ndarray, "*batch state"],
) -> Float[Array, ""]:
    """Of the states, in the norm that sums absolute values, as the paper has it."""
    return jnp.mean(jnp.sum(jnp.abs(actual - expected), axis=-1))


def fixed(solver: dfx.AbstractSolver) -> Advance:
    """In a single step."""

    def advance(field: Field, y: Array) -> Array:
        solution = dsr.solve_fixed(problem(field, Pairs(y, y)), solver, 1)
        return dsr.final_state(solution)

    return advance


def solve_by_dopri5(
    field: Field, y: Float[Array | np.ndarray, "batch state"]
) -> dfx.Solution:
    """The batch as one state, as the paper has it."""
    return dsr.solve_adaptive(
        problem(field, Pairs(y, y)), dfx.Dopri5(), TOLERANCE, max_steps=MAX_STEPS
    )


def by_dopri5(field: Field, y: Float[Array, "batch state"]) -> Array:
    return dsr.final_state(solve_by_dopri5(field, y))


def by_kvaerno5(field: Field, y: Float[Array, "batch state"]) -> Array:
    """Each sample alone: the Jacobian of a whole batch would be large."""

    def advance(y: Float[Array, " state"]) -> Float[Array, " state"]:
        alone = dsr.InitialValueProblem(dfx.ODETerm(field), y, 0.0, field.step)
        solution = dsr.solve_adaptive(
            alone, dfx.Kvaerno5(), TOLERANCE, max_steps=MAX_STEPS
        )
        return dsr.final_state(solution)

    return jax.vmap(advance)(y)


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


def rollout(
    advance: Advance, field: Field, y0: Float[Array, "samples state"], num_steps: int
) -> Float[Array, "samples times state"]:
    """Predictions, from the initial states alone."""

    def step(y: Array, _: None) -> tuple[Array, Array]:
        y = advance(field, y)
        return y, y

    _, states = jax.lax.scan(step, y0, length=num_steps)
    return jnp.moveaxis(jnp.concatenate([y0[None], states]), 0, 1)


def run(method: str, task: Task, options: argparse.Namespace) -> Result:
    keys = jr.split(jr.key(options.seed), 5)
    data = pairs(trajectories(task, keys[0], task.trajectories))
    flat = Pairs(*(np.asarray(x).reshape(-1, 2) for x in data))
    batches = dsr.Batches(flat, BATCH_SIZE)
    held_out = trajectories(task, keys[1], TEST_TRAJECTORIES)
    test = pairs(held_out)
    field = Field.untrained(task, keys[2])

    def error_of(advance: Advance, field: Field) -> Float[Array, ""]:
        errors = jax.lax.map(
            lambda pair: mean_error(advance(field, pair.before), pair.after), test
        )
        return jnp.mean(errors)

    def recorder(error: Callable[..., Array]) -> Recorder:
        per_epoch = QUICK_STEPS if options.quick else STEPS_PER_EPOCH
        epochs = task.paper_epochs if options.full else options.epochs
        folder = command_line.checkpoints(options, f"{task.name} {method}")
        return Recorder(
            method,
            1 if options.quick else epochs,
            per_epoch,
            eqx.filter_jit(error),
            folder,
            counted="error",
        )

    adaptive = {"adaptive Dopri5": by_dopri5, "adaptive Kvaerno5": by_kvaerno5}
    if method in ("RK4", *adaptive):
        advance = adaptive[method] if method in adaptive else fixed(RK4())
        record = recorder(lambda field: error_of(advance, field))
        field = train_adaptively(
            loss_of(advance),
            field,
            lambda step: batches(keys[4], step),
            optimizer_of(options.learning_rate, record.steps),
            record,
            key=keys[4],
        )
    else:
        record = recorder(lambda both: error_of(fixed(both[1]), both[0]))
        solver = taylor_lagrange(method, task, keys[3])
        field, solver = train_alternating(
            trainer_of(options, record.steps),
            field,
            solver,
            lambda step: batches(keys[4], step),
            record,
            key=keys[4],
            remainder_every=options.remainder_every,
            observed=lambda state: (state.model, state.solver),
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

    predicted = predict(field)
    norm = lambda y: jnp.linalg.norm(y, axis=-1)
    distance = norm(predicted - shown) / (norm(predicted) + norm(shown))
    field_error, nfe = solve(field)
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
        step_seconds=float(np.median(record.seconds[first:])),
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
    return dynamics_report.table(outcomes, task.name, published) if outcomes else None


def main(
    task: Task, description: str | None, published: Mapping[str, Published]
) -> None:
    """The script of a task: trains by some methods, and shows all results."""
    options = arguments(task, description)
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


def arguments(task: Task, description: str | None) -> argparse.Namespace:
    parser = command_line.parser(
        task.name,
        description,
        epochs=task.epochs,
        quick=f"{QUICK_STEPS} steps",
        full=f"the paper's {task.paper_epochs} epochs of {STEPS_PER_EPOCH} steps",
    )
    command_line.add_methods(parser, METHODS)
    add, positive = parser.add_argument, command_line.positive
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
    return command_line.parse(parser)
