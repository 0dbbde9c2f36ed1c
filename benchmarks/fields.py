"""Vector fields of neural ODEs: those of the papers, and of others' benchmarks.

Each is a function `field(params, t, y) -> dy` that all contestants can use.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Key

from .problem import dense, Linear, linear, Problem


def blocks(activation: Callable[[Array], Array], batch: int, key: Key) -> Problem:
    """Two blocks of two layers, dimension and widths 100.

    The neural ODE of [probdiffeq](https://github.com/pnkraemer/probdiffeq)'s benchmark
    of Taylor series, `benchmarks/C1_taylor-init-node.py`, where the activation is
    `tanh`. There the weights are 10 times as large, with which the square of the eighth
    derivative overflows in single precision.
    """
    params_key, y_key = jr.split(key)

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        del t
        for layer in params:
            y = activation(layer(y))
        return y

    params = dense(params_key, 100, 100, 100, 100, 100)
    y = jr.uniform(y_key, (batch, 100))
    return Problem(field, params, y, jnp.array(0.5), autonomous=True)


def mnist(batch: int, key: Key) -> Problem:
    """784-100-784, with the time and a sigmoid before each layer.

    The network that TayNODE and TL-NODE classify MNIST with: `MLPDynamics` in
    [easy-neural-ode](https://github.com/jacobjinkelly/easy-neural-ode)'s `mnist.py`.
    """
    params_key, y_key = jr.split(key)
    hidden_key, output_key = jr.split(params_key)

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        for layer in params:
            y = layer(_with_time(t, jax.nn.sigmoid(y)))
        return y

    params = [
        linear(hidden_key, 785, 785, 100),
        linear(output_key, 101, 101, 784),
    ]
    y = jr.uniform(y_key, (batch, 784))
    return Problem(field, params, y, jnp.array(0.5), autonomous=False)


class ConcatSquash(NamedTuple):
    """A layer that time scales and shifts."""

    layer: Linear
    gate: Linear
    shift: Float[Array, " out"]

    def __call__(
        self, t: Float[Array, ""], y: Float[Array, "batch in"]
    ) -> Float[Array, "batch out"]:
        gate = jax.nn.sigmoid(t * self.gate.weight + self.gate.bias)
        return self.layer(y) * gate + t * self.shift


def ffjord(batch: int, key: Key) -> Problem:
    """43-860-860-43 with softplus, and Hutchinson's estimate of the divergence.

    The state is that of a continuous normalizing flow, a sample and its log-density:
    FFJORD for MINIBOONE, as in easy-neural-ode's `ffjord_tabular.py`. The noise of the
    estimate is among the parameters, and the same at all times.
    """
    dim, hidden = 43, 20 * 43
    widths = (dim, hidden, hidden, dim)
    layers_key, gates_key, shifts_key, noise_key, y_key = jr.split(key, 5)

    def velocity(layers: list[ConcatSquash], t: Array, z: Array) -> Array:
        for layer in layers[:-1]:
            z = jax.nn.softplus(layer(t, z))
        return layers[-1](t, z)

    def field(params: dict[str, Any], t: Array, y: tuple) -> tuple[Array, Array]:
        z, _ = y
        noise = params["noise"]
        flow = functools.partial(velocity, params["layers"], t)
        dz, tangent = jax.jvp(flow, (z,), (noise,))
        return dz, -jnp.sum(tangent * noise, axis=1)

    gate_keys = jr.split(gates_key, len(widths) - 1)
    shift_keys = jr.split(shifts_key, len(widths) - 1)
    layers = [
        ConcatSquash(layer, linear(gate_key, 1, width), jr.normal(shift_key, (width,)))
        for layer, gate_key, shift_key, width in zip(
            dense(layers_key, *widths), gate_keys, shift_keys, widths[1:]
        )
    ]
    params = {"layers": layers, "noise": jr.normal(noise_key, (batch, dim))}
    y = jr.normal(y_key, (batch, dim)), jnp.zeros(batch)
    return Problem(field, params, y, jnp.array(0.5), autonomous=False)


def conv(batch: int, key: Key) -> Problem:
    """Convolutions of 28x28 images, 3x3, with 16, 16 and 1 channels and tanh.

    A small relative of the network of easy-neural-ode's `ffjord_mnist.py`: time is one
    more channel of each layer's input.
    """
    channels = (1, 16, 16, 1)
    params_key, y_key = jr.split(key)

    def convolve(layer: Linear, t: Array, y: Array) -> Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        out = lax.conv_general_dilated(
            _with_time(t, y), layer.weight, (1, 1), "SAME", dimension_numbers=numbers
        )
        return out + layer.bias

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        for layer in params[:-1]:
            y = jnp.tanh(convolve(layer, t, y))
        return convolve(params[-1], t, y)

    params = [
        linear(k, 9 * (a + 1), 3, 3, a + 1, b)
        for k, a, b in zip(jr.split(params_key, 3), channels, channels[1:])
    ]
    y = jr.uniform(y_key, (batch, 28, 28, 1))
    return Problem(field, params, y, jnp.array(0.5), autonomous=False)


def _with_time(t: Float[Array, ""], y: Array) -> Array:
    """Time as one more feature, or channel: the first one."""
    time = jnp.full((*y.shape[:-1], 1), t, y.dtype)
    return jnp.concatenate([time, y], axis=-1)
