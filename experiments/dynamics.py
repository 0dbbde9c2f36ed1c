"""Unknown dynamics, learned from pairs of states a step apart: what the tasks share.

A field is learned such that a solver comes from each state to the next one, in a single
step if it is one of fixed steps. (The experiments on dynamics of the Taylor-Lagrange
paper, Djeumou et al., IJCAI 2022.)
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key


TOLERANCE = 1e-8
MAX_STEPS = 512


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
    return task.solution(y0, task.step * jnp.arange(task.num_steps + 1.0))


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


def rollout(
    advance: Advance, field: Field, y0: Float[Array, "samples state"], num_steps: int
) -> Float[Array, "samples times state"]:
    """Predictions, from the initial states alone."""

    def step(y: Array, _: None) -> tuple[Array, Array]:
        y = advance(field, y)
        return y, y

    _, states = jax.lax.scan(step, y0, length=num_steps)
    return jnp.moveaxis(jnp.concatenate([y0[None], states]), 0, 1)
