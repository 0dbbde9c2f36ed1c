"""Evaluations of trained equations over the tolerance of the solver."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .problem import Batch, Problem


TOLERANCES = tuple(10.0**-k for k in range(3, 9))
DTYPES = ("float64", "float32")
MOST_STEPS = 4096


def measure(problem: Problem, model: PyTree[Any]) -> list[dict[str, Any]]:
    """Counts the evaluations of a held-out batch for each tolerance and precision.

    A solve that fails, as in single precision it may, is counted as `None`.
    """
    before = jnp.result_type(float) == jnp.float64
    jax.config.update("jax_enable_x64", True)
    try:
        return [row for dtype in DTYPES for row in _rows(problem, model, dtype)]
    finally:
        jax.config.update("jax_enable_x64", before)


def _rows(problem: Problem, model: PyTree[Any], dtype: str) -> Iterator[dict[str, Any]]:
    def cast(tree: PyTree[Any]) -> PyTree[Any]:
        return jax.tree.map(
            lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array_like(x) else x, tree
        )

    # A single compilation serves all tolerances.
    @eqx.filter_jit
    def count(
        model: PyTree[Any], batch: Batch, tolerance: Float[Array, ""]
    ) -> Float[Array, ""]:
        controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
        return dataclasses.replace(problem, ts=cast(problem.ts)).nfe(
            model,
            batch,
            stepsize_controller=dsr.CountingController(controller),
            max_steps=MOST_STEPS,
            throw=False,
        )

    for tolerance in TOLERANCES:
        nfe = float(count(*map(cast, (model, problem.test[0], tolerance))))
        counted = nfe if np.isfinite(nfe) else None
        yield dict(tolerance=tolerance, dtype=dtype, nfe=counted)
