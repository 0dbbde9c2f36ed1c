from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
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
    quadrature = dsr.gauss_legendre(t0, t1, num_nodes)
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
        quadrature = dsr.random_nodes(key, t0, t1, num_nodes)
        return jnp.dot(quadrature.weights, jnp.exp(quadrature.ts))

    samples = jax.vmap(integral)(jr.split(jr.key(0), 4000))
    error = jnp.std(samples) / np.sqrt(4000)
    assert jnp.abs(jnp.mean(samples) - (np.exp(2.0) - 1)) < 4 * error
    assert error > 0


def test_random_nodes_run_with_the_solve():
    for t0, t1 in ((0.0, 1.0), (1.0, 0.0)):
        ts = dsr.random_nodes(jr.key(0), t0, t1, 16).ts
        assert jnp.all(jnp.diff(ts) * (t1 - t0) > 0)
        assert jnp.all((ts >= 0) & (ts <= 1))


@pytest.mark.parametrize("times", ([0.0, 0.5, 2.0], [1.0, -1.0], [3, 2, 0]))
def test_trapezoidal(times):
    quadrature = dsr.trapezoidal(jnp.asarray(times))
    np.testing.assert_array_equal(quadrature.ts, np.asarray(times, float))
    # Exact for what is linear between the times, and positive in either direction.
    values = np.array([2.0, 5.0, 3.0])[: len(times)]
    expected = np.sum(np.abs(np.diff(times)) * (values[1:] + values[:-1]) / 2)
    np.testing.assert_allclose(quadrature.weights @ values, expected, rtol=1e-12)


def test_trapezoidal_of_saved_states():
    """Without a change of the solve, against a closed form."""
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
    speed = dsr.trapezoidal(ts).integrate(dsr.Speed(3), term, solution.ys, rate)
    # The square of the third derivative is 2^6 e^(4t).
    expected = jnp.asarray(16 * (np.exp(4) - 1))
    assert tree_allclose(speed, expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("times", (0.5, [0.5], [[0.0, 1.0]]))
def test_trapezoidal_needs_times(times, without_type_checks):
    with pytest.raises(ValueError, match="times that a solve saves states at"):
        dsr.trapezoidal(jnp.asarray(times))


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
    quadrature = dsr.gauss_legendre(0.0, 1.0, 4)
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
    speed = quadrature.integrate(dsr.Speed(2), _cubic, nodes)
    assert tree_allclose(speed, jnp.array(12.0), rtol=1e-12, atol=0.0)


def test_nodes_of_a_dense_solution():
    quadrature = dsr.gauss_legendre(0.0, 1.0, 4)
    solution = _solve(quadrature, dfx.SaveAt(dense=True))
    nodes = jax.vmap(solution.evaluate)(quadrature.ts)
    speed = quadrature.integrate(dsr.Speed(2), _cubic, nodes)
    assert tree_allclose(speed, jnp.array(12.0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kinked", (False, thorough(True)))
def test_error_over_number_of_nodes(kinked):
    """Exponentially decreasing for smooth fields, slowly for piecewise smooth ones."""
    activation = jax.nn.relu if kinked else jnp.tanh
    matrix = 2 * jr.normal(jr.key(0), (3, 3))
    term = dfx.ODETerm(lambda t, y, args: matrix @ activation(y + jnp.sin(4 * t)) - y)
    y0 = jr.normal(jr.key(1), (3,))

    def speed(num_nodes):
        quadrature = dsr.gauss_legendre(0.0, 1.0, num_nodes)
        solution = dfx.diffeqsolve(
            term, dfx.Dopri8(), 0.0, 1.0, 1e-2, y0, saveat=quadrature.saveat()
        )
        return quadrature.integrate(dsr.Speed(2), term, quadrature.split(solution)[1])

    exact = speed(200)
    errors = [abs(speed(n) / exact - 1) for n in (2, 8, 24)]
    if kinked:
        assert 1e-6 < errors[2] < 0.05
    else:
        assert errors[1] < 0.05 * errors[0] and errors[2] < 1e-6


def test_vmap_and_batch_agree():
    quadrature = dsr.gauss_legendre(0.0, 1.0, 3)
    term = dfx.ODETerm(lambda t, y, args: jnp.sin(y) * t)
    y0 = jr.normal(jr.key(0), (5, 2))

    def speed(y0):
        _, nodes = quadrature.split(_solve(quadrature, term=term, y0=y0))
        return quadrature.integrate(dsr.Speed(2), term, nodes)

    expected = jnp.mean(jax.vmap(speed)(y0))
    assert tree_allclose(speed(y0), expected, **tolerance(y0.dtype))


def test_no_time_no_speed():
    quadrature = dsr.gauss_legendre(0.5, 0.5)
    solution = dfx.diffeqsolve(
        _cubic, dfx.Tsit5(), 0.5, 0.5, 0.1, jnp.ones(2), saveat=quadrature.saveat()
    )
    solution, nodes = quadrature.split(solution)
    assert tree_allclose(solution.ys, jnp.ones((1, 2)), rtol=0.0, atol=0.0)
    assert quadrature.integrate(dsr.Speed(1), _cubic, nodes) == 0


def test_failed_solve_is_nan():
    """Though a field at rest would be finite anywhere."""
    term = dfx.ODETerm(lambda t, y, args: jnp.tanh(y) * 0)
    quadrature = dsr.gauss_legendre(0.0, 1.0, 4)
    solution = _solve(quadrature, term=term, max_steps=3, throw=False)
    _, nodes = quadrature.split(solution)
    assert jnp.isnan(quadrature.integrate(dsr.Speed(1), term, nodes))


def test_solve_ended_by_an_event_is_nan():
    quadrature = dsr.gauss_legendre(0.0, 1.0, 4)
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] > 0.1)
    _, nodes = quadrature.split(_solve(quadrature, event=event))
    assert jnp.isnan(quadrature.integrate(dsr.Speed(1), _cubic, nodes))


def test_nan_in_the_field():
    term = dfx.ODETerm(lambda t, y, args: jnp.where(t > 0.5, jnp.nan, y))
    quadrature = dsr.gauss_legendre(0.0, 1.0, 4)
    _, nodes = quadrature.split(_solve(quadrature, term=term))
    assert jnp.isnan(quadrature.integrate(dsr.Speed(1), term, nodes))


def test_random_end_time():
    times = jax.vmap(lambda k: dsr.random_end_time(k, 0.0, 1.0, 0.5))(
        jr.split(jr.key(0), 1000)
    )
    assert jnp.all((times >= 0.5) & (times <= 1.5))
    assert jnp.abs(jnp.mean(times) - 1) < 0.05 and jnp.std(times) > 0.25
    with pytest.raises(Exception, match="`width` must be nonnegative and less than"):
        dsr.random_end_time(jr.key(0), 0.0, 1.0, 1.0)


def test_another_solution():
    quadrature = dsr.gauss_legendre(0.0, 1.0, 4)
    solution = dfx.diffeqsolve(_cubic, dfx.Tsit5(), 0.0, 1.0, 0.1, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"saveat=quadrature\.saveat"):
        quadrature.split(solution)
    with pytest.raises(ValueError, match=r"the 4 nodes.*shapes \[\(1, 2\)\]"):
        quadrature.integrate(dsr.Speed(), _cubic, solution.ys)


def test_nodes_outside_of_the_solve():
    quadrature = dsr.gauss_legendre(0.0, 2.0, 4)
    with pytest.raises(Exception, match="must lie between"):
        _solve(quadrature)


@pytest.mark.parametrize("make", (dsr.gauss_legendre, dsr.random_nodes))
def test_bad_number_of_nodes(make, without_type_checks):
    arguments = () if make is dsr.gauss_legendre else (jr.key(0),)
    with pytest.raises(ValueError, match="`num_nodes` must be a positive integer"):
        make(*arguments, 0.0, 1.0, 0)
