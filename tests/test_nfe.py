import re

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest


class _Counter:
    """Counts how often a vector field is really evaluated."""

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
    dsr.EstimateRegularizedSolver(dfx.Tsit5()),
    dsr.EstimateRegularizedSolver(dfx.Heun(), stiffness=True),
    dsr.EstimateRegularizedSolver(dfx.HalfSolver(dfx.Midpoint())),
)


@pytest.mark.parametrize("solver", (*_runge_kutta, *_wrapped_and_others), ids=_name)
def test_adaptive(solver):
    counter = _Counter()
    solution = dfx.diffeqsolve(
        dfx.ODETerm(counter),
        solver,
        0.0,
        2.0,
        None,
        jnp.array(1.0),
        stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-4),
    )
    assert solution.stats["num_rejected_steps"] > 0
    assert dsr.nfe(solver, solution) == counter.read()


def test_semi_implicit_euler():
    """Evaluations of the two vector fields together."""
    counter = _Counter()
    terms = (dfx.ODETerm(counter), dfx.ODETerm(counter))
    solver = dfx.SemiImplicitEuler()
    y0 = (jnp.array(1.0), jnp.array(0.0))
    solution = dfx.diffeqsolve(terms, solver, 0.0, 1.0, 0.125, y0)
    assert dsr.nfe(solver, solution) == counter.read() == 16


@pytest.mark.parametrize(
    "solver", (dfx.Euler(), dfx.LeapfrogMidpoint(), *_runge_kutta), ids=_name
)
def test_fixed(solver):
    counter = _Counter()
    problem = dsr.InitialValueProblem(dfx.ODETerm(counter), jnp.array(1.0))
    solution = dsr.solve_fixed(problem, solver, 7)
    assert dsr.nfe(solver, solution, adaptive=False) == counter.read()


@pytest.mark.parametrize(
    "order, midpoint, per_step", ((1, True, 2), (3, True, 5), (3, False, 3))
)
def test_taylor(order, midpoint, per_step):
    remainder = dsr.CorrectionMLP(2, key=jr.key(0)) if midpoint else None
    solver = dsr.TaylorLagrangeSolver(order, remainder)
    problem = dsr.InitialValueProblem(dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2))
    fixed = dsr.solve_fixed(problem, solver, 4)
    assert dsr.nfe(solver, fixed, adaptive=False) == 4 * per_step
    adaptive = dsr.solve_adaptive(problem, solver, 1e-3)
    steps = adaptive.stats["num_steps"]
    assert dsr.nfe(solver, adaptive, adaptive=True) == (per_step + 1) * steps


@pytest.mark.parametrize(
    "saveat, adaptive", ((dict(t1=True), False), (dict(ts=[0.2, 0.9]), True))
)
@pytest.mark.parametrize("order, midpoint", ((1, True), (3, True), (3, False)))
def test_taylor_compiled(order, midpoint, saveat, adaptive):
    """No coefficient is computed twice: neither for the midpoint, nor for the error
    estimate or dense output; and no estimate if steps are constant."""
    remainder = dsr.ConstantCorrection(4) if midpoint else None
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
    assert products == solver.coefficients_per_step(adaptive)


def test_under_vmap():
    term = dfx.ODETerm(lambda t, y, args: -y)

    def evaluations(y0):
        problem = dsr.InitialValueProblem(term, y0)
        solution = dsr.solve_adaptive(problem, dfx.Tsit5(), 1e-6)
        return dsr.nfe(dfx.Tsit5(), solution)

    y0 = jnp.array([0.01, 1.0, 100.0])
    expected = jnp.stack([jnp.asarray(evaluations(y)) for y in y0])
    assert jnp.array_equal(jax.vmap(evaluations)(y0), expected)


def test_taylor_needs_to_know_whether_steps_are_adaptive():
    solver = dsr.TaylorLagrangeSolver(2)
    problem = dsr.InitialValueProblem(dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2))
    with pytest.raises(ValueError, match="pass `adaptive=True` or `False`"):
        dsr.nfe(solver, dsr.solve_fixed(problem, solver, 2))


def test_unknown_solver():
    problem = dsr.InitialValueProblem(dfx.ODETerm(lambda t, y, args: -y), jnp.ones(2))
    solution = dsr.solve_adaptive(problem, dfx.Kvaerno5(), 1e-3)
    with pytest.raises(ValueError, match="known for explicit Runge-Kutta.*Kvaerno5"):
        dsr.nfe(dfx.Kvaerno5(), solution)
