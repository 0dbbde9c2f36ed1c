"""Ways to solve an equation and get the speed of its solution too.

Each is a function `Setting -> Solved`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from .contestants import jet_first_and_last, VectorField
from .problem import mean_square


class Setting(NamedTuple):
    """What to solve, from time 0 to 1.

    **Attributes:**

    - `field`, `y0`: the vector field and the initial state.
    - `order`: K of the speed.
    - `key`: for random nodes.
    - `tolerance`, `max_steps`: of adaptive solves.
    """

    field: VectorField
    y0: PyTree[Array]
    order: int
    key: Key[Array, ""]
    tolerance: float
    max_steps: int

    @property
    def term(self) -> dfx.ODETerm:
        return dfx.ODETerm(lambda t, y, args: self.field(jnp.asarray(t), y))


class Solved(NamedTuple):
    """The speed is `None` if it was not asked for."""

    y1: PyTree[Array]
    speed: Float[Array, ""] | None
    num_steps: Int[Array, ""]


Way: TypeAlias = Callable[[Setting], Solved]


def plain(solver: dfx.AbstractSolver, setting: Setting) -> Solved:
    """No speed."""
    solution = _solve(solver, setting, setting.term, setting.y0)
    return _solved(solution, dsr.final_state(solution), None)


def augmented(
    solver: dfx.AbstractSolver, setting: Setting, *, with_norm: bool = True
) -> Solved:
    """The speed beside the state, by this package."""
    term = dsr.SpeedRegularizedTerm(setting.term, setting.order)
    norm = term.norm if with_norm else optx.rms_norm
    solution = _solve(solver, setting, term, term.init(setting.y0), norm=norm)
    return _solved(solution, *term.split(dsr.final_state(solution)))


def augmented_by_jet(solver: dfx.AbstractSolver, setting: Setting) -> Solved:
    """The speed beside the state, by `jax.experimental.jet` as in easy-neural-ode.

    Its solver chooses steps for the state alone, too.
    """

    def field(
        t: ArrayLike, state: tuple[PyTree[Array], Array], args: None
    ) -> tuple[PyTree[Array], Array]:
        del args
        dy, derivative = jet_first_and_last(
            setting.field, jnp.asarray(t), state[0], setting.order
        )
        return dy, mean_square(derivative)

    def norm(state: tuple[PyTree[Array], Array]) -> Array:
        return optx.rms_norm(state[0])

    y0 = setting.y0, jnp.zeros(())
    solution = _solve(solver, setting, dfx.ODETerm(field), y0, norm=norm)
    return _solved(solution, *dsr.final_state(solution))


def quadrature(
    make: Callable[[Key[Array, ""]], dsr.Quadrature],
    solver: dfx.AbstractSolver,
    setting: Setting,
) -> Solved:
    """The speed after the solve, from the state at nodes."""
    rule = make(setting.key)
    solution, nodes = rule.split(
        _solve(solver, setting, setting.term, setting.y0, saveat=rule.saveat())
    )
    speed = rule.integrate(dsr.Speed(setting.order), setting.term, nodes)
    return _solved(solution, dsr.final_state(solution), speed)


def taylor(order: int, num_steps: int, with_speed: bool, setting: Setting) -> Solved:
    """By a truncated Taylor method in equal steps, which may gather the speed."""
    speed = dsr.Speed(setting.order) if with_speed else None
    solver = dsr.TaylorLagrangeSolver(order, speed=speed)
    ivp = dsr.InitialValueProblem(setting.term, setting.y0)
    solution = dsr.solve_fixed(ivp, solver, num_steps)
    state = dsr.solver_state(solution)
    return _solved(solution, dsr.final_state(solution), state.speed)


def _solve(
    solver: dfx.AbstractSolver,
    setting: Setting,
    term: dfx.AbstractTerm,
    y0: PyTree[Array],
    *,
    norm: Callable[[Any], Array] = optx.rms_norm,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True),
) -> dfx.Solution:
    tolerance = setting.tolerance
    return dfx.diffeqsolve(
        term,
        solver,
        0.0,
        1.0,
        None,
        y0,
        saveat=saveat,
        stepsize_controller=dfx.PIDController(tolerance, tolerance, norm=norm),
        max_steps=setting.max_steps,
    )


def _solved(
    solution: dfx.Solution, y1: PyTree[Array], speed: Float[Array, ""] | None
) -> Solved:
    return Solved(y1, speed, solution.stats["num_steps"])


def _gauss(num_nodes: int) -> Callable[[Key[Array, ""]], dsr.Quadrature]:
    return lambda key: dsr.gauss_legendre(0.0, 1.0, num_nodes)


# Named in one place, for the goals ask for them.
PLAIN, AUGMENTED, JET = "plain", "augmented", "augmented by jet"
GAUSS, FEW_NODES, RANDOM_NODE = "8 nodes", "4 nodes", "1 random node"
FREE = "inside the solver"
ADAPTIVE_WAYS: dict[str, Callable[[dfx.AbstractSolver, Setting], Solved]] = {
    PLAIN: plain,
    JET: augmented_by_jet,
    AUGMENTED: augmented,
    GAUSS: functools.partial(quadrature, _gauss(8)),
    FEW_NODES: functools.partial(quadrature, _gauss(4)),
    RANDOM_NODE: functools.partial(
        quadrature, lambda key: dsr.random_nodes(key, 0.0, 1.0)
    ),
}


def _adaptive(solver: dfx.AbstractSolver) -> dict[str, Way]:
    return {name: functools.partial(way, solver) for name, way in ADAPTIVE_WAYS.items()}


# The ways that are compared with each other, by the solver.
TAYLOR = "Taylor4"
WAYS: dict[str, dict[str, Way]] = {
    "Tsit5": _adaptive(dfx.Tsit5()),
    "Dopri5": _adaptive(dfx.Dopri5()),
    TAYLOR: {
        PLAIN: functools.partial(taylor, 4, 20, False),
        FREE: functools.partial(taylor, 4, 20, True),
    },
}
