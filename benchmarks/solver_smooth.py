"""Measures adaptive solves of small smooth problems, in double precision."""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .runs import describe, Run
from .solver_problems import (
    heyoka_integrator,
    heyoka_is_installed,
    PROBLEMS,
    reference,
    SmoothProblem,
)
from .solver_records import SmoothSolve
from .timing import compile_fresh, Executable, interleaved_seconds, Rounds


HEYOKA = "heyoka"
DOPRI8 = "Dopri8"


class _Solved(NamedTuple):
    """How a solve ended, and what it took."""

    y1: Any
    steps: Any
    evaluations: Any


def taylor_name(order: int) -> str:
    return f"Taylor, p = {order}"


def measure(
    name: str, orders: Sequence[int], tolerances: Sequence[float], rounds: Rounds
) -> Iterator[SmoothSolve]:
    """All methods and tolerances in turn. Methods that fail are left out."""
    problem, exact = PROBLEMS[name], reference(PROBLEMS[name])
    solvers: dict[str, dfx.AbstractAdaptiveSolver] = {
        DOPRI8: dfx.Dopri8(),
        "Tsit5": dfx.Tsit5(),
    }
    solvers |= {taylor_name(order): dsr.TaylorLagrangeSolver(order) for order in orders}
    executables: dict[tuple[str, float], Executable] = {}
    with jax.enable_x64(True):
        for method, solver in solvers.items():
            try:
                compiled = _compile(problem, solver)
            except Exception as error:  # Whatever it is: that it fails is a result.
                for tolerance in tolerances:
                    yield SmoothSolve(name, method, tolerance, failure=describe(error))
                continue
            for tolerance in tolerances:
                call = functools.partial(compiled.call, jnp.array(tolerance))
                executables[method, tolerance] = compiled._replace(call=call)
        if heyoka_is_installed():
            for tolerance in tolerances:
                executables[HEYOKA, tolerance] = _compile_heyoka(problem, tolerance)
        calls = {key: executable.call for key, executable in executables.items()}
        solved = {key: call() for key, call in calls.items()}
        times = interleaved_seconds(calls, rounds)
    for key, (y1, steps, evaluations) in solved.items():
        run = Run(times[key], *executables[key][1:])
        difference = np.abs(np.asarray(y1) - exact)
        error = float(np.max(difference) / np.max(np.abs(exact)))
        yield SmoothSolve(name, *key, run, int(steps), int(evaluations), error)


def _compile(problem: SmoothProblem, solver: dfx.AbstractAdaptiveSolver) -> Executable:
    """A function of the tolerance."""

    def field(t: Any, y: Float[Array, " n"], args: None) -> Float[Array, " n"]:
        return jnp.stack(problem.field(jnp, list(y)))

    def solve(tolerance: Float[Array, ""], y0: Float[Array, " n"]) -> _Solved:
        ivp = dsr.InitialValueProblem(dfx.ODETerm(field), y0, t1=problem.t1)
        solution = dsr.solve_adaptive(ivp, solver, tolerance, max_steps=None)
        return _Solved(
            dsr.final_state(solution),
            solution.stats["num_steps"],
            dsr.nfe(solver, solution, adaptive=True),
        )

    y0 = jnp.array(problem.y0)
    executable = compile_fresh(solve, jnp.array(1.0), y0)
    return executable._replace(call=lambda tolerance: executable.call(tolerance, y0))


def _compile_heyoka(problem: SmoothProblem, tolerance: float) -> Executable:
    start = time.perf_counter()
    integrator = heyoka_integrator(problem, tolerance)
    seconds = time.perf_counter() - start

    def call() -> _Solved:
        integrator.time = 0.0
        integrator.state[:] = problem.y0
        steps = integrator.propagate_until(problem.t1)[3]
        return _Solved(np.array(integrator.state), steps, steps * integrator.order)

    return Executable(call, 0.0, seconds, None)
