from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.flatten_util import ravel_pytree

from .helpers import finite_difference, tolerance, tree_allclose
from .helpers.marks import thorough
from .helpers.solves import diffeqsolve, final_state, solve_fixed


_decay = dfx.ODETerm(lambda t, y, args: -y)
_pendulum = dfx.ODETerm(
    lambda t, y, args: jnp.stack([y[1], -jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(t))
)


def _solve(term, y0, t0=0.0, t1=1.0, tol=1e-10, solver=dfx.Tsit5(), **kwargs) -> Any:
    controller = dfx.PIDController(
        rtol=tol, atol=tol, norm=dsr.SpeedRegularizedTerm.norm
    )
    return dfx.diffeqsolve(
        term, solver, t0, t1, None, y0, stepsize_controller=controller, **kwargs
    )


@pytest.mark.parametrize("order", (1, 2, 3, 4))
@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
def test_exponential(order, t0, t1):
    r"""For y = c exp(-t), R_K is the integral of y^2, at any K."""
    y0 = jnp.array([1.0, 2.0])
    term = dsr.SpeedRegularizedTerm(_decay, order)
    y1, integral = term.split(final_state(_solve(term, term.init(y0), t0, t1)))
    ratio = jnp.exp(t0 - t1)
    expected = 2.5 * jnp.abs(1 - ratio**2) / 2
    assert tree_allclose(y1, y0 * ratio, **tolerance(y0.dtype, 1e6))
    assert tree_allclose(integral, expected, **tolerance(y0.dtype, 1e6))


def test_polynomial():
    """A quadratic solution has no third derivative, and a constant second one."""
    term = dfx.ODETerm(lambda t, y, args: t * jnp.ones_like(y))
    for order, expected in ((2, 1.0), (3, 0.0)):
        wrapped = dsr.SpeedRegularizedTerm(term, order)
        solution = _solve(wrapped, wrapped.init(jnp.zeros(3)))
        _, integral = wrapped.split(final_state(solution))
        assert tree_allclose(integral, jnp.array(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t0, t1", ((0.0, 3.0), (3.0, 0.0)))
@pytest.mark.parametrize(
    "solver", (dfx.Tsit5(), thorough(dfx.Dopri8()), dfx.Kvaerno3())
)
def test_norm_leaves_the_solve_alone(solver, t0, t1):
    y0 = jnp.array([1.0, 0.2])
    term = dsr.SpeedRegularizedTerm(_pendulum)
    plain = dfx.diffeqsolve(
        _pendulum,
        solver,
        t0,
        t1,
        None,
        y0,
        stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    )
    solution = _solve(term, term.init(y0), t0, t1, tol=1e-6, solver=solver)
    ys, _ = term.split(solution.ys)
    assert tree_allclose(ys, plain.ys, **tolerance(y0.dtype, 1e2))
    assert solution.stats["num_steps"] == plain.stats["num_steps"]


def test_without_the_norm_it_takes_more_steps():
    term = dsr.SpeedRegularizedTerm(_pendulum)
    y0 = term.init(jnp.array([1.0, 0.2]))
    with_norm = _solve(term, y0, tol=1e-6)
    without = dfx.diffeqsolve(
        term,
        dfx.Tsit5(),
        0.0,
        1.0,
        None,
        y0,
        stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    )
    assert without.stats["num_steps"] > with_norm.stats["num_steps"]


def test_batch_as_one_state_and_vmap(key):
    y0 = jr.normal(key, (4, 2))
    batched = dfx.ODETerm(
        lambda t, y, args: jax.vmap(lambda z: _pendulum.vf(t, z, args))(y)
    )

    def integral(term, y0):
        wrapped = dsr.SpeedRegularizedTerm(term)
        solution = _solve(wrapped, wrapped.init(y0))
        return wrapped.split(final_state(solution))[1]

    one_state = integral(batched, y0)
    samples = jax.vmap(lambda y: integral(_pendulum, y))(y0)
    assert tree_allclose(one_state, jnp.mean(samples), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("t0, t1", (thorough(0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize(
    "adjoint",
    (
        dfx.RecursiveCheckpointAdjoint(),
        thorough(dfx.DirectAdjoint()),
        dfx.BacksolveAdjoint(),
    ),
    ids=lambda adjoint: type(adjoint).__name__,
)
def test_gradient(adjoint, t0, t1, key):
    term = dsr.SpeedRegularizedTerm(_pendulum)
    y0 = jnp.array([1.0, 0.2])
    direction = jr.normal(key, y0.shape)

    def integral(y0):
        solution = _solve(term, term.init(y0), t0, t1, adjoint=adjoint)
        return term.split(final_state(solution))[1]

    expected = finite_difference(integral, y0, direction, step=1e-4)
    actual = jnp.dot(jax.grad(integral)(y0), direction)
    assert tree_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_gradient_of_parameters(key):
    mlp = eqx.nn.MLP(2, 2, 8, 1, jax.nn.softplus, key=key)
    y0 = jnp.array([1.0, 0.2])
    params, static = eqx.partition(mlp, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(params)
    direction = jr.normal(key, flat.shape)

    def integral(flat):
        net = eqx.combine(unravel(flat), static)
        term = dsr.SpeedRegularizedTerm(dfx.ODETerm(lambda t, y, args: net(y)), 2)
        return term.split(final_state(_solve(term, term.init(y0))))[1]

    expected = finite_difference(integral, flat, direction, step=1e-4)
    actual = jnp.dot(jax.grad(integral)(flat), direction)
    assert tree_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", (dfx.Euler(), dfx.Heun(), dfx.ReversibleHeun()))
def test_constant_steps(solver):
    term = dsr.SpeedRegularizedTerm(_decay, 1)
    problem = dsr.training.InitialValueProblem(term, term.init(jnp.array(1.0)))
    solution = solve_fixed(problem, solver, 1000)
    _, integral = term.split(final_state(solution))
    assert tree_allclose(integral, (1 - jnp.exp(-2.0)) / 2, rtol=2e-3, atol=0.0)


def test_saved_times_and_pytree_state():
    def field(t, y, args):
        return dict(a=-y["a"], b=-y["b"])

    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(field), 2)
    y0 = dict(a=jnp.array(2.0), b=jnp.ones((2, 2)))
    ts = jnp.linspace(0.0, 1.0, 5)
    solution = _solve(term, term.init(y0), saveat=dfx.SaveAt(ts=ts))
    ys, integral = term.split(solution.ys)
    decay = jnp.exp(-ts)
    expected = (2.0**2 + 4) / 5 * (1 - decay**2) / 2
    assert tree_allclose(ys["a"], 2 * decay, rtol=1e-6, atol=1e-6)
    assert ys["b"].shape == (5, 2, 2)
    assert tree_allclose(integral, expected, rtol=1e-6, atol=1e-6)


def test_no_time_no_integral():
    term = dsr.SpeedRegularizedTerm(_decay)
    solution = _solve(term, term.init(jnp.array(1.0)), 0.5, 0.5)
    y1, integral = term.split(final_state(solution))
    assert (y1, integral) == (1.0, 0.0)


def test_float32_under_x64():
    term = dsr.SpeedRegularizedTerm(_pendulum)
    y0 = jnp.array([1.0, 0.2], jnp.float32)
    t0, t1 = jnp.float32(0.0), jnp.float32(1.0)
    solution = _solve(term, term.init(y0), t0, t1, tol=1e-5)
    y1, integral = term.split(final_state(solution))
    assert y1.dtype == integral.dtype == jnp.float32
    precise = _solve(term, term.init(y0.astype(jnp.float64)))
    assert jnp.allclose(
        integral.astype(jnp.float64), term.split(precise.ys)[1][0], rtol=1e-3
    )


@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
def test_complex():
    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(lambda t, y, args: 2j * y), 2)
    problem = dsr.training.InitialValueProblem(term, term.init(jnp.array([1.0 + 0j])))
    # Diffrax's Runge-Kutta methods mix real and complex numbers.
    with jax.numpy_dtype_promotion("standard"):
        solution = solve_fixed(problem, dfx.Dopri5(), 50)
    _, integral = term.split(final_state(solution))
    assert tree_allclose(integral, jnp.array(16.0), rtol=1e-6, atol=1e-6)


def test_nan_is_not_hidden():
    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(lambda t, y, args: y * jnp.nan))
    problem = dsr.training.InitialValueProblem(term, term.init(jnp.array(1.0)))
    _, integral = term.split(final_state(solve_fixed(problem, dfx.Euler(), 3)))
    assert jnp.isnan(integral)


@pytest.mark.parametrize("order", (0, -2, 1.5))
def test_bad_order(order, without_type_checks):
    with pytest.raises(ValueError, match="`order` must be a positive integer"):
        dsr.SpeedRegularizedTerm(_decay, order)


def test_bad_regularizer(without_type_checks):
    regularizer: Any = 3
    with pytest.raises(ValueError, match="must be an `AbstractRegularizer`.*got 3"):
        dsr.SpeedRegularizedTerm(_decay, regularizer=regularizer)


def test_order_and_regularizer():
    with pytest.raises(ValueError, match="either `order=5` or .*, not both"):
        dsr.SpeedRegularizedTerm(_decay, 5, regularizer=dsr.DerivativeNorm(2))


def test_controlled_term():
    path = dfx.LinearInterpolation(jnp.array([0.0, 1.0]), jnp.array([0.0, 2.0]))
    term = dfx.ControlTerm(lambda t, y, args: y, path)
    with pytest.raises(ValueError, match=r"driven by time.*by ControlTerm\..*\.to_ode"):
        dsr.SpeedRegularizedTerm(term)


def test_state_that_is_not_augmented(without_type_checks):
    term = dsr.SpeedRegularizedTerm(_decay)
    with pytest.raises(
        ValueError, match=r"must be a `RegularizedState`.*term\.init\(y0\)"
    ):
        _solve(term, jnp.array(1.0))
    ys: Any = jnp.ones(3)
    with pytest.raises(
        ValueError, match=r"must be a `RegularizedState`, but got f64\[3\]"
    ):
        term.split(ys)


def test_integer_state():
    term = dsr.SpeedRegularizedTerm(_decay)
    with pytest.raises(ValueError, match=r"floating-point.*`y` is i64\[1\]"):
        term.init(jnp.array([1]))


def test_empty_state():
    with pytest.raises(ValueError, match="The state has no arrays"):
        dsr.SpeedRegularizedTerm(_decay).init(())


@pytest.mark.parametrize(
    "solver",
    (
        thorough(dfx.Heun()),
        dfx.Bosh3(),
        dfx.Tsit5(),
        thorough(dfx.Dopri5()),
        thorough(dfx.Dopri8()),
    ),
)
def test_why_the_order_of_the_derivative_matters(solver):
    """Solutions of a degree below the solver's order take few steps. Those of that
    degree take many: the derivative of that order, and R_K, are not zero for these.
    """
    order = solver.order(_decay)

    def steps(degree):
        term = dfx.ODETerm(lambda t, y, args: degree * t ** (degree - 1))
        controller = dfx.PIDController(rtol=0, atol=1e-7)
        solution = dfx.diffeqsolve(
            term,
            solver,
            0.0,
            10.0,
            None,
            jnp.array(1.0),
            stepsize_controller=controller,
            max_steps=None,
        )
        return solution.stats["num_steps"]

    def integral(degree):
        term = dfx.ODETerm(lambda t, y, args: degree * t ** (degree - 1))
        return dsr.DerivativeNorm(order).evaluate(term, 5.0, jnp.array(1.0), None)[1]

    below, at = steps(order - 1), steps(order)
    assert at > 2 * below and below < 15
    assert integral(order - 1) == 0 < integral(order)


class _Arrays(dfx.AbstractTerm):
    """Term whose control needs arrays, such as those that Diffrax passes."""

    def vf(self, t, y, args):
        return -y

    def contr(self, t0: Any, t1: Any, **kwargs):
        return (t1 - t0).astype(jnp.float64)

    def prod(self, vf, control):
        return vf * control


class _Doubled(_Arrays):
    """Term that is driven by a multiple of time."""

    def contr(self, t0, t1, **kwargs):
        return 2 * (t1 - t0)


@pytest.mark.parametrize("term, rate", ((_Arrays(), 1), (_Doubled(), 2)))
def test_terms_of_the_users_own(term, rate):
    """The R_2 of y' = -r y is r**3 (1 - exp(-2 r)) / 2 times the mean square of y0."""
    y0 = jnp.array([1.0, 2.0])
    coefficients = dsr.taylor_coefficients(term, 0.0, y0, order=2)
    assert jnp.allclose(coefficients[2], rate**2 * y0 / 2)
    right = 2.5 * rate**3 * (1 - jnp.exp(-2 * rate)) / 2
    for method in (dsr.augmented(), dsr.gauss_legendre()):
        _, integral = dsr.regularized_solve(
            *(term, dfx.Tsit5(), 0.0, 1.0, None, y0),
            stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
            regularizer=dsr.DerivativeNorm(2),
            method=method,
        )
        assert jnp.allclose(integral, right, rtol=1e-6)


def test_solver_for_ode_terms():
    """A wrapped term is an `ODETerm`, which some solvers require."""

    class Own(dfx.Dopri5):
        term_structure = dfx.ODETerm

    term = dfx.ODETerm(lambda t, y, args: -y)
    wrapped = dsr.SpeedRegularizedTerm(term, 2)
    y0 = jnp.array([1.0, 2.0])
    solution = diffeqsolve(wrapped, Own(), 0.0, 1.0, 0.01, wrapped.init(y0))
    _, integral = wrapped.split(solution.ys)
    assert jnp.allclose(integral, 2.5 * (1 - jnp.exp(-2.0)) / 2)


@pytest.mark.parametrize("times", ((0.0, 1.0), (1.0, 0.0)))
def test_increments_of_a_dense_solution(times):
    """The result of `solution.evaluate(a, b)` is the state's and integral's growth."""
    wrapped = dsr.SpeedRegularizedTerm(dfx.ODETerm(lambda t, y, args: -y), 2)
    y0 = jnp.array([1.0, 2.0])
    solution = diffeqsolve(
        *(wrapped, dfx.Dopri5(), *times, None, wrapped.init(y0)),
        saveat=dfx.SaveAt(dense=True),
        stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
    )
    change, integral = wrapped.split(solution.evaluate(0.2, 0.7))
    y = lambda t: y0 * jnp.exp(times[0] - t)
    assert jnp.allclose(change, y(0.7) - y(0.2), rtol=1e-5)
    right = 2.5 * jnp.exp(2 * times[0]) * (jnp.exp(-0.4) - jnp.exp(-1.4)) / 2
    assert jnp.allclose(integral, right, rtol=1e-5)
