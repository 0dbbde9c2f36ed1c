"""Outputs of a loss."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._budget import AbstractBudget, ErrorBudget
from .states import RegularizedLoss, Stateful, TrainingState


Scalar: TypeAlias = Inexact[Array, ""]
Value: TypeAlias = Scalar | RegularizedLoss
Outputs: TypeAlias = Value | tuple[Value, Any] | tuple[Value, Any, Any]
Loss: TypeAlias = Callable[[Any, Any, Any], Outputs]


def outputs(
    result: Any, before: TrainingState
) -> tuple[Scalar, tuple[Any, Any, RegularizedLoss | None]]:
    """Returns the value of a loss, its auxiliary outputs, the new state of the model,
    and the parts of the value, if there is a budget."""
    stateful = isinstance(before.model, Stateful)
    parts: tuple[Any, ...] = result if isinstance(result, tuple) else (result,)
    if not 1 <= len(parts) <= 3 or (len(parts) == 3) != stateful:
        wanted = "`(scalar, aux, state)`" if stateful else "a scalar or `(scalar, aux)`"
        raise ValueError(
            f"`loss` must return {wanted} for a model of type "
            f"{type(before.model).__name__}, but it returned {len(parts)} outputs. "
            "`aux` may be `None`; the state is that of a model wrapped as "
            "`Stateful(model, state)`."
        )
    value, aux, state = (list(parts) + [None, None])[:3]
    budget = before.budget
    if budget is None:
        if isinstance(value, RegularizedLoss):
            raise ValueError(
                "`loss` returned a `RegularizedLoss`, but the state has no budget. "
                "Pass `budget=NFEBudget(...)` to `trainer.init`, or return a scalar."
            )
        return _as_scalar(value), (aux, state, None)
    if not isinstance(value, RegularizedLoss):
        raise ValueError(
            "The state has a budget, but `loss` returned "
            f"{eqx.tree_pformat(value, struct_as_array=True)}. Return a "
            "`RegularizedLoss(loss, integral, dsr.nfe(solver, solution))`."
        )
    data, integral = _as_scalar(value.loss), _as_scalar(value.integral)
    value = RegularizedLoss(data, integral, value.nfe)
    return value.total(budget), (aux, state, value)


def _as_scalar(value: Any) -> Scalar:
    dtype = jnp.result_type(value) if eqx.is_array_like(value) else object
    if dtype is object or not jnp.issubdtype(dtype, jnp.floating) or jnp.ndim(value):
        raise ValueError(
            "`loss` must return a real scalar, but it returned "
            f"{eqx.tree_pformat(value, struct_as_array=True)}. Return a scalar array, "
            "such as the mean over the batch."
        )
    return jnp.asarray(value)


def updated(budget: AbstractBudget | None, parts: RegularizedLoss) -> AbstractBudget:
    """Returns the budget after a model step."""
    assert budget is not None
    if isinstance(budget, ErrorBudget):
        return budget.noting(parts.loss, parts.integral)
    if parts.nfe is None:
        raise ValueError(
            "An `NFEBudget` needs the evaluations of the solve, but got `nfe=None`. "
            "Return `RegularizedLoss(loss, integral, dsr.nfe(solver, solution))`."
        )
    return budget.update(parts.nfe, parts.loss, parts.integral)
