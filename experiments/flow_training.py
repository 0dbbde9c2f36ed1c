"""How flows are trained: batches, losses, and what is measured of a trained one."""

from collections.abc import Callable
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, Key

from . import flows
from .data import Sampler
from .flows import Field, FlowState
from .training import Loss


class Batch(NamedTuple):
    """Samples, and the noise by which to estimate traces; without, they are exact."""

    samples: Float[Array, "batch size"]
    noise: Float[Array, "batch size"] | None = None


class SampledBatches:
    """New samples in each step."""

    def __init__(self, sampler: Sampler, size: int, seed: int):
        self.sampler, self.size, self.seed = sampler, size, seed

    def __call__(self, step: int) -> Batch:
        """The batch after so many others."""
        rng = np.random.default_rng((self.seed, step))
        return Batch(jnp.asarray(self.sampler(rng, self.size)))


class NoisyBatches:
    """Whole batches of data, in an order that is new in each epoch, and random signs
    for the traces, which are new in each step."""

    def __init__(self, data: Float[np.ndarray, "rows size"], size: int, seed: int):
        self.batches, self.key = dsr.Batches(data, size), jr.key(seed)

    @property
    def per_epoch(self) -> int:
        return self.batches.num_batches

    def __call__(self, step: int) -> Batch:
        """The batch after so many others."""
        samples = self.batches(self.key, step)
        key = jr.fold_in(self.key, step)
        noise = jr.rademacher(key, samples.shape).astype(samples.dtype)
        return Batch(jnp.asarray(samples), noise)


def problem(field: Field, batch: Batch) -> dsr.InitialValueProblem:
    return flows.problem(field, batch.samples, batch.noise)


def negative_log_likelihood(
    field: Field, final: FlowState, batch: Batch
) -> Float[Array, ""]:
    """The mean over a batch, in nats."""
    del field, batch
    return -jnp.mean(flows.log_likelihood(final))


class Adaptive(NamedTuple):
    """How flows are solved adaptively, and the losses by such solves."""

    solver: dfx.AbstractAdaptiveSolver
    tolerance: float
    max_steps: int

    def solve(self, ivp: dsr.InitialValueProblem) -> dfx.Solution:
        return self._saving(ivp, dfx.SaveAt(t1=True))

    def loss(
        self,
        regularizer: Callable[[Key[Array, ""], Batch], dsr.AbstractRegularizer] | None,
        weight: float = 1.0,
        num_nodes: int = 4,
    ) -> Loss:
        """The negative log likelihood, and a regularizer of how the samples move.

        It is integrated after the solve, from some nodes, which is cheaper than beside
        it, and need not count the density, which is a part of the solve's state.

        **Arguments:**

        - `regularizer`: from a key and a batch, if any.
        - `weight`: its weight.
        - `num_nodes`: how many nodes to integrate it from.

        **Returns:**

        A function of a field, a batch and a key.
        """

        def loss(field: Field, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
            ivp = problem(field, batch)
            if regularizer is None:
                final = dsr.final_state(self.solve(ivp))
                return negative_log_likelihood(field, final, batch)
            quadrature = dsr.gauss_legendre(ivp.t0, ivp.t1, num_nodes)
            saveat = quadrature.saveat(dfx.SaveAt(t1=True))
            solution, nodes = quadrature.split(self._saving(ivp, saveat))
            integral = quadrature.integrate(
                regularizer(key, batch), dfx.ODETerm(field), nodes.samples
            )
            final = dsr.final_state(solution)
            return negative_log_likelihood(field, final, batch) + weight * integral

        return loss

    def measure(
        self, field: Field, samples: Float[Array, "batch size"]
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """The negative log likelihood of a batch, by exact traces, and the evaluations
        that it takes."""
        solution = self.solve(flows.problem(field, samples))
        final = dsr.final_state(solution)
        nll = negative_log_likelihood(field, final, Batch(samples))
        return nll, dsr.nfe(self.solver, solution)

    def _saving(self, ivp: dsr.InitialValueProblem, saveat: dfx.SaveAt) -> dfx.Solution:
        tolerance = self.tolerance
        return dfx.diffeqsolve(
            ivp.term,
            self.solver,
            ivp.t0,
            ivp.t1,
            None,
            ivp.y0,
            ivp.args,
            saveat=saveat,
            stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=self.max_steps,
        )


def taylor_lagrange(size: int, *, key: Key[Array, ""]) -> dsr.TaylorLagrangeSolver:
    """Of the paper's order, with its network, which sees the time and the state, the
    density included."""
    sample = FlowState(jnp.zeros(size), jnp.zeros(()))
    correction = dsr.CorrectionMLP(sample, inputs=("t", "y"), width=16, key=key)
    return dsr.TaylorLagrangeSolver(2, correction)


@eqx.filter_jit
def density_on_grid(
    field: Field, solve: flows.Solve, extent: float, points: int
) -> Float[Array, "points points"]:
    """The logarithm of a planar flow's density, by rows of equal ordinates."""
    axis = jnp.linspace(-extent, extent, points)
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    final = dsr.final_state(solve(flows.problem(field, grid)))
    return flows.log_likelihood(final).reshape(points, points)
