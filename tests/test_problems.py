"""The experiments' equations and losses, against closed forms."""

import dataclasses
import math
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from experiments import (
    classification,
    dynamics,
    flows,
    latent,
    methods,
    midpoints,
    toy,
    ways,
)
from experiments.methods import Method
from experiments.problem import Batch, final_state
from scipy.integrate import solve_ivp

from .helpers import tolerance, tree_allclose
from .helpers.scripts import as_a_user


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def in_double_precision():
    with as_a_user():
        jax.config.update("jax_enable_x64", True)
        yield


def _digits(key):
    problem = classification.digits_problem(key, 0)
    images = jr.uniform(key, (5, 64))
    batch = Batch(classification.Images(images, np.arange(5)), key)
    return problem.model, problem, batch


def _loss(method, problem, model, batch):
    loss: Any = method.trainer(problem, optax.sgd(1.0)).loss
    return float(loss(model, method.solver, batch))


def test_regularized_losses(key):
    """Augmentation and quadrature give the same loss, larger than the plain one."""
    model, problem, batch = _digits(key)
    problem = dataclasses.replace(problem, tolerance=1e-8, max_steps=256)
    plain = _loss(Method(), problem, model, batch)
    augmented, quadrature = (
        _loss(
            Method(way=methods.derivative(2, by), weight=300.0), problem, model, batch
        )
        for by in (dsr.augmented(), dsr.gauss_legendre(8))
    )
    assert augmented > 1.01 * plain
    np.testing.assert_allclose(quadrature - plain, augmented - plain, rtol=1e-3)


def test_loss_in_equal_steps(key):
    """Many steps agree with an adaptive solve. The penalty is added."""
    model, problem, batch = _digits(key)
    solver = dsr.TaylorLagrangeSolver(2)
    losses = [
        _loss(Method(solver, num_steps=50, weight=w), problem, model, batch)
        for w in (0.0, 3.0)
    ]
    np.testing.assert_allclose(
        losses[0], _loss(Method(), problem, model, batch), rtol=1e-4
    )
    solution: Any = Method(solver, num_steps=50).solve(problem, model, solver, batch)
    penalty = solution.solver_state.absolute_midpoint_penalty
    np.testing.assert_allclose(losses[1] - losses[0], 3 * penalty, rtol=1e-6)


@pytest.mark.parametrize("name", ways.WAYS)
def test_ways(name, key):
    """Each way solves, with a regularizer that is positive if it has a weight."""
    model, problem, batch = _digits(key)
    way = ways.WAYS[name] or methods.derivative(1)
    solution, integral = eqx.filter_jit(lambda: way(problem, model, batch))()
    assert jnp.isfinite(problem.loss(model, solution, batch))
    assert integral > 0 or name in ways.UNWEIGHTED


class _Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, y, args=None):
        return y @ self.matrix.T


@pytest.mark.parametrize("size", (2, 6))
def test_linear_flow_is_normal(size, key):
    """The density is normal, with the inverse of exp(A) as the factor.

    The trace of more than two entries is estimated, exactly for a diagonal matrix.
    """
    matrix = 0.5 * jr.normal(key, (size, size))
    matrix = matrix if size == 2 else jnp.diag(jnp.diag(matrix))
    samples = jr.normal(key, (5, size))
    problem = flows.flow_problem("moons", flows.FlowOptions(), key)
    problem = dataclasses.replace(problem, tolerance=1e-9)
    field: Any = _Linear(matrix)
    solution = problem.solve(field, Batch(samples, key), max_steps=1024)
    inverse = jnp.linalg.inv(jax.scipy.linalg.expm(matrix))
    normal = jax.scipy.stats.multivariate_normal
    expected = normal.logpdf(samples, jnp.zeros(size), inverse @ inverse.T)
    np.testing.assert_allclose(flows.log_likelihood(solution), expected, rtol=1e-6)


@pytest.mark.parametrize("size", (3, 6))
def test_traces(size, key):
    field = flows.Field(size, 5, 2, jnp.tanh, key=key)
    y = jr.normal(key, (4, size))
    at_time = lambda y: field(0.7, y)
    value, trace = flows.exact_trace(at_time, y)
    jacobians = jax.vmap(jax.jacrev(lambda x: at_time(x[None])[0]))(y)
    expected = jnp.trace(jacobians, axis1=1, axis2=2)
    assert tree_allclose(value, at_time(y), **tolerance(y.dtype, 100))
    assert tree_allclose(trace, expected, **tolerance(y.dtype, 1000))
    signs = jnp.sign(jr.normal(key, (4000, 1, size)))
    estimates = jax.vmap(
        lambda s: flows.estimated_trace(at_time, y, jnp.broadcast_to(s, y.shape))[1]
    )(signs)
    np.testing.assert_allclose(jnp.mean(estimates, axis=0), expected, atol=0.05)


def test_regularizer_of_samples(key):
    """The integrand is that of the samples' own equation."""
    field = flows.Field(3, 5, 2, jnp.tanh, key=key)
    samples = jr.normal(key, (4, 3))
    p = flows.equation(field, Batch(samples))
    regularizer = flows.OfSamples(field, dsr.DerivativeNorm(2))
    slope, value = regularizer.evaluate(p.term, 0.3, p.y0, None)
    expected = p.term.vf(0.3, p.y0, None)
    assert tree_allclose(slope, expected, **tolerance(samples.dtype))
    tangents = jnp.asarray(1.0), expected.samples
    _, second = jax.jvp(field, (jnp.asarray(0.3), samples), tangents)
    np.testing.assert_allclose(value, jnp.mean(second**2), rtol=1e-12)


def _series():
    rng = np.random.default_rng(0)
    shape = 2, 5, 3
    return latent.Series(rng.uniform(size=shape), rng.uniform(size=shape) < 0.5)


def test_encoder_ignores_entries_that_were_not_observed(key):
    encoder, ts, series = latent.Encoder(3, key=key), jnp.linspace(0, 1, 5), _series()
    values, mask = jnp.asarray(series.values[0]), jnp.asarray(series.mask[0])
    mask = mask.at[2].set(False)
    expected = encoder(ts, values, mask)
    garbage = jnp.where(mask, values, jnp.nan)
    np.testing.assert_array_equal(encoder(ts, garbage, mask).mean, expected.mean)
    # A time at which nothing was observed may be left out.
    rest = jnp.array([0, 1, 3, 4])
    without = encoder(ts[rest], values[rest], mask[rest])
    np.testing.assert_allclose(without.mean, expected.mean, rtol=1e-12)
    changed = values.at[tuple(jnp.argwhere(mask)[0])].add(0.1)
    assert not np.allclose(encoder(ts, changed, mask).mean, expected.mean, rtol=1e-6)


def test_bound():
    """The loss is the negative logarithm of a mean of likelihoods."""
    series, errors = _series(), np.array([0.0, 0.02, 0.03])[:, None, None, None]
    start = latent.Gaussian(jnp.ones((2, 20)), jnp.ones((2, 20)))
    # Predictions for the other entries do not matter.
    predicted = jnp.asarray(np.where(series.mask, series.values + errors, 1e3))
    constant = -np.log(latent.DEVIATION * np.sqrt(2 * np.pi))
    logs = constant - np.array([0.0, 2.0, 4.5])
    np.testing.assert_allclose(latent.log_likelihood(predicted, series), logs)
    expected = 0.3 * 0.5 - np.log(np.exp(logs).mean())
    np.testing.assert_allclose(latent.bound(predicted, series, start, 0.3), expected)


@pytest.mark.parametrize("factor", (1.0, 5.0))
@pytest.mark.parametrize("name", ("vanderpol", "brusselator"))
def test_data_solve_the_equation(name, factor, key):
    """The data agree with SciPy's solver, on the last half of a trajectory."""
    vector_field = getattr(dynamics, name)
    system = getattr(dynamics, name.upper()).longer(factor)
    states = np.asarray(system.draw(key, 2))
    assert states.shape == (2, system.num_steps + 1, 2)
    middle = system.num_steps // 2
    for trajectory in states:
        solution = solve_ivp(
            lambda t, y: np.asarray(vector_field(t, jnp.asarray(y), None)),
            (0, system.step * (system.num_steps - middle)),
            trajectory[middle],
            method="LSODA",
            rtol=1e-10,
            atol=1e-12,
        )
        np.testing.assert_allclose(trajectory[-1], solution.y[:, -1], atol=1e-6)


def test_rk4_has_order_4():
    term, errors = dfx.ODETerm(lambda t, y, args: y * jnp.cos(t)), []
    for steps in (10, 20):
        y0 = jnp.ones(1)
        solution = dsr.fixed_step_solve(term, dynamics.RK4(), 0.0, 2.0, steps, y0)
        errors.append(abs(float(final_state(solution)[0]) - math.exp(np.sin(2.0))))
    assert 3.7 < np.log2(errors[0] / errors[1]) < 4.3


def test_fastest():
    """There are as many pairs as in a batch, from all batches."""
    size = dynamics.BATCH_SIZE
    before = np.random.default_rng(0).normal(size=(3, size, 2))
    moved = np.random.default_rng(1).permutation(3 * size).reshape(3, size, 1)
    after = before + np.array([1, -1]) * moved
    batches = [Batch(dynamics.Pairs(*pair)) for pair in zip(before, after)]
    chosen = dynamics.fastest(batches).data
    actual = np.sort(np.abs(chosen.after - chosen.before)[:, 0])
    np.testing.assert_allclose(actual, np.arange(2 * size, 3 * size), rtol=1e-9)


# Relative errors of one step, to two digits and for other samples. They are computed
# without this package, from the definitions of the paper's reference implementation.
_published = {(2, 0.01): 7.0e-8, (2, 0.3): 3.1e-3, (3, 0.05): 1.4e-7}


@pytest.mark.parametrize("degree, step", _published)
def test_midpoints(degree, step):
    y0 = midpoints.initial_states(jr.key(1))
    solver = midpoints.trained(degree, step, 400, jr.key(0))
    error = midpoints.relative_error(solver, step, y0)
    assert error == pytest.approx(_published[degree, step], rel=0.05)
    modes = midpoints.of_modes(midpoints.midpoints_of_modes(degree, step))
    exact = midpoints.solver_with(degree, "matrix", modes.reshape(-1))
    # This is round-off of numbers that grow with the powers of A h.
    largest = max(1.0, (1000 * step) ** (degree + 1))
    assert midpoints.relative_error(exact, step, y0) < 1e-16 * largest


def test_cheapest_is_not_one_that_learned_nothing():
    rows = [dict(error=e, nfe=dict(Heun=n)) for e, n in ((0.1, 100), (0.2, 20))]
    assert toy.cheapest(rows, "Heun") is rows[0]
    rows.append(dict(error=0.105, nfe=dict(Heun=60)))
    assert toy.cheapest(rows, "Heun") is rows[2]
