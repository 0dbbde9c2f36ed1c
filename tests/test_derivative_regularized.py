"""R_K from the stages of Runge-Kutta methods."""

import functools
from typing import Any, cast

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optimistix as optx
import pytest

from .helpers import finite_difference, tree_allclose
from .helpers.marks import thorough
from .helpers.solves import diffeqsolve, regularized_solve


def _pendulum(t, y, args):
    return jnp.stack([y[1], -args * jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(3 * t))


_term = dfx.ODETerm(_pendulum)
_y0 = jnp.array([1.0, 0.2])
_newton = optx.Newton(rtol=1e-10, atol=1e-10)
# Solvers, with the orders that their dense output allows.
_solvers = {
    "Euler": (dfx.Euler(), 1),
    "Heun": (dfx.Heun(), 1),
    "Ralston": (dfx.Ralston(), 1),
    "LeapfrogMidpoint": (dfx.LeapfrogMidpoint(), 1),
    "Bosh3": (dfx.Bosh3(), 2),
    "Dopri5": (dfx.Dopri5(), 3),
    "Tsit5": (dfx.Tsit5(), 3),
    "Dopri8": (dfx.Dopri8(), 5),
    "ImplicitEuler": (dfx.ImplicitEuler(root_finder=_newton), 1),
    "Kvaerno3": (dfx.Kvaerno3(root_finder=_newton), 2),
    "Kvaerno5": (dfx.Kvaerno5(root_finder=_newton), 2),
    "HalfSolver": (dfx.HalfSolver(dfx.Dopri5()), 3),
    "ErrorRegularizedSolver": (dsr.ErrorRegularizedSolver(dfx.Tsit5()), 3),
}


_slope_factors = {
    **{(name, 3): 0.6 for name in ("Dopri5", "Tsit5", "HalfSolver")},
    ("ErrorRegularizedSolver", 3): 0.6,
    ("Dopri8", 5): 0.29952,
}


def _solve(
    solver, order, t0=0.0, t1=1.0, dt0=None, term: Any = _term, y0: Any = _y0, **options
) -> Any:
    solver = dsr.DerivativeRegularizedSolver(solver, order)
    constant = dfx.ConstantStepSize()
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6) if dt0 is None else constant
    return diffeqsolve(
        *(term, solver, t0, t1, dt0, y0, options.pop("args", 1.0)),
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        stepsize_controller=controller,
        **options,
    )


@functools.cache
def _exact(order, t0=0.0, t1=1.0):
    """Integrates R_K by Gauss-Legendre nodes on an accurate solution."""
    _, integral = dsr.regularized_solve(
        *(_term, dfx.Dopri8(), t0, t1, None, _y0, 1.0),
        stepsize_controller=dfx.PIDController(rtol=1e-11, atol=1e-11),
        regularizer=dsr.DerivativeNorm(order),
        method=dsr.gauss_legendre(24),
    )
    return integral


@pytest.mark.parametrize("t0, t1", ((0.5, 2.0), (2.0, 0.5)))
@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("solver", (dfx.Dopri5(), dfx.Tsit5(), dfx.Dopri8()))
def test_polynomials(solver, order, t0, t1):
    """The solution is y = t**4 / 4, with third derivative 6 t, in steps of many sizes.

    If that is linear in a step, the square of its slope has a factor of 3/5.
    """
    term = dfx.ODETerm(lambda t, y, args: jnp.full_like(y, t**3))
    ts = jnp.array([0.5, 0.9, 1.0, 1.7, 2.0])
    controller = dfx.StepTo(ts if t1 > t0 else ts[::-1])
    solver = dsr.DerivativeRegularizedSolver(solver, order)
    y0 = jnp.full((2, 3), t0**4 / 4)
    solution = diffeqsolve(
        *(term, solver, t0, t1, None, y0),
        saveat=dfx.SaveAt(solver_state=True),
        stepsize_controller=controller,
    )
    power = 2 * (4 - order)
    factor = {1: 1.0, 2: 3.0, 3: 6.0}[order] ** 2
    expected = factor * (2.0 ** (power + 1) - 0.5 ** (power + 1)) / (power + 1)
    if order == 3 and not isinstance(solver.solver, dfx.Dopri8):
        expected -= 2 / 5 * 6**2 * np.sum(np.diff(ts) ** 3) / 12
    assert np.allclose(solution.solver_state.integral, expected, rtol=1e-9)


@pytest.mark.parametrize("name", _solvers)
def test_it_is_the_derivative_of_the_dense_output(name):
    solver, largest = _solvers[name]
    plain = diffeqsolve(
        *(_term, solver, 0.0, 1.0, 0.25, _y0, 1.0), saveat=dfx.SaveAt(dense=True)
    )
    derivative = plain.evaluate
    for order in range(1, largest + 1):
        lower = derivative

        def derivative(t, lower=lower):
            return jax.jvp(lower, (t,), (jnp.ones_like(t),))[1]

        nodes, weights = np.polynomial.legendre.leggauss(8)
        starts = np.arange(4)[:, None]
        ts = jnp.asarray(((starts + (nodes + 1) / 2) / 4).ravel())
        means = jnp.mean(jax.vmap(derivative)(ts) ** 2, axis=1)
        expected = jnp.dot(jnp.tile(jnp.asarray(weights), 4), means) / 8
        factor = _slope_factors.get((name, order), 1.0)
        # The values are those at the first and the last node of each step.
        ends = jax.vmap(derivative)(ts.reshape(4, 8)[:, [0, -1]].ravel())
        slopes = jnp.diff(ends.reshape(4, 2, -1), axis=1) / (nodes[-1] - nodes[0]) * 2
        expected -= (1 - factor) * jnp.mean(slopes**2) / 12
        actual = _solve(solver, order, dt0=0.25).solver_state.integral
        assert np.allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", _solvers)
def test_converges_at_every_order_that_is_allowed(name):
    solver, largest = _solvers[name]
    for order in range(1, largest + 1):
        errors = []
        for dt0 in (1 / 20, 1 / 80):
            integral = _solve(solver, order, dt0=dt0).solver_state.integral
            errors.append(abs(float(integral / _exact(order)) - 1))
        assert errors[1] < 0.02 and (errors[1] < errors[0] / 2 or errors[1] < 1e-8)
    with pytest.raises(ValueError, match=f"of order {largest} at most.*gauss_legendre"):
        dsr.DerivativeRegularizedSolver(solver, largest + 1)


@pytest.mark.parametrize("order, error", ((1, 1e-4), (2, 1e-3), (3, 0.01)))
@pytest.mark.parametrize("solver", (dfx.Dopri5(), dfx.Tsit5()))
def test_adaptive_steps(solver, order, error):
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        y0 = _y0
        if t1 < t0:
            y0 = cast(Any, _solve(dfx.Dopri8(), 1)).ys[-1]
        integral = _solve(solver, order, t0, t1, y0=y0).solver_state.integral
        assert np.allclose(integral, _exact(order), rtol=error)


@pytest.mark.parametrize("name", ("Tsit5", "Bosh3", "Kvaerno5", "HalfSolver"))
def test_the_solve_is_left_alone(name):
    solver, order = _solvers[name]
    options: dict[str, Any] = dict(
        saveat=dfx.SaveAt(ts=jnp.array([0.3, 0.9]), dense=True, solver_state=True),
        stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
    )
    arguments: Any = (_term, solver, 0.0, 1.0, None, _y0, 1.0)
    plain = diffeqsolve(*arguments, **options)
    solution, integral = regularized_solve(
        *arguments,
        **options,
        regularizer=dsr.DerivativeNorm(order),
        method=dsr.in_solver(),
    )
    for actual, expected in zip(jtu.tree_leaves(solution), jtu.tree_leaves(plain)):
        assert jnp.array_equal(actual, expected)
    assert integral > 0
    # The returned state continues a solve, with the same solver.
    _, rest = dsr.regularized_solve(
        *(_term, solver, 1.0, 2.0, 0.1, solution.ys[-1], 1.0),
        solver_state=solution.solver_state,
        regularizer=dsr.DerivativeNorm(order),
        method=dsr.in_solver(),
    )
    assert jnp.isfinite(rest) and rest > 0


_adjoints = dict(
    checkpointed=dfx.RecursiveCheckpointAdjoint(),
    direct=dfx.DirectAdjoint(),
    forward=dfx.ForwardMode(),
)


@pytest.mark.parametrize("name", ("Dopri5", thorough("Dopri8"), "Kvaerno5"))
@pytest.mark.parametrize("adjoint", _adjoints)
def test_gradient(name, adjoint):
    solver, order = _solvers[name]

    def integral(args):
        options: dict[str, Any] = dict(adjoint=_adjoints[adjoint], max_steps=8)
        solution = _solve(solver, min(order, 3), 1.0, 0.0, -0.25, args=args, **options)
        return solution.solver_state.integral

    args = jnp.array(1.3)
    differentiate = jax.jacfwd if adjoint == "forward" else jax.grad
    expected = finite_difference(integral, args, jnp.array(1.0), step=1e-3)
    actual = differentiate(integral)(args)
    assert tree_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_batch_as_one_state_and_vmap_have_the_same_mean():
    y0s = jnp.stack([_y0, 2 * _y0, -_y0])

    def integral(y0):
        return _solve(dfx.Tsit5(), 3, dt0=0.1, y0=y0).solver_state.integral

    term = dfx.ODETerm(
        lambda t, y, args: jax.vmap(_pendulum, (None, 0, None))(t, y, args)
    )
    together = _solve(dfx.Tsit5(), 3, dt0=0.1, term=term, y0=y0s).solver_state.integral
    assert np.allclose(jax.vmap(integral)(y0s).mean(), together, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Complex dtype")
def test_pytrees():
    """Pytrees may have complex and empty leaves, and several terms."""
    y0 = (jnp.array(0.5 + 0.1j), {"e": jnp.zeros((0, 2), complex)})
    field = lambda t, y, args: (1j * y[0], {"e": y[1]["e"]})
    state = _solve(dfx.Tsit5(), 2, term=dfx.ODETerm(field), y0=y0).solver_state
    assert np.allclose(state.integral, 0.26, rtol=1e-5)
    assert jnp.issubdtype(state.integral.dtype, jnp.floating)
    decay = (1 - np.exp(-2.0)) / 2
    y0 = (jnp.ones(3),)  # The structure of the state is that of several tableaus, too.
    halves = dfx.MultiTerm(*[dfx.ODETerm(lambda t, y, args: (-y[0] / 2,))] * 2)
    for solver in (
        dfx.Dopri5(),
        dfx.KenCarp4(root_finder=_newton),
        dfx.Sil3(root_finder=_newton),
    ):
        state = _solve(solver, 2, dt0=0.01, term=halves, y0=y0).solver_state
        assert np.allclose(state.integral, decay, rtol=1e-4)


@pytest.mark.parametrize("dt0", (1e-2, 1e-3, 1e-4))
@pytest.mark.parametrize("solver", (dfx.Dopri5(), dfx.Tsit5()))
def test_rounding_in_single_precision(solver, dt0):
    """A short first or last step does not add its rounding."""
    y0 = _y0.astype(jnp.float32)
    adaptive = dfx.PIDController(rtol=1e-6, atol=1e-6)
    for step_ts in (None, jnp.array([1 - 1e-4], jnp.float32)):
        controller = adaptive
        if step_ts is not None:
            controller = dfx.ClipStepSizeController(adaptive, step_ts=step_ts)
        _, integral = dsr.regularized_solve(
            *(_term, solver, jnp.float32(0), jnp.float32(1), jnp.float32(dt0)),
            *(y0, jnp.float32(1)),
            stepsize_controller=controller,
            method=dsr.in_solver(),
        )
        assert integral.dtype == jnp.float32
        assert np.allclose(integral, _exact(3), rtol=0.05)


def test_kinks():
    """The second derivative jumps, and has the right integral. That of the third one is
    larger than the integral from nodes."""
    term = dfx.ODETerm(lambda t, y, args: jax.nn.relu(y) + 1)
    # From -1 to 0 the slope is 1; after that y' = y + 1, and y is exp(t - 1) - 1.
    y0, pieces = jnp.array([-1.0]), (np.exp(2.0) - 1) / 2
    integrals = [
        _solve(dfx.Dopri5(), order, t1=2.0, dt0=0.16, y0=y0, term=term)
        for order in (2, 3)
    ]
    second, third = (solution.solver_state.integral for solution in integrals)
    assert np.allclose(second, pieces, rtol=0.05)
    assert third > 1.5 * pieces


def test_no_derivative():
    """A straight solution has an integral and a gradient of zero, and no NaN."""

    def integral(rate):
        term = dfx.ODETerm(lambda t, y, args: rate * jnp.ones_like(y))
        return _solve(dfx.Tsit5(), 3, dt0=0.25, term=term).solver_state.integral

    value, gradient = jax.value_and_grad(integral)(jnp.array(2.0))
    assert value < 1e-24 and abs(gradient) < 1e-20


def test_failed_solves_and_events():
    term = dfx.ODETerm(lambda t, y, args: y**2)
    adaptive = dfx.PIDController(rtol=1e-6, atol=1e-6)
    _, integral = dsr.regularized_solve(
        *(term, dfx.Tsit5(), 0.0, 2.0, None, jnp.array([1.0])),
        stepsize_controller=adaptive,
        max_steps=64,
        throw=False,
    )
    assert jnp.isnan(integral)
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] > 2)
    solution, integral = dsr.regularized_solve(
        *(term, dfx.Tsit5(), 0.0, 2.0, None, jnp.array([1.0])),
        regularizer=dsr.DerivativeNorm(1),
        stepsize_controller=adaptive,
        event=event,
        method=dsr.in_solver(),
    )
    assert solution.ts is not None
    # y = 1 / (1 - t), and y'**2 = 1 / (1 - t)**4.
    end = float(solution.ts[-1])
    assert np.allclose(integral, ((1 - end) ** -3 - 1) / 3, rtol=1e-4)


@pytest.mark.parametrize("name, K", (("Tsit5", 3), ("Dopri8", 3), ("Kvaerno5", 2)))
def test_default_method(name, K):
    solver, _ = _solvers[name]

    def solve(order, method, **options):
        _, integral = dsr.regularized_solve(
            *(_term, solver, 0.0, 1.0, 0.1, _y0, 1.0),
            regularizer=dsr.DerivativeNorm(order),
            method=method,
            **options,
        )
        return integral

    adaptive: Any = dict(stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-5))
    assert solve(K, None, **adaptive) == solve(K, dsr.in_solver(), **adaptive)
    # Larger orders, and steps of the user's choice.
    gauss = dsr.gauss_legendre()
    assert solve(K + 1, None, **adaptive) == solve(K + 1, gauss, **adaptive)
    assert solve(K, None) == solve(K, gauss)


def test_evaluations():
    """The evaluations are those of the wrapped solver."""
    for solver in (dfx.Tsit5(), dfx.HalfSolver(dfx.Heun())):
        solution = _solve(solver, 1)
        wrapped = dsr.DerivativeRegularizedSolver(solver, 1)
        assert dsr.nfe(wrapped, solution) == dsr.nfe(solver, solution)


def test_bad_input(without_type_checks):
    with pytest.raises(ValueError, match="class `Tsit5`.*Call it"):
        dsr.DerivativeRegularizedSolver(cast(Any, dfx.Tsit5))
    with pytest.raises(ValueError, match="`order` must be a positive integer.*got 0"):
        dsr.DerivativeRegularizedSolver(dfx.Tsit5(), 0)
    for solver in (
        dsr.TaylorLagrangeSolver(2),
        dfx.HalfSolver(dsr.TaylorLagrangeSolver(2)),
    ):
        with pytest.raises(ValueError, match="no known function of its stages.*Tsit5"):
            dsr.DerivativeRegularizedSolver(solver, 1)


def test_half_precision():
    """Half precision raises an error. The default is another method."""
    y0, times = _y0.astype(jnp.bfloat16), jnp.array([0, 1, 0.125], jnp.bfloat16)
    t0, t1, dt0 = times
    arguments: Any = (_term, dfx.Tsit5(), t0, t1, dt0, y0, jnp.array(1, jnp.bfloat16))
    controller = dfx.PIDController(rtol=1e-2, atol=1e-2)

    def solve(method):
        options: Any = dict(stepsize_controller=controller, method=method)
        return regularized_solve(*arguments, **options)[1]

    assert solve(None) == solve(dsr.gauss_legendre())
    with pytest.raises(ValueError, match="at least single precision.*gauss_legendre"):
        solve(dsr.in_solver())


@pytest.mark.parametrize("jit", (False, True))
def test_late_times_in_single_precision(jit):
    """The time is rounded in all steps, so that the default is another method."""
    field = lambda t, y, args: jnp.sin(t - 4000) * y
    arguments: Any = (dfx.ODETerm(field), dfx.Tsit5(), 4000, 4001, 0.1)
    y0 = jnp.array([1.0, 2.0], jnp.float32)
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)

    def solve(y0):
        with jax.numpy_dtype_promotion("standard"):
            return regularized_solve(*arguments, y0, stepsize_controller=controller)[1]

    times: Any = (jnp.float32(0), jnp.float32(1), jnp.float32(0.1))
    early: Any = (dfx.ODETerm(lambda t, y, args: jnp.sin(t) * y), dfx.Tsit5(), *times)
    expected = regularized_solve(*early, y0, stepsize_controller=controller)[1]
    actual = (jax.jit(solve) if jit else solve)(y0)
    assert np.allclose(actual, expected, rtol=0.02)


class _InterpolatesLinearly(dfx.Tsit5):
    """Solver whose interpolation needs more than the stages."""

    interpolation_cls: Any = staticmethod(
        lambda *, extra, k, **info: dfx.LocalLinearInterpolation(**info)
    )

    def step(self, *args, **kwargs) -> Any:
        y1, y_error, dense_info, *rest = super().step(*args, **kwargs)
        return y1, y_error, {**dense_info, "extra": y1}, *rest


def test_other_interpolations():
    """Solvers that interpolate in another way have another default, and an error."""
    solver: Any = _InterpolatesLinearly()
    with pytest.raises(ValueError, match="no known function of its stages.*Tsit5"):
        dsr.DerivativeRegularizedSolver(solver, 1)
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)

    def solve(method):
        arguments: Any = (_term, solver, 0.0, 1.0, None, _y0, 1.0)
        options: Any = dict(stepsize_controller=controller, method=method)
        return regularized_solve(*arguments, **options)[1]

    assert solve(None) == solve(dsr.gauss_legendre())


@pytest.mark.parametrize("adjoint", (dfx.ImplicitAdjoint(), dfx.BacksolveAdjoint()))
def test_adjoints_that_do_not_save_the_solver_state(adjoint):
    with pytest.raises(ValueError, match="no gradient for its solver state.*augmented"):
        regularized_solve(
            *(_term, dfx.Tsit5(), 0.0, 1.0, 0.1, _y0, 1.0),
            adjoint=adjoint,
            method=dsr.in_solver(),
        )


def test_state_that_is_not_a_number():
    """The integral is NaN even if the slope is a number."""
    term = dfx.ODETerm(lambda t, y, args: jnp.ones_like(y))
    y0 = jnp.array([1.0, jnp.nan])
    for order in (1, 2, 3):
        state = _solve(dfx.Tsit5(), order, dt0=0.25, term=term, y0=y0).solver_state
        assert jnp.isnan(state.integral)


def test_single_precision_with_several_terms():
    """The integral is that of double precision, although one slope is zero."""
    zero = dfx.ODETerm(lambda t, y, args: jnp.zeros_like(y))
    decay = dfx.ODETerm(lambda t, y, args: -y)
    newton = optx.Newton(rtol=1e-6, atol=1e-6)

    def integral(dtype):
        times: Any = [jnp.array(t, dtype) for t in (0, 1, 1e-4)]
        _, integral = regularized_solve(
            *(dfx.MultiTerm(zero, decay), dfx.KenCarp4(root_finder=newton), *times),
            jnp.ones(3, dtype),
            stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-5),
            regularizer=dsr.DerivativeNorm(2),
            method=dsr.in_solver(),
        )
        return integral

    double = integral(jnp.float64)
    assert np.allclose(integral(jnp.float32), double, rtol=1e-3)
    assert np.allclose(double, (1 - np.exp(-2.0)) / 2, rtol=0.02)
