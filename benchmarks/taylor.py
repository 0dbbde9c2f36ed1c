"""Compares ways to compute total derivatives of ODE solutions.

For vector fields of neural ODEs: run time of the K-th derivative and of its gradient,
compile time, memory, and whether the numbers agree, of this package, nested `jax.jvp`,
`jax.experimental.jet` and probdiffeq.
"""

import functools

import jax
import jax.numpy as jnp

from . import derivatives, problems
from .derivatives import NESTED, OURS, Plan, WAYS
from .report import Benchmark


_tanh = functools.partial(problems.blocks, jnp.tanh)
_softplus = functools.partial(problems.blocks, jax.nn.softplus)
# `jet` does not support loops, and neither does probdiffeq, which uses it.
_FOR_LOOPS = {name: WAYS[name] for name in (OURS, NESTED)}
PLANS = {
    "tanh": Plan(_tanh, {512: 8, 1: 4}, WAYS),
    "softplus": Plan(_softplus, {512: 8, 1: 4}, WAYS),
    "mnist": Plan(problems.mnist, {100: 4, 500: 4}, WAYS),
    "ffjord": Plan(problems.ffjord, {100: 3}, WAYS),
    "layer": Plan(problems.layer, {128: 6}, _FOR_LOOPS),
    "scan": Plan(problems.scan, {128: 6}, _FOR_LOOPS),
    "while": Plan(problems.while_loop, {128: 6}, _FOR_LOOPS),
    "cond": Plan(problems.cond, {128: 6}, _FOR_LOOPS),
}
_rows = functools.partial(derivatives.rows, PLANS)
BENCHMARK = Benchmark(
    "taylor", __doc__, _rows, derivatives.frames, derivatives.EngineOptions
)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
