import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, Int

from ._solver.taylor_lagrange import TaylorLagrangeSolver


def nfe(
    solver: dfx.AbstractSolver, solution: dfx.Solution, *, adaptive: bool | None = None
) -> Int[Array, "..."]:
    """The number of evaluations of the vector field in a solve, with rejected steps.

    For an explicit Runge-Kutta method with the first-same-as-last property, all stages
    but one per step, and one at the start; without it, all stages. For
    [`diffrax_speedreg.TaylorLagrangeSolver`][], the number of Taylor coefficients
    computed, each of which costs about one evaluation.

    **Arguments:**

    - `solver`: the solver: an explicit Runge-Kutta method of Diffrax's (`Tsit5`,
        `Dopri5`, `Dopri8`, `Bosh3`, `Heun`, `Midpoint`, `Ralston`), `Euler`, or ours.
    - `solution`: what `diffrax.diffeqsolve` returned with that solver.
    - `adaptive`: whether steps were adaptive. Only needed for a Taylor method, which
        then evaluates an error estimate.

    **Returns:**

    An integer, or an array of them for a solution under `jax.vmap`: there, as many as
    each sample needs, while a batched loop goes on until the last one has finished.

    **Raises:**

    A `ValueError` for a solver whose evaluations are not known: implicit ones, for
    which they depend on the iterations of a root finder; and for a Taylor method if
    `adaptive` is not passed.
    """
    if isinstance(solver, dfx.AbstractERK) and isinstance(
        solver.tableau, dfx.ButcherTableau
    ):
        first = int(solver.tableau.fsal)
        per_step = solver.tableau.num_stages - first
    elif isinstance(solver, dfx.Euler):
        first, per_step = 0, 1
    elif isinstance(solver, TaylorLagrangeSolver):
        if adaptive is None:
            raise ValueError(
                "For a `TaylorLagrangeSolver` pass `adaptive=True` or `False`: it "
                "evaluates an error estimate only if steps are adaptive."
            )
        first, per_step = 0, solver.coefficients_per_step(adaptive)
    else:
        raise ValueError(
            "The number of evaluations is known for explicit Runge-Kutta methods, "
            f"`Euler` and `TaylorLagrangeSolver`, but got {type(solver).__name__}."
        )
    # There are none for the first step's size: as Diffrax wraps the term, its selection
    # for ODEs does not apply, and `dt0=None` stands for 0.01.
    return first + per_step * jnp.asarray(solution.stats["num_steps"])
