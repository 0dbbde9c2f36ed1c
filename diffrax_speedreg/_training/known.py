from collections.abc import Iterable

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, PyTree

from .._problem import InitialValueProblem
from .._solver.hypersolver import HyperSolver
from .._solver.taylor_lagrange import TaylorLagrangeSolver
from .alternating import AlternatingTrainer
from .divergence import raise_diverged, solving


def fit_solver(
    solver: TaylorLagrangeSolver | HyperSolver,
    problem: InitialValueProblem,
    states: Iterable[PyTree[Array]],
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation,
    reference_solver: dfx.AbstractSolver = dfx.Dopri8(),
    reference_tolerance: float = 1e-6,
) -> tuple[TaylorLagrangeSolver | HyperSolver, Float[Array, " steps"]]:
    """Learns a cheap solver for known dynamics.

    Trains the solver's correction alone, so that a few coarse steps from any of the
    given states end where an adaptive solve ends.

    !!! example

        ```python
        states = (jr.uniform(k, (500, 2), minval=-1) for k in jr.split(key, 1000))
        solver, errors = dsr.fit_solver(
            solver, problem, states, num_steps=1, optimizer=optax.adam(1e-3)
        )
        ```

    **Arguments:**

    - `solver`: a solver with a correction.
    - `problem`: the equation, with its times. Its `y0` is replaced.
    - `states`: batches of initial states, each like `problem.y0`, one optimizer step
        for each: drawn from a box, or from where trajectories are.
    - `num_steps`: in how many equal steps to solve.
    - `optimizer`: an optax optimizer.
    - `reference_solver`, `reference_tolerance`: how the adaptive solve is made, by that
        relative and absolute tolerance.

    **Returns:**

    The trained solver, and the mean absolute errors of the final states before each
    step, in units of the state.

    **Raises:**

    A `ValueError` if the solver has no correction or there are no states, and
    [`diffrax_speedreg.TrainingDiverged`][] once an error, or the solver after a step,
    is not finite.
    """
    trainer = AlternatingTrainer(
        problem=lambda problem, y0: eqx.tree_at(lambda p: p.y0, problem, y0),
        loss=lambda problem, y1, y0: jnp.zeros(()),
        num_steps=num_steps,
        model_optimizer=optax.identity(),
        solver_optimizer=optimizer,
        reference_solver=reference_solver,
        reference_tolerance=reference_tolerance,
    )
    # There are no data to be put in order.
    state = trainer.init(problem, solver, key=jr.key(0))
    errors = []
    for step, y0 in enumerate(states, start=1):
        with solving(step):
            targets = trainer.targets(state, y0)
            state, report = trainer.remainder_step(state, y0, targets)
        if not report.finite:
            raise_diverged(report.error, "error of the solver", "solver", step, y0)
        errors.append(report.error)
    if not errors:
        raise ValueError(
            "There are no `states` to learn from: an iterator gives them only once."
        )
    return state.solver, jnp.stack(errors)
