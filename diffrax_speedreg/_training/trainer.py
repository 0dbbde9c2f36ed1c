from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, Inexact, Int, Key, PyTree

from .._budget import AbstractBudget, ErrorBudget, NFEBudget
from .._checks import check_callable, check_is, check_key, check_solver
from .._solver.learned import learned_leaves, learned_part
from .losses import Loss, outputs, Scalar, updated
from .reference import (
    InitialValueProblem,
    Reference,
    ReferenceSolution,
    solver_error,
)
from .states import (
    Evaluation,
    ModelReport,
    SolverReport,
    Stateful,
    TrainingState,
)
from .updates import check_optimizer, naming_batch, stays_finite, update


_T = TypeVar("_T")
Equation: TypeAlias = Callable[[Any, Any], InitialValueProblem]


class Trainer(eqx.Module):
    r"""Trains a model and a learned solver in turn.

    Pass it to [`diffrax_speedreg.training.fit`][], or call its methods in your own
    loop. With only `loss` and `model_optimizer`, it trains a model with any Diffrax
    solver, and makes no solver steps.

    - A *model step* fits the model to the data, through a solve by the solver. It does
        not change the solver.
    - A *solver step* fits the learned part of the solver to a reference solve of the
        current equation. It does not change the model.

    The loss makes the solve, as in any Diffrax program. So it can add penalties and
    regularizers from the solution.

    !!! example

        ```python
        def loss(model, solver, batch):
            x, y = batch
            solution = dsr.fixed_step_solve(model.term, solver, 0, 1, 2, x)
            penalty = solution.solver_state.midpoint_penalty
            return jnp.mean((solution.ys[-1] - y) ** 2) + 0.3 * penalty

        trainer = dsr.training.Trainer(
            loss,
            optax.adam(1e-3),
            equation=lambda model, batch: dsr.training.InitialValueProblem(
                model.term, batch[0]
            ),
            solver_optimizer=optax.adam(1e-3),
            reference=dsr.training.Reference(num_steps=2),
        )
        state = trainer.init(model, dsr.TaylorLagrangeSolver(2, midpoint), key=key)
        state, report = trainer.model_step(state, batch)
        reference = trainer.solve_reference(state, batch)
        state, report = trainer.solver_step(state, batch, reference)
        ```

    **Arguments:**

    - `loss`: a function `(model, solver, batch)`; or `None` to train only the solver.
        It returns a scalar, or a pair of the scalar and auxiliary outputs. With a
        budget, the scalar is replaced by a
        [`diffrax_speedreg.training.RegularizedLoss`][]. If the model is a
        [`diffrax_speedreg.training.Stateful`][], it returns a triple of the scalar,
        auxiliary outputs and the new state of the model.
    - `model_optimizer`: the Optax optimizer of the model. It may use `value`, `grad`
        and `value_fn`, as L-BFGS does.
    - `equation`: a function `(model, batch)` that returns the
        [`diffrax_speedreg.training.InitialValueProblem`][] that the loss solves. Its
        arguments may differ from sample to sample.
    - `solver_optimizer`: the Optax optimizer of the learned part of the solver.
    - `reference`: the [`diffrax_speedreg.training.Reference`][] for solver steps.

    **Raises:**

    A `ValueError` if there is a solver optimizer without an equation or a reference, or
    a loss without an optimizer, or if an argument is of another kind.

    **Cost:** a model step costs its solve, forwards and backwards. A solver step costs
    about as much. A reference solve is an adaptive solve, forwards only, and serves
    several solver steps.

    ??? cite "Reference"

        Djeumou et al., "Taylor-Lagrange Neural Ordinary Differential Equations", IJCAI
        2022.
    """

    loss: Loss | None
    model_optimizer: optax.GradientTransformation | None
    equation: Equation | None = None
    solver_optimizer: optax.GradientTransformation | None = None
    reference: Reference | None = None

    def __check_init__(self):
        if (self.loss is None) != (self.model_optimizer is None):
            raise ValueError(
                "`loss` and `model_optimizer` go together: pass both, or `None` for "
                "both to train the solver alone."
            )
        for name in ("model_optimizer", "solver_optimizer"):
            optimizer = getattr(self, name)
            if optimizer is not None:
                check_optimizer(optimizer, name)
        if self.loss is not None:
            check_callable(self.loss, "loss", "(model, solver, batch) -> scalar")
        if self.equation is not None:
            signature = "(model, batch) -> InitialValueProblem"
            check_callable(self.equation, "equation", signature)
        if self.reference is not None:
            check_is(self.reference, Reference, "reference", "Reference(num_steps=2)")
        halves = (self.equation is None, self.reference is None)
        if self.solver_optimizer is not None and any(halves):
            raise ValueError(
                "`solver_optimizer` needs `equation=...`, the equation that the loss "
                "solves, and `reference=Reference(num_steps)`."
            )

    def init(
        self,
        model: PyTree[Any],
        solver: dfx.AbstractSolver | None = None,
        *,
        key: Key[Array, ""],
        aux: PyTree[Any] = None,
        budget: AbstractBudget | None = None,
    ) -> TrainingState:
        """Makes the state at the start of a training run.

        **Arguments:**

        - `model`: the model, a pytree all of whose inexact arrays are trained; or a
            [`diffrax_speedreg.training.Stateful`][].
        - `solver`: the Diffrax solver that is passed to the loss. If there is a solver
            optimizer, the learned part of a
            [`diffrax_speedreg.AbstractLearnedSolver`][] is trained.
        - `key`: a `jax.random` key that determines the order of the data.
        - `aux`: any pytree of yours, such as learning curves.
        - `budget`: a [`diffrax_speedreg.NFEBudget`][] or a
            [`diffrax_speedreg.training.ErrorBudget`][], which chooses the weight of the
            regularizer. The loss then returns a
            [`diffrax_speedreg.training.RegularizedLoss`][] in place of the scalar.

        **Returns:**

        A [`diffrax_speedreg.training.TrainingState`][].

        **Raises:**

        A `ValueError` if `solver`, `key` or `budget` is of another kind, or if a step
        of the solver exceeds the budget.
        """
        check_key(key)
        if solver is not None:
            check_solver(solver)
        if budget is not None:
            check_is(budget, AbstractBudget, "budget", "NFEBudget(31)")
        if isinstance(budget, NFEBudget) and solver is not None:
            budget.check(solver)

        def init(optimizer: Any, params: PyTree[Array]) -> PyTree[Any]:
            return None if optimizer is None else optimizer.init(params)

        return TrainingState(
            model,
            solver,
            init(self.model_optimizer, _partition_model(model)[0]),
            init(self.solver_optimizer, _partition_solver(solver)[0]),
            key,
            jnp.array(0, jnp.int32),
            aux,
            budget,
        )

    def trains_solver(self, state: TrainingState) -> bool:
        """Returns whether the solver of a `state` has a part that is trained."""
        learned = None if state.solver is None else learned_part(state.solver)
        return self.solver_optimizer is not None and learned is not None

    @eqx.filter_jit
    def model_step(
        self, state: TrainingState, batch: PyTree[Any]
    ) -> tuple[TrainingState, ModelReport]:
        """Makes one optimizer step for the model. The solver does not change.

        **Arguments:**

        - `state`: the state before the step.
        - `batch`: passed to `loss`.

        **Returns:**

        The updated state, and diagnostics of the step.

        **Raises:**

        A `ValueError` if there is no loss, the loss does not return a scalar, the batch
        does not fit the model, or the optimizer's state belongs to another model.
        """
        if self.loss is None or self.model_optimizer is None:
            raise ValueError("There is no loss: pass `loss` to the trainer.")
        loss = self.loss
        params, static = _partition_model(state.model)

        def compute(params: PyTree[Array]) -> tuple[Scalar, tuple[Any, Any, Any]]:
            model = eqx.combine(params, static)
            return outputs(loss(model, state.solver, batch), state)

        with naming_batch(batch):
            (value, (aux, kept, parts)), grads = eqx.filter_value_and_grad(
                compute, has_aux=True
            )(params)
        after, opt_state = update(
            self.model_optimizer,
            params,
            state.model_opt_state,
            value,
            grads,
            lambda params: compute(params)[0],
            "model_opt_state",
        )
        model = eqx.combine(after, static)
        if isinstance(model, Stateful):
            model = Stateful(model.model, kept)
        finite = stays_finite(
            value, (params, state.model_opt_state), (after, opt_state), kept
        )
        budget = None if parts is None else updated(state.budget, parts)
        where = lambda s: (s.model, s.model_opt_state, s.step, s.budget)
        changes = (model, opt_state, state.step + 1, budget)
        report = ModelReport(value, aux, finite, parts)
        return _replace(where, state, changes), report

    @eqx.filter_jit
    def model_steps(
        self, state: TrainingState, batches: PyTree[Any]
    ) -> tuple[TrainingState, ModelReport, Inexact[Array, " n"], Bool[Array, " n"]]:
        """Makes several model steps in one computation, by `jax.lax.scan`.

        Use it for small networks, whose steps take less time than JAX takes to start a
        computation.

        **Arguments:**

        - `state`: the state before the steps.
        - `batches`: a pytree like a batch, whose arrays have a new first axis for the
            steps.

        **Returns:**

        The updated state, the [`diffrax_speedreg.training.ModelReport`][] of the last
        step, the losses of all steps, and for each step whether the loss and the state
        were finite.
        """
        arrays, rest = eqx.partition(state, eqx.is_array)
        parts, others = eqx.partition(batches, eqx.is_array)

        def step(arrays: Any, part: Any) -> tuple[Any, ModelReport]:
            batch = eqx.combine(part, others)
            after, report = self.model_step(eqx.combine(arrays, rest), batch)
            return eqx.filter(after, eqx.is_array), report

        arrays, reports = jax.lax.scan(step, arrays, parts)
        last = jtu.tree_map(lambda x: x[-1], reports)
        return eqx.combine(arrays, rest), last, reports.loss, reports.finite

    def solve_reference(
        self, state: TrainingState, batch: PyTree[Any]
    ) -> ReferenceSolution:
        """Makes the reference solve for several solver steps.

        **Arguments:**

        - `state`: the state, whose model defines the equation.
        - `batch`: passed to `equation`.

        **Returns:**

        The reference solution.

        **Raises:**

        [`diffrax_speedreg.training.ReferenceFailed`][] if the solve failed. The message
        says at which time, and for which sample. A `ValueError` if the solver has no
        learned part, or if the batch does not fit the model.
        """
        reference, _, _ = self._solver_half(state)
        solution = self._solve_reference(state.model, batch)
        reference.check(solution)
        return solution

    @eqx.filter_jit
    def _solve_reference(
        self, model: PyTree[Any], batch: PyTree[Any]
    ) -> ReferenceSolution:
        assert self.equation is not None and self.reference is not None
        with naming_batch(batch):
            return self.reference.solve(self.equation(model, batch))

    @eqx.filter_jit
    def solver_step(
        self, state: TrainingState, batch: PyTree[Any], reference: ReferenceSolution
    ) -> tuple[TrainingState, SolverReport]:
        """Makes one optimizer step for the learned part of the solver. The model does
        not change.

        **Arguments:**

        - `state`: the state before the step.
        - `batch`: passed to `equation`.
        - `reference`: the reference solution for the same model and batch. Make a new
            one after a model step. The reference of another batch raises an error at
            run time.

        **Returns:**

        The updated state, and diagnostics of the step.

        **Raises:**

        A `ValueError` if the solver has nothing to train, the batch does not fit the
        model, or the optimizer's state belongs to another solver.
        """
        settings, equation, optimizer = self._solver_half(state)
        params, static = _partition_solver(state.solver)

        def compute(params: PyTree[Array]) -> Scalar:
            solver = eqx.combine(params, static)
            problem = equation(state.model, batch)
            steps = settings.steps_per_part
            return solver_error(solver, problem, reference, steps)

        with naming_batch(batch):
            error, grads = eqx.filter_value_and_grad(compute)(params)
        after, opt_state = update(
            optimizer,
            params,
            state.solver_opt_state,
            error,
            grads,
            compute,
            "solver_opt_state",
        )
        before = (params, state.solver_opt_state)
        finite = stays_finite(error, before, (after, opt_state))
        budget = state.budget
        if isinstance(budget, ErrorBudget):
            budget = budget.following(error)
        where = lambda s: (s.solver, s.solver_opt_state, s.budget)
        changes = (eqx.combine(after, static), opt_state, budget)
        return _replace(where, state, changes), SolverReport(error, finite)

    @eqx.filter_jit
    def evaluate(self, state: TrainingState, batch: PyTree[Any]) -> Evaluation:
        """Measures a model and its solver on one batch, for a validation.

        **Arguments:**

        - `state`: the state.
        - `batch`: passed to `loss` and `equation`.

        **Returns:**

        The loss, and if there is a reference, the solver's error against it, and the
        evaluations that it took.
        """
        loss = aux = error = count = None
        with naming_batch(batch):
            if self.loss is not None:
                result = self.loss(state.model, state.solver, batch)
                loss, (aux, _, parts) = outputs(result, state)
                loss = loss if parts is None else parts.loss
            equation, reference = self.equation, self.reference
            if equation and reference and state.solver is not None:
                problem = equation(state.model, batch)
                error, count = _measure(state.solver, problem, reference)
        return Evaluation(loss, aux, error, count)

    def _solver_half(
        self, state: TrainingState
    ) -> tuple[Reference, Equation, optax.GradientTransformation]:
        reference, equation = self.reference, self.equation
        optimizer = self.solver_optimizer
        if not self.trains_solver(state) or reference is None or equation is None:
            raise ValueError(
                "There is nothing to train in the solver: it needs a learned part, "
                "such as `TaylorLagrangeSolver(midpoint=MidpointMLP(...))`, and a "
                f"trainer with `solver_optimizer=`. Got the solver {state.solver!r}."
            )
        assert optimizer is not None
        return reference, equation, optimizer


def _replace(where: Callable[[Any], Any], tree: _T, values: Any) -> _T:
    return eqx.tree_at(where, tree, values, is_leaf=lambda leaf: leaf is None)


def _partition_model(model: PyTree[Any]) -> tuple[PyTree[Array], PyTree[Any]]:
    """Splits a model into its trained arrays and the rest."""
    trained = jtu.tree_map(eqx.is_inexact_array, model)
    if isinstance(model, Stateful):
        fixed = jtu.tree_map(lambda leaf: False, model.state)
        trained = Stateful(trained.model, fixed)
    return eqx.partition(model, trained)


def _partition_solver(solver: Any) -> tuple[PyTree[Array], PyTree[Any]]:
    """Splits a solver into its trained arrays and the rest."""
    if solver is None:
        return None, None
    return eqx.partition(solver, learned_leaves(solver))


def _measure(
    solver: Any, problem: InitialValueProblem, reference: Reference
) -> tuple[Scalar, Int[Array, ""] | None]:
    """Computes the solver's error and the evaluations of the reference."""
    exact = reference.whole().solve(problem)
    error = solver_error(solver, problem, exact, reference.num_steps)
    if exact.outcome is None:
        return error, None
    successful = exact.outcome.result == dfx.RESULTS.successful
    error = jnp.where(successful, error, jnp.nan)
    count = exact.outcome.nfe
    # A failed solve does not count as cheap.
    return error, None if count is None else jnp.where(successful, count, -1)
