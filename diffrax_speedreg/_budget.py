"""Weights of regularizers that change in training until a budget is met."""

import math
from dataclasses import replace
from typing import Any, TypeVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Real

from ._checks import check_real_scalar, check_that
from ._custom_types import RealScalarLike
from ._nfe import evaluations


class BudgetState(eqx.Module):
    """State of a budget.

    **Attributes:**

    - `started`: whether the budget was exceeded.
    - `at_limit`: whether a limit stopped the last increase of the weight.
    - `log_weight`: the logarithm of the weight, from the start on.
    - `loss`: the moving average of the loss's size, until the start; zero at first.
    - `integral`: the size of the latest regularizer; zero at first.
    """

    started: Bool[Array, ""]
    at_limit: Bool[Array, ""]
    log_weight: Float[Array, ""]
    loss: Float[Array, ""]
    integral: Float[Array, ""]

    @classmethod
    def initial(cls) -> "BudgetState":
        no, zero = jnp.array(False), jnp.array(0, jnp.float32)
        return cls(no, no, zero, zero, zero)


_Budget = TypeVar("_Budget", bound="AbstractBudget")


class AbstractBudget(eqx.Module):
    r"""Abstract base class for weights of a regularizer that are controlled.

    With the measured quantity $n$ and its budget $n^*$, each update changes the weight
    $\lambda$ by

    $$\log \lambda \leftarrow \log \lambda + \eta \max(-1, \min(1,
    10\, (n / n^* - 1))),$$

    so that it increases where $n$ is above the budget, and decreases where it is
    below. It also keeps $\lambda R$ between $10^{-6}$ and 1 times $L$, the loss at the
    time when the budget was first exceeded. These changes, too, are at most $\eta$.
    """

    target: eqx.AbstractVar[float]
    rate: eqx.AbstractVar[float]
    _state: eqx.AbstractVar[BudgetState]

    @property
    def weight(self) -> Float[Array, ""]:
        """The weight of the regularizer. It is zero until a measured quantity is above
        the budget for the first time."""
        state = self._state
        return jnp.where(state.started, jnp.exp(state.log_weight), 0)

    @property
    def at_limit(self) -> Bool[Array, ""]:
        """Returns whether a limit stopped the last increase of the weight."""
        return self._state.at_limit

    def penalty(self, integral: Inexact[Array, ""]) -> Inexact[Array, ""]:
        """Computes the regularizer times the weight. Add it to the loss.

        **Arguments:**

        - `integral`: the regularizer, a scalar.

        **Returns:**

        A scalar of the same dtype. It is zero, and has no gradient, as long as the
        weight is zero, even where the regularizer is not finite.
        """
        integral = jnp.asarray(integral)
        weight = lax.stop_gradient(self.weight)
        dtype = max(integral.dtype, weight.dtype, key=lambda d: jnp.finfo(d).bits)
        counted = jnp.where(self._state.started, integral.astype(dtype), 0)
        return (weight.astype(dtype) * counted).astype(integral.dtype)

    def update(
        self: _Budget,
        measured: Real[ArrayLike, "..."],
        loss: RealScalarLike,
        integral: RealScalarLike,
    ) -> _Budget:
        """Changes the weight after a training step.

        **Arguments:**

        - `measured`: the quantity with the budget, in the solve of this step: the NFE,
            or the error. For a batch of solves it is an array, whose mean is used.
        - `loss`: the loss of the data in this step, a scalar.
        - `integral`: the regularizer in this step, a scalar.

        **Returns:**

        The budget with its new weight. The weight stays the same if `measured` is not
        finite, or if the loss or the regularizer is zero or not finite.

        **Raises:**

        A `ValueError` if `loss` or `integral` is not a scalar.
        """
        return self.noting(loss, integral).following(measured)

    def noting(
        self: _Budget, loss: RealScalarLike, integral: RealScalarLike
    ) -> _Budget:
        """Records a loss and a regularizer, which set the scale of the weight."""
        check_real_scalar(loss, "loss")
        check_real_scalar(integral, "integral")
        size, latest = (
            lax.stop_gradient(jnp.abs(jnp.asarray(x).astype(jnp.float32)))
            for x in (loss, integral)
        )
        before = self._state
        # A loss that passes through zero is small in one step only: take the average.
        keep = before.started | ~jnp.isfinite(size) | (size == 0)
        mean = jnp.where(before.loss == 0, size, 0.9 * before.loss + 0.1 * size)
        loss_size = jnp.where(keep, before.loss, mean)
        state = replace(before, loss=loss_size, integral=latest)
        return eqx.tree_at(lambda b: b._state, self, state)

    def following(self: _Budget, measured: Real[ArrayLike, "..."]) -> _Budget:
        """Changes the weight. The recorded loss and regularizer set its scale."""
        check_that(eqx.is_array_like(measured), "measured", "a number", measured)
        mean = jnp.mean(lax.stop_gradient(jnp.asarray(measured).astype(jnp.float32)))
        change = self.rate * jnp.clip(10 * (mean / self.target - 1), -1, 1)
        before = self._state
        sizes = jnp.stack([before.loss, before.integral])
        scaled = jnp.all((sizes > 0) & jnp.isfinite(sizes))
        # The weight with which the regularizer is as large as the loss.
        logs = jnp.log(jnp.where(scaled, sizes, 1))
        equal, known = logs[0] - logs[1], scaled & jnp.isfinite(mean)
        low, first, high = (
            jnp.clip(equal + math.log(share), -85, 85) for share in _shares
        )
        old, above = before.log_weight, known & (change > 0)
        wanted = jnp.clip(old + change, low, high)
        # A single outlier of the regularizer does not move the weight far.
        moved = jnp.clip(wanted, old - self.rate, old + self.rate)
        new = jnp.where(before.started, moved, first)
        limited = jnp.where(before.started, old + change >= high, ~known)
        state = replace(
            before,
            started=before.started | above,
            at_limit=(mean > self.target) & limited,
            log_weight=jnp.where(known, new, old),
        )
        return eqx.tree_at(lambda b: b._state, self, state)


class NFEBudget(AbstractBudget):
    r"""Controller of a regularizer's weight that keeps the vector field evaluations of
    a solve (NFE) within a budget.

    Use it in place of a fixed weight, which you would have to search for. It needs an
    adaptive solver.

    !!! example

        ```python
        budget = dsr.NFEBudget(31)

        @eqx.filter_jit
        def step(model, budget, opt_state, batch):
            def loss(model):
                solution, integral = dsr.regularized_solve(...)
                data_loss = ...
                nfe = dsr.nfe(solver, solution)
                total = data_loss + budget.penalty(integral)
                return total, (nfe, data_loss, integral)

            grads, measured = eqx.filter_grad(loss, has_aux=True)(model)
            ...
            return model, budget.update(*measured), opt_state
        ```

    If you pass a budget to `Trainer.init`, [`diffrax_speedreg.training.fit`][] updates
    it.

    The weight $\lambda$ is zero until a solve first exceeds the budget. It then starts
    at a value with which the regularizer adds 1 % to the loss. After that, each
    training step changes it:

    $$\log \lambda \leftarrow \log \lambda + \eta \max(-1, \min(1,
    10\, (n / n^* - 1))).$$

    Here $n$ is the NFE of the solve, and $n^*$ is the budget. This is an integral
    controller. For small $\eta$ it is dual ascent on the Lagrangian of the problem to
    minimize the loss subject to $n \le n^*$. The budget applies at the tolerance of the
    training solves.

    Let $L$ be the loss of the data when a solve first exceeded the budget. The weighted
    regularizer stays between $10^{-6} L$ and $L$. If the budget is out of reach, for
    example less than three steps, the weight ends at this upper limit, and `at_limit`
    is true. If the loss is near zero for a long time, add a constant to it, because it
    sets the scale.

    **Attributes:**

    - `target`: the budget $n^*$, a Python float.
    - `rate`: $\eta$, a Python float.

    ??? cite "Reference"

        The controller is the one that adapts step sizes. For dual ascent on constraints
        in training, see Platt and Barr, "Constrained Differential Optimization", NIPS
        1987.
    """

    target: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    _state: BudgetState

    def __init__(
        self,
        nfe: int | float | Array,
        *,
        solver: dfx.AbstractSolver | None = None,
        rate: int | float = 0.05,
    ):
        r"""**Arguments:**

        - `nfe`: the budget $n^*$, a number of vector field evaluations.
        - `solver`: the solver of the training solves. If it is passed, it is checked
            that one step fits into the budget.
        - `rate`: $\eta$, the largest change of $\log \lambda$ in a training step. With
            the default, a factor of ten takes 46 steps. Choose a larger rate for short
            training runs; the weight then oscillates more.

        **Raises:**

        A `ValueError` if `nfe` or `rate` is not a positive number, if `nfe` is less
        than the evaluations of one step, or if the evaluations of `solver` are not
        known.
        """
        self.target = _positive(nfe, "nfe", 1.0)
        self.rate = _positive(rate, "rate")
        self._state = BudgetState.initial()
        if solver is not None:
            self.check(solver)

    def check(self, solver: dfx.AbstractSolver) -> None:
        """Checks that a solver can make a step within the budget.

        **Arguments:**

        - `solver`: the solver.

        **Raises:**

        A `ValueError` if it can't, or if its evaluations are not known.
        """
        least = evaluations(solver, adaptive=True).of_steps(1)
        if self.target < least:
            raise ValueError(
                f"A step of {type(solver).__name__} takes {least} evaluations, but got "
                f"a budget of `nfe={self.target:g}`. Choose a larger one: an adaptive "
                "solve makes about three steps at least."
            )


class ErrorBudget(AbstractBudget):
    r"""Controller of a penalty's weight that keeps the error of a solver within a
    budget.

    Use it for a solver with a fixed number of steps. It works like
    [`diffrax_speedreg.NFEBudget`][], but with the error of the solver in place of its
    evaluations. The regularizer is the `midpoint_penalty` of a
    [`diffrax_speedreg.TaylorLagrangeSolver`][]. The model then learns an equation that
    the solver solves accurately.

    [`diffrax_speedreg.training.fit`][] updates the weight in each solver step, by the
    error against the reference solve. In your own loop, pass this error to `update`,
    with the loss of the data and the penalty.

    **Attributes:**

    - `target`: the budget for the error, a Python float.
    - `rate`: $\eta$, a Python float.
    """

    target: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    _state: BudgetState

    def __init__(self, error: int | float, *, rate: int | float = 0.02):
        r"""**Arguments:**

        - `error`: the budget for the mean absolute error of the solver's states, in the
            units of the state.
        - `rate`: $\eta$, the largest change of $\log \lambda$ in an update.

        **Raises:**

        A `ValueError` if `error` or `rate` is not a positive number.
        """
        self.target = _positive(error, "error")
        self.rate = _positive(rate, "rate")
        self._state = BudgetState.initial()


def _positive(value: Any, name: str, least: float = 0.0) -> float:
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
        value = value.item()
    okay = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    okay = okay and math.isfinite(value) and bool(value >= least and value > 0)
    wanted = f"a number, at least {least:g}" if least else "a positive number"
    check_that(okay, name, wanted, value)
    return float(value)


# Shares of the regularizer in the loss: the smallest, the first and the largest one.
_shares = (1e-6, 0.01, 1.0)
