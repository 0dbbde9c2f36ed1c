"""Fits midpoint networks for a neural ODE whose weights are known."""

from collections.abc import Iterator

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.random as jr
import optax
from jaxtyping import Array, Float, Key

from .solver_ways import COARSE, Setting


_RATE = 3e-3


def fit(
    setting: Setting, order: int, num_steps: int, num_updates: int, key: Key[Array, ""]
) -> dsr.AbstractCorrection:
    """Such that so many steps end where an adaptive solve ends, from states that are
    distributed as the initial ones, but others."""
    shape = setting.problem.y.shape

    def states() -> Iterator[Float[Array, "batch state"]]:
        for one in jr.split(key, num_updates):
            yield jr.uniform(one, shape)

    solver, _ = dsr.fit_solver(
        dsr.TaylorLagrangeSolver(order, setting.correction),
        setting.ivp,
        states(),
        num_steps=num_steps,
        optimizer=optax.adam(optax.cosine_decay_schedule(_RATE, num_updates)),
        reference_solver=dfx.Tsit5(),
        reference_tolerance=COARSE.setting,
    )
    assert solver.remainder is not None  # The one that was fitted.
    return solver.remainder
