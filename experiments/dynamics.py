"""Unknown dynamics, learned from pairs of states a step apart.

A field is learned such that a solver takes each state to the next one, in a single step
if its steps are fixed. (The experiments on dynamics of the Taylor-Lagrange
paper, Djeumou et al., IJCAI 2022.) The systems are:

- *stiff*: linear, with the eigenvalues -1000 and -1. A step of RK4 multiplies a real
  decaying mode by 0.27 at least, and one of the truncated Taylor method of degree 2 by
  0.5: no field lets them come close to the fast mode, which a step multiplies by 5e-5.
- *vanderpol*: an oscillator, damped so strongly that trajectories jump.
- *brusselator*: a chemical reaction, which oscillates by jumps.
"""

import dataclasses
import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from . import plots
from .config import Options
from .methods import Method
from .midpoints import EIGENVALUES, MODES
from .problem import Batch, final_state, Problem
from .task import Task
from .training import Experiment, Run, Trained


BATCH_SIZE, PER_EPOCH, QUICK_STEPS, TEST_TRAJECTORIES, SHOWN = 500, 400, 60, 10, 2
BASELINE = "adaptive Dopri5"
LEARNED = ("Taylor-Lagrange", "constant midpoint")
States = Float[Array, "*batch state"]
Trajectories = Float[Array, "samples times state"]


@dataclasses.dataclass(frozen=True)
class DynamicsOptions(Options):
    epochs: int = 40
    learning_rate: float = 1e-2
    """Learning rate of the field, at most."""
    solver_rate: float = 3e-3
    """Learning rate of the midpoint, at most."""
    solver_every: int = 10
    """Steps of the field for each reference solve."""
    solver_steps: int = 4
    """Steps of the midpoint for each reference solve."""
    penalty: float = 1e-3
    """Weight of the midpoint penalty."""
    step: float = 1.0
    """Time from a state to the next, in units of the task's."""


@dataclasses.dataclass(frozen=True)
class StiffOptions(DynamicsOptions):
    epochs: int = 25
    solver_rate: float = 3e-2
    solver_every: int = 30
    penalty: float = 1e-4


@dataclasses.dataclass(frozen=True)
class System:
    """Known dynamics, the networks that learn it, and the data.

    The networks are functions of keys; that of the field is in units of states per
    step. Initial states are drawn from the box from `lowest` to `highest`, and
    trajectories of `shown_steps` are predicted from them.
    """

    solution: Callable[[Any, Any], Trajectories]
    lowest: tuple[float, float]
    highest: tuple[float, float]
    step: float
    num_steps: int
    shown_steps: int
    trajectories: int
    network: Callable[[Key[Array, ""]], eqx.nn.MLP]
    midpoint: Callable[[Key[Array, ""]], dsr.MidpointMLP]
    reference: dfx.AbstractSolver = dfx.Dopri8()

    def longer(self, factor: float) -> "System":
        """Makes steps longer by a factor, and as many fewer."""
        return dataclasses.replace(
            self,
            step=factor * self.step,
            num_steps=round(self.num_steps / factor),
            shown_steps=round(self.shown_steps / factor),
        )

    def draw(self, key: Key[Array, ""], count: int) -> Trajectories:
        low, high = jnp.asarray(self.lowest), jnp.asarray(self.highest)
        y0 = jr.uniform(key, (count, 2), minval=low, maxval=high)
        return self.solution(y0, self.step * jnp.arange(self.num_steps + 1.0))


class Pairs(eqx.Module):
    """States, and the states a step later."""

    before: States
    after: States

    @classmethod
    def of(cls, states: States) -> "Pairs":
        return cls(states[..., :-1, :], states[..., 1:, :])

    @property
    def flat(self) -> "Pairs":
        """The pairs of all trajectories, in the memory of the host."""
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, 2), self)


class Field(eqx.Module):
    """A network, divided by the step: a unit of its output changes a step by one.

    Its last layer starts close to zero. Otherwise training could end at a field with
    fast modes, by which a solver with fixed steps gets from state to state, too.
    """

    network: eqx.nn.MLP
    step: float = eqx.field(static=True)

    @classmethod
    def untrained(cls, system: System, key: Key[Array, ""]) -> "Field":
        network = eqx.tree_at(
            lambda network: (network.layers[-1].weight, network.layers[-1].bias),
            system.network(key),
            replace_fn=lambda parameter: 0.01 * parameter,
        )
        return cls(network, system.step)

    def __call__(self, t: Any, y: States, args: None) -> States:
        network = self.network if y.ndim == 1 else jax.vmap(self.network)
        return network(y) / self.step


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


def mean_error(model: Field, solution: dfx.Solution, batch: Batch) -> Float[Array, ""]:
    """Computes the mean error of states in the paper's norm: a sum of moduli."""
    error = jnp.abs(final_state(solution) - batch.data.after)
    return jnp.mean(jnp.sum(error, axis=-1))


def fastest(batches: Sequence[Batch]) -> Batch:
    """Selects a batch of pairs: those of several batches that move farthest.

    The midpoint of a short step hardly matters, so that it is trained on these.
    """
    pairs: Any = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(batch.data for batch in batches)
    )
    moved = np.sum(np.abs(pairs.after - pairs.before), axis=1)
    chosen = np.argpartition(moved, -BATCH_SIZE)[-BATCH_SIZE:]
    return Batch(jax.tree.map(lambda x: x[chosen], pairs))


def method_of(
    name: str, system: System, options: Any, steps: int, key: Key[Array, ""]
) -> Method:
    every, repeats = options.solver_every, options.solver_steps
    rounds = dict(scan=True, steps_per_round=every)
    by_loss = {
        BASELINE: Method(fit=rounds),
        "RK4": Method(RK4(), num_steps=1, fit=rounds),
        "exponential": Method(
            dsr.ExponentialTaylorSolver(batch_axes=1), num_steps=1, fit=rounds
        ),
    }
    if name in by_loss:
        return by_loss[name]
    midpoint = system.midpoint(key)
    midpoints = {
        "truncated Taylor": None,
        "Taylor-Lagrange": midpoint,
        "constant midpoint": dsr.ConstantMidpoint(2, midpoint.form),
    }
    updates = max(1, steps // every) * repeats
    schedule = optax.cosine_decay_schedule(options.solver_rate, updates)
    in_turn = dict(solver_every=every, solver_steps=repeats, solver_batch=fastest)
    return Method(
        dsr.TaylorLagrangeSolver(2, midpoints[name]),
        num_steps=1,
        weight=options.penalty,
        solver_optimizer=optax.adam(schedule),
        reference=system.reference,
        fit=rounds | in_turn,
    )


def build(system: System, run: Run) -> Experiment:
    options = run.options
    system = system.longer(options.step)
    keys = jr.split(run.key, 4)
    data = Pairs.of(system.draw(keys[0], system.trajectories)).flat
    held_out = system.draw(keys[1], TEST_TRAJECTORIES)
    epochs, per_epoch = (
        (1, QUICK_STEPS) if options.quick else (options.epochs, PER_EPOCH)
    )
    steps = epochs * per_epoch

    def equation(field: Field, batch: Batch) -> dsr.training.InitialValueProblem:
        term = dfx.ODETerm(field)
        return dsr.training.InitialValueProblem(
            term, batch.data.before, 0.0, field.step
        )

    problem = Problem(
        Field.untrained(system, keys[2]),
        dsr.training.Batches(data, BATCH_SIZE),
        per_epoch,
        equation,
        mean_error,
        [Batch(Pairs.of(states)) for states in held_out],
        tolerance=1e-8,
        max_steps=512,
        noisy=False,
    )
    # States that move fast are rare in the data, so that the mean gradient is longer
    # than usual for Adam.
    warm = max(1, steps // 25)
    rate = optax.warmup_cosine_decay_schedule(0.0, options.learning_rate, warm, steps)
    method = method_of(run.method, system, options, steps, keys[3])
    return Experiment(problem, method, optax.adam(rate, b1=0.99), epochs, "error")


def finish(system: System, run: Run, experiment: Experiment, trained: Trained) -> Any:
    """Predicts trajectories from their initial states."""
    system = system.longer(run.options.step)
    problem, method = experiment.problem, experiment.method
    pairs = [batch.data for batch in problem.test]
    exact = np.stack([np.concatenate([p.before, p.after[-1:]]) for p in pairs])
    exact = exact[:, : system.shown_steps + 1]

    @eqx.filter_jit
    def predict(trained: Trained) -> Float[Array, "times samples state"]:
        def advance(y: States) -> States:
            batch = Batch(Pairs(y, y))
            return final_state(
                method.solve(problem, trained.model, trained.solver, batch)
            )

        def step(y: States, _: None) -> tuple[States, States]:
            y = advance(y)
            return y, y

        y0 = jnp.asarray(exact[:, 0])
        _, states = jax.lax.scan(step, y0, length=system.shown_steps)
        return jnp.concatenate([y0[None], states])

    predicted = np.moveaxis(np.asarray(predict(trained)), 0, 1)
    norm = lambda y: np.linalg.norm(y, axis=-1)
    distance = norm(predicted - exact) / (norm(predicted) + norm(exact))
    picture = dict(
        times=system.step * np.arange(system.shown_steps + 1),
        exact=exact[:SHOWN],
        predicted=predicted[:SHOWN],
    )
    return dict(rollout_error=float(np.mean(distance))), picture


@eqx.filter_jit
def solve_accurately(
    vector_field: Callable[..., Array], y0: States, times: Float[Array, " times"]
) -> Trajectories:
    """Computes solutions of known dynamics for the data, to nearly round-off."""

    def solve(y0: States) -> States:
        solution = dfx.diffeqsolve(
            *(dfx.ODETerm(vector_field), dfx.Dopri8(), times[0], times[-1], None, y0),
            saveat=dfx.SaveAt(ts=times),
            stepsize_controller=dfx.PIDController(rtol=1e-12, atol=1e-12),
            max_steps=16**5,
        )
        assert solution.ys is not None
        return solution.ys

    return jax.vmap(solve)(y0)


def stiff(y0: States, times: Float[Array, " times"]) -> Trajectories:
    """Computes solutions in closed form, mode by mode."""
    amplitudes = y0 @ np.linalg.inv(MODES).T
    decays = jnp.exp(times[:, None] * EIGENVALUES[None])
    return jnp.einsum("nj,tj,ij->nti", amplitudes, decays, MODES)


def vanderpol(t: Any, y: States, args: None) -> States:
    position, velocity = y
    return jnp.stack([velocity, 8.0 * (1 - position**2) * velocity - position])


def brusselator(t: Any, y: States, args: None) -> States:
    first, second = y
    reaction = first**2 * second
    return jnp.stack([1.0 + reaction - 4.5 * first, 3.5 * first - reaction])


def _network(key: Key[Array, ""]) -> eqx.nn.MLP:
    return eqx.nn.MLP(2, 2, 64, 2, activation=jax.nn.gelu, key=key)


def _midpoint(key: Key[Array, ""]) -> dsr.MidpointMLP:
    return dsr.MidpointMLP(2, inputs="y", activation=jax.nn.gelu, key=key)


STIFF = System(
    solution=stiff,
    lowest=(-0.5, -0.5),
    highest=(0.5, 0.5),
    step=0.01,
    num_steps=2000,
    shown_steps=200,
    trajectories=100,
    # Two layers without an activation between them, as in the paper.
    network=lambda key: eqx.nn.MLP(2, 2, 64, 1, activation=lambda x: x, key=key),
    midpoint=lambda key: dsr.MidpointMLP(
        2, inputs=("y",), width=16, activation=jax.nn.relu, key=key
    ),
    # It solves a linear system in a single step.
    reference=dsr.ExponentialTaylorSolver(batch_axes=1),
)
VANDERPOL = System(
    solution=ft.partial(solve_accurately, vanderpol),
    lowest=(-2.0, -2.0),
    highest=(2.0, 2.0),
    step=0.04,
    num_steps=125,
    shown_steps=125,
    trajectories=40,
    network=_network,
    midpoint=_midpoint,
)
BRUSSELATOR = dataclasses.replace(
    VANDERPOL,
    solution=ft.partial(solve_accurately, brusselator),
    lowest=(0.8, 0.0),
    highest=(1.5, 0.6),
    step=0.1,
    num_steps=200,
    shown_steps=200,
)


def _task(name: str, system: System, options: type[DynamicsOptions]) -> Task:
    learned = ("solver_rate", "solver_every", "solver_steps", "penalty")
    return Task(
        name=name,
        options=options,
        heeds={
            **dict.fromkeys((BASELINE, "RK4", "exponential"), ()),
            "truncated Taylor": ("penalty",),
            **dict.fromkeys(LEARNED, learned),
        },
        build=ft.partial(build, system),
        finish=ft.partial(finish, system),
        columns={
            "training": ("training_seconds", "s"),
            "faster": ("training_seconds", "x"),
            "error": ("own_loss", ".2g"),
            "of the field": ("loss", ".2g"),
            "predicted": ("rollout_error", ".2g"),
            "NFE": ("nfe", ".0f"),
        },
        draw=plots.dynamics,
        x64=True,
    )


TASKS = (
    _task("stiff", STIFF, StiffOptions),
    _task("vanderpol", VANDERPOL, DynamicsOptions),
    _task("brusselator", BRUSSELATOR, DynamicsOptions),
)
