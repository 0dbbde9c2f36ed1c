"""`ExponentialTaylorSolver`: exact for linear systems, of order 5 for others."""

import math
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffrax_speedreg._solver.phi import phi_functions, phi_functions_of_double

from .helpers import finite_difference, tree_allclose
from .helpers.solves import diffeqsolve, final_state, fixed_step_solve, solve_adaptive


_solver = dsr.ExponentialTaylorSolver()


def _phi(k: int, z: float) -> float:
    if abs(z) < 1:
        return sum(z**j / math.factorial(j + k) for j in range(30))
    value = math.exp(z)
    for i in range(k):
        value = (value - 1 / math.factorial(i)) / z
    return value


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
@pytest.mark.parametrize("scale", (0.0, 1e-3, 0.3, 1.0, 40.0, 3e4))
def test_phi_functions(scale, dtype):
    z = scale * np.array([-1.0, -0.6, 0.0, 1e-5])
    basis, _ = np.linalg.qr(np.asarray(jr.normal(jr.key(0), (4, 4))))
    matrix = jnp.array(basis @ np.diag(z) @ basis.T, dtype)
    got = phi_functions(matrix, 4)
    assert got.dtype == dtype
    # The result is that of a matrix that differs by a rounding.
    tolerance = 30 * float(jnp.finfo(dtype).eps) * max(scale, 1.0)
    for k in range(5):
        expected = basis @ np.diag([_phi(k, x) for x in z]) @ basis.T
        assert np.abs(np.asarray(got[k]) - expected).max() < tolerance
    doubled = phi_functions_of_double(phi_functions(0.5 * matrix, 4))
    assert jnp.allclose(doubled, got, rtol=0.0, atol=tolerance)


def test_phi_functions_of_batches_and_rotations():
    matrices = jnp.array([[[0.0, 7.0], [-7.0, 0.0]], [[0.0, 0.1], [-0.1, 0.0]]])
    got = phi_functions(matrices, 1)[:, 0]
    turned = [[[np.cos(x), np.sin(x)], [-np.sin(x), np.cos(x)]] for x in (7.0, 0.1)]
    assert np.allclose(got, turned, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("entry", (jnp.nan, jnp.inf, 1e20))
def test_phi_functions_that_cannot_be_computed(entry):
    assert jnp.isnan(phi_functions(jnp.array([[entry, 0.0], [0.0, 1.0]]), 2)).all()


_stiff = jnp.array([[-1000.0, 900.0], [1.0, -2.0]])


def _forced(t: Any, y: Any, args: Any) -> Any:
    return _stiff @ y + jnp.array([3.0, 1.0]) + t * jnp.array([-2.0, 5.0])


def _exact(t0: float, t1: float, y0: Any) -> Any:
    """Computes the solution: the exponential of the system with the states 1 and t."""
    columns = jnp.stack([jnp.array([3.0, 1.0]), jnp.array([-2.0, 5.0])], 1)
    rest = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    matrix = jnp.concatenate([jnp.concatenate([_stiff, columns], 1), rest])
    whole = jax.scipy.linalg.expm((t1 - t0) * matrix)
    return (whole @ jnp.array([*y0, 1.0, t0]))[:2]


@pytest.mark.parametrize("t1", (0.51, 0.7, 3.0, 20.0, 0.499))
def test_one_step_of_a_linear_system_is_exact(t1):
    y0 = jnp.array([1.0, -2.0])
    solution = fixed_step_solve(dfx.ODETerm(_forced), _solver, 0.5, t1, 1, y0)
    assert jnp.allclose(solution.ys[-1], _exact(0.5, t1, y0), rtol=1e-10, atol=1e-10)


def test_adaptive_steps_of_a_linear_system_are_few():
    y0, ts = jnp.array([1.0, -2.0]), jnp.linspace(0.5, 20.0, 7)
    problem = dsr.training.InitialValueProblem(dfx.ODETerm(_forced), y0, 0.5, 20.0)
    solution = solve_adaptive(problem, _solver, 1e-8, saveat=dfx.SaveAt(ts=ts))
    expected = jnp.stack([_exact(0.5, float(t), y0) for t in ts])
    assert jnp.allclose(solution.ys, expected, rtol=1e-9, atol=1e-9)
    assert solution.stats["num_steps"] <= 5


def _pendulum(t: Any, y: Any, args: Any) -> Any:
    position, speed = y
    return speed, -args * jnp.sin(position) + jnp.cos(t) * speed**2 / 10


_y0 = (jnp.array(1.0), jnp.array(0.3))


@pytest.mark.parametrize("t0, t1", ((0.0, 2.0), (1.0, -1.0)))
def test_order(t0, t1):
    term = dfx.ODETerm(_pendulum)
    problem = dsr.training.InitialValueProblem(term, _y0, t0, t1, 2.0)
    reference = final_state(solve_adaptive(problem, dfx.Dopri8(), 1e-13))
    errors = []
    for num_steps in (12, 24):
        solved = fixed_step_solve(term, _solver, t0, t1, num_steps, _y0, 2.0)
        differences = np.subtract(final_state(solved), reference)
        errors.append(np.abs(differences).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 4.6).all() and errors[-1] < 1e-6


def test_dense_output():
    """Within a step it is less accurate than at the end by one order."""
    term = dfx.ODETerm(_pendulum)
    options = dict(saveat=dfx.SaveAt(dense=True))
    accurate = diffeqsolve(
        *(term, dfx.Dopri8(), 0.0, 2.0, None, _y0, 2.0),
        stepsize_controller=dfx.PIDController(rtol=1e-13, atol=1e-13),
        **options,
    )
    ts = jnp.linspace(0.0, 2.0, 50)
    expected = jnp.stack(jax.vmap(accurate.evaluate)(ts))
    errors = []
    for num_steps in (12, 24):
        dense = fixed_step_solve(
            term, _solver, 0.0, 2.0, num_steps, _y0, 2.0, **options
        )
        difference = jnp.stack(jax.vmap(dense.evaluate)(ts)) - expected
        errors.append(float(jnp.abs(difference).max()))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert (orders > 3.7).all() and errors[-1] < 1e-5


def _robertson(t: Any, y: Any, args: Any) -> Any:
    a, b, c = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return jnp.stack([-a + b, a - b - c, c])


def _van_der_pol(t: Any, y: Any, args: Any) -> Any:
    return jnp.stack([y[1], 100.0 * (1 - y[0] ** 2) * y[1] - y[0]])


_stiff_problems = {
    "Robertson": (_robertson, (1.0, 0.0, 0.0), 100.0, 1e-8),
    "Van der Pol": (_van_der_pol, (2.0, 0.0), 200.0, 1e-6),
}


@pytest.mark.parametrize("name", _stiff_problems)
def test_stiff_problems_take_fewer_steps_than_implicit_ones(name):
    field, y0, t1, atol = _stiff_problems[name]

    @eqx.filter_jit
    def solve(solver: Any, rtol: Any, atol: Any) -> Any:
        return diffeqsolve(
            *(dfx.ODETerm(field), solver, 0.0, t1, 1e-4, jnp.array(y0)),
            stepsize_controller=dfx.PIDController(rtol=rtol, atol=atol),
            max_steps=50_000,
        )

    implicit = solve(dfx.Kvaerno5(), 1e-6, atol)
    reference = solve(dfx.Kvaerno5(), 1e-10, 1e-4 * atol).ys[-1]
    exponential = solve(_solver, 1e-6, atol)
    assert exponential.stats["num_steps"] < 0.6 * implicit.stats["num_steps"]
    assert jnp.allclose(exponential.ys[-1], reference, rtol=1e-4, atol=10 * atol)


def test_batch_of_samples():
    """The solution is that of each sample, with the Jacobian of a sample."""
    y0 = jr.normal(jr.key(0), (5, 2)), jr.normal(jr.key(1), (5,))

    def field(t: Any, y: Any, args: Any) -> Any:
        return -jnp.sin(y[0]) * y[1][..., None], jnp.cos(t) - jnp.sum(y[0] ** 2, -1)

    def solve(y0: Any, solver: Any) -> Any:
        return fixed_step_solve(dfx.ODETerm(field), solver, 0.0, 1.0, 2, y0).ys

    batch = solve(y0, dsr.ExponentialTaylorSolver(batch_axes=1))
    each = jax.vmap(lambda y: solve(y, _solver), out_axes=1)(y0)
    assert tree_allclose(batch, each, rtol=1e-12, atol=1e-12)
    # The Jacobian of all entries together gives the same.
    together = solve(y0, _solver)
    assert tree_allclose(batch, together, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_steps", (2, pytest.param(6, marks=pytest.mark.thorough)))
def test_gradient(num_steps):
    def final(args: Any, adjoint: Any = None) -> Any:
        solved = fixed_step_solve(
            *(dfx.ODETerm(_pendulum), _solver, 0.0, 1.0, num_steps, _y0, args),
            adjoint=adjoint,
        )
        return solved.ys[0][-1]

    args = jnp.array(2.0)
    expected = finite_difference(final, args, jnp.array(1.0))
    assert jnp.allclose(jax.grad(final)(args), expected, rtol=1e-7, atol=0.0)
    forward = jax.jacfwd(lambda args: final(args, dfx.ForwardMode()))(args)
    assert jnp.allclose(forward, expected, rtol=1e-7, atol=0.0)


def test_single_precision():
    y0 = jnp.array([1.0, -2.0], jnp.float32)
    t0, t1 = jnp.array([0.5, 3.0], jnp.float32)
    stiff = _stiff.astype(jnp.float32)
    term = dfx.ODETerm(lambda t, y, args: stiff @ y)
    got = fixed_step_solve(term, _solver, t0, t1, 1, y0).ys[-1]
    assert got.dtype == jnp.float32
    expected = jax.scipy.linalg.expm(2.5 * _stiff) @ y0.astype(float)
    assert np.allclose(got, expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("shape, batch_axes", (((0,), 0), ((3, 0), 1), ((0, 2), 1)))
def test_states_without_entries(shape, batch_axes):
    solver = dsr.ExponentialTaylorSolver(batch_axes)
    term = dfx.ODETerm(lambda t, y, args: -y)
    assert fixed_step_solve(term, solver, 0.0, 1.0, 1, jnp.zeros(shape)).ys.size == 0


def test_forcing_with_a_jump():
    """Steps that end at the jump take the values on their own side."""
    term = dfx.ODETerm(lambda t, y, args: -3 * y + jnp.where(t < 1, 0.0, 6.0))
    solved = fixed_step_solve(term, _solver, 0.0, 2.0, 2, jnp.array(1.0)).ys[-1]
    expected = 2 + (np.exp(-3.0) - 2) * np.exp(-3.0)
    assert jnp.allclose(solved, expected, rtol=1e-11, atol=0.0)


def test_a_jacobian_that_is_not_finite_ends_the_solve():
    """An infinite slope at the start gives a failure or NaN."""
    term = dfx.ODETerm(lambda t, y, args: 1 - jnp.sqrt(y))
    y0 = jnp.array([0.0])
    problem = dsr.training.InitialValueProblem(term, y0, 0.0, 1.0)
    solved = solve_adaptive(problem, _solver, 1e-6, throw=False, max_steps=64)
    assert solved.result != dfx.RESULTS.successful
    assert jnp.isnan(fixed_step_solve(term, _solver, 0.0, 1.0, 2, y0).ys).all()


@pytest.mark.filterwarnings("ignore:Complex dtype support")
@pytest.mark.parametrize(
    "y0, batch_axes, message",
    (
        (jnp.zeros(200), 0, "at most 128 entries, but got one of 200.*`batch_axes`"),
        (jnp.zeros(2, complex), 0, "needs a real state"),
        ((jnp.zeros((3, 2)), jnp.zeros(2)), 1, "the same 1 leading axes"),
        (jnp.array(0.0), 1, "the same 1 leading axes"),
    ),
)
def test_bad_states(y0, batch_axes, message):
    solver = dsr.ExponentialTaylorSolver(batch_axes)
    term = dfx.ODETerm(lambda t, y, args: y)
    with pytest.raises(ValueError, match=message):
        fixed_step_solve(term, solver, 0.0, 1.0, 1, y0)


@pytest.mark.parametrize("batch_axes", (-1, 1.5, True))
def test_bad_number_of_axes(batch_axes, without_type_checks):
    with pytest.raises(ValueError, match="`batch_axes` must be an integer, at least 0"):
        dsr.ExponentialTaylorSolver(batch_axes)
