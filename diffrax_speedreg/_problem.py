from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._checks import as_state, check_positive_integer, check_solver
from ._custom_types import Args, RealScalarLike, Y
from ._misc import real_dtype


class InitialValueProblem(eqx.Module):
    """A differential equation, with where it starts and how long it runs.

    **Attributes:**

    - `term`: a Diffrax term.
    - `y0`: the state at `t0`.
    - `t0`, `t1`: the times between which to solve; `t1` may be the earlier one.
    - `args`: the arguments of the vector field.
    """

    term: dfx.AbstractTerm
    y0: Y
    t0: RealScalarLike = 0.0
    t1: RealScalarLike = 1.0
    args: Args = None


def solve_fixed(
    problem: InitialValueProblem, solver: dfx.AbstractSolver, num_steps: int
) -> dfx.Solution:
    """Solves a problem in equal steps.

    Prefer this to a bare `diffrax.diffeqsolve` with a constant step size: buffers for
    the gradient are sized by `max_steps`, whose default of 4096 is far more than a
    solve of a few steps needs. Here the state before each step is kept for the
    gradient, which then makes each step once again, and not several times.

    **Arguments:**

    - `problem`: what to solve.
    - `solver`: any Diffrax solver that makes fixed steps.
    - `num_steps`: how many steps, at least 1. The two times must differ.

    **Returns:**

    The solution, with the final state in `ys` (whose leaves have a first axis of size
    1), and the solver's own final state in `solver_state`.
    """
    num_steps = check_positive_integer(num_steps, "num_steps")
    problem = with_dtypes(problem)
    ts = jnp.linspace(problem.t0, problem.t1, num_steps + 1)
    return _solve(
        problem,
        solver,
        saveat=dfx.SaveAt(t1=True, solver_state=True),
        stepsize_controller=dfx.StepTo(ts),
        adjoint=dfx.RecursiveCheckpointAdjoint(checkpoints=num_steps),
        max_steps=num_steps,
    )


def solve_adaptive(
    problem: InitialValueProblem,
    solver: dfx.AbstractSolver,
    tolerance: RealScalarLike,
    *,
    norm: Callable[[PyTree[Array]], RealScalarLike] = optx.rms_norm,
    max_steps: int | None = 4096,
    stop_at: Float[ArrayLike, " stops"] | None = None,
    throw: bool = True,
) -> dfx.Solution:
    """Solves a problem with adaptive steps.

    **Arguments:**

    - `problem`: what to solve.
    - `solver`: any adaptive Diffrax solver.
    - `tolerance`: relative and absolute, per step; positive.
    - `norm`: of the error, as for `diffrax.PIDController`.
    - `max_steps`: as for `diffrax.diffeqsolve`. For gradients, a number not far above
        what the solve needs is fastest.
    - `stop_at`: times at which a step ends and the state is saved, in the order in
        which the solve comes to them: from `t0` on, and before `t1`.
    - `throw`: whether a solve that fails is an error, as for `diffrax.diffeqsolve`.

    **Returns:**

    The solution, with the state at the times `stop_at`, and then the final one, in `ys`
    (whose leaves have a first axis for these).
    """
    if isinstance(tolerance, int | float) and not tolerance > 0:
        raise ValueError(f"`tolerance` must be positive, but got {tolerance!r}.")
    problem = with_dtypes(problem)
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance, norm=norm)
    if stop_at is not None:
        # Interpolated states would be less accurate than the steps' ends.
        stop_at = jnp.asarray(stop_at, jnp.result_type(problem.t0))
        controller = dfx.ClipStepSizeController(controller, step_ts=stop_at)
    return _solve(
        problem,
        solver,
        saveat=dfx.SaveAt(t1=True, ts=stop_at),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=throw,
    )


def final_state(solution: dfx.Solution) -> PyTree[Array]:
    """The last of the states that a solution has saved.

    **Arguments:**

    - `solution`: of a solve that saved states: by `SaveAt(t1=True)`, the default, or at
        other times or all steps.

    **Returns:**

    The state: its leaves do not have the first axis that those of `solution.ys` do.

    **Raises:**

    A `ValueError` if no states were saved, or several sets of them.
    """
    ts = solution.ts
    if solution.ys is None or not isinstance(ts, Array | np.ndarray) or ts.ndim != 1:
        raise ValueError(
            "The solution must have saved one sequence of states, as "
            "`diffrax.SaveAt(t1=True)` does. `SaveAt(dense=True)` alone saves none, "
            "and `SaveAt(subs=...)` several. For a solve under `jax.vmap`, call this "
            "inside it."
        )
    # Where steps are saved, infinities fill up what `max_steps` leaves room for.
    last = 0 if len(ts) == 1 else jnp.sum(jnp.isfinite(ts)) - 1
    return jtu.tree_map(lambda leaf: leaf[last], solution.ys)


def with_dtypes(problem: InitialValueProblem) -> InitialValueProblem:
    """With arrays for the state and for the times."""
    y0 = as_state(problem.y0)
    # Diffrax promotes the state to the dtype of time; Python's numbers are no reason.
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(problem.t0, problem.t1, real_dtype(y0))
    t0, t1 = jnp.asarray(problem.t0, dtype), jnp.asarray(problem.t1, dtype)
    return InitialValueProblem(problem.term, y0, t0, t1, problem.args)


def _solve(
    problem: InitialValueProblem, solver: dfx.AbstractSolver, **options: Any
) -> dfx.Solution:
    check_solver(solver)
    return dfx.diffeqsolve(
        problem.term,
        solver,
        problem.t0,
        problem.t1,
        None,
        problem.y0,
        problem.args,
        **options,
    )
