"""Methods of training: plain, regularized, or in a few steps of a cheap solver."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .problem import Batch, Problem


# A solve in training: a function of a problem, a model and a batch that returns the
# solution and the integral of the regularizer.
Way = Callable[
    [Problem, Any, Batch], tuple[dfx.Solution, Float[Array, ""] | Float[Array, "1"]]
]
# A function of a model, a batch and the initial state.
MakeRegularizer = Callable[[Any, Batch, Any], dsr.AbstractRegularizer]


@dataclasses.dataclass(frozen=True)
class Method:
    """Method of training.

    **Attributes:**

    - `solver`: the solver, which is adaptive without `num_steps`.
    - `num_steps`: the number of equal steps.
    - `penalty`: the name of the penalty in the state of a learned solver.
    - `way`: the solve with a regularizer.
    - `weight`: the weight of the penalty or the regularizer.
    - `budget`: the budget of evaluations that the weight follows from instead.
    - `solver_optimizer`: the optimizer of a learned solver.
    - `reference`: the adaptive solver of its references.
    - `fit`: further arguments of `dsr.training.fit`.
    """

    solver: dfx.AbstractSolver = dfx.Dopri5()
    num_steps: int | None = None
    penalty: str = "absolute_midpoint_penalty"
    way: Way | None = None
    weight: float = 0.0
    budget: dsr.NFEBudget | None = None
    solver_optimizer: optax.GradientTransformation | None = None
    reference: dfx.AbstractSolver = dfx.Dopri8()
    fit: dict[str, Any] = dataclasses.field(default_factory=dict)

    def solve(
        self, problem: Problem, model: Any, solver: Any, batch: Batch
    ) -> dfx.Solution:
        """Makes the method's own solve, without a regularizer."""
        if self.num_steps is None:
            return problem.solve(model, batch, solver)
        term, solver, t0, t1, _, y0, args = problem.arguments(model, batch, solver)
        # These solves can't fail, and a check would take time.
        return dsr.fixed_step_solve(
            *(term, solver, t0, t1, self.num_steps, y0, args), throw=False
        )

    def trainer(
        self, problem: Problem, optimizer: optax.GradientTransformation
    ) -> dsr.training.Trainer:
        """Makes the trainer of a model, and of the solver if that is learned."""

        def loss(model: Any, solver: Any, batch: Batch) -> Any:
            parts = problem.each(
                lambda b: self._parts(problem, model, solver, b), batch
            )
            if self.budget is not None:
                return parts
            return parts.loss + self.weight * parts.integral

        if self.solver_optimizer is None:
            return dsr.training.Trainer(loss, optimizer)
        assert self.num_steps is not None
        tolerance = problem.tolerance
        return dsr.training.Trainer(
            loss,
            optimizer,
            problem.equation,
            self.solver_optimizer,
            dsr.training.Reference(
                self.num_steps,
                self.reference,
                rtol=tolerance,
                atol=tolerance,
                max_steps=problem.max_steps,
            ),
        )

    def _parts(
        self, problem: Problem, model: Any, solver: Any, batch: Batch
    ) -> dsr.training.RegularizedLoss:
        if self.way is not None:
            solution, integral = self.way(problem, model, batch)
        else:
            solution = self.solve(problem, model, solver, batch)
            integral = jnp.zeros(())
            if isinstance(solver, dsr.AbstractLearnedSolver):
                integral = getattr(solution.solver_state, self.penalty)
        nfe = None if self.budget is None else dsr.nfe(problem.solver, solution)
        loss = problem.loss(model, solution, batch)
        return dsr.training.RegularizedLoss(loss, integral.astype(loss.dtype), nfe)


def regularized(make: MakeRegularizer, integration: Any = None) -> Way:
    """Makes the way with a regularizer, and a method to integrate it."""

    def way(problem: Problem, model: Any, batch: Batch) -> tuple[dfx.Solution, Any]:
        arguments = problem.arguments(model, batch, problem.solver)
        *_, y0, _ = arguments
        return dsr.regularized_solve(
            *arguments,
            regularizer=make(model, batch, y0),
            method=integration,
            **problem.options,
        )

    return way


def derivative(order: int, integration: Any = None) -> Way:
    """Makes the way with R_K."""
    return regularized(lambda *_: dsr.DerivativeNorm(order), integration)


def rnode(model: Any, batch: Batch, y0: Any) -> dsr.AbstractRegularizer:
    """Makes RNODE's regularizer (Finlay et al., "How to Train Your Neural ODE", ICML
    2020)."""
    assert batch.key is not None
    return dsr.DerivativeNorm(1) + dsr.JacobianNorm.draw(batch.key, y0)
