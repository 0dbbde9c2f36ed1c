from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from .helpers import finite_difference, tolerance, tree_allclose
from .helpers.marks import thorough


def _field(t, y, args):
    return jnp.stack([y[1], -args * jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(t))


_term = dfx.ODETerm(_field)
_y0 = jnp.array([1.0, 0.2])
_solvers = dict(
    bosh3=dfx.Bosh3(),
    tsit5=dfx.Tsit5(),
    implicit=dfx.Kvaerno3(),
    half=dfx.HalfSolver(dfx.Heun()),
    taylor=dsr.TaylorLagrangeSolver(3),
)


def _solve(
    solver, t0=0.0, t1=1.0, dt0=None, tol=1e-4, term=_term, y0=_y0, **kwargs
) -> Any:
    adaptive = dfx.PIDController(rtol=tol, atol=tol)
    return dfx.diffeqsolve(
        term,
        solver,
        t0,
        t1,
        dt0,
        y0,
        kwargs.pop("args", 1.0),
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        stepsize_controller=adaptive if dt0 is None else dfx.ConstantStepSize(),
        **kwargs,
    )


@pytest.mark.parametrize("t0, t1", (thorough(0.0, 2.0), (2.0, 0.0)))
@pytest.mark.parametrize("stiffness", (True, thorough(False)))
@pytest.mark.parametrize("name", _solvers)
def test_the_solve_is_left_alone(name, stiffness, t0, t1):
    solver = _solvers[name]
    wrapped = dsr.ErrorRegularizedSolver(solver, stiffness=stiffness)
    actual, plain = _solve(wrapped, t0, t1), _solve(solver, t0, t1)
    assert tree_allclose(actual.ys, plain.ys, **tolerance(_y0.dtype))
    assert actual.stats["num_steps"] == plain.stats["num_steps"]
    state = actual.solver_state
    assert state.error > 0 and (state.stiffness is None) != stiffness


@pytest.mark.parametrize("t1", (0.5, -0.5))
def test_error_of_one_step(t1):
    """Heun's method estimates its error by Euler's."""
    solver = dsr.ErrorRegularizedSolver(dfx.Heun())
    state = _solve(solver, 0.0, t1, dt0=t1).solver_state
    slopes = _field(0.0, _y0, 1.0), _field(t1, _y0 + t1 * _field(0.0, _y0, 1.0), 1.0)
    error = t1 * (slopes[1] - slopes[0]) / 2
    expected = jnp.sqrt(jnp.mean(error**2)) * abs(t1)
    assert tree_allclose(state.error, expected, **tolerance(expected.dtype))


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("name", ("tsit5", "half", "taylor"))
def test_stiffness_of_a_linear_equation(name, t0, t1):
    """The stiffness is the eigenvalue times the time."""
    term = dfx.ODETerm(lambda t, y, args: -7.0 * y)
    solver = dsr.ErrorRegularizedSolver(_solvers[name], stiffness=True)
    state = _solve(solver, t0, t1, term=term).solver_state
    assert tree_allclose(state.stiffness, jnp.array(7.0), rtol=1e-6, atol=0.0)


def test_nothing_to_estimate():
    """Error, stiffness and gradient are zero, and not NaN."""

    def gathered(rate):
        term = dfx.ODETerm(lambda t, y, args: rate * jnp.ones_like(y))
        solver = dsr.ErrorRegularizedSolver(dfx.Heun(), stiffness=True)
        state = _solve(solver, dt0=0.25, term=term, max_steps=8).solver_state
        return state.error + state.stiffness

    value, gradient = jax.value_and_grad(gathered)(jnp.array(2.0))
    assert value == 0 and gradient == 0


def test_solves_that_blow_up():
    """Error and stiffness are NaN, as the state, and not those of the steps before."""
    term = dfx.ODETerm(lambda t, y, args: jnp.where(t < 0.5, y, jnp.nan))
    solver = dsr.ErrorRegularizedSolver(dfx.Heun(), stiffness=True)
    state = _solve(solver, dt0=0.25, term=term, max_steps=8, throw=False).solver_state
    assert jnp.isnan(state.error) and jnp.isnan(state.stiffness)


_adjoints = (
    dfx.RecursiveCheckpointAdjoint(),
    dfx.DirectAdjoint(),
    dfx.ForwardMode(),
)


@pytest.mark.parametrize("t0, t1", (thorough(0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("adjoint", _adjoints, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("name", ("bosh3", "taylor"))
def test_gradient(name, adjoint, t0, t1):
    """Steps are constant, since their choice has no gradient."""

    def gathered(args):
        solver = dsr.ErrorRegularizedSolver(_solvers[name], stiffness=True)
        options: dict[str, Any] = dict(max_steps=8, adjoint=adjoint)
        solution = _solve(solver, t0, t1, dt0=(t1 - t0) / 4, args=args, **options)
        state = solution.solver_state
        return state.error + 0.1 * state.stiffness

    args = jnp.array(1.3)
    forward = isinstance(adjoint, dfx.ForwardMode)
    actual = (jax.jacfwd if forward else jax.grad)(gathered)(args)
    expected = finite_difference(gathered, args, jnp.array(1.0), step=1e-3)
    assert tree_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_under_vmap():
    solver = dsr.ErrorRegularizedSolver(dfx.Tsit5(), stiffness=True)
    y0 = jr.normal(jr.key(0), (3, 2))

    def error(y0):
        return _solve(solver, y0=y0).solver_state.error

    expected = jnp.stack([error(y) for y in y0])
    assert tree_allclose(jax.vmap(error)(y0), expected, **tolerance(y0.dtype))


def test_float32_under_x64():
    solver = dsr.ErrorRegularizedSolver(dfx.Tsit5(), stiffness=True)
    t0, t1, y0 = jnp.float32(0.0), jnp.float32(1.0), _y0.astype(jnp.float32)
    state = _solve(solver, t0, t1, y0=y0, args=jnp.float32(1.0)).solver_state
    assert state.error.dtype == state.stiffness.dtype == jnp.float32


def test_nan_is_not_hidden():
    term = dfx.ODETerm(lambda t, y, args: y * jnp.nan)
    solver = dsr.ErrorRegularizedSolver(dfx.Heun(), stiffness=True)
    state = _solve(solver, dt0=0.25, term=term).solver_state
    assert jnp.isnan(state.error)


def test_solver_without_an_estimate():
    solver = dsr.ErrorRegularizedSolver(dfx.Euler())
    with pytest.raises(ValueError, match=r"Euler does not estimate.*HalfSolver"):
        _solve(solver, dt0=0.25)
