"""What all problems are made of: a vector field, its layers, and a state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Key, PyTree


class Problem(NamedTuple):
    """Where a derivative is taken.

    **Attributes:**

    - `field`: the vector field, `(params, t, y) -> dy`.
    - `params`: its parameters.
    - `y`: the state.
    - `t`: the time.
    - `autonomous`: whether the field ignores time, in which case contestants that have
        no notion of time need not carry it in the state.
    - `reverse`: whether JAX can differentiate the field in reverse mode.
    """

    field: Callable[[PyTree[Array], Float[Array, ""], PyTree[Array]], PyTree[Array]]
    params: PyTree[Array]
    y: PyTree[Array]
    t: Float[Array, ""]
    autonomous: bool
    reverse: bool = True


class Linear(NamedTuple):
    weight: Float[Array, "... out"]
    bias: Float[Array, " out"]

    def __call__(self, y: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
        return y @ self.weight + self.bias


def linear(key: Key[Array, ""], fan_in: int, *shape: int) -> Linear:
    """A layer with weights of the given shape, scaled so that no output is large."""
    weight_key, bias_key = jr.split(key)
    weight = jr.normal(weight_key, shape) / fan_in**0.5
    return Linear(weight, jr.normal(bias_key, shape[-1:]))


def dense(key: Key[Array, ""], *widths: int) -> list[Linear]:
    keys = jr.split(key, len(widths) - 1)
    return [linear(k, a, a, b) for k, a, b in zip(keys, widths, widths[1:])]


def rescale(problem: Problem, factor: float) -> Problem:
    """With the weights and biases of all layers multiplied by the factor."""

    def is_layer(node: Any) -> bool:
        return isinstance(node, Linear)

    def multiply(node: Linear | Array) -> Linear | Array:
        return Linear(*(factor * x for x in node)) if is_layer(node) else node

    params = jtu.tree_map(multiply, problem.params, is_leaf=is_layer)
    return problem._replace(params=params)


def mean_square(y: PyTree[Array]) -> Float[Array, ""]:
    """The mean of the squares of all entries of a state."""
    leaves = jtu.tree_leaves(y)
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
    return jnp.asarray(total / sum(leaf.size for leaf in leaves))
