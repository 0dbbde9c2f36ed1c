"""Vector fields with loops and branches, around layers of width 100 with `tanh`."""

from collections.abc import Callable

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from .problem import dense, Linear, Problem


DEPTH = 16
_WIDTH = 100


def layer(batch: int, key: Key) -> Problem:
    """One layer and no loop: what the others are compared with."""

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        del t
        return _network(params, y)

    return _problem(field, _layers(key, 1), batch, key)


def scan(batch: int, key: Key) -> Problem:
    """A `lax.scan` over the weights of 16 layers."""

    def field(params: Linear, t: Array, y: Array) -> Array:
        del t
        return lax.scan(lambda y, one: (_network([one], y), None), y, params)[0]

    layers = _layers(key, DEPTH)
    stacked = jtu.tree_map(lambda *leaves: jnp.stack(leaves), *layers)
    return _problem(field, stacked, batch, key)


def while_loop(batch: int, key: Key) -> Problem:
    """A `lax.while_loop` that applies one layer 16 times.

    JAX has no reverse mode for it.
    """

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        del t

        def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            count, y = carry
            return count + 1, _network(params, y)

        init = jnp.array(0), y
        return lax.while_loop(lambda carry: carry[0] < DEPTH, step, init)[1]

    return _problem(field, _layers(key, 1), batch, key)._replace(reverse=False)


def cond(batch: int, key: Key) -> Problem:
    """A `lax.cond` between two networks of two layers, decided by the state."""

    def field(params: list[Linear], t: Array, y: Array) -> Array:
        del t
        return lax.cond(
            jnp.sum(y) > 0,
            lambda y: _network(params[:2], y),
            lambda y: _network(params[2:], y),
            y,
        )

    return _problem(field, _layers(key, 4), batch, key)


def _network(layers: list[Linear], y: Float[Array, "batch width"]) -> Array:
    for one in layers:
        y = jnp.tanh(one(y))
    return y


def _layers(key: Key, depth: int) -> list[Linear]:
    return dense(key, *[_WIDTH] * (depth + 1))


def _problem(
    field: Callable[..., Array], params: PyTree[Array], batch: int, key: Key
) -> Problem:
    y = jr.uniform(jr.fold_in(key, 0), (batch, _WIDTH))
    return Problem(field, params, y, jnp.array(0.5), autonomous=True)
