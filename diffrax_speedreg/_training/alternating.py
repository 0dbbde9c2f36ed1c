from collections.abc import Callable, Iterable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Inexact, Int, PyTree

from .._checks import check_positive_integer, check_solver
from .._problem import final_state, InitialValueProblem, solve_adaptive
from .._solver.hypersolver import HyperSolver
from .._solver.taylor_lagrange import TaylorLagrangeSolver
from .divergence import check_finite, solving
from .losses import dynamics_loss, midpoint_loss


class AlternatingState(eqx.Module):
    """The whole state of an alternating training: one pytree.

    **Attributes:**

    - `model`: what is trained on data.
    - `solver`: the Taylor-Lagrange solver, with its midpoint.
    - `model_opt_state`, `solver_opt_state`: the optimizers' states.
    - `step`: how many dynamics steps were made.
    """

    model: PyTree[Any]
    solver: TaylorLagrangeSolver | HyperSolver
    model_opt_state: PyTree[Any]
    solver_opt_state: PyTree[Any]
    step: Int[Array, ""]


class AlternatingTrainer(eqx.Module):
    r"""Trains dynamics and midpoint in turn.

    A *dynamics step* fits the model to data through a few steps of the Taylor-Lagrange
    solver, whose midpoint is fixed. A *midpoint step* fits the midpoint to a solve of
    the current dynamics at high fidelity, which are fixed. Each is a jitted function
    that can be used in a loop of your own; [`diffrax_speedreg.fit`][] is such a loop.

    !!! example

        ```python
        trainer = dsr.AlternatingTrainer(
            problem=lambda model, batch: dsr.InitialValueProblem(model.term, batch.x),
            loss=lambda model, y1, batch: jnp.mean((y1 - batch.y) ** 2),
            num_steps=2,
            model_optimizer=optax.adam(1e-3),
            solver_optimizer=optax.adam(1e-3),
        )
        state = trainer.init(model, dsr.TaylorLagrangeSolver(2, midpoint))
        state, loss = trainer.dynamics_step(state, batch)
        state, error = trainer.midpoint_step(state, batch)
        ```

    ??? cite "Reference"

        Djeumou et al., "Taylor-Lagrange Neural Ordinary Differential Equations", IJCAI
        2022. The penalty is the mean of squares of the paper's formula; its reference
        implementation takes the mean of absolute values.
    """

    problem: Callable[[PyTree[Any], PyTree[Array]], InitialValueProblem]
    loss: Callable[[PyTree[Any], PyTree[Array], PyTree[Array]], Inexact[Array, ""]]
    num_steps: int
    model_optimizer: optax.GradientTransformation
    solver_optimizer: optax.GradientTransformation
    penalty: float = 0.0
    reference_solver: dfx.AbstractSolver = dfx.Dopri8()
    reference_tolerance: float = 1e-6

    def __check_init__(self):
        check_positive_integer(self.num_steps, "num_steps")

    def init(
        self, model: PyTree[Any], solver: TaylorLagrangeSolver | HyperSolver
    ) -> AlternatingState:
        """The state at the start of a training.

        **Arguments:**

        - `model`: what to train on data.
        - `solver`: a Taylor-Lagrange solver, or a hypersolver. Its correction, if it
            has one, is trained too.

        **Returns:**

        The state, with fresh optimizer states.
        """
        check_solver(solver)
        return AlternatingState(
            model,
            solver,
            self.model_optimizer.init(eqx.filter(model, eqx.is_inexact_array)),
            self.solver_optimizer.init(eqx.filter(solver, eqx.is_inexact_array)),
            jnp.array(0),
        )

    @eqx.filter_jit
    def dynamics_step(
        self, state: AlternatingState, batch: PyTree[Array]
    ) -> tuple[AlternatingState, Inexact[Array, ""]]:
        """One optimizer step for the model, with the midpoint fixed.

        **Arguments:**

        - `state`: the state before.
        - `batch`: passed to `problem` and `loss`.

        **Returns:**

        The state after, and the loss on data before: without the penalty, but not
        finite if that is not.
        """

        def objective(model: PyTree[Any]) -> tuple[Array, Array]:
            return dynamics_loss(
                model,
                state.solver,
                batch,
                problem=self.problem,
                loss=self.loss,
                num_steps=self.num_steps,
                penalty=self.penalty,
            )

        (total, data_loss), grads = eqx.filter_value_and_grad(objective, has_aux=True)(
            state.model
        )
        reported = jnp.where(jnp.isfinite(total), data_loss, total)
        model, opt_state = _update(
            self.model_optimizer, state.model, grads, state.model_opt_state
        )
        state = AlternatingState(
            model, state.solver, opt_state, state.solver_opt_state, state.step + 1
        )
        return state, reported

    @eqx.filter_jit
    def midpoint_step(
        self, state: AlternatingState, batch: PyTree[Array]
    ) -> tuple[AlternatingState, Inexact[Array, ""]]:
        """One optimizer step for the solver's midpoint, with the model fixed.

        **Arguments:**

        - `state`: the state before. A `ValueError` is raised if its solver has no
            midpoint.
        - `batch`: passed to `problem`.

        **Returns:**

        The state after, and the mean absolute error of the final state before.
        """
        if state.solver.remainder is None:
            raise ValueError(
                "There is no midpoint to train: the solver has `remainder=None`. Pass "
                "`remainder=CorrectionMLP(...)`, or leave the midpoint steps out."
            )
        problem = self.problem(state.model, batch)
        reference = solve_adaptive(
            problem, self.reference_solver, self.reference_tolerance
        )
        target = final_state(reference)
        error, grads = eqx.filter_value_and_grad(midpoint_loss)(
            state.solver, problem, target, num_steps=self.num_steps
        )
        solver, opt_state = _update(
            self.solver_optimizer, state.solver, grads, state.solver_opt_state
        )
        state = AlternatingState(
            state.model, solver, state.model_opt_state, opt_state, state.step
        )
        return state, error


def fit(
    trainer: AlternatingTrainer,
    state: AlternatingState,
    batches: Iterable[PyTree[Array]],
    *,
    midpoint_every: int = 10,
    callback: Callable[[AlternatingState, float], None] | None = None,
) -> AlternatingState:
    """Trains on batches, with a midpoint step after every so many dynamics steps.

    **Arguments:**

    - `trainer`: what to do with a batch.
    - `state`: where to start from.
    - `batches`: an iterable of batches of equal shapes; wrap it in `tqdm.tqdm` for a
        progress bar. It ends the training when it ends.
    - `midpoint_every`: the number of dynamics steps from one midpoint step to the next.
        (There are none for a solver without a midpoint.)
    - `callback`: called after each dynamics step with the state and the loss on data.

    **Returns:**

    The state after the last batch.

    **Raises:**

    A [`diffrax_speedreg.TrainingDiverged`][] if a loss is not finite, or an equation
    can't be solved.
    """
    check_positive_integer(midpoint_every, "midpoint_every")
    for step, batch in enumerate(batches, start=int(state.step) + 1):
        with solving(step):
            state, loss = trainer.dynamics_step(state, batch)
            check_finite(loss, step)
            if state.solver.remainder is not None and step % midpoint_every == 0:
                state, error = trainer.midpoint_step(state, batch)
                check_finite(error, step, "error of the midpoint")
        if callback is not None:
            callback(state, float(loss))
    return state


def _update(
    optimizer: optax.GradientTransformation,
    trained: PyTree[Any],
    grads: PyTree[Array],
    opt_state: PyTree[Any],
) -> tuple[PyTree[Any], PyTree[Any]]:
    params = eqx.filter(trained, eqx.is_inexact_array)
    # Optax mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, opt_state, params)
    return eqx.apply_updates(trained, updates), opt_state
