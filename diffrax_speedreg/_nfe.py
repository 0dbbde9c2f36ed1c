from typing import Any

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, Int

from ._solver.estimates import EstimateRegularizedSolver
from ._solver.taylor_lagrange import TaylorLagrangeSolver


def nfe(
    solver: dfx.AbstractSolver, solution: dfx.Solution, *, adaptive: bool | None = None
) -> Int[Array, "..."]:
    """The number of evaluations of the vector field in a solve, with rejected steps.

    For an explicit Runge-Kutta method with the first-same-as-last property, all stages
    but one per step, and one at the start; without it, all stages. For
    [`diffrax_speedreg.TaylorLagrangeSolver`][], the number of Taylor coefficients
    computed, each of which costs about one evaluation.

    Where steps end at jumps that a controller was told of (`jump_ts` of
    `diffrax.ClipStepSizeController`), a first-same-as-last method (and
    `ReversibleHeun`) evaluates again, in each attempt at the step that follows.
    Solutions do not tell, and these evaluations are not counted.

    **Arguments:**

    - `solver`: the solver: an explicit one of Diffrax's (`Tsit5`, `Dopri5`, `Dopri8`,
        `Bosh3`, `Heun`, `Midpoint`, `Ralston`, `Euler`, `LeapfrogMidpoint`,
        `ReversibleHeun`, `SemiImplicitEuler`), ours, or one of these within a
        `diffrax.HalfSolver` or [`diffrax_speedreg.EstimateRegularizedSolver`][].
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
    first, per_step = _evaluations(solver, adaptive)
    # There are none for the first step's size: as Diffrax wraps the term, its selection
    # for ODEs does not apply, and `dt0=None` stands for 0.01.
    return first + per_step * jnp.asarray(solution.stats["num_steps"])


def _evaluations(solver: Any, adaptive: bool | None) -> tuple[int, int]:
    """At the start of a solve, and in each step."""
    # `type`, for Diffrax takes a wrapping solver to be an instance of what it wraps.
    kind = type(solver)
    if kind is dfx.HalfSolver:
        # Of the first three steps, the second half alone has one before it.
        first, per_step = _evaluations(solver.solver, adaptive)
        return 2 * first, 3 * per_step
    elif kind is EstimateRegularizedSolver:
        first, per_step = _evaluations(solver.solver, adaptive)
        return first, per_step + 2 * int(solver.stiffness)
    elif kind is TaylorLagrangeSolver:
        if adaptive is None:
            raise ValueError(
                "For a `TaylorLagrangeSolver` pass `adaptive=True` or `False`: it "
                "evaluates an error estimate only if steps are adaptive."
            )
        return 0, solver.coefficients_per_step(adaptive)
    elif kind in _known:
        return _known[kind]
    elif issubclass(kind, dfx.AbstractERK) and isinstance(
        solver.tableau, dfx.ButcherTableau
    ):
        first = int(solver.tableau.fsal)
        return first, solver.tableau.num_stages - first
    raise ValueError(
        "The number of evaluations is known for explicit Runge-Kutta methods, "
        f"{', '.join(f'`{k.__name__}`' for k in _known)}, `TaylorLagrangeSolver`, and "
        f"solvers that wrap one of these, but got {kind.__name__}."
    )


_known = {
    dfx.Euler: (0, 1),
    dfx.LeapfrogMidpoint: (0, 1),
    dfx.ReversibleHeun: (1, 1),
    # One of each vector field.
    dfx.SemiImplicitEuler: (0, 2),
}
