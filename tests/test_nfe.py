import dataclasses
import re
from functools import partial
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from .helpers.solves import solve_adaptive, solve_fixed


class _Counter:
    """Counter of the actual evaluations of a vector field."""

    def __init__(self):
        self.count = 0

    def __call__(self, t, y, args):
        def increment():
            self.count += 1

        jax.debug.callback(increment)
        return 30 * jnp.sin(30 * t) - y

    def reset(self):
        jax.effects_barrier()
        self.count = 0

    def read(self):
        jax.effects_barrier()
        return self.count


_runge_kutta = (
    dfx.Heun(),
    dfx.Midpoint(),
    dfx.Ralston(),
    dfx.Bosh3(),
    dfx.Tsit5(),
    dfx.Dopri5(),
    dfx.Dopri8(),
)


def _name(solver):
    return type(solver).__name__


_wrapped_and_others = (
    dfx.HalfSolver(dfx.Tsit5()),
    dfx.HalfSolver(dfx.Euler()),
    dfx.ReversibleHeun(),
    dsr.ErrorRegularizedSolver(dfx.Tsit5()),
    dsr.ErrorRegularizedSolver(dfx.Heun(), stiffness=True),
    dsr.ErrorRegularizedSolver(dfx.HalfSolver(dfx.Midpoint())),
)


def _solve_counting(counter, solver, dt0=None, **clip):
    """Solves with a counting controller, and again without it, for the same steps."""
    controller = dfx.PIDController(rtol=1e-4, atol=1e-4)
    if clip:
        controller = dfx.ClipStepSizeController(controller, **clip)
    solution = dfx.diffeqsolve(
        *(dfx.ODETerm(counter), solver, 0.0, 2.0, dt0, jnp.array(1.0)),
        saveat=dfx.SaveAt(t1=True, controller_state=True),
        stepsize_controller=dsr.CountingController(controller),
    )
    return solution, dataclasses.replace(solution, controller_state=None)


@pytest.mark.parametrize("solver", (*_runge_kutta, *_wrapped_and_others), ids=_name)
def test_adaptive(solver):
    counter = _Counter()
    solution, plain = _solve_counting(counter, solver)
    assert solution.stats["num_rejected_steps"] > 0
    assert dsr.nfe(solver, solution) == counter.read() <= dsr.nfe(solver, plain)


@pytest.mark.parametrize(
    "solver",
    (
        *(dfx.Tsit5(), dfx.Dopri8(), dfx.ReversibleHeun()),
        *(dfx.HalfSolver(dfx.Bosh3()), dfx.HalfSolver(dfx.ReversibleHeun())),
        dsr.ErrorRegularizedSolver(dfx.Dopri5(), stiffness=True),
    ),
    ids=_name,
)
@pytest.mark.parametrize("clip", (dict(), dict(jump_ts=[0.5, 1.0])))
def test_first_attempts_rejected(solver, clip):
    """The first step is far too long, and some steps start at jumps."""
    counter = _Counter()
    solution: Any
    solution, plain = _solve_counting(counter, solver, 2.0, **clip)
    count = counter.read()
    assert dsr.nfe(solver, solution) == count
    if "jump_ts" not in clip:
        first = solution.controller_state.first_attempts
        assert first > 1 and dsr.nfe(solver, plain) >= count


def test_same_steps_as_without_counting():
    """The steps agree backwards, under `jax.vmap`, and with a norm of the state."""
    term = dfx.ODETerm(lambda t, y, args: -jnp.sin(3 * t) * y)
    controller = dfx.PIDController(rtol=1e-5, atol=1e-5)

    def solve(y0, controller):
        solution, integral = dsr.regularized_solve(
            *(term, dfx.Tsit5(), 1.0, 0.0, -1.0, y0),
            stepsize_controller=controller,
            method=dsr.augmented(),
        )
        return solution.ys, solution.stats, integral

    y0 = jnp.array([[1.0, 2.0], [30.0, 4.0]])
    plain, counted = (
        jax.vmap(partial(solve, controller=c))(y0)
        for c in (controller, dsr.CountingController(controller))
    )
    assert eqx.tree_equal(plain, counted)


@pytest.mark.usefixtures("without_type_checks")
def test_counting_needs_an_adaptive_controller():
    with pytest.raises(ValueError, match="`controller` must be.*got ConstantStepSize"):
        dsr.CountingController(dfx.ConstantStepSize())  # pyright: ignore


def test_no_steps():
    counter = _Counter()
    solution = dfx.diffeqsolve(
        dfx.ODETerm(counter), dfx.Tsit5(), 1.0, 1.0, 0.1, jnp.array(1.0)
    )
    assert dsr.nfe(dfx.Tsit5(), solution) == counter.read() == 0


def test_semi_implicit_euler():
    """The evaluations of both vector fields count."""
    counter = _Counter()
    terms = (dfx.ODETerm(counter), dfx.ODETerm(counter))
    solver = dfx.SemiImplicitEuler()
    y0 = (jnp.array(1.0), jnp.array(0.0))
    solution = dfx.diffeqsolve(terms, solver, 0.0, 1.0, 0.125, y0)
    assert dsr.nfe(solver, solution) == counter.read() == 16


_half_solvers = (dfx.HalfSolver(dfx.Tsit5()), dfx.HalfSolver(dfx.ReversibleHeun()))


@pytest.mark.parametrize(
    "solver",
    (
        *(dfx.Euler(), dfx.LeapfrogMidpoint(), dfx.ReversibleHeun(), *_half_solvers),
        *_runge_kutta,
    ),
    ids=_name,
)
def test_fixed(solver):
    counter = _Counter()
    problem = dsr.training.InitialValueProblem(dfx.ODETerm(counter), jnp.array(1.0))
    solution = solve_fixed(problem, solver, 7)
    assert dsr.nfe(solver, solution, adaptive=False) == counter.read()


@pytest.mark.parametrize(
    "order, midpoint, per_step", ((1, True, 2), (3, True, 5), (3, False, 3))
)
def test_taylor(order, midpoint, per_step):
    remainder = dsr.MidpointMLP(2, key=jr.key(0)) if midpoint else None
    solver = dsr.TaylorLagrangeSolver(order, remainder)
    problem = dsr.training.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2)
    )
    fixed = solve_fixed(problem, solver, 4)
    assert dsr.nfe(solver, fixed, adaptive=False) == 4 * per_step
    adaptive = solve_adaptive(problem, solver, 1e-3)
    steps = adaptive.stats["num_steps"]
    assert dsr.nfe(solver, adaptive, adaptive=True) == (per_step + 2) * steps


@pytest.mark.parametrize(
    "saveat, adaptive", ((dict(t1=True), False), (dict(ts=[0.2, 0.9]), True))
)
@pytest.mark.parametrize("order, midpoint", ((1, True), (3, True), (3, False)))
def test_taylor_compiled(order, midpoint, saveat, adaptive):
    """No coefficient is computed twice for the midpoint, the error estimate or dense
    output. There is no estimate if steps are constant."""
    remainder = dsr.ConstantMidpoint(4, "elementwise") if midpoint else None
    solver = dsr.TaylorLagrangeSolver(order, remainder)

    @jax.jit
    def solve(y0, weight):
        controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
        return dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: jnp.tanh(y @ weight)),
            solver,
            0.0,
            1.0,
            0.25,
            y0,
            saveat=dfx.SaveAt(**saveat),
            stepsize_controller=controller if adaptive else dfx.ConstantStepSize(),
        ).ys

    compiled = solve.lower(jnp.ones((3, 4)), jnp.eye(4)).compile().as_text()
    assert compiled is not None
    # The norm of an error is a product of vectors.
    products = len(re.findall(r"\[3,4\]\S* dot\(", compiled))
    assert products == solver.evaluations(adaptive)[1]


def test_taylor_within_others():
    """A half solver leaves the estimate out. One that adds up estimates does not."""
    solver = dsr.TaylorLagrangeSolver(1)
    problem = dsr.training.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2)
    )
    for wrapped, per_step in (
        (dfx.HalfSolver(solver), 3),
        (dsr.ErrorRegularizedSolver(solver), 3),
    ):
        solution = solve_adaptive(problem, wrapped, 1e-3)
        steps = solution.stats["num_steps"]
        assert dsr.nfe(wrapped, solution) == per_step * steps


@pytest.mark.parametrize(
    "solver",
    (dfx.Euler(), dfx.Heun(), dfx.Bosh3(), dfx.Tsit5(), dfx.ReversibleHeun()),
    ids=_name,
)
def test_hypersolver(solver):
    """The compiled program also evaluates a slope at the start of each step."""
    count = 0

    def host(y):
        nonlocal count
        count += 1
        return np.tanh(np.asarray(y))

    def field(t, y, args):
        return jax.pure_callback(host, jax.ShapeDtypeStruct((4,), y.dtype), y)

    hyper = dsr.HyperSolver(solver, dsr.ConstantMidpoint(4))
    solution = dsr.fixed_step_solve(
        *(dfx.ODETerm(field), hyper, 0.0, 1.0, 3, jnp.ones(4)),
        saveat=dfx.SaveAt(t1=True),
    )
    jax.block_until_ready(solution.ys)
    assert dsr.nfe(hyper, solution) == count


def test_under_vmap():
    term = dfx.ODETerm(lambda t, y, args: -y)

    def evaluations(y0):
        problem = dsr.training.InitialValueProblem(term, y0)
        solution = solve_adaptive(problem, dfx.Tsit5(), 1e-6)
        return dsr.nfe(dfx.Tsit5(), solution)

    y0 = jnp.array([0.01, 1.0, 100.0])
    expected = jnp.stack([jnp.asarray(evaluations(y)) for y in y0])
    assert jnp.array_equal(jax.vmap(evaluations)(y0), expected)


def test_taylor_needs_to_know_whether_steps_are_adaptive():
    solver = dsr.TaylorLagrangeSolver(2)
    problem = dsr.training.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2)
    )
    with pytest.raises(ValueError, match="pass `adaptive=True` or `False`"):
        dsr.nfe(solver, solve_fixed(problem, solver, 2))


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    "solver, message",
    (
        (dfx.Tsit5, r"the class `Tsit5`. Call it: `Tsit5\(...\)`"),
        (dfx.HalfSolver(dfx.Tsit5), "the class `Tsit5`. Call it"),  # pyright: ignore
        (None, "must be a Diffrax solver, .* but got None"),
    ),
)
def test_what_is_no_solver(solver, message):
    problem = dsr.training.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2)
    )
    solution = solve_adaptive(problem, dfx.Tsit5(), 1e-3)
    with pytest.raises(ValueError, match=message):
        dsr.nfe(solver, solution)
    with pytest.raises(ValueError, match="`solution` must be a `Solution`.*got f64"):
        dsr.nfe(dfx.Tsit5(), solution.ys)


def test_unknown_solver():
    problem = dsr.training.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2)
    )
    solution = solve_adaptive(problem, dfx.Kvaerno5(), 1e-3)
    with pytest.raises(ValueError, match="known for explicit Runge-Kutta.*Kvaerno5"):
        dsr.nfe(dfx.Kvaerno5(), solution)
