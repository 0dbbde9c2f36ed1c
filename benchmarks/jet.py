"""Compares ways to differentiate functions along curves, and gradients in the state.

For networks: run time and compile time of this package's `jet`, of
`jax.experimental.jet` and of nested `jax.jvp`. For the vector field of probdiffeq's
benchmark: the gradient, in the state alone, of a total derivative of the solution.

A state is a pair: the input of the network, and the curve's first, second, ...
derivatives. Missing ones are zero. Time is an input too, and passes at rate 1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.experimental.jet import jet
from jaxtyping import Array, Key

from . import derivatives, problems
from .derivatives import JET, NESTED, OURS, Plan, Point, Way
from .problems import Activation, dense, Linear, Problem
from .report import Benchmark


def _network(activations: Sequence[Activation], key: Key, *widths: int) -> Problem:
    def field(params: list[Linear], t: Array, x: Array) -> Array:
        for activation, layer in zip(activations, params):
            x = activation(layer(x))
        return params[-1](x)

    return Problem(field, dense(key, *widths), None)


def _along_curve(problem: Problem, x: Array, curve: list[Array]) -> Problem:
    return dataclasses.replace(
        problem,
        field=lambda params, t, y: problem.field(params, t, y[0]),
        y=(x, curve),
        autonomous=False,
        reverse=False,
    )


def _random_curve(problem: Problem, shape: tuple[int, ...], key: Key) -> Problem:
    """Makes the first four derivatives random."""
    x_key, *keys = jr.split(key, 5)
    curve = [jr.normal(k, shape) for k in keys]
    return _along_curve(problem, jr.uniform(x_key, shape), curve)


def layers(batch: int, key: Key[Array, ""]) -> Problem:
    """Makes a network 100-100-100-100 with `tanh`, sigmoid and no activation.

    These are the functions of networks that JAX's `tests/jet_test.py` tests `jet` with:
    `dot`, `tanh` and `logistic`. As there, all derivatives of the curve are random. The
    arrays there, 2 by 3, are too small to time.
    """
    params_key, curve_key = jr.split(key)
    problem = _network((jnp.tanh, jax.nn.sigmoid), params_key, *[100] * 4)
    return _random_curve(problem, (batch, 100), curve_key)


def pde(activation: Activation, batch: int, key: Key[Array, ""]) -> Problem:
    """Makes a network 10-256-256-256-256-1 for a PDE, along a line for each sample."""
    params_key, x_key, direction_key = jr.split(key, 3)
    problem = _network([activation] * 4, params_key, 10, *[256] * 4, 1)
    x, direction = jr.uniform(x_key, (batch, 10)), jr.normal(direction_key, (batch, 10))
    return _along_curve(problem, x, [direction])


def mnist(batch: int, key: Key[Array, ""]) -> Problem:
    """Makes the vector field of `problems.mnist` along a random curve."""
    curve_key = jr.fold_in(key, 1)
    return _random_curve(problems.mnist(batch, key), (batch, 784), curve_key)


def in_the_state(activation: Activation, batch: int, key: Key[Array, ""]) -> Problem:
    """Makes the field of `problems.blocks`, with gradients in the state alone."""
    problem = problems.blocks(activation, batch, key)
    return dataclasses.replace(problem, argnums=(2,))


def speedreg(at: Point) -> list[Array]:
    x, curve = at.y
    series = [[1.0], curve]
    padded = tuple([*one, *[None] * at.order][: at.order] for one in series)
    return dsr.jet(lambda t, x: at.field(t, (x, [])), (at.t, x), padded)[1]


def by_jet(at: Point) -> list[Array]:
    """Computes the derivatives by JAX's `jet`. XLA simplifies the constant zeros."""
    x, curve = at.y
    series = ([1.0], 0.0), (curve, jnp.zeros_like(x))
    padded = tuple([*one, *[zero] * at.order][: at.order] for one, zero in series)
    return jet(lambda t, x: at.field(t, (x, [])), (at.t, x), padded)[1]


def nested_jvp(at: Point) -> list[Array]:
    """Computes the derivatives by nested `jax.jvp`. Each passes on its results."""
    x, curve = at.y

    def along(s: Array) -> list[Array]:
        terms = enumerate(curve[: at.order], start=1)
        moved = x + sum(d * s**k / math.factorial(k) for k, d in terms)
        return [at.field(at.t + s, (moved, []))]

    def differentiate(function: Callable) -> Callable:
        def more(s: Array) -> list[Array]:
            values, tangents = jax.jvp(function, (s,), (jnp.ones_like(s),))
            return [*values, tangents[-1]]

        return more

    function: Callable[[Array], list[Array]] = along
    for _ in range(at.order):
        function = differentiate(function)
    return function(jnp.zeros(()))[1:]


WAYS: dict[str, Way] = {OURS: speedreg, NESTED: nested_jvp, JET: by_jet}
_SOLUTIONS = {name: derivatives.WAYS[name] for name in WAYS}
PLANS = {
    "layers": Plan(layers, {128: 4}, WAYS),
    "pde-tanh": Plan(functools.partial(pde, jnp.tanh), {1000: 4}, WAYS),
    "pde-softplus": Plan(functools.partial(pde, jax.nn.softplus), {1000: 4}, WAYS),
    "mnist": Plan(mnist, {100: 4}, WAYS),
}
for _name, _activation in {"tanh": jnp.tanh, "softplus": jax.nn.softplus}.items():
    _problem = functools.partial(in_the_state, _activation)
    PLANS[f"state-{_name}"] = Plan(_problem, {512: 4}, _SOLUTIONS)
_rows = functools.partial(derivatives.rows, PLANS)
BENCHMARK = Benchmark(
    "jet", __doc__, _rows, derivatives.frames, derivatives.EngineOptions
)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
