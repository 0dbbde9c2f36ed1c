from typing import Any

import diffrax as dfx
import equinox as eqx
from jaxtyping import Array, Bool, Inexact, Int, Key, PyTree, Real

from .._budget import AbstractBudget


class Stateful(eqx.Module):
    """Model with a state that gradients do not train.

    Use it for the running averages of BatchNorm, for counters, and for the collections
    of Flax. The loss gets the `Stateful`, and returns `(loss, aux, state)` with the new
    state.

    **Attributes:**

    - `model`: the model, a pytree whose inexact arrays are trained.
    - `state`: the state, a pytree. After each step it is the one that the loss
        returned.
    """

    model: PyTree[Any]
    state: PyTree[Any]


class RegularizedLoss(eqx.Module):
    """Loss in two parts, which the trainer adds with the weight that a budget chooses.

    If the state has a [`diffrax_speedreg.NFEBudget`][] or an
    [`diffrax_speedreg.training.ErrorBudget`][], the loss returns this in place of a
    scalar.

    **Attributes:**

    - `loss`: the loss of the data, a scalar.
    - `integral`: the regularizer, a scalar.
    - `nfe`: the NFE of the solve, from [`diffrax_speedreg.nfe`][]. It is an array for a
        batch of solves, and `None` for an `ErrorBudget`.
    """

    loss: Inexact[Array, ""]
    integral: Inexact[Array, ""]
    nfe: Real[Array, "..."] | None = None

    def total(self, budget: AbstractBudget) -> Inexact[Array, ""]:
        return self.loss + budget.penalty(self.integral).astype(self.loss.dtype)


class TrainingState(eqx.Module):
    """State of a training run: one pytree, which a checkpoint saves as a whole.

    **Attributes:**

    - `model`: the model.
    - `solver`: the solver, with its learned part.
    - `model_opt_state`, `solver_opt_state`: the states of the optimizers.
    - `key`: a `jax.random` key, which determines the batches together with `step`.
    - `step`: the number of model steps so far. Without a loss, it is the number of
        steps of the solver's training.
    - `aux`: any pytree of yours, such as learning curves.
    - `budget`: the budget that chooses the weight of the regularizer; or `None`.
    """

    model: PyTree[Any]
    solver: dfx.AbstractSolver | None
    model_opt_state: PyTree[Any]
    solver_opt_state: PyTree[Any]
    key: Key[Array, ""]
    step: Int[Array, ""]
    aux: PyTree[Any] = None
    budget: AbstractBudget | None = None


class ModelReport(eqx.Module):
    """Diagnostics of a model step.

    **Attributes:**

    - `loss`: the loss before the step.
    - `aux`: the auxiliary output of the loss; `None` if there is none.
    - `finite`: whether the loss, and all that the step changed, are finite.
    - `parts`: the two parts of the loss, if there is a budget.
    """

    loss: Inexact[Array, ""]
    aux: PyTree[Any]
    finite: Bool[Array, ""]
    parts: RegularizedLoss | None = None


class SolverReport(eqx.Module):
    """Diagnostics of a solver step.

    **Attributes:**

    - `error`: the mean absolute error of the solver before the step, in the units of
        the state.
    - `finite`: whether the error, and all that the step changed, are finite.
    """

    error: Inexact[Array, ""]
    finite: Bool[Array, ""]


class Evaluation(eqx.Module):
    """Loss, error and NFE of a model and its solver on one batch.

    **Attributes:**

    - `loss`, `aux`: the outputs of the loss; `None` if there is no loss.
    - `error`: the mean absolute error of the solver's final state against the reference
        solve. It is NaN if that failed, and `None` if there is no reference.
    - `nfe`: the NFE of the reference solve, with the whole batch as one state. It is -1
        if the solve failed, and `None` if there is no reference or its solver is
        implicit.
    """

    loss: Inexact[Array, ""] | None
    aux: PyTree[Any]
    error: Inexact[Array, ""] | None
    nfe: Int[Array, ""] | None
