"""What the steps of a training take, return and tell."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Inexact, Int, Key, PyTree

from .losses import DynamicsTerms, Solver


class AlternatingState(eqx.Module):
    """The whole state of an alternating training: one pytree.

    **Attributes:**

    - `model`: what is trained on data.
    - `solver`: the Taylor-Lagrange solver, with its remainder.
    - `model_opt_state`, `solver_opt_state`: the optimizers' states.
    - `key`: decides, with `step`, which data come next.
    - `step`: how many dynamics steps were made.
    """

    model: PyTree[Any]
    solver: Solver
    model_opt_state: PyTree[Any]
    solver_opt_state: PyTree[Any]
    key: Key[Array, ""]
    step: Int[Array, ""]


class DynamicsReport(eqx.Module):
    """What a dynamics step tells.

    **Attributes:**

    - `total`: the loss that was minimized, before the step.
    - `terms`: its summands.
    - `finite`: whether that, and what the step has changed of the model and of its
        optimizer's state, are finite.
    """

    total: Inexact[Array, ""]
    terms: DynamicsTerms
    finite: Bool[Array, ""]


class RemainderReport(eqx.Module):
    """What a remainder step tells.

    **Attributes:**

    - `error`: the solver's mean error, before the step.
    - `finite`: whether that, and what the step has changed of the solver and of its
        optimizer's state, are finite.
    """

    error: Inexact[Array, ""]
    finite: Bool[Array, ""]


class Evaluation(eqx.Module):
    """How good a model and its solver are.

    **Attributes:**

    - `loss`: the loss on data, by the cheap solver.
    - `error`: the mean absolute error of the cheap solver's final state. Not a number
        if the reference solve fails.
    - `nfe`: the evaluations that the reference solver needs for the whole batch as one
        state; -1 if that solve fails, and `None` for an implicit solver.
    - `metrics`: what else was asked for.
    """

    loss: Inexact[Array, ""]
    error: Inexact[Array, ""]
    nfe: Int[Array, ""] | None
    metrics: dict[str, Inexact[Array, ""]]
