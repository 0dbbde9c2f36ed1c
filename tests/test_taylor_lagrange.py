from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

from .helpers import convergence_orders, finite_difference, tolerance, tree_allclose
from .helpers.marks import thorough
from .helpers.solves import final_state, solve_fixed


def _field(t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(t))


_pendulum = dfx.ODETerm(_field)
_y0 = jnp.array([1.0, 0.2])


def _fresh_midpoint():
    return dsr.MidpointMLP(2, key=jr.key(0))


class _ConstantMidpoint(dsr.AbstractMidpoint):
    value: jax.Array

    def __call__(self, t, dt, y, dy, args):
        return jtu.tree_map(lambda leaf: self.value * leaf, dy)


def _adaptive(term, solver, t0, t1, y0, tol, **kwargs) -> Any:
    controller = dfx.PIDController(rtol=tol, atol=tol)
    return dfx.diffeqsolve(
        term, solver, t0, t1, None, y0, stepsize_controller=controller, **kwargs
    )


def _reference(t0, t1):
    return final_state(_adaptive(_pendulum, dfx.Dopri8(), t0, t1, _y0, 1e-13))


def _error(solver, t0, t1, num_steps, exact):
    problem = dsr.training.InitialValueProblem(_pendulum, _y0, t0, t1)
    y1 = final_state(solve_fixed(problem, solver, num_steps))
    return float(jnp.max(jnp.abs(y1 - exact)))


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("order", (1, thorough(2), 3, thorough(4)))
@pytest.mark.parametrize("midpoint", (True, False))
def test_order(order, midpoint, t0, t1):
    solver = dsr.TaylorLagrangeSolver(order, _fresh_midpoint() if midpoint else None)
    exact = _reference(t0, t1)
    errors = [_error(solver, t0, t1, n, exact) for n in (16, 32, 64)]
    assert solver.order(_pendulum) == order + midpoint
    assert np.allclose(convergence_orders(errors), order + midpoint, atol=0.15)


def test_first_order_is_the_midpoint_rule():
    problem = dsr.training.InitialValueProblem(_pendulum, _y0)
    ours = dsr.TaylorLagrangeSolver(1, _fresh_midpoint())
    y1, expected = (
        final_state(solve_fixed(problem, solver, 5))
        for solver in (ours, dfx.Midpoint())
    )
    assert tree_allclose(y1, expected, **tolerance(y1.dtype))


@pytest.mark.parametrize("order", (1, 2, 3, 5))
def test_exact_on_polynomials(order):
    """A truncated expansion of order p integrates polynomials of degree p."""
    term = dfx.ODETerm(lambda t, y, args: order * t ** (order - 1))
    problem = dsr.training.InitialValueProblem(term, jnp.array(0.0), 1.0, 3.0)
    solution = solve_fixed(problem, dsr.TaylorLagrangeSolver(order), 2)
    expected = jnp.array(3.0**order - 1)
    assert tree_allclose(final_state(solution), expected, **tolerance("float64"))


@pytest.mark.parametrize("order", (1, 2, 3))
def test_exact_on_a_linear_equation_with_the_right_midpoint(order):
    r"""For y' = a y, c_p(Gamma) is (ha)^p / p! Gamma. A scalar midpoint gives the rest
    of the exponential series."""
    a, h = -2.0, 0.5
    z = jnp.array(a * h)
    factorial = jnp.prod(jnp.arange(1.0, order + 1))
    powers = z ** jnp.arange(order * 1.0)
    factorials = jnp.cumprod(jnp.maximum(jnp.arange(order * 1.0), 1.0))
    rest = jnp.exp(z) - jnp.sum(powers / factorials)
    # Gamma = y0 + theta (1 + phi) z y0 must be rest p! / z^p y0.
    phi = (rest * factorial / z**order - 1) / z * (order + 1) - 1
    solver = dsr.TaylorLagrangeSolver(order, _ConstantMidpoint(phi))
    term = dfx.ODETerm(lambda t, y, args: a * y)
    y0 = jnp.array([1.0, -3.0])
    problem = dsr.training.InitialValueProblem(term, y0, 0.0, 2 * h)
    y1 = final_state(solve_fixed(problem, solver, 2))
    assert tree_allclose(y1, y0 * jnp.exp(2 * z), **tolerance(y0.dtype, 1e2))


@pytest.mark.parametrize("t0, t1", ((0.0, 3.0), (3.0, 0.0)))
@pytest.mark.parametrize("order, midpoint", ((2, True), (4, True), (4, False)))
def test_adaptive(order, midpoint, t0, t1):
    solver = dsr.TaylorLagrangeSolver(order, _fresh_midpoint() if midpoint else None)
    exact = _reference(t0, t1)
    for tol in (1e-4, 1e-7):
        solution = _adaptive(_pendulum, solver, t0, t1, _y0, tol)
        error = jnp.max(jnp.abs(final_state(solution) - exact))
        assert error < 10 * tol


@pytest.mark.parametrize("degree", (1, 2, 3, 4))
def test_error_estimate_sees_what_starts_later(degree):
    """The first coefficients of the solution at t = 0 all vanish."""
    term = dfx.ODETerm(lambda t, y, args: t**5)
    solver = dsr.TaylorLagrangeSolver(degree)
    solution = _adaptive(term, solver, 0.0, 2.0, jnp.array(0.0), 1e-6)
    assert tree_allclose(solution.ys[0], jnp.array(64 / 6), rtol=1e-3, atol=0.0)


def test_error_estimate_does_not_depend_on_the_midpoint():
    """This midpoint gives Gamma = y0: the correction vanishes, but not its error."""
    solver = dsr.TaylorLagrangeSolver(2, _ConstantMidpoint(jnp.array(-1.0)))
    term = dfx.ODETerm(lambda t, y, args: jnp.sin(y))
    solution = _adaptive(term, solver, 0.0, 5.0, jnp.array(0.1), 1e-6)
    exact = 2 * jnp.arctan(jnp.tan(0.05) * jnp.exp(5.0))
    assert jnp.abs(solution.ys[0] - exact) < 1e-3


@pytest.mark.parametrize("midpoint", (True, False))
def test_dense_output(midpoint):
    solver = dsr.TaylorLagrangeSolver(3, _fresh_midpoint() if midpoint else None)
    times = jnp.linspace(0.0, 1.0, 33)
    errors = []
    for num_steps in (8, 16, 32):
        ts = jnp.linspace(0.0, 1.0, num_steps + 1)
        solution = dfx.diffeqsolve(
            _pendulum,
            solver,
            0.0,
            1.0,
            None,
            _y0,
            saveat=dfx.SaveAt(dense=True, steps=True),
            stepsize_controller=dfx.StepTo(ts),
            max_steps=num_steps,
        )
        exact = dfx.diffeqsolve(
            _pendulum,
            dfx.Dopri8(),
            0.0,
            1.0,
            None,
            _y0,
            saveat=dfx.SaveAt(ts=times),
            stepsize_controller=dfx.ClipStepSizeController(
                dfx.PIDController(rtol=1e-12, atol=1e-12), step_ts=times
            ),
        )
        at_steps = jax.vmap(solution.evaluate)(ts[1:])
        assert tree_allclose(at_steps, solution.ys, rtol=1e-13, atol=1e-13)
        between = jax.vmap(solution.evaluate)(times)
        errors.append(float(jnp.max(jnp.abs(between - exact.ys))))
    assert np.all(convergence_orders(errors) > 2.8)


def test_pytree_state_backwards():
    term = dfx.ODETerm(lambda t, y, args: dict(a=-y["a"] * t, b=y["b"] * t))
    y0 = dict(a=jnp.array(1.0), b=jnp.ones((2, 3)))
    solver = dsr.TaylorLagrangeSolver(4, _ConstantMidpoint(jnp.array(0.0)))
    problem = dsr.training.InitialValueProblem(term, y0, 1.0, 0.0)
    y1 = final_state(solve_fixed(problem, solver, 100))
    growth = jnp.exp(jnp.array(0.5))
    expected = dict(a=growth, b=jnp.full((2, 3), 1 / growth))
    assert tree_allclose(y1, expected, rtol=1e-9, atol=1e-9)


def test_midpoint_sees_the_users_time():
    """The midpoint does not get the negated time of Diffrax's backward solves."""

    class Recording(dsr.AbstractMidpoint):
        def __call__(self, t, dt, y, dy, args):
            t = eqx.error_if(t, (t <= 0) | (dt >= 0), "negated time")
            return t * jnp.zeros_like(y)

    problem = dsr.training.InitialValueProblem(_pendulum, _y0, 1.0, 0.25)
    solver = dsr.TaylorLagrangeSolver(2, Recording())
    y1 = final_state(solve_fixed(problem, solver, 3))
    assert jnp.all(jnp.isfinite(y1))


@pytest.mark.parametrize("midpoint", (True, False))
def test_penalty(midpoint):
    """The remainder for y' = -y is (-h)^p / p! times the midpoint."""
    h, num_steps = 0.25, 4
    solver = dsr.TaylorLagrangeSolver(2, _fresh_midpoint() if midpoint else None)
    term = dfx.ODETerm(lambda t, y, args: -y)
    problem = dsr.training.InitialValueProblem(term, _y0)
    solution = solve_fixed(problem, solver, num_steps)
    y, expected, absolute = _y0, 0.0, 0.0
    for _ in range(num_steps):
        remainder = h**2 / 2 * (y * (1 - h / 3) if midpoint else y)
        y = y - h * y + remainder
        expected += jnp.mean(remainder**2)
        absolute += jnp.mean(jnp.abs(remainder))
    assert tree_allclose(final_state(solution), y, rtol=1e-13, atol=0.0)
    state = solution.solver_state
    assert tree_allclose(state.midpoint_penalty, expected, rtol=1e-13, atol=0.0)
    assert tree_allclose(
        state.absolute_midpoint_penalty, absolute, rtol=1e-13, atol=0.0
    )


@pytest.mark.parametrize(
    "adjoint",
    (dfx.RecursiveCheckpointAdjoint(), dfx.DirectAdjoint(), dfx.ForwardMode()),
    ids=lambda adjoint: type(adjoint).__name__,
)
def test_gradient_of_midpoint(adjoint):
    def loss(phi):
        solver = dsr.TaylorLagrangeSolver(2, _ConstantMidpoint(phi))
        solution: Any = dfx.diffeqsolve(
            _pendulum,
            solver,
            0.0,
            1.0,
            0.25,
            _y0,
            saveat=dfx.SaveAt(t1=True, solver_state=True),
            max_steps=8,
            adjoint=adjoint,
        )
        return jnp.sum(solution.ys**2) + solution.solver_state.midpoint_penalty

    phi = jnp.array(0.3)
    expected = finite_difference(loss, phi, jnp.array(1.0), step=1e-4)
    jacobian = (
        jax.jacfwd(loss) if isinstance(adjoint, dfx.ForwardMode) else jax.grad(loss)
    )
    assert tree_allclose(jacobian(phi), expected, rtol=1e-8, atol=1e-8)


def test_vmap_and_jit():
    solver = dsr.TaylorLagrangeSolver(3, _fresh_midpoint())

    def solve(y0):
        return _adaptive(_pendulum, solver, 0.0, 1.0, y0, 1e-6).ys[0]

    y0 = jr.normal(jr.key(3), (3, 2))
    batched = jax.jit(jax.vmap(solve))(y0)
    expected = jnp.stack([solve(y) for y in y0])
    assert tree_allclose(batched, expected, **tolerance(y0.dtype))


@pytest.mark.parametrize("dtype", (jnp.float32, None))
def test_float32_under_x64(dtype):
    """The precision is kept even if the midpoint's weights have a higher one."""
    solver = dsr.TaylorLagrangeSolver(3, dsr.MidpointMLP(2, dtype=dtype, key=jr.key(0)))
    problem = dsr.training.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: -y),
        _y0.astype(jnp.float32),
        *jnp.array([0, 1], jnp.float32),
    )
    with jax.numpy_dtype_promotion("strict" if dtype else "standard"):
        y1 = final_state(solve_fixed(problem, solver, 10))
    expected = (_y0 * jnp.exp(-1.0)).astype(jnp.float32)
    assert tree_allclose(y1, expected, rtol=1e-5, atol=1e-5)


class _Returning(dsr.AbstractMidpoint):
    """Midpoint that returns a multiple of the slope, or something unlike it."""

    function: Callable

    def __call__(self, t, dt, y, dy, args):
        return self.function(t, dy)


@pytest.mark.parametrize(
    "function, message",
    (
        (lambda t, dy: jnp.zeros((3, 2)), r"The midpoint must.*f64\[3,2\].*f64\[2\]"),
        (lambda t, dy: 0.0, r"The midpoint must.*f64\[\].*f64\[2\]"),
        (lambda t, dy: dy.astype(complex), r"shapes and dtypes.*c128\[2\].*f64\[2\]"),
        (lambda t, dy: (dy,), "same structure as the state"),
    ),
    ids=("array", "scalar", "complex", "tuple"),
)
@pytest.mark.parametrize("kind", ("taylor", "hyper"))
def test_correction_that_is_not_like_the_state(kind, function, message):
    correction = _Returning(function)
    if kind == "taylor":
        solver = dsr.TaylorLagrangeSolver(2, correction)
    else:
        solver = dsr.HyperSolver(dfx.Heun(), correction)
    with pytest.raises(ValueError, match=message):
        solve_fixed(dsr.training.InitialValueProblem(_pendulum, _y0), solver, 2)


@pytest.mark.parametrize("begin", (-1.0, 0.5))
def test_correction_that_is_not_a_number(begin):
    """The correction is NaN from the start, or becomes NaN later."""
    correction = _Returning(lambda t, dy: jnp.where(t > begin, jnp.nan, 0.0) * dy)
    solver = dsr.TaylorLagrangeSolver(2, correction)
    problem = dsr.training.InitialValueProblem(_pendulum, _y0)
    y1 = final_state(solve_fixed(problem, solver, 4))
    assert jnp.all(jnp.isnan(y1))
    solution = _adaptive(_pendulum, solver, 0.0, 1.0, _y0, 1e-6, throw=False)
    assert solution.result != dfx.RESULTS.successful


@pytest.mark.parametrize(
    "use",
    (
        lambda cls: dsr.fixed_step_solve(_pendulum, cls, 0.0, 1.0, 2, _y0),
        lambda cls: dsr.regularized_solve(_pendulum, cls, 0.0, 1.0, 0.1, _y0),
        lambda cls: dsr.HyperSolver(cls, dsr.ConstantMidpoint(2)),
        lambda cls: dsr.ErrorRegularizedSolver(cls),
        lambda cls: dsr.training.Reference(1, cls),
        lambda cls: dsr.training.Trainer(None, None).init(None, cls, key=jr.key(0)),
    ),
    ids=("fixed", "regularized", "hyper", "estimate", "reference", "trainer"),
)
def test_class_in_place_of_a_solver(use, without_type_checks):
    with pytest.raises(ValueError, match=r"class `Taylor.*`TaylorLagrangeSolver\("):
        use(dsr.TaylorLagrangeSolver)
    with pytest.raises(ValueError, match="must be a Diffrax solver.*'euler'"):
        use("euler")


def test_half_solver_and_events():
    solver = dfx.HalfSolver(dsr.TaylorLagrangeSolver(2, _fresh_midpoint()))
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] < 0.5)
    solution = _adaptive(_pendulum, solver, 0.0, 9.0, _y0, 1e-6, event=event)
    assert 0 < solution.ts[0] < 9 and solution.ys[0, 0] < 0.5


@pytest.mark.parametrize("order", (0, -1, 2.5))
def test_bad_order(order, without_type_checks):
    with pytest.raises(ValueError, match="`degree` must be a positive integer"):
        dsr.TaylorLagrangeSolver(order)


def test_too_large_degree():
    """Its expansion would take too long to compile."""
    with pytest.raises(ValueError, match="`degree` must be at most 64.* got 65"):
        dsr.TaylorLagrangeSolver(65)


def test_bad_regularizer(without_type_checks):
    regularizer: Any = 3
    with pytest.raises(
        ValueError,
        match=r"`regularizer` must be a `DerivativeNorm`, such.*got 3\. Integ",
    ):
        dsr.TaylorLagrangeSolver(3, regularizer=regularizer)


@pytest.mark.parametrize("midpoint", (True, False))
def test_complex_field_of_a_real_state(midpoint):
    term = dfx.ODETerm(lambda t, y, args: y.astype(complex) * 1j)
    solver = dsr.TaylorLagrangeSolver(2, _fresh_midpoint() if midpoint else None)
    message = r"The vector field must.*c128\[2\].*f64\[2\]"
    with jax.numpy_dtype_promotion("standard"):  # Diffrax itself is strict otherwise.
        with pytest.raises(ValueError, match=message):
            solve_fixed(dsr.training.InitialValueProblem(term, _y0), solver, 2)


def test_bad_midpoint(without_type_checks):
    midpoint: Any = "mlp"
    with pytest.raises(ValueError, match="must be an `AbstractMidpoint`.*'mlp'"):
        dsr.TaylorLagrangeSolver(2, midpoint)


def test_regularizer_with_a_weight(without_type_checks):
    regularizer: Any = 0.1 * dsr.DerivativeNorm(1)
    with pytest.raises(ValueError, match="must be a `DerivativeNorm`.*WeightedSum"):
        dsr.TaylorLagrangeSolver(2, regularizer=regularizer)


def test_controlled_term():
    """A control is an error even if it is differentiable, unless made an ODE."""
    ts = jnp.linspace(0.0, 1.0, 3)
    term = dfx.ControlTerm(lambda t, y, args: y, dfx.LinearInterpolation(ts, ts**2))
    with pytest.raises(ValueError, match=r"use `diffrax.ControlTerm\(...\).to_ode"):
        dfx.diffeqsolve(term, dsr.TaylorLagrangeSolver(), 0.0, 1.0, 0.1, _y0)


@pytest.mark.filterwarnings("ignore:.*not marked as converging")
def test_stochastic_term():
    path = dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (), jr.key(0))
    term = dfx.MultiTerm(
        dfx.ODETerm(lambda t, y, args: y), dfx.ControlTerm(lambda t, y, args: y, path)
    )
    with pytest.raises(ValueError, match="driven by time"):
        dfx.diffeqsolve(term, dsr.TaylorLagrangeSolver(), 0.0, 1.0, 0.1, _y0)
