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
from .helpers.solves import final_state


def _field(t, y, args):
    return jnp.tanh(args @ y) * (1 + 0.5 * jnp.sin(t))


_term = dfx.ODETerm(_field)
_matrix = jr.normal(jr.key(1), (3, 3))
_y0 = jr.normal(jr.key(0), (3,))


def _augmented(args, y0, t0, t1, adjoint, steps):
    term = dsr.SpeedRegularizedTerm(_term)
    solution: Any = dfx.diffeqsolve(
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
    return term.split(final_state(solution))[1]


def _quadrature(args, y0, t0, t1, adjoint, steps):
    quadrature = dsr.gauss_legendre(10).quadrature(t0, t1)
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
    return quadrature.integrate(dsr.DerivativeNorm(), _term, nodes, args)


def _free(args, y0, t0, t1, adjoint, steps):
    solution: Any = dfx.diffeqsolve(
        _term,
        dsr.TaylorLagrangeSolver(8, regularizer=dsr.DerivativeNorm()),
        t0,
        t1,
        (t1 - t0) / steps,
        y0,
        args,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        adjoint=adjoint,
        max_steps=steps + 1,
    )
    return solution.solver_state.regularizer


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
    integrals = [
        way(_matrix, _y0, t0, t1, _adjoints["checkpoint"], 24) for way in _ways.values()
    ]
    assert integrals[0] > 0.1
    assert tree_allclose(integrals[1], integrals[0], rtol=1e-6, atol=0.0)
    assert tree_allclose(integrals[2], integrals[0], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("t0, t1", (thorough(0.2, 1.4), (1.4, 0.2)))
@pytest.mark.parametrize(
    "adjoint", ("checkpoint", thorough("direct"), thorough("forward"))
)
@pytest.mark.parametrize("way", _ways)
def test_gradient(way, adjoint, t0, t1):
    """Gradients in parameters, initial state and times agree, along one direction."""
    arguments = (_matrix, _y0, jnp.asarray(t0), jnp.asarray(t1))
    flat, unravel = ravel_pytree(arguments)
    direction = jr.normal(jr.key(2), flat.shape)

    @jax.jit
    def integral(flat):
        return _ways[way](*unravel(flat), _adjoints[adjoint], 4)

    differentiate = jax.jacfwd if adjoint == "forward" else jax.grad
    actual = jnp.dot(jax.jit(differentiate(integral))(flat), direction)
    expected = finite_difference(integral, flat, direction, step=1e-4)
    assert tree_allclose(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("adjoint", ("checkpoint", "direct"))
def test_gradient_where_samples_need_more_steps_than_others(adjoint):
    """Finished samples go on with steps of size zero under `jax.vmap`."""

    @jax.jit
    @jax.value_and_grad
    def integral(rate, y0):
        solution: Any = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, args: -args * y),
            dsr.TaylorLagrangeSolver(2, regularizer=dsr.DerivativeNorm(2)),
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
        return solution.solver_state.regularizer

    y0 = jnp.array([0.1, 10.0])
    batched = jax.vmap(integral, in_axes=(None, 0))(1.5, y0)
    expected = [jnp.stack(x) for x in zip(*(integral(1.5, y) for y in y0))]
    assert tree_allclose(list(batched), expected, rtol=1e-10, atol=0.0)


def test_nan_in_the_field():
    """The integral is NaN even for a constant, whose derivatives are zero."""

    def field(t, y, args):
        return jnp.where(t > 0.5, jnp.nan, jnp.ones_like(y))

    term = dsr.SpeedRegularizedTerm(dfx.ODETerm(field), 3)
    saveat = dfx.SaveAt(ts=jnp.array([0.4, 1.0]))
    solution: Any = dfx.diffeqsolve(
        term, dfx.Tsit5(), 0.0, 1.0, 0.2, term.init(_y0), saveat=saveat, throw=False
    )
    _, integrals = term.split(solution.ys)
    assert list(jnp.isnan(integrals)) == [False, True]

    free: Any = dfx.diffeqsolve(
        term.term,
        dsr.TaylorLagrangeSolver(3, regularizer=dsr.DerivativeNorm(3)),
        0.0,
        1.0,
        0.2,
        _y0,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        throw=False,
    )
    assert jnp.isnan(free.solver_state.regularizer)


def test_all_in_float32():
    arguments = [x.astype(jnp.float32) for x in (_matrix, _y0)]
    times = jnp.float32(0.2), jnp.float32(1.4)
    for way in _ways.values():
        integral = way(*arguments, *times, _adjoints["checkpoint"], 8)
        precise = way(_matrix, _y0, 0.2, 1.4, _adjoints["checkpoint"], 8)
        assert integral.dtype == jnp.float32
        assert jnp.allclose(integral.astype(jnp.float64), precise, rtol=1e-3)


@pytest.mark.parametrize("order, expected", ((3, 1), (4, 2), thorough(6, 4)))
def test_order_of_the_free_one(order, expected):
    """The K-th derivative of a polynomial of degree p has order p + 1 - K."""

    def error(steps):
        solution: Any = dfx.diffeqsolve(
            _term,
            dsr.TaylorLagrangeSolver(order, regularizer=dsr.DerivativeNorm()),
            0.2,
            1.4,
            1.2 / steps,
            _y0,
            _matrix,
            saveat=dfx.SaveAt(t1=True, solver_state=True),
        )
        exact = _augmented(_matrix, _y0, 0.2, 1.4, _adjoints["checkpoint"], 40)
        return abs(solution.solver_state.regularizer - exact)

    observed = convergence_orders([error(steps) for steps in (8, 16, 32)])
    assert all(observed > expected - 0.3)


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("midpoint", (True, False))
def test_free_one_of_a_polynomial(midpoint, t0, t1):
    """The solution y = t^3 has y'' = 6 t and R_2 = 12. The solver is exact too."""
    term = dfx.ODETerm(lambda t, y, args: 3 * t**2 * jnp.ones_like(y))
    remainder = dsr.MidpointMLP(2, key=jr.key(0)) if midpoint else None
    solver = dsr.TaylorLagrangeSolver(3, remainder, regularizer=dsr.DerivativeNorm(2))
    saveat = dfx.SaveAt(t1=True, solver_state=True)
    y0 = jnp.full(2, t0**3)
    solution: Any = dfx.diffeqsolve(term, solver, t0, t1, t1 - t0, y0, saveat=saveat)
    integral = solution.solver_state.regularizer
    assert tree_allclose(integral, jnp.array(12.0), rtol=1e-12, atol=0.0)


def test_free_one_of_too_high_an_order():
    with pytest.raises(ValueError, match=r"solver of degree 2 has no.* order 3\. Use"):
        dsr.TaylorLagrangeSolver(2, regularizer=dsr.DerivativeNorm(3))
