from collections.abc import Callable
from typing import Any, TypeAlias

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
import optimistix as optx
from equinox.internal import ω
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Inexact, Int, Key, PyTree

from .._checks import check_positive_integer, check_solver
from .._custom_types import RealScalarLike
from .._misc import Mean, mean_absolute
from .._nfe import nfe
from .._problem import final_state, solve_adaptive, solve_fixed
from .losses import (
    check_mean,
    dynamics_loss,
    Loss,
    Problem,
    remainder_loss,
    Solver,
)
from .sharding import (
    batch_specs,
    gather_shards,
    mean_over_shards,
    on_mesh,
    split_axis,
    whole,
)
from .states import (
    AlternatingState,
    DynamicsReport,
    Evaluation,
    RemainderReport,
)
from .targets import check_targets, reference_targets, Targets
from .updates import init_optimizer, naming_batch, stays_finite, update


Metrics: TypeAlias = Callable[
    [PyTree[Any], PyTree[Array], PyTree[Any]], dict[str, Inexact[Array, ""]]
]


class AlternatingTrainer(eqx.Module):
    r"""Trains dynamics and remainder in turn.

    A *dynamics step* fits the model to data through a few steps of the Taylor-Lagrange
    solver, whose remainder is fixed. A *remainder step* fits the remainder to a solve
    of the current dynamics at high fidelity, which are fixed. Each is a jitted function
    that can be used in a loop of your own; [`diffrax_speedreg.fit`][] is such a loop.
    What is fixed comes out bit by bit as it went in.

    !!! example

        ```python
        trainer = dsr.AlternatingTrainer(
            problem=lambda model, batch: dsr.InitialValueProblem(model.term, batch.x),
            loss=lambda model, y1, batch: jnp.mean((y1 - batch.y) ** 2),
            num_steps=2,
            model_optimizer=optax.adam(1e-3),
            solver_optimizer=optax.adam(1e-3),
        )
        state = trainer.init(model, dsr.TaylorLagrangeSolver(2, remainder), key=key)
        state, report = trainer.dynamics_step(state, batch)
        targets = trainer.targets(state, batch)
        state, report = trainer.remainder_step(state, batch, targets)
        ```

    **Cost:** of a dynamics step, as many evaluations of the vector field as the solver
    says, forwards and backwards. A remainder step costs about as much, and its targets,
    which can serve several of them, an adaptive solve, forwards only.

    ??? cite "Reference"

        Djeumou et al., "Taylor-Lagrange Neural Ordinary Differential Equations", IJCAI
        2022.
    """

    problem: Problem
    loss: Loss
    num_steps: int
    model_optimizer: optax.GradientTransformation
    solver_optimizer: optax.GradientTransformation
    penalty: RealScalarLike
    penalty_mean: Mean
    speed_weight: RealScalarLike
    error_mean: Mean
    one_step: bool
    reference_solver: dfx.AbstractSolver
    reference_tolerance: float
    reference_max_steps: int
    mesh: Mesh | None = eqx.field(static=True)

    def __init__(
        self,
        problem: Problem,
        loss: Loss,
        num_steps: int,
        model_optimizer: optax.GradientTransformation,
        solver_optimizer: optax.GradientTransformation,
        *,
        penalty: RealScalarLike = 0.0,
        penalty_mean: Mean = "square",
        speed_weight: RealScalarLike = 0.0,
        error_mean: Mean = "absolute",
        one_step: bool = False,
        reference_solver: dfx.AbstractSolver = dfx.Dopri8(),
        reference_tolerance: float = 1e-6,
        reference_max_steps: int = 4096,
        mesh: Mesh | None = None,
    ):
        """**Arguments:**

        - `problem`, `loss`, `num_steps`, `penalty`, `penalty_mean`, `speed_weight`: as
            for [`diffrax_speedreg.dynamics_loss`][].
        - `model_optimizer`, `solver_optimizer`: Optax's, for each half.
        - `error_mean`: as `mean` for [`diffrax_speedreg.remainder_loss`][].
        - `one_step`: as for [`diffrax_speedreg.reference_targets`][].
        - `reference_solver`, `reference_tolerance`, `reference_max_steps`: how the
            solve at high fidelity is made: by that relative and absolute tolerance.
        - `mesh`: the devices to split batches over: see
            [`diffrax_speedreg.data_mesh`][]. `loss` must be a mean over the batch then.
        """
        self.problem, self.loss = problem, loss
        self.num_steps = check_positive_integer(num_steps, "num_steps")
        self.model_optimizer = model_optimizer
        self.solver_optimizer = solver_optimizer
        self.penalty = penalty
        self.penalty_mean = check_mean(penalty_mean, "penalty_mean")
        self.speed_weight = speed_weight
        self.error_mean = check_mean(error_mean, "error_mean")
        self.one_step = one_step
        self.reference_solver = reference_solver
        self.reference_tolerance = reference_tolerance
        self.reference_max_steps = check_positive_integer(
            reference_max_steps, "reference_max_steps"
        )
        self.mesh = mesh

    def init(
        self, model: PyTree[Any], solver: Solver, *, key: Key[Array, ""]
    ) -> AlternatingState:
        """The state at the start of a training.

        **Arguments:**

        - `model`: what to train on data.
        - `solver`: a Taylor-Lagrange solver, or a hypersolver. Its remainder, if it has
            one, is trained too.
        - `key`: a `jax.random.key` that decides the order of the data.

        **Returns:**

        The state, with fresh optimizer states. A `ValueError` is raised for any other
        solver.
        """
        check_solver(solver)
        if not isinstance(solver, Solver):
            raise ValueError(
                "`solver` must be a `TaylorLagrangeSolver` or a `HyperSolver`, but got "
                f"{solver!r}. Other solvers have nothing to train: use them by "
                "`diffrax.diffeqsolve` in a loop of your own."
            )
        return AlternatingState(
            model,
            solver,
            init_optimizer(self.model_optimizer, model),
            init_optimizer(self.solver_optimizer, solver),
            key,
            jnp.array(0, jnp.int32),
        )

    @eqx.filter_jit
    def dynamics_step(
        self, state: AlternatingState, batch: PyTree[Any]
    ) -> tuple[AlternatingState, DynamicsReport]:
        """One optimizer step for the model, with the remainder fixed.

        **Arguments:**

        - `state`: the state before.
        - `batch`: passed to `problem` and `loss`.

        **Returns:**

        The state after, and what to tell of the step.

        **Raises:**

        A `ValueError` if the batch does not fit the model, or the optimizer's state is
        of another one.
        """

        def value_and_grad(trained: Any, batch: Any) -> PyTree[Array]:
            model, solver = trained
            result = eqx.filter_value_and_grad(dynamics_loss, has_aux=True)(
                model,
                solver,
                batch,
                problem=self.problem,
                loss=self.loss,
                num_steps=self.num_steps,
                penalty=self.penalty,
                penalty_mean=self.penalty_mean,
                speed_weight=self.speed_weight,
            )
            return mean_over_shards(result, self.mesh)

        with naming_batch(batch):
            (total, terms), grads = on_mesh(
                value_and_grad, self.mesh, (state.model, state.solver), batch
            )
        model, opt_state = update(
            self.model_optimizer,
            state.model,
            grads,
            state.model_opt_state,
            "model_opt_state",
        )
        before = (state.model, state.model_opt_state)
        finite = stays_finite(total, before, (model, opt_state))
        report = DynamicsReport(total, terms, finite)
        return (
            AlternatingState(
                model,
                state.solver,
                opt_state,
                state.solver_opt_state,
                state.key,
                state.step + 1,
            ),
            report,
        )

    def targets(self, state: AlternatingState, batch: PyTree[Any]) -> Targets:
        """What the remainder should learn, for several remainder steps.

        On a mesh, the batch is solved as one state, whose error is averaged over the
        shards: the steps, and the targets, are those of a single device.

        **Arguments:**

        - `state`: the state, of whose model the dynamics are.
        - `batch`: passed to `problem`.

        **Returns:**

        The targets.

        **Raises:**

        [`diffrax_speedreg.ReferenceFailed`][] if the equation could not be solved; it
        says where, and which sample is the hardest. A `ValueError` if the solver has no
        remainder, or the batch does not fit the model.
        """
        _check_remainder(state.solver)
        targets = self._targets(state, batch)
        check_targets(targets, self.reference_solver, self.reference_tolerance)
        return targets

    @eqx.filter_jit
    def _targets(self, state: AlternatingState, batch: PyTree[Any]) -> Targets:
        def solve(model: Any, batch: Any) -> Targets:
            targets = reference_targets(
                self.problem(model, batch),
                self.num_steps,
                solver=self.reference_solver,
                tolerance=self.reference_tolerance,
                max_steps=self.reference_max_steps,
                one_step=self.one_step,
                norm=self._norm,
            )
            speeds = gather_shards(targets.outcome.speeds, self.mesh)
            return eqx.tree_at(lambda t: t.outcome.speeds, targets, speeds)

        with naming_batch(batch):
            return on_mesh(
                solve, self.mesh, state.model, batch, out_specs=_target_specs
            )

    @eqx.filter_jit
    def remainder_step(
        self, state: AlternatingState, batch: PyTree[Any], targets: Targets
    ) -> tuple[AlternatingState, RemainderReport]:
        """One optimizer step for the solver's remainder, with the model fixed.

        **Arguments:**

        - `state`: the state before.
        - `batch`: passed to `problem`.
        - `targets`: of the same model and batch. (Of another batch: an error at run
            time. After a dynamics step, make new ones.)

        **Returns:**

        The state after, and what to tell of the step.

        **Raises:**

        A `ValueError` if the solver has no remainder, the batch does not fit the model,
        or the optimizer's state is of another solver.
        """
        _check_remainder(state.solver)

        def value_and_grad(trained: Any, both: Any) -> PyTree[Array]:
            (model, solver), (batch, targets) = trained, both
            result = eqx.filter_value_and_grad(remainder_loss)(
                solver, self.problem(model, batch), targets, mean=self.error_mean
            )
            return mean_over_shards(result, self.mesh)

        with naming_batch(batch):
            error, grads = on_mesh(
                value_and_grad,
                self.mesh,
                (state.model, state.solver),
                (batch, targets),
                in_specs=(batch_specs(batch, self.mesh), _target_specs(targets)),
            )
        solver, opt_state = update(
            self.solver_optimizer,
            state.solver,
            grads,
            state.solver_opt_state,
            "solver_opt_state",
        )
        before = (state.solver, state.solver_opt_state)
        finite = stays_finite(error, before, (solver, opt_state))
        report = RemainderReport(error, finite)
        return (
            AlternatingState(
                state.model,
                solver,
                state.model_opt_state,
                opt_state,
                state.key,
                state.step,
            ),
            report,
        )

    @eqx.filter_jit
    def evaluate(
        self,
        state: AlternatingState,
        batch: PyTree[Any],
        metrics: Metrics | None = None,
    ) -> Evaluation:
        """Measures a model and its solver, for a validation.

        **Arguments:**

        - `state`: the state.
        - `batch`: passed to `problem`, `loss` and `metrics`; on a mesh, as
            [`diffrax_speedreg.shard_batch`][] returns it.
        - `metrics`: `(model, final state, batch)` to named scalars, such as accuracy:
            means over the batch.

        **Returns:**

        What was measured.
        """

        def measure(parts: Any, batch: Any) -> Evaluation:
            model, solver = parts
            problem = self.problem(model, batch)
            y1 = final_state(solve_fixed(problem, solver, self.num_steps))
            loss = self.loss(model, y1, batch)
            others = {} if metrics is None else metrics(model, y1, batch)
            reference = solve_adaptive(
                problem,
                self.reference_solver,
                self.reference_tolerance,
                norm=self._norm,
                max_steps=self.reference_max_steps,
                throw=False,
            )
            error = mean_absolute((y1**ω - final_state(reference) ** ω).ω)
            successful = reference.result == dfx.RESULTS.successful
            error = jnp.where(successful, error, jnp.nan)
            loss, error, others = mean_over_shards((loss, error, others), self.mesh)
            return Evaluation(loss, error, _known_nfe(self, reference), others)

        with naming_batch(batch):
            return on_mesh(measure, self.mesh, (state.model, state.solver), batch)

    def _norm(self, error: PyTree[Array]) -> Array:
        """The root mean square over the whole batch."""
        squared = mean_over_shards(optx.rms_norm(error) ** 2, self.mesh)
        return jnp.sqrt(squared)


def _check_remainder(solver: Solver) -> None:
    if solver.remainder is None:
        raise ValueError(
            "There is no remainder to train: the solver has `remainder=None`. Pass "
            "`remainder=CorrectionMLP(...)`, or leave the remainder steps out."
        )


def _target_specs(targets: Targets) -> PyTree[PartitionSpec]:
    """How targets lie on a mesh: their first axis is that of the parts."""
    specs = jtu.tree_map(lambda leaf: whole, targets)
    samples = jtu.tree_map(lambda leaf: split_axis(1), (targets.y0, targets.y1))
    return eqx.tree_at(lambda t: (t.y0, t.y1), specs, samples)


def _known_nfe(
    trainer: AlternatingTrainer, reference: dfx.Solution
) -> Int[Array, ""] | None:
    try:
        count = nfe(trainer.reference_solver, reference, adaptive=True)
    except ValueError:  # An implicit solver.
        return None
    # One that gave up is not cheap.
    return jnp.where(reference.result == dfx.RESULTS.successful, count, -1)
