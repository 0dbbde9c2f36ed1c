"""Ways to solve a neural ODE, each a function `Setting -> Solved`."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .problem import Problem


class Setting(NamedTuple):
    """What to solve, from time 0 to 1.

    **Attributes:**

    - `problem`: the vector field and the initial state.
    - `correction`: for the midpoints of Taylor-Lagrange methods.
    """

    problem: Problem
    correction: dsr.AbstractCorrection

    @property
    def ivp(self) -> dsr.InitialValueProblem:
        return initial_value_problem(self.problem)


def initial_value_problem(problem: Problem) -> dsr.InitialValueProblem:
    def field(t: ArrayLike, y: PyTree[Array], args: PyTree[Array]) -> PyTree[Array]:
        return problem.field(args, jnp.asarray(t), y)

    return dsr.InitialValueProblem(dfx.ODETerm(field), problem.y, args=problem.params)


class Solved(NamedTuple):
    """The final state, and how many evaluations of the field it took."""

    y1: PyTree[Array]
    evaluations: Int[Array, ""]


Way: TypeAlias = Callable[[Setting], Solved]


def taylor(order: int, num_steps: int, setting: Setting) -> Solved:
    """The Taylor-Lagrange method of this package."""
    solver = dsr.TaylorLagrangeSolver(order, setting.correction)
    return fixed(solver, num_steps, setting)


def fitted(
    order: int, num_steps: int, correction: dsr.AbstractCorrection, setting: Setting
) -> Solved:
    """With a midpoint of its own."""
    return taylor(order, num_steps, setting._replace(correction=correction))


def scan(order: int, num_steps: int, setting: Setting) -> Solved:
    """The same arithmetic without a solver, in a `lax.scan`.

    Each step is made again for the gradient: its intermediate values would take longer
    to store and to load.
    """
    ivp, h = setting.ivp, 1 / num_steps

    def expand(t: Array, y: Array, order: int) -> list[Array]:
        coefficients = dsr.taylor_coefficients(ivp.term, t, y, ivp.args, order=order)
        return [h**k * c for k, c in enumerate(coefficients)]

    @jax.checkpoint
    def step(y0: Array, t0: Float[Array, ""]) -> tuple[Array, None]:
        lower = expand(t0, y0, max(order - 1, 1))
        correction = setting.correction(t0, h, y0, lower[1], None)
        midpoint = y0 + (lower[1] + correction) / (order + 1)
        remainder = expand(t0 + h / (order + 1), midpoint, order)[order]
        return sum(lower[:order], remainder), None

    y1, _ = lax.scan(step, ivp.y0, h * jnp.arange(num_steps))
    solver = dsr.TaylorLagrangeSolver(order, setting.correction)
    evaluations = num_steps * solver.coefficients_per_step(adaptive=False)
    return Solved(y1, jnp.array(evaluations))


def fixed(solver: dfx.AbstractSolver, num_steps: int, setting: Setting) -> Solved:
    """Equal steps."""
    solution = dsr.solve_fixed(setting.ivp, solver, num_steps)
    return _solved(solver, solution, adaptive=False)


def adaptive(
    solver: dfx.AbstractSolver, tolerance: float, max_steps: int, setting: Setting
) -> Solved:
    """With that relative and absolute tolerance.

    Where `max_steps` is not far above the number that is needed, to keep the state
    before each step makes the fastest gradient: faster than the default of fewer
    checkpoints, and than `diffrax.BacksolveAdjoint`.
    """
    ivp = setting.ivp
    solution = dfx.diffeqsolve(
        ivp.term,
        solver,
        0.0,
        1.0,
        None,
        ivp.y0,
        ivp.args,
        stepsize_controller=dfx.PIDController(tolerance, tolerance),
        adjoint=dfx.RecursiveCheckpointAdjoint(checkpoints=max_steps),
        max_steps=max_steps,
    )
    return _solved(solver, solution, adaptive=True)


def _solved(
    solver: dfx.AbstractSolver, solution: dfx.Solution, *, adaptive: bool
) -> Solved:
    evaluations = dsr.nfe(solver, solution, adaptive=adaptive)
    return Solved(dsr.final_state(solution), evaluations)


class Label(NamedTuple):
    """The method, and its number of steps, or its tolerance."""

    method: str
    setting: float


# As Runge and Kutta methods of these orders, in constant steps.
RUNGE_KUTTA: Mapping[str, dfx.AbstractSolver] = {
    "Heun": dfx.Heun(),
    "Bosh3": dfx.Bosh3(),
    "Dopri5, constant steps": dfx.Dopri5(),
}
_NUMS_STEPS = (1, 2, 4, 8, 16)
# Tolerances of adaptive methods: the papers', among others.
PRECISE, COARSE = Label("Dopri5", 1.4e-8), Label("Tsit5", 1e-5)
_ADAPTIVE = {
    PRECISE.method: (dfx.Dopri5(), (1e-4, 1e-6, PRECISE.setting)),
    COARSE.method: (dfx.Tsit5(), (1e-3, COARSE.setting, 1e-7)),
}
FEWEST_STEPS = 2
FITTED = ", fitted"


def taylor_name(order: int) -> str:
    return f"Taylor-Lagrange, p = {order}"


def gradient_ways(orders: tuple[int, ...], max_steps: int) -> dict[Label, Way]:
    """Two steps of Taylor-Lagrange methods, and the adaptive methods of the papers."""
    ways = {
        Label(taylor_name(p), FEWEST_STEPS): functools.partial(taylor, p, FEWEST_STEPS)
        for p in orders
    }
    for label in (PRECISE, COARSE):
        solver, _ = _ADAPTIVE[label.method]
        ways[label] = functools.partial(adaptive, solver, label.setting, max_steps)
    return ways


def evaluation_ways(
    orders: tuple[int, ...],
    corrections: Mapping[int, dsr.AbstractCorrection],
    max_steps: int,
) -> dict[Label, Way]:
    """From coarse to precise; two steps also with corrections that have been fitted for
    them, by the order."""
    ways: dict[Label, Way] = {
        Label(taylor_name(p) + FITTED, FEWEST_STEPS): functools.partial(
            fitted, p, FEWEST_STEPS, correction
        )
        for p, correction in corrections.items()
    }
    for n in _NUMS_STEPS:
        for p in orders:
            ways[Label(taylor_name(p), n)] = functools.partial(taylor, p, n)
        for name, solver in RUNGE_KUTTA.items():
            ways[Label(name, n)] = functools.partial(fixed, solver, n)
    for name, (solver, tolerances) in _ADAPTIVE.items():
        for tol in tolerances:
            ways[Label(name, tol)] = functools.partial(adaptive, solver, tol, max_steps)
    return ways
