"""The same regularizer beside the solution, after the solve, and inside the solver."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.flatten_util import ravel_pytree

from .helpers import convergence_orders, finite_difference, tree_allclose
from .helpers.marks import thorough


def _field(t, y, args):
    return jnp.tanh(args @ y) * (1 + 0.5 * jnp.sin(t))


_term = dfx.ODETerm(_field)
_matrix = jr.normal(jr.key(1), (3, 3))
_y0 = jr.normal(jr.key(0), (3,))


def _augmented(args, y0, t0, t1, adjoint, steps):
    term = dsr.SpeedRegularizedTerm(_term)
    solution = dfx.diffeqsolve(
        term,
        dfx.Dopri8(),
        t0,
        t1,
        (t1 - t0) / steps,
        term.init(y0),
        args,
        adjoint=adjoint,
        max_steps=steps + 1,
    )
    return term.split(dsr.final_state(solution))[1]


def _quadrature(args, y0, t0, t1, adjoint, steps):
    quadrature = dsr.gauss_legendre(t0, t1, 10)
    solution, nodes = quadrature.split(
        dfx.diffeqsolve(
            _term,
            dfx.Tsit5(),
            t0,
            t1,
            (t1 - t0) / steps,
            y0,
            args,
            saveat=quadrature.saveat(),
            adjoint=adjoint,
            max_steps=steps + 1,
        )
    )
    return quadrature.integrate(dsr.Speed(), _term, nodes, args)


def _free(args, y0, t0, t1, adjoint, steps):
    solution = dfx.diffeqsolve(
        _term,
        dsr.TaylorLagrangeSolver(8, speed=dsr.Speed()),
        t0,
        t1,
        (t1 - t0) / steps,
        y0,
        args,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        adjoint=adjoint,
        max_steps=steps + 1,
    )
    return dsr.solver_state(solution).speed


_ways: dict[str, Callable[..., Any]] = dict(
    augmented=_augmented, quadrature=_quadrature, free=_free
)
_adjoints = dict(
    checkpoint=dfx.RecursiveCheckpointAdjoint(),
    direct=dfx.DirectAdjoint(),
    forward=dfx.ForwardMode(),
)


@pytest.mark.parametrize("t0, t1", ((0.2, 1.4), (1.4, 0.2)))
def test_equal(t0, t1):
    speeds = [
        way(_matrix, _y0, t0, t1, _adjoints["checkpoint"], 24) for way in _ways.values()
    ]
    assert speeds[0] > 0.1
    assert tree_allclose(speeds[1], speeds[0], rtol=1e-6, atol=0.0)
    assert tree_allclose(speeds[2], speeds[0], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("t0, t1", (thorough(0.2, 1.4), (1.4, 0.2)))
@pytest.mark.parametrize(
    "adjoint", ("checkpoint", thorough("direct"), thorough("forward"))
)
@pytest.mark.parametrize("way", _ways)
def test_gradient(way, adjoint, t0, t1):
    """With respect to parameters, initial state and both times, in one direction."""
    arguments = (_matrix, _y0, jnp.asarray(t0), jnp.asarray(t1))
    flat, unravel = ravel_pytree(arguments)
    direction = jr.normal(jr.key(2), flat.shape)

    @jax.jit
    def speed(flat):
        return _ways[way](*unravel(flat), _adjoints[adjoint], 4)

    differentiate = jax.jacfwd if adjoint == "forward" else jax.grad
    actual = jnp.dot(jax.jit(differentiate(speed))(flat), direction)
    expected = finite_difference(speed, flat, direction, step=1e-4)
    assert tree_allclose(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("adjoint", ("checkpoint", "direct"))
def test_gradient_where_samples_need_more_steps_than_others(adjoint):
    """Under `jax.vmap`, those that have finished go on with steps of size zero."""

    @jax.jit
    @jax.value_and_grad
    def speed(rate, y0):
        solution = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: -args * y),
            dsr.TaylorLagrangeSolver(2, speed=dsr.Speed(2)),
            0.0,
            1.0,
            0.1,
            y0,
            rate,
            saveat=dfx.SaveAt(t1=True, solver_state=True),
            stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-4),
            adjoint=_adjoints[adjoint],
            max_steps=64,
        )
        return dsr.solver_state(solution).speed

    y0 = jnp.array([0.1, 10.0])
    batched = jax.vmap(speed, in_axes=(None, 0))(1.5, y0)
    expected = [jnp.stack(x) for x in zip(*(speed(1.5, y) for y in y0))]
    assert tree_allclose(list(batched), expected, rtol=1e-10, atol=0.0)


def test_nan_in_the_field():
    """Also if it is a constant, whose derivatives are zero."""

    def field(t, y, args):
        return jnp.where(t > 0.5, jnp.nan, jnp.ones_like(y))

    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(field), 3)
    saveat = dfx.SaveAt(ts=jnp.array([0.4, 1.0]))
    solution: Any = dfx.diffeqsolve(
        term, dfx.Tsit5(), 0.0, 1.0, 0.2, term.init(_y0), saveat=saveat, throw=False
    )
    _, speeds = term.split(solution.ys)
    assert list(jnp.isnan(speeds)) == [False, True]

    free = dfx.diffeqsolve(
        term.term,
        dsr.TaylorLagrangeSolver(3, speed=dsr.Speed(3)),
        0.0,
        1.0,
        0.2,
        _y0,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        throw=False,
    )
    assert jnp.isnan(dsr.solver_state(free).speed)


def test_all_in_float32():
    arguments = [x.astype(jnp.float32) for x in (_matrix, _y0)]
    times = jnp.float32(0.2), jnp.float32(1.4)
    for way in _ways.values():
        speed = way(*arguments, *times, _adjoints["checkpoint"], 8)
        precise = way(_matrix, _y0, 0.2, 1.4, _adjoints["checkpoint"], 8)
        assert speed.dtype == jnp.float32
        assert jnp.allclose(speed.astype(jnp.float64), precise, rtol=1e-3)


@pytest.mark.parametrize("order, expected", ((3, 1), (4, 2), thorough(6, 4)))
def test_order_of_the_free_one(order, expected):
    """The K-th derivative of a polynomial of degree p is right to order p + 1 - K."""

    def error(steps):
        solution = dfx.diffeqsolve(
            _term,
            dsr.TaylorLagrangeSolver(order, speed=dsr.Speed()),
            0.2,
            1.4,
            1.2 / steps,
            _y0,
            _matrix,
            saveat=dfx.SaveAt(t1=True, solver_state=True),
        )
        exact = _augmented(_matrix, _y0, 0.2, 1.4, _adjoints["checkpoint"], 40)
        return abs(dsr.solver_state(solution).speed - exact)

    observed = convergence_orders([error(steps) for steps in (8, 16, 32)])
    assert all(observed > expected - 0.3)


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("midpoint", (True, False))
def test_free_one_of_a_polynomial(midpoint, t0, t1):
    """y = t^3 has y'' = 6 t, so that R_2 = 12, and the solver is exact too."""
    term = dfx.ODETerm(lambda t, y, args: 3 * t**2 * jnp.ones_like(y))
    remainder = dsr.CorrectionMLP(2, key=jr.key(0)) if midpoint else None
    solver = dsr.TaylorLagrangeSolver(3, remainder, speed=dsr.Speed(2))
    saveat = dfx.SaveAt(t1=True, solver_state=True)
    y0 = jnp.full(2, t0**3)
    solution = dfx.diffeqsolve(term, solver, t0, t1, t1 - t0, y0, saveat=saveat)
    speed = dsr.solver_state(solution).speed
    assert tree_allclose(speed, jnp.array(12.0), rtol=1e-12, atol=0.0)


def test_free_one_of_too_high_an_order():
    with pytest.raises(ValueError, match=r"solver of order 2 has no.* order 3\. Use"):
        dsr.TaylorLagrangeSolver(2, speed=dsr.Speed(3))


def test_solver_state_that_was_not_saved():
    solution = dfx.diffeqsolve(
        _term, dsr.TaylorLagrangeSolver(3), 0.0, 1.0, 0.5, _y0, _matrix
    )
    with pytest.raises(ValueError, match=r"SaveAt\(t1=True, solver_state=True\)"):
        dsr.solver_state(solution)
