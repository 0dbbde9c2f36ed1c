"""Neural-ODE classifiers of images: what is trained, by which losses, and measured."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from .records import Result, Trajectory
from .report import median_seconds
from .training import Recorder


class Batch(NamedTuple):
    images: Float[Array, "batch pixels"]
    labels: Int[Array, " batch"]


class Classifier(eqx.Module):
    """A vector field, and what reads the classes off the final state."""

    field: Callable[..., Array]
    readout: Callable[[Float[Array, " pixels"]], Float[Array, " classes"]]

    def logits(self, y1: Float[Array, "batch pixels"]) -> Float[Array, "batch classes"]:
        return jax.vmap(self.readout)(y1)


Solve = Callable[[Classifier, Batch], dfx.Solution]
Regularizer = Callable[[Key[Array, ""], Batch], dsr.AbstractRegularizer]


def append_time(
    t: Float[ArrayLike, ""], y: Float[Array, "batch n"]
) -> Float[Array, "batch n+1"]:
    time = jnp.full((len(y), 1), t, y.dtype)
    return jnp.concatenate([y, time], axis=1)


def problem(model: Classifier, batch: Batch) -> dsr.InitialValueProblem:
    return dsr.InitialValueProblem(dfx.ODETerm(model.field), batch.images)


def cross_entropy(
    model: Classifier, y1: Float[Array, "batch pixels"], batch: Batch
) -> Float[Array, ""]:
    return dsr.cross_entropy(model.logits(y1), batch.labels)


class Adaptive(NamedTuple):
    """How equations are solved adaptively, and the losses by such solves.

    The losses are functions of a model, a batch and a key.
    """

    solver: dfx.AbstractAdaptiveSolver
    tolerance: float
    max_steps: int

    def solve(self, model: Classifier, batch: Batch) -> dfx.Solution:
        return dsr.solve_adaptive(
            problem(model, batch),
            self.solver,
            self.tolerance,
            max_steps=self.max_steps,
        )

    def nfe(self, model: Classifier, batch: Batch) -> Int[Array, ""]:
        """Evaluations of the field in a solve, without a regularizer."""
        return dsr.nfe(self.solver, self.solve(model, batch))

    def plain_loss(
        self, model: Classifier, batch: Batch, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        del key
        y1 = dsr.final_state(self.solve(model, batch))
        return cross_entropy(model, y1, batch)

    def augmented_loss(self, regularizer: Regularizer, weight: float):
        """With a regularizer that is integrated beside the solution."""

        def loss(
            model: Classifier, batch: Batch, key: Key[Array, ""]
        ) -> Float[Array, ""]:
            term = dsr.SpeedRegularizedTerm(
                dfx.ODETerm(model.field), regularizer=regularizer(key, batch)
            )
            solution = dsr.solve_adaptive(
                dsr.InitialValueProblem(term, term.init(batch.images)),
                self.solver,
                self.tolerance,
                norm=term.norm,
                max_steps=self.max_steps,
            )
            y1, integral = term.split(dsr.final_state(solution))
            return cross_entropy(model, y1, batch) + weight * integral

        return loss

    def quadrature_loss(self, regularizer: Regularizer, weight: float, num_nodes: int):
        """With a regularizer that is integrated after the solve, from some nodes."""

        def loss(
            model: Classifier, batch: Batch, key: Key[Array, ""]
        ) -> Float[Array, ""]:
            ivp = problem(model, batch)
            quadrature = dsr.gauss_legendre(ivp.t0, ivp.t1, num_nodes)
            solution, nodes = quadrature.split(
                self._saving(ivp, quadrature.saveat(dfx.SaveAt(t1=True)))
            )
            integral = quadrature.integrate(regularizer(key, batch), ivp.term, nodes)
            y1 = dsr.final_state(solution)
            return cross_entropy(model, y1, batch) + weight * integral

        return loss

    def trajectory(self, model: Classifier, batch: Batch) -> Trajectory:
        """The state of the first image at 101 times, and where the solver stepped."""
        ivp = problem(model, Batch(batch.images[:1], batch.labels[:1]))
        solution = self._saving(ivp, dfx.SaveAt(steps=True, dense=True))
        assert solution.ts is not None
        times = jnp.linspace(ivp.t0, ivp.t1, 101)
        states = jax.vmap(solution.evaluate)(times)[:, 0]
        return Trajectory(times, states, solution.ts)

    def _saving(self, ivp: dsr.InitialValueProblem, saveat: dfx.SaveAt) -> dfx.Solution:
        return dfx.diffeqsolve(
            ivp.term,
            self.solver,
            ivp.t0,
            ivp.t1,
            None,
            ivp.y0,
            saveat=saveat,
            stepsize_controller=dfx.PIDController(
                rtol=self.tolerance, atol=self.tolerance
            ),
            max_steps=self.max_steps,
        )


def fixed(solver: dsr.TaylorLagrangeSolver | dsr.HyperSolver, num_steps: int) -> Solve:
    """How equations are solved in a few equal steps."""
    return lambda model, batch: dsr.solve_fixed(
        problem(model, batch), solver, num_steps
    )


class Batches:
    """Whole batches, in an order that is new in each epoch."""

    def __init__(self, data: Batch, size: int, seed: int):
        self.data, self.size = data, size
        self.per_epoch = len(data.labels) // size
        if not self.per_epoch:
            raise ValueError(
                f"{len(data.labels)} images do not fill a batch of {size}."
            )
        self._rng = np.random.default_rng(seed)
        self._orders: list[np.ndarray] = []

    def __call__(self, step: int) -> Batch:
        """The batch after so many others."""
        epoch, number = divmod(step, self.per_epoch)
        while len(self._orders) <= epoch:
            order = self._rng.permutation(len(self.data.labels))
            self._orders.append(order.astype(np.int32))
        index = self._orders[epoch][number * self.size : (number + 1) * self.size]
        return Batch(self.data.images[index], self.data.labels[index])


def evaluate(
    method: str,
    model: Classifier,
    solve: Solve,
    adaptive: Adaptive,
    test: Sequence[Batch],
    record: Recorder,
) -> Result:
    """Measures a trained model on the test set, in batches of equal size.

    **Arguments:**

    - `solve`: how the method itself solves the equation.
    - `adaptive`: by which solves to count evaluations.
    """

    @eqx.filter_jit
    def final(model: Classifier, batch: Batch) -> Array:
        return dsr.final_state(solve(model, batch))

    count = eqx.filter_jit(adaptive.nfe)
    with dsr.solving(record.steps):
        correct = [
            jnp.argmax(model.logits(final(model, batch)), axis=1) == batch.labels
            for batch in test
        ]
        accuracy = float(jnp.mean(jnp.stack(correct)))
        nfe = float(np.mean([count(model, batch) for batch in test]))
    return Result(
        method,
        accuracy,
        nfe,
        solve_seconds=median_seconds(lambda: final(model, test[0])),
        step_seconds=float(np.median(record.seconds)),
        training_seconds=sum(record.seconds),
        nfe_by_epoch=record.nfe,
        loss_by_epoch=record.loss_by_epoch,
        trajectory=eqx.filter_jit(adaptive.trajectory)(model, test[0]),
    )
