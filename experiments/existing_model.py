"""Adds the speed R_3 to a model that somebody has already, Diffrax's own example.

The model is that of the page "Neural ODE" of Diffrax's documentation: nonlinear
oscillators, learned from samples of trajectories, first from short ones and then from
long ones. Neither the model nor its solve is changed, but two lines of the loss: the
trajectories that it has anyway are the nodes at which the speed is integrated. Writes
the changed lines, a table, a picture and a file of results.
"""

import argparse
import difflib
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key

from . import report
from .training import Recorder, train_adaptively


SAMPLES, TEST_SAMPLES, BATCH = 256, 256, 32
DURATION, TIMES = 10.0, 100
# For the parts of the training: how much of the trajectories it sees.
LENGTHS = (0.1, 1.0)
STEPS_PER_EPOCH = 50
SHOWN = 3


class Func(eqx.Module):
    """The field, as a user may have it."""

    scale: Float[Array, ""]
    mlp: eqx.nn.MLP

    def __init__(self, key: Key[Array, ""]):
        self.scale = jnp.array(1.0)
        self.mlp = eqx.nn.MLP(2, 2, 64, 2, jax.nn.softplus, jnp.tanh, key=key)

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
    ) -> Float[Array, " state"]:
        return self.scale * self.mlp(y)


class NeuralODE(eqx.Module):
    """The model, as a user may have it: from an initial state to a trajectory."""

    func: Func

    def __call__(
        self, ts: Float[Array, " times"], y0: Float[Array, " state"]
    ) -> Float[Array, "times state"]:
        ys = self.solve(ts, y0).ys
        assert ys is not None
        return ys

    def solve(
        self, ts: Float[Array, " times"], y0: Float[Array, " state"]
    ) -> dfx.Solution:
        return dfx.diffeqsolve(
            dfx.ODETerm(self.func),
            dfx.Tsit5(),
            t0=ts[0],
            t1=ts[-1],
            dt0=ts[1] - ts[0],
            y0=y0,
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-6),
            saveat=dfx.SaveAt(ts=ts),
        )


Batch = tuple[Float[Array, " times"], Float[Array, "samples times state"]]
# Of one trajectory.
LossOfOne = Callable[[NeuralODE, Array, Array], Float[Array, ""]]


class Outcome(NamedTuple):
    """What was measured of one method, on trajectories that were not trained on.

    **Attributes:**

    - `regularization`: the weight of the speed; 0 is the plain model.
    - `error`: mean square, over all times.
    - `nfe`: mean over trajectories, each solved as the model does it.
    - `tight_nfe`: likewise, with tolerances of 1e-6.
    - `speed`: the regularizer's mean over them.
    - `states`, `steps`: of a few trajectories, and where the solver stepped to.
    """

    method: str
    regularization: float
    error: float
    nfe: float
    tight_nfe: float
    speed: float
    step_seconds: float
    training_seconds: float
    nfe_by_epoch: list[int]
    loss_by_epoch: list[float]
    times: list[float]
    truth: list[list[list[float]]]
    states: list[list[list[float]]]
    steps: list[list[float]]


def losses(weight: float) -> tuple[LossOfOne, LossOfOne]:
    """Of one trajectory, before and after the change."""

    def plain(
        model: NeuralODE, ts: Float[Array, " times"], ys: Float[Array, "times state"]
    ) -> Float[Array, ""]:
        predicted = model(ts, ys[0])
        return jnp.mean((predicted - ys) ** 2)

    def speedy(
        model: NeuralODE, ts: Float[Array, " times"], ys: Float[Array, "times state"]
    ) -> Float[Array, ""]:
        predicted = model(ts, ys[0])
        field = dfx.ODETerm(model.func)
        speed = dsr.trapezoidal(ts).integrate(dsr.Speed(3), field, predicted)
        return jnp.mean((predicted - ys) ** 2) + weight * speed

    return plain, speedy
