"""`stop_gradient` in a vector field: the solution does not depend on it."""

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from jax.lax import stop_gradient

from .helpers.numerics import nested_coefficients
from .helpers.solves import fixed_step_solve


_term = dfx.ODETerm(lambda t, y, args: -y * stop_gradient(y))


def _coefficients(field, y, order=4):
    term = dfx.ODETerm(lambda t, y, args: field(y))
    return dsr.taylor_coefficients(term, 0.0, jnp.asarray(y), order=order)


def test_expansion_is_that_of_the_solution():
    """The solution of y' = -y**2 is 1 / (1 + t)."""
    got = dsr.taylor_coefficients(_term, 0.0, jnp.array(1.0), order=5)
    assert np.allclose(got, [1, -1, 1, -1, 1, -1])


@pytest.mark.parametrize("num_steps", (4, 16))
def test_solver(num_steps):
    solver = dsr.TaylorLagrangeSolver(5)
    solve = lambda term: fixed_step_solve(
        term, solver, 0.0, 1.0, num_steps, jnp.array(1.0)
    )
    smooth = dfx.ODETerm(lambda t, y, args: -y * y)
    assert np.allclose(solve(_term).ys, solve(smooth).ys, rtol=1e-14)


def test_regularizer():
    """The value of R_2 is the integral of 4 / (1 + t)**6."""
    _, integral = dsr.regularized_solve(
        _term,
        dfx.Tsit5(),
        *(0.0, 1.0, None, jnp.array(1.0)),
        stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
        regularizer=dsr.DerivativeNorm(2),
        method=dsr.gauss_legendre(12),
    )
    assert np.allclose(integral, 4 / 5 * (1 - 2**-5.0), rtol=1e-8)


def test_gradients_are_stopped():
    """The gradients of coefficients are those of y' = -y c with a constant c = y."""

    def second(y, field):
        return _coefficients(field, y, order=2)[2]

    # y'' / 2 = -(y' c + y c') / 2 with y' = -y c and with c = y, c' = -y c stopped.
    y = 1.5
    got = jax.grad(second)(y, lambda y: -y * stop_gradient(y))
    c, dc = y, -(y**2)
    assert np.allclose(got, (c**2 - dc) / 2)
    assert jax.grad(second)(y, lambda y: stop_gradient(-(y**2))) == 0


@pytest.mark.parametrize("inside", ("scan", "cond", "while_loop", "checkpoint", "jit"))
def test_within_other_transformations(inside):
    def step(y):
        return y * stop_gradient(jnp.sin(y))

    fields = {
        "scan": lambda y: jax.lax.scan(lambda c, _: (step(c), None), y, length=2)[0],
        "cond": lambda y: jax.lax.cond(y > 0, step, lambda y: y, y),
        "while_loop": lambda y: jax.lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, step(c[1])), (0, y)
        )[1],
        "checkpoint": lambda y: jax.checkpoint(step)(y),
        "jit": lambda y: jax.jit(step)(y),
    }
    smooth = lambda y: y * jnp.sin(y)
    twice = inside in ("scan", "while_loop")
    got = _coefficients(fields[inside], 0.7)
    right = nested_coefficients(
        lambda t, y: smooth(smooth(y)) if twice else smooth(y), 0.0, jnp.array(0.7), 4
    )
    assert np.allclose(got, right, rtol=1e-12)


_matrix = jnp.array([[3.0, 1.0, 0.0], [1.0, 4.0, 2.0], [0.0, 1.0, 5.0]])
_start = jnp.array([1.0, 2.0, 0.3])


def _operator(y):
    return _matrix @ _matrix.T + jnp.diag(y)


_linear_solves = {
    "jnp.linalg.solve": lambda y: jnp.linalg.solve(_operator(y), y),
    "cho_solve": lambda y: jax.scipy.linalg.solve(_operator(y), y, assume_a="pos"),
    **{
        f"lineax, {type(solver).__name__}": lambda y, solver=solver: (
            lx.linear_solve(
                lx.MatrixLinearOperator(_operator(y), lx.positive_semidefinite_tag),
                y,
                solver,
            ).value
        )
        for solver in (
            lx.LU(),
            lx.QR(),
            lx.SVD(),
            lx.Cholesky(),
            lx.AutoLinearSolver(well_posed=True),
            lx.CG(rtol=1e-13, atol=1e-13),
            lx.GMRES(rtol=1e-13, atol=1e-13),
        )
    },
}


@pytest.mark.parametrize("name", _linear_solves)
def test_linear_solves(name):
    """Linear solves stop the factors of the matrix. The derivative is by the matrix."""
    got = _coefficients(_linear_solves[name], _start)
    right = nested_coefficients(
        lambda t, y: jnp.linalg.inv(_operator(y)) @ y, 0.0, _start, 4
    )
    assert np.allclose(got, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "stopped, smooth",
    (
        (
            lambda y: jnp.linalg.solve(_matrix, stop_gradient(y)),
            lambda y: jnp.linalg.inv(_matrix) @ y,
        ),
        (
            lambda y: jnp.linalg.solve(_operator(stop_gradient(y)), y),
            lambda y: jnp.linalg.inv(_operator(y)) @ y,
        ),
        (
            lambda y: jnp.linalg.solve(stop_gradient(_operator(y)), jnp.ones(3)),
            lambda y: jnp.linalg.inv(_operator(y)) @ jnp.ones(3),
        ),
    ),
)
def test_linear_solves_of_what_is_stopped(stopped, smooth):
    got = _coefficients(stopped, _start)
    right = nested_coefficients(lambda t, y: smooth(y), 0.0, _start, 4)
    assert np.allclose(got, right, rtol=1e-10, atol=1e-12)


def test_linear_solve_in_a_loop():
    def field(y):
        step = lambda c, _: (_linear_solves["lineax, LU"](c), None)
        return jax.lax.scan(step, y, length=2)[0]

    def expanded(t, y):
        once = jnp.linalg.inv(_operator(y)) @ y
        return jnp.linalg.inv(_operator(once)) @ once

    right = nested_coefficients(expanded, 0.0, _start, 3)
    assert np.allclose(_coefficients(field, _start, 3), right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "solver",
    (
        optx.Newton(1e-12, 1e-12),
        optx.Chord(1e-13, 1e-13),
        optx.Dogleg(1e-12, 1e-12),
        optx.Bisection(1e-14, 1e-14),
    ),
    ids=lambda solver: type(solver).__name__,
)
def test_root_finds(solver):
    """The equation y' = -z with z + z**3 = y means z' = -z / (1 + 3 z**2)."""

    def field(y):
        options = dict(lower=-5.0, upper=5.0)
        return -optx.root_find(
            lambda z, y: z + z**3 - y,
            solver,
            jnp.array(0.5),
            args=y,
            options=options if isinstance(solver, optx.Bisection) else None,
        ).value

    z0 = 0.7
    z = _coefficients(lambda z: -z / (1 + 3 * z**2), z0)
    cube = np.polynomial.polynomial.polypow(np.asarray(z), 3)[:5]
    assert np.allclose(
        _coefficients(field, z0 + z0**3), z + cube, rtol=1e-9, atol=1e-10
    )


def test_softmax_and_maximum_that_is_stopped():
    weights = jnp.arange(3.0)
    for y in (jnp.array([1.0, 1.0, 0.3]), jnp.array([0.1, 0.4, 2.0])):
        got = _coefficients(lambda y: jax.nn.softmax(y) * weights, y)
        right = nested_coefficients(
            lambda t, y: jnp.exp(y) / jnp.sum(jnp.exp(y)) * weights, 0.0, y, 4
        )
        assert np.allclose(got, right, rtol=1e-11, atol=1e-13)


def test_custom_jvp_is_taken_at_its_word():
    """The derivative of a straight-through estimator is not that of its value."""

    @jax.custom_jvp
    def rounded(y):
        return jnp.round(y)

    rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))
    got = _coefficients(rounded, 1.2, order=3)
    # y' = round(y) = 1, and y'' = y'.
    assert np.allclose(got, [1.2, 1, 1 / 2, 1 / 6])
    # With `stop_gradient` the series is that of its value, a constant.
    got = _coefficients(lambda y: y + stop_gradient(jnp.round(y) - y), 1.2, order=3)
    assert np.allclose(got, [1.2, 1, 0, 0])


def test_what_forbids_derivatives():
    """Implicit solvers have `nondifferentiable` after `stop_gradient`."""

    def stopped(y):
        return eqxi.nondifferentiable(stop_gradient(y))

    def looped(y):
        return jax.lax.scan(lambda c, _: (stopped(c), None), y, length=2)[0]

    for function in (stopped, looped):
        got = _coefficients(function, 1.2, order=3)
        assert np.allclose(got, [1.2, 1.2, 0.6, 0.2])
        assert jax.grad(lambda y: _coefficients(function, y, order=3)[3])(1.2) == 0
    with pytest.raises(NotImplementedError, match="Unexpected tangent"):
        dsr.jet(eqxi.nondifferentiable, (3.0,), ([1.0],))


def test_a_derivative_of_a_function_is_zero():
    """`jet` differentiates, as `jvp` does."""
    _, got = dsr.jet(lambda x: x * stop_gradient(x), (3.0,), ([1.0, None, None],))
    assert np.allclose(got, [3, 0, 0])
    scan = lambda x: jax.lax.scan(
        lambda c, _: (c * stop_gradient(c), None), x, length=1
    )
    _, (got, _) = dsr.jet(scan, (3.0,), ([1.0, None, None],))
    assert np.allclose(got, [3, 0, 0])
