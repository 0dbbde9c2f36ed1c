from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from .helpers import convergence_orders, tolerance, tree_allclose
from .helpers.marks import thorough
from .helpers.solves import diffeqsolve, final_state, solve_fixed


_pendulum = dfx.ODETerm(
    lambda t, y, args: jnp.stack([y[1], -jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(t))
)
_y0 = jnp.array([1.0, 0.2])
_solvers = (dfx.Euler(), dfx.Heun(), dfx.Bosh3(), dfx.Tsit5())


def _constant(value):
    return eqx.tree_at(
        lambda c: c.factors, dsr.ConstantMidpoint(2, "scalar"), jnp.array([value])
    )


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("solver", _solvers, ids=lambda solver: type(solver).__name__)
def test_uncorrected_is_the_solver(solver, t0, t1):
    problem = dsr.training.InitialValueProblem(_pendulum, _y0, t0, t1)
    hyper = dsr.HyperSolver(solver, dsr.MidpointMLP(2, key=jr.key(0)))
    actual = final_state(solve_fixed(problem, hyper, 5))
    expected = final_state(solve_fixed(problem, solver, 5))
    assert tree_allclose(actual, expected, **tolerance(_y0.dtype))


@pytest.mark.parametrize("t0, t1", (thorough(0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("solver", _solvers, ids=lambda solver: type(solver).__name__)
def test_order_stays(solver, t0, t1):
    """The order stays for any correction: it is of the size of the local error."""
    problem = dsr.training.InitialValueProblem(_pendulum, _y0, t0, t1)
    exact = final_state(solve_fixed(problem, dfx.Dopri8(), 100))
    hyper = dsr.HyperSolver(solver, _constant(0.7))

    def error(steps):
        y1 = final_state(solve_fixed(problem, hyper, steps))
        return float(jnp.max(jnp.abs(y1 - exact)))

    orders = convergence_orders([error(steps) for steps in (16, 32, 64)])
    assert np.allclose(orders, solver.order(_pendulum), atol=0.25)


def test_steps_start_from_what_was_corrected():
    """A first-same-as-last method has its last slope at the uncorrected state."""
    hyper = dsr.HyperSolver(dfx.Bosh3(), _constant(0.7))
    whole = dsr.training.InitialValueProblem(_pendulum, _y0, 0.0, 1.0)
    actual = final_state(solve_fixed(whole, hyper, 2))
    expected = _y0
    for t0, t1 in ((0.0, 0.5), (0.5, 1.0)):
        half = dsr.training.InitialValueProblem(_pendulum, expected, t0, t1)
        expected = final_state(solve_fixed(half, hyper, 1))
    assert tree_allclose(actual, expected, **tolerance(_y0.dtype))


def test_exact_with_the_right_correction():
    """For y' = a y, Euler's step lacks exp(z) - 1 - z, a multiple of h z."""
    a, h = -2.0, 0.5
    z = a * h
    hyper = dsr.HyperSolver(dfx.Euler(), _constant((np.exp(z) - 1 - z) / (h * z)))
    term = dfx.ODETerm(lambda t, y, args: a * y)
    problem = dsr.training.InitialValueProblem(term, _y0, 0.0, 2 * h)
    y1 = final_state(solve_fixed(problem, hyper, 2))
    assert tree_allclose(y1, _y0 * np.exp(2 * z), **tolerance(_y0.dtype))


def test_dense_output():
    hyper = dsr.HyperSolver(dfx.Heun(), _constant(0.7))
    saveat = dfx.SaveAt(dense=True, steps=True)
    solution: Any = dfx.diffeqsolve(
        _pendulum, hyper, 0.0, 1.0, 0.25, _y0, saveat=saveat
    )
    meets = jax.vmap(solution.evaluate)(solution.ts[:4])
    assert tree_allclose(meets, solution.ys[:4], **tolerance(_y0.dtype))
    slope = jax.jacfwd(solution.evaluate)(0.5 - 1e-12)
    expected = _pendulum.vf(0.5, solution.ys[1], None)
    assert tree_allclose(slope, expected, rtol=1e-9, atol=1e-9)


def test_penalties():
    """The residual of Heun's method for phi = 1 is h^2 times the slope."""
    field = dfx.ODETerm(lambda t, y, args: jnp.stack([y[1], -y[0]]))
    problem = dsr.training.InitialValueProblem(field, _y0)
    state = solve_fixed(problem, dsr.HyperSolver(dfx.Heun(), _constant(1.0)), 1)
    expected = jnp.stack([_y0[1], -_y0[0]])
    state = state.solver_state
    assert tree_allclose(
        state.residual_penalty, jnp.mean(expected**2), rtol=1e-12, atol=0.0
    )
    absolute = jnp.mean(jnp.abs(expected))
    assert tree_allclose(
        state.absolute_residual_penalty, absolute, rtol=1e-12, atol=0.0
    )


def test_training():
    """The trainer of Taylor-Lagrange solvers can train the solver alone."""
    hyper = dsr.HyperSolver(dfx.Euler(), dsr.MidpointMLP(2, key=jr.key(0)))
    fitted = dsr.training.fit_solver(
        hyper,
        lambda y0: dsr.training.InitialValueProblem(_pendulum, y0),
        lambda key, step: _y0,
        num_steps=25,
        optimizer=optax.adam(1e-2),
        reference=dsr.training.Reference(4, dfx.Tsit5()),
    )
    assert fitted.errors[-1] < 0.2 * fitted.errors[0]
    # A step with Euler's method evaluates its stage, and the slope at the start.
    assert fitted.nfe == 8


def test_implicit_solver():
    with pytest.raises(ValueError, match="needs an explicit solver.*got Kvaerno3"):
        dsr.HyperSolver(dfx.Kvaerno3(), _constant(0.0))


def test_adaptive_steps():
    hyper = dsr.HyperSolver(dfx.Tsit5(), _constant(0.0))
    controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
    with pytest.raises(Exception, match="does not provide error estimates"):
        dfx.diffeqsolve(
            _pendulum, hyper, 0.0, 1.0, 0.1, _y0, stepsize_controller=controller
        )


@pytest.mark.parametrize("solver", (dfx.Heun(), dfx.Dopri5(), dfx.Euler()))
def test_forward_mode(solver):
    """The solution of y' = -y is linear in y0, and the derivative is the factor."""
    hyper = dsr.HyperSolver(solver, dsr.ConstantMidpoint(jnp.array(0.0)))

    def solve(y0):
        solution = diffeqsolve(
            *(dfx.ODETerm(lambda t, y, args: -y), hyper, 0.0, 1.0, 0.1, y0),
            adjoint=dfx.ForwardMode(),
        )
        return solution.ys[-1]

    derivative = jax.jacfwd(solve)(jnp.array(1.0))
    assert jnp.allclose(derivative, solve(jnp.array(1.0)), rtol=1e-12)


@pytest.mark.parametrize("residual", (None, dsr.MidpointMLP, lambda *args: 0.0))
def test_what_is_no_residual(residual, without_type_checks):
    with pytest.raises(ValueError, match="`residual` must be a `AbstractMidpoint`, su"):
        dsr.HyperSolver(dfx.Heun(), residual)
