"""Solves of an initial value problem, in equal steps and adaptively."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.tree_util as jtu


def solve_fixed(problem: dsr.training.InitialValueProblem, solver, num_steps) -> Any:
    p = problem
    return dsr.fixed_step_solve(p.term, solver, p.t0, p.t1, num_steps, p.y0, p.args)


def solve_adaptive(
    problem: dsr.training.InitialValueProblem, solver, tolerance, **options
) -> Any:
    p = problem
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    return dfx.diffeqsolve(
        *(p.term, solver, p.t0, p.t1, None, p.y0, p.args),
        stepsize_controller=controller,
        **options,
    )


def final_state(solution: Any) -> Any:
    return jtu.tree_map(lambda leaf: leaf[-1], solution.ys)


# By their types, the entries of a solution may be `None`.
diffeqsolve: Any = dfx.diffeqsolve
fixed_step_solve: Any = dsr.fixed_step_solve
regularized_solve: Any = dsr.regularized_solve
