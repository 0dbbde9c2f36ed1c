"""Kinks of a vector field at the ends of steps, and of functions at a point."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .helpers.solves import diffeqsolve, fixed_step_solve


_knots = np.linspace(0, 1, 5)
_values = np.array([0.0, 2.0, -1.0, 3.0, 0.5])
_linear_integral = float(np.trapezoid(_values, _knots))


def _interpolation(t):
    ts, ys = jnp.asarray(_knots, t.dtype), jnp.asarray(_values, t.dtype)
    return dfx.LinearInterpolation(ts, ys).evaluate(t)


def _cubic(t):
    """Evaluates a piecewise cubic, whose third derivative jumps at the knots."""
    ts, ys = jnp.asarray(_knots, t.dtype), jnp.asarray(_values, t.dtype)
    coefficients = dfx.backward_hermite_coefficients(ts, ys)
    return dfx.CubicInterpolation(ts, coefficients).evaluate(t)


def _cubic_integral():
    ts = np.linspace(0, 1, 4001)
    values = np.asarray(jax.vmap(_cubic)(jnp.asarray(ts)))
    # Simpson's rule is exact for cubics between the knots.
    return float(np.sum(values[:-2:2] + 4 * values[1:-1:2] + values[2::2]) / 12000)


# Forcings with kinks at multiples of 1/4, and their integrals from 0 to 1.
_forcings = {
    "LinearInterpolation": (_interpolation, _linear_integral),
    "interp": (
        lambda t: jnp.interp(t, jnp.asarray(_knots), jnp.asarray(_values)),
        _linear_integral,
    ),
    "CubicInterpolation": (_cubic, _cubic_integral()),
    "relu": (lambda t: jax.nn.relu(t - 0.5), 1 / 8),
    "abs": (lambda t: jnp.abs(t - 0.5), 1 / 4),
    "maximum": (lambda t: jnp.maximum(t, 1 - t), 3 / 4),
    "minimum": (lambda t: jnp.minimum(t**2, 0.25), 1 / 24 + 1 / 8),
    "where": (lambda t: jnp.where(t < 0.5, t**2, 3 * t), 1 / 24 + 9 / 8),
    "clip": (lambda t: jnp.clip(t, 0.25, 0.75), 1 / 2),
    "floor": (lambda t: t - jnp.floor(2 * t) / 2, 1 / 4),
    "select": (lambda t: jax.lax.select(t >= 0.25, 2 * t, 0 * t), 15 / 16),
}


@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("name", _forcings)
def test_steps_between_kinks_are_exact(name, backward):
    """The solution between two kinks is a polynomial of degree 4."""
    forcing, integral = _forcings[name]
    times = (1.0, 0.0) if backward else (0.0, 1.0)
    term = dfx.ODETerm(lambda t, y, args: forcing(t))
    solve = lambda solver: fixed_step_solve(term, solver, *times, 4, jnp.array(0.0))
    midpoint = dsr.ConstantMidpoint(jnp.array(0.0))
    right = -integral if backward else integral
    for solver in (dsr.TaylorLagrangeSolver(4), dsr.TaylorLagrangeSolver(4, midpoint)):
        assert np.allclose(solve(solver).ys[-1], right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_steps", (4, 8, 20))
@pytest.mark.parametrize("backward", (False, True))
def test_steps_between_kinks_in_float32(num_steps, backward):
    times = jnp.array([1.0, 0.0] if backward else [0.0, 1.0], jnp.float32)
    term = dfx.ODETerm(lambda t, y, args: _interpolation(t))
    y0 = jnp.array(0.0, jnp.float32)
    solver = dsr.TaylorLagrangeSolver(2)
    solution = fixed_step_solve(term, solver, *times, num_steps, y0)
    right = -_linear_integral if backward else _linear_integral
    assert solution.ys.dtype == jnp.float32
    assert np.allclose(solution.ys[-1], right, atol=20 * np.finfo(np.float32).eps)


def test_knots_that_are_rounded_otherwise():
    """Times of steps and knots are seldom computed by the same expression."""
    knots = jnp.arange(11.0) * 0.1
    values = jnp.sin(17 * jnp.arange(11.0))
    term = dfx.ODETerm(lambda t, y, args: jnp.interp(t, knots, values))
    solver = dsr.TaylorLagrangeSolver(2)
    solution = fixed_step_solve(term, solver, 0.0, 1.0, 10, jnp.array(0.0))
    right = np.trapezoid(values, knots)
    assert np.allclose(solution.ys[-1], right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", ("step_ts", "jump_ts"))
@pytest.mark.parametrize("name", ("LinearInterpolation", "relu", "where"))
def test_adaptive_steps_end_at_kinks(name, clip):
    """The steps are not more than those of a Runge-Kutta method."""
    forcing, integral = _forcings[name]
    options: dict[str, Any] = {clip: jnp.asarray(_knots)}
    controller = dfx.ClipStepSizeController(
        dfx.PIDController(rtol=1e-8, atol=1e-8), **options
    )
    solution = diffeqsolve(
        dfx.ODETerm(lambda t, y, args: forcing(t)),
        dsr.TaylorLagrangeSolver(4),
        *(0.0, 1.0, None, jnp.array(0.0)),
        stepsize_controller=controller,
    )
    assert np.allclose(solution.ys[-1], integral, rtol=1e-12, atol=1e-12)
    assert int(solution.stats["num_steps"]) <= 12


def test_controlled_equation_with_a_linear_control():
    """Its vector field jumps at the knots."""
    control = dfx.LinearInterpolation(jnp.asarray(_knots), jnp.asarray(_values) / 8)
    term = dfx.ControlTerm(lambda t, y, args: y, control).to_ode()
    solver = dsr.TaylorLagrangeSolver(8)
    solution = fixed_step_solve(term, solver, 0.0, 1.0, 4, jnp.array(1.0))
    # y' = y u' has the solution exp(u).
    assert np.allclose(solution.ys[-1], np.exp(0.5 / 8), rtol=1e-7)


@pytest.mark.parametrize("backward", (False, True))
def test_nodes_of_a_quadrature_at_knots(backward):
    """The integrand is taken after a node, but before the latest node."""
    knots = _knots[::-1] if backward else _knots
    term = dfx.ODETerm(lambda t, y, args: _interpolation(t))
    quadrature = dsr.trapezoidal().quadrature(jnp.asarray(knots))
    got = quadrature.integrate(dsr.DerivativeNorm(2), term, jnp.zeros(5))
    squares = (np.diff(_values) / 0.25) ** 2
    right = 0.25 * np.dot([0.5, 1, 1, 1, 0.5], [*squares, squares[-1]])
    assert np.allclose(got, right, rtol=1e-12)


_state_kinks = {
    "abs": (lambda y: 1 + jnp.abs(y), 1.0),
    "abs, downwards": (lambda y: -1 - jnp.abs(y), -1.0),
    "maximum": (lambda y: 1 + jnp.maximum(y, 0), 1.0),
    "maximum of zero": (lambda y: 1 + jnp.maximum(0.0, y), 1.0),
    "minimum": (lambda y: -1 + jnp.minimum(y, 0.0), -1.0),
    "clip": (lambda y: 1 + jnp.clip(y, 0, 5), 1.0),
    "clip from above": (lambda y: -1 + jnp.clip(y, -5, 0), -1.0),
}


@pytest.mark.parametrize("name", _state_kinks)
def test_kink_of_the_state(name):
    """Solutions are +-(exp(t) - 1), with the coefficients 1 / k! after the kink."""
    field, sign = _state_kinks[name]
    term = dfx.ODETerm(lambda t, y, args: field(y))
    got = dsr.taylor_coefficients(term, 0.0, jnp.array(0.0), order=4)
    assert np.allclose(got, [0, sign, sign / 2, sign / 6, sign / 24])


@pytest.mark.parametrize(
    "function, smooth",
    (
        (lambda y: jnp.abs(y) ** 2, lambda y: y**2),
        (lambda y: jnp.hypot(y, 3.0), lambda y: jnp.sqrt(y**2 + 9)),
        (lambda y: jnp.maximum(y, 0) + jnp.minimum(y, 0), lambda y: y),
        (lambda y: jnp.abs(y) * jnp.sin(jnp.abs(y)), lambda y: y * jnp.sin(y)),
    ),
)
def test_smooth_functions_of_kinks(function, smooth):
    """JAX's own derivatives are wrong there, as it takes a slope of zero at a kink."""
    y = jnp.array(0.0)
    expand = lambda f: dsr.taylor_coefficients(
        dfx.ODETerm(lambda t, y, args: 1 + f(y)), 0.0, y, order=4
    )
    assert np.allclose(expand(function), expand(smooth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degree, limit", ((3, 2e-5), (5, 1e-8)))
def test_gradient_by_the_time_of_a_jump(degree, limit):
    """For y' = -y + (1 after the time s) and y(0) = 1, the integral of y over [0, 1]
    has the derivative -(1 - exp(s - 1)) with respect to s."""

    def integral(s):
        def field(t, y, args):
            return -y[0] + jnp.where(t < s, 0.0, 1.0), y[0]

        ends = jnp.concatenate([jnp.linspace(0, s, 11), jnp.linspace(s, 1, 11)[1:]])
        solution = diffeqsolve(
            dfx.ODETerm(field),
            dsr.TaylorLagrangeSolver(degree),
            *(0.0, 1.0, None, (1.0, 0.0)),
            stepsize_controller=dfx.StepTo(ends),
        )
        return solution.ys[1][0]

    right = -(1 - np.exp(-0.5))
    assert np.abs(jax.grad(integral)(0.5) - right) < limit


@pytest.mark.parametrize(
    "field, y0, right",
    (
        (lambda t, y: 2.5 * t**1.5, 0.0, 1.0),
        (lambda t, y: 1 + jnp.linalg.norm(jnp.stack([y, 0 * y])), 0.0, np.e - 1),
        (lambda t, y: 1.5 * jnp.sqrt(t), 0.0, 1.0),
        (lambda t, y: 1 + jnp.sqrt(y**2), 0.0, np.e - 1),
    ),
)
@pytest.mark.parametrize("learned", (False, True))
def test_derivatives_that_are_not_finite_at_the_start(field, y0, right, learned):
    """The first steps are small, and have a lower order."""
    midpoint = dsr.ConstantMidpoint(jnp.array(0.0)) if learned else None
    solution = diffeqsolve(
        dfx.ODETerm(lambda t, y, args: field(t, y)),
        dsr.TaylorLagrangeSolver(4, midpoint),
        *(0.0, 1.0, None, jnp.array(y0)),
        stepsize_controller=dfx.PIDController(rtol=1e-7, atol=1e-7),
    )
    assert np.allclose(solution.ys[-1], right, atol=1e-5)
    assert int(solution.stats["num_steps"]) < 300


@pytest.mark.parametrize("degree", (2, 3, 4, 6))
@pytest.mark.parametrize("power", (0.5, 1.5))
def test_constant_steps_from_a_singular_start(degree, power):
    """The first step has the order of the derivatives that are finite."""
    solution = fixed_step_solve(
        dfx.ODETerm(lambda t, y, args: t**power),
        dsr.TaylorLagrangeSolver(degree),
        *(0.0, 1.0, 20, jnp.array(0.0)),
    )
    right = 1 / (power + 1)
    assert np.allclose(solution.ys[-1], right, atol=2 * 0.05 ** (power + 1))


@pytest.mark.parametrize("start", (0.0, 1e4, 1e5))
def test_late_times_in_float32(start):
    """Times are moved only in comparisons: y' = 2 (t - start) after the start."""
    t0, t1 = jnp.float32(start), jnp.float32(start + 1)
    solution = fixed_step_solve(
        dfx.ODETerm(lambda t, y, args: 2 * (t - t0)),
        dsr.TaylorLagrangeSolver(2),
        *(t0, t1, 8, jnp.float32(0)),
    )
    # The ends of steps are rounded.
    limit = 4 * np.spacing(np.float32(start + 1)) + 1e-6
    assert np.abs(solution.ys[-1] - 1) < limit


_jumps = {
    "a jump": lambda t: jnp.where(t <= 0.5, 1.0, 3.0),
    "slopes of an interpolation": lambda t: dfx.LinearInterpolation(
        jnp.asarray(_knots), jnp.asarray(_values)
    ).derivative(t),
}


@pytest.mark.parametrize("name", _jumps)
@pytest.mark.parametrize("solver", (dfx.Tsit5(), dfx.Heun(), dfx.Euler()))
def test_augmented_solution_with_steps_that_end_at_jumps(name, solver):
    """The solution is that of `diffeqsolve`, whose stages are at the jumps."""
    term = dfx.ODETerm(lambda t, y, args: 0.1 * _jumps[name](t) * y)
    call = (term, solver, 0.0, 1.0, None, jnp.array([1.0, 2.0]))
    steps = dfx.StepTo(jnp.asarray(_knots))
    right = diffeqsolve(*call, stepsize_controller=steps)
    got: Any = dsr.regularized_solve(
        *call, stepsize_controller=steps, method=dsr.augmented()
    )
    assert np.allclose(got[0].ys, right.ys, rtol=1e-13)


@pytest.mark.parametrize(
    "field",
    (
        lambda y: jnp.maximum(jnp.log(y), 0.0),
        lambda y: jnp.minimum(0.0, jnp.log(y)),
        lambda y: jnp.clip(jnp.log(y), 0.0, 1.0),
        lambda y: jnp.abs(jnp.log(y)),
    ),
)
def test_what_is_not_a_number_has_no_side(field):
    term = dfx.ODETerm(lambda t, y, args: 1 + field(y))
    got = dsr.taylor_coefficients(term, 0.0, jnp.array(-1.0), order=3)
    assert np.isnan(got[1:]).all()


@pytest.mark.parametrize("scale", (1e-6, 1.0, 1e6))
@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_units_of_time(scale, dtype):
    """A jump is between two nodes, in any unit of time: for y' = 1 before and y' = 3
    after it, the mean square is that of both."""
    ts = jnp.asarray(scale * np.array([0.0, 0.2, 0.4, 0.6]), dtype)
    jump = jnp.asarray(0.3 * scale, dtype)
    term = dfx.ODETerm(lambda t, y, args: jnp.where(t < jump, 1.0, 3.0).astype(dtype))
    values = [
        dsr.DerivativeNorm(1).evaluate(term, t, jnp.zeros(1, dtype), None)[1]
        for t in ts
    ]
    assert np.allclose(values, [1, 1, 9, 9])


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_kink_at_time_zero(dtype):
    zero = jnp.zeros((), dtype)
    term = dfx.ODETerm(lambda t, y, args: jax.nn.relu(t / 2))
    got = dsr.taylor_coefficients(term, zero, zero, order=3)
    assert np.allclose(got, [0, 0, 1 / 4, 0])
