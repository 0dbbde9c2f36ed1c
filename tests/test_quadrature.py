from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from .helpers import tolerance, tree_allclose
from .helpers.marks import thorough


_cubic = dfx.ODETerm(lambda t, y, args: 3 * t**2 * jnp.ones_like(y))


def _solve(
    quadrature, saveat=None, t0=0.0, t1=1.0, term: Any = _cubic, y0=None, **kwargs
):
    return dfx.diffeqsolve(
        term,
        dfx.Tsit5(),
        t0,
        t1,
        (t1 - t0) / 8,
        jnp.zeros(2) if y0 is None else y0,
        saveat=quadrature.saveat(saveat),
        **kwargs,
    )


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0), (-2.0, 3.0)))
@pytest.mark.parametrize("num_nodes", (1, 2, 5))
def test_gauss_legendre(num_nodes, t0, t1):
    quadrature = dsr.gauss_legendre(num_nodes).quadrature(t0, t1)
    assert quadrature.ts.shape == (num_nodes,)
    for degree in range(2 * num_nodes):
        integral = jnp.dot(quadrature.weights, quadrature.ts**degree)
        exact = (t1 ** (degree + 1) - t0 ** (degree + 1)) / (degree + 1)
        expected = jnp.asarray(np.sign(t1 - t0) * exact)
        assert tree_allclose(integral, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t0, t1", ((0.0, 2.0), (2.0, 0.0)))
@pytest.mark.parametrize("num_nodes", (1, 4))
def test_random_nodes_are_unbiased(num_nodes, t0, t1):
    def integral(key):
        quadrature = dsr.random_nodes(key, num_nodes).quadrature(t0, t1)
        return jnp.dot(quadrature.weights, jnp.exp(quadrature.ts))

    samples = jax.vmap(integral)(jr.split(jr.key(0), 4000))
    error = jnp.std(samples) / np.sqrt(4000)
    assert jnp.abs(jnp.mean(samples) - (np.exp(2.0) - 1)) < 4 * error
    assert error > 0


def test_random_nodes_run_with_the_solve():
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        ts = dsr.random_nodes(jr.key(0), 16).quadrature(t0, t1).ts
        assert jnp.all(jnp.diff(ts) * (t1 - t0) > 0)
        assert jnp.all((ts >= 0) & (ts <= 1))


@pytest.mark.parametrize("times", ([0.0, 0.5, 2.0], [1.0, -1.0], [3, 2, 0]))
def test_trapezoidal(times):
    quadrature = dsr.trapezoidal().quadrature(jnp.asarray(times))
    np.testing.assert_array_equal(quadrature.ts, np.asarray(times, float))
    # It is exact for piecewise linear integrands, and positive in either direction.
    values = np.array([2.0, 5.0, 3.0])[: len(times)]
    expected = np.sum(np.abs(np.diff(times)) * (values[1:] + values[:-1]) / 2)
    np.testing.assert_allclose(quadrature.weights @ values, expected, rtol=1e-12)


def test_trapezoidal_of_saved_states():
    """The integral agrees with a closed form, and the solve does not change."""
    ts = jnp.linspace(0.0, 1.0, 101)
    term = dfx.ODETerm(lambda t, y, args: args * y)
    rate = jnp.array(2.0)
    solution = dfx.diffeqsolve(
        term,
        dfx.Tsit5(),
        0.0,
        1.0,
        0.01,
        jnp.ones(2),
        rate,
        saveat=dfx.SaveAt(ts=ts),
    )
    integral = (
        dsr.trapezoidal()
        .quadrature(ts)
        .integrate(dsr.DerivativeNorm(3), term, solution.ys, rate)
    )
    # The square of the third derivative is 2^6 e^(4t).
    expected = jnp.asarray(16 * (np.exp(4) - 1))
    assert tree_allclose(integral, expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("times", (0.5, [0.5], [[0.0, 1.0]]))
def test_trapezoidal_needs_times(times, without_type_checks):
    with pytest.raises(ValueError, match="times at which a solve saves states"):
        dsr.trapezoidal().quadrature(jnp.asarray(times))


_saveats = dict(
    default=None,
    t0=dfx.SaveAt(t0=True),
    ts=dfx.SaveAt(ts=jnp.linspace(0, 1, 3)),
    steps=dfx.SaveAt(steps=True),
    fn=dfx.SaveAt(t1=True, fn=lambda t, y, args: y.sum()),
    subs=dfx.SaveAt(subs=(dfx.SubSaveAt(t0=True), dfx.SubSaveAt(t1=True))),
    dense=dfx.SaveAt(dense=True),
    state=dfx.SaveAt(t1=True, solver_state=True, controller_state=True),
)


@pytest.mark.parametrize("name", _saveats)
def test_solution_is_what_was_asked_for(name):
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 1.0)
    solution, nodes = quadrature.split(_solve(quadrature, _saveats[name]))
    plain = dfx.diffeqsolve(
        _cubic,
        dfx.Tsit5(),
        0.0,
        1.0,
        0.125,
        jnp.zeros(2),
        saveat=_saveats[name] or dfx.SaveAt(t1=True),
    )
    assert tree_allclose(
        (solution.ts, solution.ys, solution.solver_state),
        (plain.ts, plain.ys, plain.solver_state),
        **tolerance(jnp.float64),
    )
    integral = quadrature.integrate(dsr.DerivativeNorm(2), _cubic, nodes)
    assert tree_allclose(integral, jnp.array(12.0), rtol=1e-12, atol=0.0)


def test_nodes_of_a_dense_solution():
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 1.0)
    solution = _solve(quadrature, dfx.SaveAt(dense=True))
    nodes = jax.vmap(solution.evaluate)(quadrature.ts)
    integral = quadrature.integrate(dsr.DerivativeNorm(2), _cubic, nodes)
    assert tree_allclose(integral, jnp.array(12.0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kinked", (False, thorough(True)))
def test_error_over_number_of_nodes(kinked):
    """The error decreases exponentially for smooth fields, slowly for others."""
    activation = jax.nn.relu if kinked else jnp.tanh
    matrix = 2 * jr.normal(jr.key(0), (3, 3))
    term = dfx.ODETerm(lambda t, y, args: matrix @ activation(y + jnp.sin(4 * t)) - y)
    y0 = jr.normal(jr.key(1), (3,))

    def integral(num_nodes):
        quadrature = dsr.gauss_legendre(num_nodes).quadrature(0.0, 1.0)
        solution = dfx.diffeqsolve(
            term, dfx.Dopri8(), 0.0, 1.0, 1e-2, y0, saveat=quadrature.saveat()
        )
        return quadrature.integrate(
            dsr.DerivativeNorm(2), term, quadrature.split(solution)[1]
        )

    exact = integral(200)
    errors = [abs(integral(n) / exact - 1) for n in (2, 8, 24)]
    if kinked:
        assert 1e-6 < errors[2] < 0.05
    else:
        assert errors[1] < 0.05 * errors[0] and errors[2] < 1e-6


def test_vmap_and_batch_agree():
    quadrature = dsr.gauss_legendre(3).quadrature(0.0, 1.0)
    term = dfx.ODETerm(lambda t, y, args: jnp.sin(y) * t)
    y0 = jr.normal(jr.key(0), (5, 2))

    def integral(y0):
        _, nodes = quadrature.split(_solve(quadrature, term=term, y0=y0))
        return quadrature.integrate(dsr.DerivativeNorm(2), term, nodes)

    expected = jnp.mean(jax.vmap(integral)(y0))
    assert tree_allclose(integral(y0), expected, **tolerance(y0.dtype))


def test_no_time_no_integral():
    quadrature = dsr.gauss_legendre().quadrature(0.5, 0.5)
    solution = dfx.diffeqsolve(
        _cubic, dfx.Tsit5(), 0.5, 0.5, 0.1, jnp.ones(2), saveat=quadrature.saveat()
    )
    solution, nodes = quadrature.split(solution)
    assert tree_allclose(solution.ys, jnp.ones((1, 2)), rtol=0.0, atol=0.0)
    assert quadrature.integrate(dsr.DerivativeNorm(1), _cubic, nodes) == 0


def test_failed_solve_is_nan():
    """The integral is NaN, although a field at rest would be finite anywhere."""
    term = dfx.ODETerm(lambda t, y, args: jnp.tanh(y) * 0)
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 1.0)
    solution = _solve(quadrature, term=term, max_steps=3, throw=False)
    _, nodes = quadrature.split(solution)
    assert jnp.isnan(quadrature.integrate(dsr.DerivativeNorm(1), term, nodes))


def test_solve_ended_by_an_event_is_nan():
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 1.0)
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] > 0.1)
    _, nodes = quadrature.split(_solve(quadrature, event=event))
    assert jnp.isnan(quadrature.integrate(dsr.DerivativeNorm(1), _cubic, nodes))


def test_nan_in_the_field():
    term = dfx.ODETerm(lambda t, y, args: jnp.where(t > 0.5, jnp.nan, y))
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 1.0)
    _, nodes = quadrature.split(_solve(quadrature, term=term))
    assert jnp.isnan(quadrature.integrate(dsr.DerivativeNorm(1), term, nodes))


def test_another_solution():
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 1.0)
    solution = dfx.diffeqsolve(_cubic, dfx.Tsit5(), 0.0, 1.0, 0.1, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"saveat=quadrature\.saveat"):
        quadrature.split(solution)
    with pytest.raises(ValueError, match=r"the 4 nodes.*shapes \[\(1, 2\)\]"):
        quadrature.integrate(dsr.DerivativeNorm(), _cubic, solution.ys)


def test_nodes_outside_of_the_solve():
    quadrature = dsr.gauss_legendre(4).quadrature(0.0, 2.0)
    with pytest.raises(Exception, match="must lie between"):
        _solve(quadrature)


@pytest.mark.parametrize("make", (dsr.gauss_legendre, dsr.random_nodes))
def test_bad_number_of_nodes(make, without_type_checks):
    arguments = () if make is dsr.gauss_legendre else (jr.key(0),)
    with pytest.raises(ValueError, match="`num_nodes` must be a positive integer"):
        make(*arguments, 0)


def test_stochastic_term():
    path = dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (2,), jr.key(0))
    term = dfx.ControlTerm(lambda t, y, args: y, path)
    quadrature = dsr.gauss_legendre(3).quadrature(0.0, 1.0)
    with pytest.raises(ValueError, match="driven by time"):
        quadrature.integrate(dsr.DerivativeNorm(1), term, jnp.zeros((3, 2)))


@pytest.mark.parametrize("jit", (False, True))
@pytest.mark.parametrize(
    "ts", ([0.0, 1.0, 0.5], [0.0, jnp.inf, 1.0], [0.0, jnp.nan, 1.0], [1.0, 0.0, 0.5])
)
def test_times_that_are_not_sorted(ts, jit):
    def weights(ts):
        return dsr.trapezoidal().quadrature(ts).weights

    error = eqx.EquinoxRuntimeError if jit else ValueError
    with pytest.raises(error, match="`ts` must be sorted, in increasing or in decreas"):
        jax.block_until_ready(
            (eqx.filter_jit(weights) if jit else weights)(jnp.array(ts))
        )


@pytest.mark.parametrize(
    "ts, expected",
    (
        ([0.0, 0.5, 0.5, 2.0], [0.25, 0.25, 0.75, 0.75]),
        ([2.0, 1.0, 0.0], [0.5, 1.0, 0.5]),
        ([0.0, 1.0, jnp.inf, jnp.inf], [0.5, 0.5, 0.0, 0.0]),
        ([1.0, 0.0, -jnp.inf], [0.5, 0.5, 0.0]),
    ),
)
def test_times_in_either_order(ts, expected):
    weights = dsr.trapezoidal().quadrature(jnp.array(ts)).weights
    assert jnp.array_equal(weights, jnp.array(expected))


def test_nodes_that_are_not_sorted():
    method = dsr.Quadrature(jnp.array([0.5, 0.2]), jnp.ones(2) / 2)
    for t0, t1, nodes in (
        (0.0, 1.0, method),
        (1.0, 0.0, dsr.Quadrature(jnp.array([0.2, 0.5]), jnp.ones(2) / 2)),
    ):
        with pytest.raises(
            ValueError, match="sorted in the direction of the solve, fr"
        ):
            dsr.regularized_solve(
                *(_cubic, dfx.Tsit5(), t0, t1, None, jnp.zeros(2)), method=nodes
            )


@pytest.mark.parametrize(
    "ts, weights",
    (
        (jnp.zeros(2), jnp.ones(3)),
        (jnp.zeros(0), jnp.zeros(0)),
        (jnp.zeros((2, 2)), jnp.ones((2, 2))),
        ([0.0, 1.0], [0.5, 0.5]),
        (None, None),
    ),
)
def test_nodes_and_weights_that_do_not_fit(ts, weights, without_type_checks):
    with pytest.raises(ValueError, match="at least one node, and as many weights"):
        dsr.Quadrature(ts, weights)
