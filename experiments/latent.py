"""A latent ODE of irregular time series: a recurrent encoder, a field, a decoder."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from .problem import Scalar


LATENT, RECURRENT, UNITS = 20, 40, 50
# The deviation of the observations from the predictions.
DEVIATION = 0.01
Module = TypeVar("Module", bound=eqx.Module)
Trajectories = Float[Array, "trajectories latent"]
Predicted = Float[Array, "samples patients times features"]


class Series(eqx.Module):
    """Time series of patients, all at the same times, with a mask of observations."""

    values: Float[Array | np.ndarray, "patients times features"]
    mask: Bool[Array | np.ndarray, "patients times features"]


class Gaussian(eqx.Module):
    """Independent normal distributions."""

    mean: Float[Array, "..."]
    deviation: Float[Array, "..."]

    def sample(self, key: Key[Array, ""], num_samples: int) -> Float[Array, "..."]:
        noise = jr.normal(key, (num_samples, *self.mean.shape), self.mean.dtype)
        return self.mean[None] + self.deviation[None] * noise

    def divergence(self) -> Scalar:
        """Computes the mean divergence (Kullback-Leibler) from the standard normal
        distribution."""
        variance = self.deviation**2
        return jnp.mean(variance + self.mean**2 - 1 - jnp.log(variance)) / 2


class Memory(eqx.Module):
    """State of an encoder: two vectors, and the time of the last observation.

    The papers call the vectors a mean and a deviation.
    """

    mean: Float[Array, " recurrent"]
    deviation: Float[Array, " recurrent"]
    time: Scalar


class RecurrentUnit(eqx.Module):
    """A gated recurrent unit with two layers in each gate."""

    update: eqx.nn.MLP
    reset: eqx.nn.MLP
    candidate: eqx.nn.MLP

    def __init__(self, num_features: int, *, key: Key[Array, ""]):
        # Inputs: the vectors of the memory, values, their mask, and the time passed.
        inputs = 2 * RECURRENT + 2 * num_features + 1
        first, second, third = jr.split(key, 3)
        gate = lambda key: eqx.nn.MLP(
            inputs, RECURRENT, UNITS, 1, jnp.tanh, jax.nn.sigmoid, key=key
        )
        self.update, self.reset = gate(first), gate(second)
        self.candidate = eqx.nn.MLP(
            inputs, 2 * RECURRENT, UNITS, 1, jnp.tanh, key=third
        )

    def __call__(
        self,
        memory: Memory,
        time: Scalar,
        values: Float[Array, " features"],
        mask: Bool[Array, " features"],
    ) -> Memory:
        """Computes the memory after an observation. It stays the same without one."""
        observed = jnp.where(mask, values, 0)
        inputs = [observed, mask.astype(observed.dtype), memory.time[None] - time]
        everything = jnp.concatenate([memory.mean, memory.deviation, *inputs])
        keep, reset = self.update(everything), self.reset(everything)
        vectors = memory.mean * reset, memory.deviation * reset
        mean, deviation = jnp.split(
            self.candidate(jnp.concatenate([*vectors, *inputs])), 2
        )
        new = Memory(
            keep * memory.mean + (1 - keep) * mean,
            keep * memory.deviation + (1 - keep) * jnp.abs(deviation),
            time,
        )
        return jax.tree.map(lambda n, m: jnp.where(mask.any(), n, m), new, memory)


class Encoder(eqx.Module):
    """Network that reads a time series from its end to its start."""

    unit: RecurrentUnit
    readout: eqx.nn.MLP

    def __init__(self, num_features: int, *, key: Key[Array, ""]):
        unit_key, readout_key = jr.split(key)
        self.unit = RecurrentUnit(num_features, key=unit_key)
        self.readout = eqx.nn.MLP(
            2 * RECURRENT, 2 * LATENT, UNITS, 1, jnp.tanh, key=readout_key
        )

    def __call__(
        self,
        ts: Float[Array, " times"],
        values: Float[Array, "times features"],
        mask: Bool[Array, "times features"],
    ) -> Gaussian:
        def step(memory: Memory, inputs: tuple[Array, Array, Array]):
            return self.unit(memory, *inputs), None

        nothing = jnp.zeros(RECURRENT, ts.dtype)
        memory = Memory(nothing, nothing, ts[-1])
        memory, _ = jax.lax.scan(step, memory, (ts, values, mask), reverse=True)
        vectors = jnp.concatenate([memory.mean, memory.deviation])
        mean, deviation = jnp.split(self.readout(vectors), 2)
        return Gaussian(mean, jnp.abs(deviation))


class Field(eqx.Module):
    """Autonomous vector field of all trajectories, as one state."""

    mlp: eqx.nn.MLP

    def __call__(self, t: Any, z: Trajectories, args: None) -> Trajectories:
        return jax.vmap(self.mlp)(jnp.tanh(z))


def redrawn(
    module: Module, key: Key[Array, ""], deviation: float | None = None
) -> Module:
    """Redraws the layers of a module as in the papers: normal weights, no biases.

    **Arguments:**

    - `deviation`: the deviation of the weights; by default 1 / sqrt(n) for a layer of n
        inputs.
    """
    is_layer = lambda x: isinstance(x, eqx.nn.Linear)

    def layers(module: Module) -> list[eqx.nn.Linear]:
        return list(filter(is_layer, jax.tree.leaves(module, is_leaf=is_layer)))

    def draw(layer: eqx.nn.Linear, key: Key[Array, ""]) -> eqx.nn.Linear:
        size = layer.weight.shape[1] ** -0.5 if deviation is None else deviation
        weight = size * jr.normal(key, layer.weight.shape, layer.weight.dtype)
        new = weight, jnp.zeros(layer.weight.shape[:1], layer.weight.dtype)
        return eqx.tree_at(lambda x: (x.weight, x.bias), layer, new)

    old = layers(module)
    return eqx.tree_at(layers, module, list(map(draw, old, jr.split(key, len(old)))))


class LatentODE(eqx.Module):
    encoder: Encoder
    field: Field
    decoder: eqx.nn.Linear

    def __init__(self, num_features: int, *, key: Key[Array, ""]):
        encoder_key, field_key, decoder_key = jr.split(key, 3)
        encoder = Encoder(num_features, key=encoder_key)
        field = Field(eqx.nn.MLP(LATENT, LATENT, UNITS, 4, jnp.tanh, key=field_key))
        decoder = eqx.nn.Linear(LATENT, num_features, key=decoder_key)
        self.encoder = redrawn(encoder, encoder_key, 0.1)
        self.field = redrawn(field, field_key)
        self.decoder = redrawn(decoder, decoder_key, 0.1)

    def encode(self, ts: Float[Array, " times"], series: Series) -> Gaussian:
        values, mask = jnp.asarray(series.values, ts.dtype), jnp.asarray(series.mask)
        return jax.vmap(self.encoder, in_axes=(None, 0, 0))(ts, values, mask)

    def decode(
        self, z: Float[Array, "times trajectories latent"], num_samples: int
    ) -> Predicted:
        values = jax.vmap(jax.vmap(self.decoder))(z)
        times, _, features = values.shape
        values = values.reshape(times, num_samples, -1, features)
        return jnp.moveaxis(values, 0, 2)


def log_likelihood(predicted: Predicted, series: Series) -> Float[Array, " samples"]:
    """Computes the mean log-density of the observations, for each sample."""
    density = jax.scipy.stats.norm.logpdf(series.values[None], predicted, DEVIATION)
    total = jnp.sum(density, axis=(1, 2, 3), where=series.mask[None])
    return total / jnp.sum(series.mask, dtype=total.dtype)


def squared_errors(predicted: Predicted, series: Series) -> Scalar:
    """Computes the sum of squared errors over the observations, mean of the samples."""
    errors = jnp.mean((predicted - series.values[None]) ** 2, axis=0)
    return jnp.sum(errors, where=series.mask)


def bound(
    predicted: Predicted,
    series: Series,
    start: Gaussian,
    weight: Scalar | np.ndarray | float,
) -> Scalar:
    r"""Computes the loss, like the negative bound of importance-weighted autoencoders.

    It is $-\log \frac{1}{S} \sum_s \exp(\log p(x \mid z_s) - w D)$ with the mean
    log-likelihood of the observations, and the mean divergence of the starts.
    """
    exponents = log_likelihood(predicted, series) - weight * start.divergence()
    return jnp.log(len(exponents)) - jax.nn.logsumexp(exponents)
