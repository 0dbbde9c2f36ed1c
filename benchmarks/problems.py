"""Vector fields of the papers and of others' benchmarks, with states."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree


Activation: TypeAlias = Callable[[Array], Array]
DEPTH, WIDTH = 16, 100


@dataclasses.dataclass(frozen=True)
class VectorField:
    """Vector field. An `autonomous` one ignores the time."""

    function: Callable[[Float[Array, ""], PyTree[Array]], PyTree[Array]]
    autonomous: bool

    def __call__(self, t: ArrayLike, y: PyTree[Array]) -> PyTree[Array]:
        return self.function(jnp.asarray(t), y)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Vector field `(params, t, y) -> dy` with parameters and a state.

    Contestants that have no notion of time carry it in the state, unless the field is
    `autonomous`. Gradients are taken in the arguments `argnums` of the field, if JAX
    has a `reverse` mode for it.
    """

    field: Callable[[Any, Float[Array, ""], Any], PyTree[Array]]
    params: PyTree[Array]
    y: PyTree[Array]
    autonomous: bool = True
    reverse: bool = True
    argnums: tuple[int, ...] = (0, 2)

    def bind(self, params: PyTree[Array]) -> VectorField:
        return VectorField(lambda t, y: self.field(params, t, y), self.autonomous)

    @property
    def term(self) -> dfx.ODETerm:
        """Returns the term, whose arguments are the parameters."""
        return dfx.ODETerm(lambda t, y, args: self.field(args, jnp.asarray(t), y))

    def rescale(self, factor: float) -> "Problem":
        """Multiplies the weights and biases of all layers by the factor."""

        def multiply(node: Any) -> Any:
            layer = isinstance(node, Linear)
            return Linear(*(factor * leaf for leaf in node)) if layer else node

        is_layer = lambda node: isinstance(node, Linear)
        params = jtu.tree_map(multiply, self.params, is_leaf=is_layer)
        return dataclasses.replace(self, params=params)

    def in_double(self) -> "Problem":
        """Converts to double precision, which must be enabled."""
        arrays = jtu.tree_map(np.asarray, (self.params, self.y))
        params, y = jtu.tree_map(lambda x: jnp.asarray(x, jnp.float64), arrays)
        return dataclasses.replace(self, params=params, y=y)


class Linear(NamedTuple):
    weight: Float[Array, "... out"]
    bias: Float[Array, " out"]

    def __call__(self, y: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        return y @ self.weight + self.bias


def linear(key: Key[Array, ""], fan_in: int, *shape: int) -> Linear:
    """Makes a layer with scaled weights, so that no output is large."""
    weight_key, bias_key = jr.split(key)
    weight = jr.normal(weight_key, shape) / fan_in**0.5
    return Linear(weight, jr.normal(bias_key, shape[-1:]))


def dense(key: Key[Array, ""], *widths: int) -> list[Linear]:
    keys = jr.split(key, len(widths) - 1)
    return [linear(k, a, a, b) for k, a, b in zip(keys, widths, widths[1:])]


def mean_square(y: PyTree[Array]) -> Float[Array, ""]:
    """Computes the mean of the squares of all entries of a state."""
    leaves = jtu.tree_leaves(y)
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
    return jnp.asarray(total / sum(leaf.size for leaf in leaves))


def blocks(activation: Activation, batch: int, key: Key) -> Problem:
    """Makes two blocks of two layers, with dimension and widths 100.

    This is the neural ODE of [probdiffeq](https://github.com/pnkraemer/probdiffeq)'s
    benchmark of Taylor series, `benchmarks/C1_taylor-init-node.py`, with `tanh` as the
    activation. There the weights are 10 times as large: the square of the eighth
    derivative then overflows in single precision.
    """
    params_key, y_key = jr.split(key)
    params = dense(params_key, *[100] * 5)
    y = jr.uniform(y_key, (batch, 100))
    return Problem(lambda params, t, y: _layers(params, y, activation), params, y)


def mnist(batch: int, key: Key, pixels: int = 784) -> Problem:
    """Makes the network 784-100-784, with the time and a sigmoid before each layer.

    TayNODE and TL-NODE classify MNIST with it: see `MLPDynamics` in
    [easy-neural-ode](https://github.com/jacobjinkelly/easy-neural-ode)'s `mnist.py`.
    """
    params_key, y_key = jr.split(key)
    hidden_key, output_key = jr.split(params_key)

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        for layer in params:
            y = layer(_with_time(t, jax.nn.sigmoid(y)))
        return y

    params = [
        linear(hidden_key, pixels + 1, pixels + 1, 100),
        linear(output_key, 101, 101, pixels),
    ]
    y = jr.uniform(y_key, (batch, pixels))
    return Problem(field, params, y, autonomous=False)


def ffjord(batch: int, key: Key) -> Problem:
    """Makes 43-860-860-43 with softplus, and Hutchinson's estimate of the divergence.

    The state is that of a continuous normalizing flow, a sample and its log-density:
    FFJORD for MINIBOONE, as in easy-neural-ode's `ffjord_tabular.py`. The scale and
    shift of each layer depend on time. The noise of the estimate is among the
    parameters, and the same at all times.
    """
    widths = (43, 860, 860, 43)
    layers_key, *keys, noise_key, y_key = jr.split(key, 5)

    def field(params: Any, t: Array, y: tuple[Array, Array]) -> tuple[Array, Array]:
        layers, noise = params

        def velocity(z: Array) -> Array:
            for k, (layer, gate, shift) in enumerate(layers):
                z = jax.nn.softplus(z) if k else z
                z = layer(z) * jax.nn.sigmoid(t * gate.weight + gate.bias) + t * shift
            return z

        dz, tangent = jax.jvp(velocity, (y[0],), (noise,))
        return dz, -jnp.sum(tangent * noise, axis=1)

    gate_keys, shift_keys = (jr.split(k, len(widths) - 1) for k in keys)
    gates = [linear(k, 1, width) for k, width in zip(gate_keys, widths[1:])]
    shifts = [jr.normal(k, (width,)) for k, width in zip(shift_keys, widths[1:])]
    layers = [*zip(dense(layers_key, *widths), gates, shifts)]
    params = layers, jr.normal(noise_key, (batch, widths[0]))
    y = jr.normal(y_key, (batch, widths[0])), jnp.zeros(batch)
    return Problem(field, params, y, autonomous=False)


def layer(batch: int, key: Key) -> Problem:
    """Makes one layer without a loop, with which fields with loops are compared."""
    params, y = dense(key, WIDTH, WIDTH), _state(batch, key)
    return Problem(lambda params, t, y: _layers(params, y), params, y)


def scan(batch: int, key: Key) -> Problem:
    """Makes a `lax.scan` over the weights of 16 layers."""

    def field(params: Linear, t: Array, y: Array) -> Array:
        return lax.scan(lambda y, one: (_layers([one], y), None), y, params)[0]

    layers = dense(key, *[WIDTH] * (DEPTH + 1))
    stacked = jtu.tree_map(lambda *leaves: jnp.stack(leaves), *layers)
    return Problem(field, stacked, _state(batch, key))


def while_loop(batch: int, key: Key) -> Problem:
    """Makes a `lax.while_loop` that applies one layer 16 times.

    JAX has no reverse mode for it.
    """

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            return carry[0] + 1, _layers(params, carry[1])

        start = jnp.array(0), y
        return lax.while_loop(lambda carry: carry[0] < DEPTH, step, start)[1]

    params = dense(key, WIDTH, WIDTH)
    return Problem(field, params, _state(batch, key), reverse=False)


def cond(batch: int, key: Key) -> Problem:
    """Makes a `lax.cond` on the state, between two networks of two layers."""

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        first, second = (
            functools.partial(_layers, p) for p in (params[:2], params[2:])
        )
        return lax.cond(jnp.sum(y) > 0, first, second, y)

    return Problem(field, dense(key, *[WIDTH] * 5), _state(batch, key))


def _layers(
    layers: list[Linear], y: Array, activation: Activation = jnp.tanh
) -> Float[Array, "batch width"]:
    for one in layers:
        y = activation(one(y))
    return y


def _state(batch: int, key: Key) -> Float[Array, "batch width"]:
    return jr.uniform(jr.fold_in(key, 0), (batch, WIDTH))


def _with_time(t: Float[Array, ""], y: Array) -> Array:
    """Adds time as the first feature or channel."""
    time = jnp.full((*y.shape[:-1], 1), t, y.dtype)
    return jnp.concatenate([time, y], axis=-1)
