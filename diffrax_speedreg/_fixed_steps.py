import diffrax as dfx
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._checks import check_positive_integer, check_solver
from ._custom_types import Args, RealScalarLike, Y
from ._misc import as_times
from ._solver.unrolled import UnrolledSolver


def fixed_step_solve(
    terms: PyTree[dfx.AbstractTerm],
    solver: dfx.AbstractSolver,
    t0: RealScalarLike,
    t1: RealScalarLike,
    num_steps: int,
    y0: Y,
    args: Args = None,
    *,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True, solver_state=True),
    adjoint: dfx.AbstractAdjoint | None = None,
    event: dfx.Event | None = None,
    throw: bool = True,
) -> dfx.Solution:
    """Solves a differential equation in a fixed number of equal steps.

    Use it for learned solvers, and for a few steps of any solver. The arguments are
    those of `diffrax.diffeqsolve`, with a number of steps in place of the initial step
    size. `diffeqsolve` with a constant step size may make one more step by rounding,
    and its buffers have space for `max_steps=4096` steps.

    Up to four steps are unrolled: a gradient stores the intermediate values of each
    step. With more steps it stores only the states, and computes each step a second
    time.

    **Arguments:**

    - `terms`, `solver`, `t0`, `t1`, `y0`, `args`, `event`, `throw`: as for
        `diffrax.diffeqsolve`. The two times must differ.
    - `num_steps`: the number of steps, at least 1.
    - `saveat`: as for `diffrax.diffeqsolve`. By default, the final state and the final
        state of the solver are saved. The latter has the penalty of a learned solver.
    - `adjoint`: as for `diffrax.diffeqsolve`. By default, up to four steps are
        unrolled, unless there is an `event`, or `saveat` saves states within the
        interval. Otherwise the default is `diffrax.RecursiveCheckpointAdjoint` with a
        checkpoint for each step. Pass that to save memory in a few steps.

    **Returns:**

    A `diffrax.Solution`. Its final state is `solution.ys[-1]`; if the state is a
    pytree, each leaf of `solution.ys` has this last entry.

    **Raises:**

    A `ValueError` if `num_steps` is not a positive integer, `solver` is not a solver,
    or the two times are equal.
    """
    check_solver(solver)
    num_steps = check_positive_integer(num_steps, "num_steps")
    t0, t1 = as_times(t0, t1)
    if not isinstance(t0 == t1, jax.core.Tracer) and t0 == t1:
        raise ValueError(f"`t0` and `t1` must differ, but both are {float(t0):g}.")
    unrolled = (
        num_steps <= _MOST_UNROLLED
        and adjoint is None
        and event is None
        and _is_of_ends(saveat)
    )
    made = 1 if unrolled else num_steps
    if unrolled:
        # A bounded loop of one step has no checkpoint.
        solver, adjoint = UnrolledSolver(solver, num_steps), dfx.DirectAdjoint()
    elif adjoint is None:
        adjoint = dfx.RecursiveCheckpointAdjoint(checkpoints=num_steps)
    solution = dfx.diffeqsolve(
        terms,
        solver,
        t0,
        t1,
        None,
        y0,
        args,
        saveat=saveat,
        stepsize_controller=dfx.StepTo(jnp.linspace(t0, t1, made + 1)),
        adjoint=adjoint,
        event=event,
        max_steps=made,
        throw=throw,
    )
    if not unrolled:
        return solution
    counts = ("num_steps", "num_accepted_steps", "max_steps")
    stats = {k: num_steps * v if k in counts else v for k, v in solution.stats.items()}
    return eqx.tree_at(lambda solution: solution.stats, solution, stats)


# With more steps, a gradient's memory and the time to compile count for more.
_MOST_UNROLLED = 4


def _is_of_ends(saveat: dfx.SaveAt) -> bool:
    """Returns whether nothing is saved within the interval."""
    subs = jtu.tree_leaves(saveat.subs, is_leaf=lambda x: isinstance(x, dfx.SubSaveAt))
    return not saveat.dense and all(sub.ts is None and not sub.steps for sub in subs)
