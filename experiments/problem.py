"""Learning problems: an equation is solved, and a loss of its solution minimized."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PyTree


class Batch(eqx.Module):
    """Data, with a random key for losses and regularizers with noise."""

    data: PyTree[Any]
    key: Key[Array, ""] | None = None


Scalar = Float[Array, ""]
# A function of a model, a solution and a batch.
Score = Callable[[Any, dfx.Solution, Batch], Scalar]


# Compiled functions depend on the identity of a problem.
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Model with its data, its equation and its loss.

    **Attributes:**

    - `model`: the model at the start.
    - `batches`: a function `(key, step)` that returns the data of a batch.
    - `per_epoch`: the number of steps in an epoch.
    - `equation`: the equation of a model, for a batch.
    - `loss`: the loss of a solution.
    - `test`: held-out batches of equal size.
    - `scores`: other functions like `loss`, to be measured.
    - `solver`, `tolerance`, `max_steps`: the adaptive solves.
    - `ts`: the times to save, if not the last one.
    - `alone`: whether each sample is an equation by itself.
    - `noisy`: whether batches need a random key.
    """

    model: PyTree[Any]
    batches: Callable[[Key[Array, ""], int], PyTree[Any]]
    per_epoch: int
    equation: Callable[[Any, Batch], dsr.training.InitialValueProblem]
    loss: Score
    test: Sequence[Batch]
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    solver: dfx.AbstractSolver = dfx.Dopri5()
    tolerance: float = 1e-6
    max_steps: int = 256
    ts: Float[Array, " times"] | None = None
    alone: bool = False
    noisy: bool = True

    def batch(self, key: Key[Array, ""], step: int) -> Batch:
        noise_key = jr.fold_in(key, step) if self.noisy else None
        return Batch(self.batches(key, step), noise_key)

    @property
    def saveat(self) -> dfx.SaveAt:
        return dfx.SaveAt(t1=self.ts is None, ts=self.ts, controller_state=True)

    @property
    def options(self) -> dict[str, Any]:
        """The options of adaptive solves in training."""
        controller = dfx.PIDController(rtol=self.tolerance, atol=self.tolerance)
        return dict(
            saveat=self.saveat,
            stepsize_controller=dsr.CountingController(controller),
            max_steps=self.max_steps,
        )

    def arguments(
        self, model: Any, batch: Batch, solver: Any, t1: Any = None
    ) -> tuple[Any, ...]:
        """Returns the first arguments of a solve."""
        p = self.equation(model, batch)
        # Diffrax gives the state the dtype of the times if that is the wider one.
        dtype = jnp.result_type(*jax.tree.leaves(p.y0))
        t0, t1 = (jnp.asarray(t, dtype) for t in (p.t0, p.t1 if t1 is None else t1))
        return p.term, solver, t0, t1, None, p.y0, p.args

    def solve(
        self, model: Any, batch: Batch, solver: Any = None, **options: Any
    ) -> dfx.Solution:
        """Solves adaptively, with `options` in place of those in training."""
        arguments = self.arguments(model, batch, solver or self.solver)
        return dfx.diffeqsolve(*arguments, **(self.options | options))

    def each(
        self, function: Callable[[Batch], PyTree[Array]], batch: Batch
    ) -> PyTree[Array]:
        """Computes the mean of a function over samples, if they are solved alone."""
        if not self.alone:
            return function(batch)
        values = jax.vmap(lambda data: function(Batch(data, batch.key)))(batch.data)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), values)

    def measure(
        self, solve: Callable[[Batch], dfx.Solution], model: Any, batch: Batch
    ) -> dict[str, Scalar]:
        """Measures the loss and the scores of solutions."""

        def one(batch: Batch) -> dict[str, Array]:
            solution = solve(batch)
            scores = dict(self.scores) | dict(loss=self.loss)
            return {k: score(model, solution, batch) for k, score in scores.items()}

        return self.each(one, batch)

    def nfe(self, model: Any, batch: Batch, **options: Any) -> Scalar:
        """Counts the evaluations of a plain solve, NaN if it fails."""

        def one(batch: Batch) -> Array:
            solution = self.solve(model, batch, **options)
            succeeded = solution.result == dfx.RESULTS.successful
            count = dsr.nfe(self.solver, solution).astype(float)
            return jnp.where(succeeded, count, jnp.nan)

        return self.each(one, batch)

    def accurate(self, model: Any, batch: Batch, max_steps: int) -> dict[str, Scalar]:
        """Measures loss, scores and NFE by accurate solves."""
        options = dict(max_steps=max_steps, throw=False)
        values = self.measure(lambda b: self.solve(model, b, **options), model, batch)
        return values | dict(nfe=self.nfe(model, batch, **options))


def final_state(solution: dfx.Solution) -> PyTree[Array]:
    return jax.tree.map(lambda y: y[-1], solution.ys)
