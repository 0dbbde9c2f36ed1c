r"""Continuous normalizing flows.

A flow takes samples of the data at time 0 to samples of a normal distribution at time
1. Along a solution of $dy/dt = f(t, y)$ the density changes by $d \log p / dt = -
\operatorname{tr} \partial f / \partial y$, which is solved for beside the samples.
(Grathwohl et al., "FFJORD: Free-Form Continuous Dynamics for Scalable Reversible
Generative Models", ICLR 2019.)
"""

import itertools
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Key, PyTree


DATA_TIME, BASE_TIME = 0.0, 1.0

Solve = Callable[[dsr.InitialValueProblem], dfx.Solution]


class ConcatSquash(eqx.Module):
    r"""$(W y + b) \, \sigma(u t + v) + w t$, with vectors $u, v, w$ of their own."""

    linear: eqx.nn.Linear
    gate: eqx.nn.Linear
    shift: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, *, key: Key[Array, ""]):
        linear_key, gate_key, shift_key = jr.split(key, 3)
        self.linear = eqx.nn.Linear(inputs, outputs, key=linear_key)
        self.gate = eqx.nn.Linear(1, outputs, key=gate_key)
        self.shift = eqx.nn.Linear(1, outputs, use_bias=False, key=shift_key)

    def __call__(
        self, t: Float[Array, "1"], y: Float[Array, "batch inputs"]
    ) -> Float[Array, "batch outputs"]:
        gate, shift = jax.nn.sigmoid(self.gate(t)), self.shift(t)
        return jax.vmap(lambda x: self.linear(x) * gate + shift)(y)


class Field(eqx.Module):
    """The field of a batch of samples, each of which moves on its own."""

    layers: tuple[ConcatSquash, ...]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        activation: Callable[[Array], Array],
        *,
        key: Key[Array, ""],
    ):
        """**Arguments:**

        - `size`: of a sample.
        - `width`, `depth`: the size and the number of the hidden layers.
        - `activation`: of the hidden layers.
        - `key`: decides the initial weights.
        """
        sizes = itertools.pairwise([size, *[width] * depth, size])
        keys = jr.split(key, depth + 1)
        self.layers = tuple(
            ConcatSquash(*shape, key=k) for shape, k in zip(sizes, keys)
        )
        self.activation = activation

    @property
    def size(self) -> int:
        return self.layers[0].linear.weight.shape[1]

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, "batch size"], args: Any = None
    ) -> Float[Array, "batch size"]:
        del args
        time = jnp.asarray(t, y.dtype).reshape(1)
        *hidden, last = self.layers
        for layer in hidden:
            y = self.activation(layer(time, y))
        return last(time, y)


class FlowState(eqx.Module):
    """Samples, and by how much the logarithm of the density at each has grown."""

    samples: Float[Array, "batch size"]
    log_density: Float[Array, " batch"]

    @classmethod
    def of(cls, samples: Float[Array, "batch size"]) -> "FlowState":
        return cls(samples, jnp.zeros_like(samples[:, 0]))


def exact_trace(
    function: Callable[[Float[Array, "batch size"]], Float[Array, "batch size"]],
    y: Float[Array, "batch size"],
) -> tuple[Float[Array, "batch size"], Float[Array, " batch"]]:
    """The value of a function of each sample, and the trace of its Jacobian.

    **Cost:** as many products with the Jacobian as a sample has entries.
    """
    value, push = jax.linearize(function, y)

    def entry(axis: Float[Array, " size"]) -> Float[Array, " batch"]:
        return push(jnp.broadcast_to(axis, y.shape)) @ axis

    diagonal = jax.vmap(entry)(jnp.eye(y.shape[1], dtype=y.dtype))
    return value, jnp.sum(diagonal, axis=0)


def estimated_trace(
    function: Callable[[Float[Array, "batch size"]], Float[Array, "batch size"]],
    y: Float[Array, "batch size"],
    noise: Float[Array, "batch size"],
) -> tuple[Float[Array, "batch size"], Float[Array, " batch"]]:
    """As `exact_trace`, but by one product: unbiased for noise of covariance one.

    (Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix for
    Laplacian Smoothing Splines", 1989.)
    """
    value, product = jax.jvp(function, (y,), (noise,))
    return value, jnp.sum(noise * product, axis=1)


def flow_field(field: Field) -> Callable[..., FlowState]:
    """The field of a `FlowState`; its `args` are the noise for the trace, or `None` for
    the exact one."""

    def flow(
        t: Float[ArrayLike, ""],
        state: FlowState,
        noise: Float[Array, "batch size"] | None,
    ) -> FlowState:
        at_time = lambda y: field(t, y)
        if noise is None:
            velocity, trace = exact_trace(at_time, state.samples)
        else:
            velocity, trace = estimated_trace(at_time, state.samples, noise)
        return FlowState(velocity, -trace)

    return flow


def problem(
    field: Field,
    samples: Float[Array, "batch size"],
    noise: Float[Array, "batch size"] | None = None,
) -> dsr.InitialValueProblem:
    """From samples of the data to the base's."""
    return _problem(field, FlowState.of(samples), DATA_TIME, BASE_TIME, noise)


def _problem(
    field: Field,
    state: FlowState,
    t0: float,
    t1: float,
    noise: Float[Array, "batch size"] | None = None,
) -> dsr.InitialValueProblem:
    term = dfx.ODETerm(flow_field(field))
    # Diffrax gives the state the dtype of time, where that is the wider one.
    t0, t1 = jnp.asarray((t0, t1), state.samples.dtype)
    return dsr.InitialValueProblem(term, state, t0, t1, noise)


def base_log_density(samples: Float[Array, "batch size"]) -> Float[Array, " batch"]:
    return jnp.sum(jax.scipy.stats.norm.logpdf(samples), axis=1)


def log_likelihood(final: FlowState) -> Float[Array, " batch"]:
    """Of the data from which a solution came to this state of the base."""
    return base_log_density(final.samples) - final.log_density


@eqx.filter_jit
def generate(
    field: Field, solve: Solve, key: Key[Array, ""], count: int
) -> tuple[Float[Array, "count size"], Float[Array, " count"]]:
    """Draws from the flow, by a solve backwards in time.

    **Returns:**

    The samples, and the logarithm of the flow's density there.
    """
    samples = jr.normal(key, (count, field.size), field.layers[0].linear.weight.dtype)
    final = FlowState(samples, base_log_density(samples))
    ivp = _problem(field, final, BASE_TIME, DATA_TIME)
    state: PyTree[Array] = dsr.final_state(solve(ivp))
    return state.samples, state.log_density
