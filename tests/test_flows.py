"""Continuous normalizing flows, against closed forms."""

import itertools
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from experiments import data, flow_training, flows
from experiments.flow_training import Adaptive, Batch
from experiments.flows import Field, FlowState

from .helpers import tolerance, tree_allclose


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

_dtypes = pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))


def _field(key, size=3, width=5, dtype=jnp.float64, scale=1.0):
    field = Field(size, width, 2, jax.nn.softplus, key=key)
    return jax.tree.map(
        lambda x: (scale * x).astype(dtype) if eqx.is_array(x) else x, field
    )


def _adaptive(dtype):
    tolerance = 1e-10 if dtype == jnp.float64 else 1e-6
    return Adaptive(dfx.Dopri5(), tolerance, max_steps=256)


@_dtypes
def test_concat_squash(key, dtype):
    layer = jax.tree.map(lambda x: x.astype(dtype), flows.ConcatSquash(2, 4, key=key))
    y = jr.normal(key, (3, 2), dtype)
    actual = layer(jnp.array([0.3], dtype), y)
    gate = jax.nn.sigmoid(layer.gate.weight[:, 0] * dtype(0.3) + layer.gate.bias)
    linear = jnp.einsum("oi,bi->bo", layer.linear.weight, y) + layer.linear.bias[None]
    expected = linear * gate[None] + dtype(0.3) * layer.shift.weight[:, 0][None]
    assert tree_allclose(actual, expected, **tolerance(dtype, 100))


@_dtypes
def test_exact_trace(key, dtype):
    field = _field(key, dtype=dtype)
    y = jr.normal(key, (4, 3), dtype)
    at_time = lambda y: field(0.7, y)
    value, trace = flows.exact_trace(at_time, y)
    jacobians = jax.vmap(jax.jacrev(lambda x: at_time(x[None])[0]))(y)
    expected = jnp.trace(jacobians, axis1=1, axis2=2)
    assert tree_allclose(value, at_time(y), **tolerance(dtype, 100))
    assert tree_allclose(trace, expected, **tolerance(dtype, 100))


def test_estimated_trace_is_unbiased(key):
    """Over all signs there are, its mean is the trace."""
    field = _field(key)
    y = jr.normal(key, (4, 3))
    at_time = lambda y: field(0.7, y)
    _, expected = flows.exact_trace(at_time, y)
    signs = jnp.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    estimates = jnp.stack(
        [
            flows.estimated_trace(at_time, y, jnp.broadcast_to(noise, y.shape))[1]
            for noise in signs
        ]
    )
    assert jnp.std(estimates, axis=0).min() > 1e-3
    assert tree_allclose(jnp.mean(estimates, axis=0), expected, **tolerance(y.dtype))


class _Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, y, args=None):
        return y @ self.matrix.T


@_dtypes
@pytest.mark.parametrize("exact", (False, True))
def test_linear_flow_is_normal(key, dtype, exact):
    """Of the normal distribution with the inverse of exp(A) as the factor."""
    matrix = 0.5 * jr.normal(key, (3, 3), dtype)
    if not exact:
        # The estimate from signs is exact for a diagonal.
        matrix = jnp.diag(jnp.diag(matrix))
    samples, noise = jr.normal(key, (2, 5, 3), dtype)
    noise = None if exact else jnp.sign(noise)
    field: Any = _Linear(matrix)
    ivp = flows.problem(field, samples, noise)
    final = dsr.final_state(_adaptive(dtype).solve(ivp))
    inverse = jnp.linalg.inv(jax.scipy.linalg.expm(matrix))
    expected = jax.vmap(
        lambda x: jax.scipy.stats.multivariate_normal.logpdf(
            x, jnp.zeros(3, dtype), inverse @ inverse.T
        )
    )(samples)
    accuracy = 1e-8 if dtype == jnp.float64 else 1e-4
    assert tree_allclose(
        flows.log_likelihood(final), expected, rtol=accuracy, atol=accuracy
    )


@_dtypes
def test_generated_samples_have_their_density(key, dtype):
    """The likelihood of a sample is the density that came with it."""
    field = _field(key, dtype=dtype)
    adaptive = _adaptive(dtype)
    samples, log_density = flows.generate(field, adaptive.solve, key, 6)
    assert samples.shape == (6, 3) and samples.dtype == log_density.dtype == dtype
    final = dsr.final_state(adaptive.solve(flows.problem(field, samples)))
    accuracy = 1e-8 if dtype == jnp.float64 else 1e-4
    actual = flows.log_likelihood(final)
    assert tree_allclose(actual, log_density, rtol=accuracy, atol=accuracy)
    base = jr.normal(key, (6, 3), dtype)
    assert tree_allclose(final.samples, base, rtol=accuracy, atol=accuracy)


def test_density_integrates_to_one(key):
    field = _field(key, size=2, width=8, scale=2.0)
    extent, points = 12.0, 241
    log_density = flow_training.density_on_grid(
        field, Adaptive(dfx.Dopri5(), 1e-8, 256).solve, extent, points
    )
    cell = (2 * extent / (points - 1)) ** 2
    density = jnp.exp(log_density)
    border = [density[0], density[-1], density[:, 0], density[:, -1]]
    assert jnp.concatenate(border).max() < 1e-6 * density.max()
    np.testing.assert_allclose(jnp.sum(density) * cell, 1, rtol=1e-5)
    # By rows of equal ordinates.
    point = jnp.array([[-extent + 7 * 0.1, -extent + 100 * 0.1]])
    final = dsr.final_state(_adaptive(jnp.float64).solve(flows.problem(field, point)))
    actual = flows.log_likelihood(final)[0]
    np.testing.assert_allclose(actual, log_density[100, 7], rtol=1e-6)


class _OfSamples(dsr.AbstractRegularizer):
    """A regularizer of a flow's samples, to integrate beside the whole state."""

    field: Field
    regularizer: dsr.AbstractRegularizer

    def evaluate(self, term, t, y, args):
        moving = dfx.ODETerm(self.field)
        _, value = self.regularizer.evaluate(moving, t, y.samples, None)
        return term.vf(t, y, args), value


@pytest.mark.parametrize("rnode", (False, True))
def test_loss_by_quadrature(key, rnode):
    """As with the regularizer integrated beside the solution, and without it."""
    field = _field(key)
    batch = Batch(jr.normal(key, (4, 3)), jnp.sign(jr.normal(key, (4, 3))))
    adaptive = _adaptive(jnp.float64)
    jacobian = dsr.JacobianNorm.draw(key, batch.samples)
    regularizer = dsr.Speed(1) + 0.3 * jacobian if rnode else dsr.Speed(2)
    plain = adaptive.loss(None)(field, batch, key)
    actual = adaptive.loss(lambda key, batch: regularizer, 10.0, 8)(field, batch, key)
    ivp = flow_training.problem(field, batch)
    term = dsr.SpeedRegularizedTerm(
        ivp.term, regularizer=_OfSamples(field, regularizer)
    )
    augmented = dsr.InitialValueProblem(
        term, term.init(ivp.y0), ivp.t0, ivp.t1, ivp.args
    )
    solution = dsr.solve_adaptive(augmented, dfx.Dopri5(), 1e-10)
    final, integral = term.split(dsr.final_state(solution))
    nll = flow_training.negative_log_likelihood(field, final, batch)
    assert integral > 1e-4
    np.testing.assert_allclose(nll, plain, rtol=1e-8)
    np.testing.assert_allclose(actual - plain, 10 * integral, rtol=1e-6)


def test_taylor_lagrange_converges_to_the_flow(key):
    """With third order in the steps, the untrained network's for p = 2."""
    field = _field(key)
    batch = Batch(jr.normal(key, (4, 3)), jnp.sign(jr.normal(key, (4, 3))))
    ivp = flow_training.problem(field, batch)
    expected = dsr.final_state(_adaptive(jnp.float64).solve(ivp))
    solver = flow_training.taylor_lagrange(3, key=key)

    def error(steps):
        actual = dsr.final_state(dsr.solve_fixed(ivp, solver, steps))
        assert isinstance(actual, FlowState)
        return jnp.abs(actual.log_density - expected.log_density).max()

    assert error(8) / error(16) == pytest.approx(8, rel=0.3)


def test_measure(key):
    field = _field(key)
    samples = jr.normal(key, (4, 3))
    adaptive = _adaptive(jnp.float64)
    nll, nfe = adaptive.measure(field, samples)
    solution = dsr.solve_adaptive(flows.problem(field, samples), dfx.Dopri5(), 1e-10)
    likelihood = flows.log_likelihood(dsr.final_state(solution))
    np.testing.assert_allclose(nll, -jnp.mean(likelihood), rtol=1e-12)
    assert nfe == 1 + 6 * solution.stats["num_steps"]


def test_noisy_batches():
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    batches, again = (flow_training.NoisyBatches(rows, 3, seed=0) for _ in range(2))
    assert batches.per_epoch == 3
    epochs = [[batches(3 * e + i) for i in range(3)] for e in (0, 1)]
    seen = [np.concatenate([b.samples[:, 0] for b in epoch]) for epoch in epochs]
    assert all(len(set(firsts.tolist())) == 9 for firsts in seen)
    assert (seen[0] != seen[1]).any()
    noise = np.stack([np.asarray(b.noise) for epoch in epochs for b in epoch])
    assert set(noise.ravel().tolist()) == {-1, 1} and noise.dtype == rows.dtype
    assert (noise[0] != noise[1]).any()
    for actual, expected in zip(again(4), batches(4)):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("sampler", (data.moons, data.pinwheel))
def test_planar_samples(sampler):
    batches = flow_training.SampledBatches(sampler, 50, seed=1)
    first, second = batches(0), batches(1)
    assert first.samples.shape == (50, 2) and first.samples.dtype == jnp.float32
    assert first.noise is None
    assert (first.samples != second.samples).all()
    again = flow_training.SampledBatches(sampler, 50, seed=1)(1)
    np.testing.assert_array_equal(again.samples, second.samples)
    # Around the origin, and almost all of it within the picture.
    many = sampler(np.random.default_rng(0), 10_000)
    assert np.abs(many.mean(axis=0)).max() < 0.1
    assert (np.abs(many) < 4).mean() > 0.99
