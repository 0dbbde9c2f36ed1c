"""A latent ODE of irregular time series: a recurrent encoder, a field, a decoder."""

from collections.abc import Callable
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Key, PyTree


LATENT, RECURRENT, UNITS, WIDTH = 20, 40, 50, 50
# Of what is observed, around what is predicted.
DEVIATION = 0.01
SOLVER = dfx.Dopri5()


class Series(NamedTuple):
    """Time series of patients, all at the same times; observed where the mask is."""

    values: Float[Array | np.ndarray, "patients times features"]
    mask: Bool[Array | np.ndarray, "patients times features"]


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Float[Array, "..."]
    deviation: Float[Array, "..."]

    def sample(self, key: Key[Array, ""], num_samples: int) -> Float[Array, "..."]:
        shape = num_samples, *self.mean.shape
        return self.mean + self.deviation * jr.normal(key, shape, self.mean.dtype)

    def divergence(self) -> Float[Array, ""]:
        """From the standard normal distribution (Kullback-Leibler), mean of all."""
        variance = self.deviation**2
        return jnp.mean(variance + self.mean**2 - 1 - jnp.log(variance)) / 2


class Memory(NamedTuple):
    """What an encoder has gathered: two vectors, and when it was last told something.

    The papers call the vectors a mean and a deviation.
    """

    mean: Float[Array, " recurrent"]
    deviation: Float[Array, " recurrent"]
    time: Float[Array, ""]


class RecurrentUnit(eqx.Module):
    """A gated recurrent unit with two layers in each gate."""

    update: eqx.nn.MLP
    reset: eqx.nn.MLP
    candidate: eqx.nn.MLP

    def __init__(self, num_features: int, *, key: Key[Array, ""]):
        # The vectors of the memory, values, their mask, and the time that has passed.
        inputs = 2 * RECURRENT + 2 * num_features + 1
        keys = jr.split(key, 3)
        gate = [
            eqx.nn.MLP(inputs, RECURRENT, UNITS, 1, jnp.tanh, jax.nn.sigmoid, key=k)
            for k in keys[:2]
        ]
        self.update, self.reset = gate
        self.candidate = eqx.nn.MLP(
            inputs, 2 * RECURRENT, UNITS, 1, jnp.tanh, key=keys[2]
        )

    def __call__(
        self,
        memory: Memory,
        time: Float[Array, ""],
        values: Float[Array, " features"],
        mask: Bool[Array, " features"],
    ) -> Memory:
        """What is remembered after an observation; the same if nothing was observed."""
        observed = jnp.where(mask, values, 0)
        told = [observed, mask.astype(observed.dtype), memory.time[None] - time]
        everything = jnp.concatenate([memory.mean, memory.deviation, *told])
        keep, reset = self.update(everything), self.reset(everything)
        vectors = memory.mean * reset, memory.deviation * reset
        candidate = self.candidate(jnp.concatenate([*vectors, *told]))
        mean, deviation = jnp.split(candidate, 2)
        new = Memory(
            keep * memory.mean + (1 - keep) * mean,
            keep * memory.deviation + (1 - keep) * jnp.abs(deviation),
            time,
        )
        return jax.tree.map(lambda n, m: jnp.where(mask.any(), n, m), new, memory)


class Encoder(eqx.Module):
    """Reads a time series from its end to its start, where the latent one starts."""

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
        def step(memory: Memory, told: tuple[Array, Array, Array]):
            return self.unit(memory, *told), None

        nothing = jnp.zeros(RECURRENT, ts.dtype)
        memory = Memory(nothing, nothing, ts[-1])
        memory, _ = lax.scan(step, memory, (ts, values, mask), reverse=True)
        vectors = jnp.concatenate([memory.mean, memory.deviation])
        mean, deviation = jnp.split(self.readout(vectors), 2)
        return Gaussian(mean, jnp.abs(deviation))


class Field(eqx.Module):
    """The autonomous field of all trajectories, as one state."""

    mlp: eqx.nn.MLP

    def __call__(
        self,
        t: Float[ArrayLike, ""],
        z: Float[Array, "trajectories latent"],
        args: None,
    ) -> Float[Array, "trajectories latent"]:
        return jax.vmap(self.mlp)(jnp.tanh(z))


class LatentODE(eqx.Module):
    encoder: Encoder
    field: Field
    decoder: eqx.nn.Linear

    def __init__(self, num_features: int, *, key: Key[Array, ""]):
        encoder_key, field_key, decoder_key = jr.split(key, 3)
        self.encoder = Encoder(num_features, key=encoder_key)
        self.field = Field(
            eqx.nn.MLP(LATENT, LATENT, WIDTH, 4, jnp.tanh, key=field_key)
        )
        self.decoder = eqx.nn.Linear(LATENT, num_features, key=decoder_key)

    def encode(self, ts: Float[Array, " times"], series: Series) -> Gaussian:
        return jax.vmap(self.encoder, in_axes=(None, 0, 0))(ts, *series)

    def decode(
        self, z: Float[Array, "times trajectories latent"], num_samples: int
    ) -> Float[Array, "samples patients times features"]:
        values = jax.vmap(jax.vmap(self.decoder))(z)
        times, _, features = values.shape
        values = values.reshape(times, num_samples, -1, features)
        return jnp.moveaxis(values, 0, 2)


class Adaptive(NamedTuple):
    """How the equation of a batch is solved: as one, from samples of its starts."""

    ts: Float[Array, " times"]
    tolerance: float
    max_steps: int
    num_samples: int = 3

    def start(
        self, model: LatentODE, series: Series, key: Key[Array, ""]
    ) -> tuple[Gaussian, Float[Array, "trajectories latent"]]:
        """Where trajectories start: the distributions, and samples from them."""
        distribution = model.encode(self.ts, series)
        z0 = distribution.sample(key, self.num_samples)
        return distribution, z0.reshape(-1, LATENT)

    def solve(
        self,
        term: dfx.AbstractTerm,
        y0: Float[Array, "trajectories latent"] | dsr.SpeedState,
        saveat: dfx.SaveAt | None = None,
        norm: Callable[[PyTree[Array]], Array] = optx.rms_norm,
    ) -> dfx.Solution:
        """Saves the states at all times, unless it is told to save others."""
        return dfx.diffeqsolve(
            term,
            SOLVER,
            self.ts[0],
            self.ts[-1],
            None,
            y0,
            saveat=dfx.SaveAt(ts=self.ts) if saveat is None else saveat,
            stepsize_controller=dfx.PIDController(
                rtol=self.tolerance, atol=self.tolerance, norm=norm
            ),
            max_steps=self.max_steps,
        )


def states(solution: dfx.Solution) -> PyTree[Array]:
    assert solution.ys is not None
    return solution.ys


def log_likelihood(
    predicted: Float[Array, "samples patients times features"], series: Series
) -> Float[Array, " samples"]:
    """The mean log-density of what was observed, for each sample."""
    density = jax.scipy.stats.norm.logpdf(series.values, predicted, DEVIATION)
    total = jnp.sum(density, axis=(1, 2, 3), where=series.mask)
    return total / jnp.sum(series.mask)


def squared_errors(
    predicted: Float[Array, "samples patients times features"], series: Series
) -> Float[Array, ""]:
    """The sum over what was observed, mean of the samples."""
    errors = jnp.mean((predicted - series.values) ** 2, axis=0)
    return jnp.sum(errors, where=series.mask)


def bound(
    predicted: Float[Array, "samples patients times features"],
    series: Series,
    start: Gaussian,
    weight: Float[ArrayLike, ""],
) -> Float[Array, ""]:
    r"""The loss, like importance-weighted autoencoders' negative bound.

    $-\log \frac{1}{S} \sum_s \exp(\log p(x \mid z_s) - w D)$ with the mean
    log-likelihood of the observations, and the mean divergence of the starts.
    """
    exponents = log_likelihood(predicted, series) - weight * start.divergence()
    return jnp.log(len(exponents)) - jax.nn.logsumexp(exponents)
