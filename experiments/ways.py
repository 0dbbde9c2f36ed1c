"""Ways to make an equation cheap to solve, which are compared under equal budgets."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optimistix as optx
from equinox.internal import ω

from .methods import derivative, regularized, rnode, Way
from .problem import Batch, Problem


def _estimates(stiffness: bool) -> Way:
    """Makes the way with the solver's estimates of error or stiffness, in all steps."""

    def way(problem: Problem, model: Any, batch: Batch) -> tuple[dfx.Solution, Any]:
        solver = dsr.ErrorRegularizedSolver(problem.solver, stiffness=stiffness)
        subs = problem.saveat.subs
        saveat = dfx.SaveAt(subs=subs, solver_state=True, controller_state=True)
        solution = problem.solve(model, batch, solver, saveat=saveat)
        state: Any = solution.solver_state
        return solution, state.stiffness if stiffness else state.error

    return way


def _local_estimates(stiffness: bool) -> Way:
    """Makes the way with the same estimates at a random time, for a step of mean size
    (Pal et al., "Locally Regularized Neural Differential Equations", ICML 2023)."""

    def way(problem: Problem, model: Any, batch: Batch) -> tuple[dfx.Solution, Any]:
        solver: Any = problem.solver
        term, _, t0, t1, _, _, args = problem.arguments(model, batch, solver)
        assert batch.key is not None
        at = jr.uniform(batch.key, (1,), t0.dtype, t0, t1)
        subs = problem.saveat.subs, dfx.SubSaveAt(ts=at)
        saveat = dfx.SaveAt(subs=subs, controller_state=True)
        both: Any = problem.solve(model, batch, saveat=saveat)
        y = ω(both.ys[1])[0].ω
        requested = both.ts[0], both.ys[0]
        # The same steps as without the random time.
        solution = eqx.tree_at(lambda s: (s.ts, s.ys), both, requested)
        steps = solution.stats["num_accepted_steps"]
        start, end = at[0], at[0] + (t1 - t0) / steps
        state = solver.init(term, start, end, y, args)
        y1, error, *_ = solver.step(term, start, end, y, args, state, made_jump=True)
        size = optx.rms_norm(error)
        if not stiffness:
            return solution, size
        slopes = [term.vf(end, x, args) for x in (y1, (y1**ω - error**ω).ω)]
        change = optx.rms_norm((slopes[0] ** ω - slopes[1] ** ω).ω)
        return solution, change / (size + 1e-12)

    return way


def _steer(width: float) -> Way:
    """Makes the way with a random end time, uniform around the given one (Ghosh et al.,
    "STEER: Simple Temporal Regularization for Neural ODEs", NeurIPS 2020). It has no
    weight."""

    def way(problem: Problem, model: Any, batch: Batch) -> tuple[dfx.Solution, Any]:
        assert batch.key is not None
        t1 = problem.equation(model, batch).t1
        t1 += width * jr.uniform(batch.key, minval=-1.0, maxval=1.0)
        arguments = problem.arguments(model, batch, problem.solver, t1)
        return dfx.diffeqsolve(*arguments, **problem.options), jnp.zeros(())

    return way


# These ways have a weight, which a budget can control.
WEIGHTED: dict[str, Way] = {
    # From the dense output if that has the derivative.
    **{f"R_{order}": derivative(order) for order in (1, 2, 3)},
    **{f"R_{order}": derivative(order, dsr.gauss_legendre(4)) for order in (4, 5)},
    "RNODE": regularized(rnode, dsr.gauss_legendre(4)),
    "ERNODE": _estimates(stiffness=False),
    "SRNODE": _estimates(stiffness=True),
    "local error": _local_estimates(stiffness=False),
    "local stiffness": _local_estimates(stiffness=True),
}
UNWEIGHTED: dict[str, Way | None] = {
    "plain": None,
    **{f"STEER, ±{width:g}": _steer(width) for width in (0.25, 0.5)},
}
WAYS = WEIGHTED | UNWEIGHTED
