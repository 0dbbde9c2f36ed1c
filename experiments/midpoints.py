r"""One step of the stiff linear system of the Taylor-Lagrange paper, by each midpoint.

The system is dx/dt = A x with eigenvalues -1000 and -1. Compares the truncated Taylor
method with midpoints that are constant: the one that makes the stiff mode exact, in
closed form; a trained elementwise one; and the full matrix that makes every step exact.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
from jaxtyping import Array, Float, Key

from .config import Options
from .record import Record
from .task import Task
from .training import Run


EIGENVALUES = np.array([-1000.0, -1.0])
MODES = np.linalg.inv([[3.0, 1.0], [1.0, -2.0]])
STEPS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
DEGREES, SAMPLES = (2, 3), 500
States = Float[Array, "samples state"]
Factors = Float[Array, " n"]


@dataclasses.dataclass(frozen=True)
class MidpointsOptions(Options):
    updates: int = 600
    """Steps of the training of a midpoint."""


def of_modes(values: Float[np.ndarray, " modes"]) -> Float[Array, "state state"]:
    """Makes the matrix with these eigenvalues and the eigenvectors of the system."""
    return jnp.asarray(MODES @ np.diag(values) @ np.linalg.inv(MODES))


def vector_field(t: Any, y: States, args: None) -> States:
    return y @ of_modes(EIGENVALUES).T


def problem(step: Any, y0: States) -> dsr.training.InitialValueProblem:
    term = dfx.ODETerm(vector_field)
    return dsr.training.InitialValueProblem(term, y0, 0.0, jnp.asarray(step))


def exact(step: float, y0: States) -> Float[Array, "..."]:
    return y0 @ of_modes(np.exp(step * EIGENVALUES)).T


def midpoints_of_modes(degree: int, step: float) -> Float[np.ndarray, " modes"]:
    r"""Computes the $\varphi$ of each mode that makes a step of it exact.

    With $z = \lambda h$ and $\theta = 1 / (p + 1)$ it is the solution of
    $\sum_{k < p} z^k / k! + z^p / p! \, (1 + \theta (1 + \varphi) z) = e^z$.
    """
    z = step * EIGENVALUES
    series = sum(z**k / math.factorial(k) for k in range(degree))
    midpoint = (np.exp(z) - series) * math.factorial(degree) / z**degree
    return (degree + 1) * (midpoint - 1) / z - 1


def solver_with(
    degree: int, form: Literal["elementwise", "matrix"], factors: Factors
) -> dsr.TaylorLagrangeSolver:
    untrained = dsr.TaylorLagrangeSolver(degree, dsr.ConstantMidpoint(2, form))
    return eqx.tree_at(lambda s: s.midpoint.factors, untrained, factors)


@eqx.filter_jit
def step_of(solver: dsr.TaylorLagrangeSolver, step: Any, y0: States) -> States:
    p = problem(step, y0)
    solution = dsr.fixed_step_solve(p.term, solver, p.t0, p.t1, 1, p.y0)
    assert solution.ys is not None
    return solution.ys[-1]


def relative_error(solver: dsr.TaylorLagrangeSolver, step: float, y0: States) -> float:
    r"""Computes the mean over samples of ‖ŷ - y‖ / (‖ŷ‖ + ‖y‖)."""
    actual, expected = step_of(solver, jnp.asarray(step), y0), exact(step, y0)
    norm = lambda y: jnp.linalg.norm(y, axis=1)
    return float(jnp.mean(norm(actual - expected) / (norm(actual) + norm(expected))))


def trained(
    degree: int, step: float, updates: int, key: Key[Array, ""]
) -> dsr.TaylorLagrangeSolver:
    """Trains a constant midpoint, which starts at zero, by the errors of one step.

    The loss is a mean absolute error, which has a kink at its minimum. The signs of
    gradients, with decreasing steps, find it to more digits than Adam does.
    """
    fitted = dsr.training.fit_solver(
        dsr.TaylorLagrangeSolver(degree, dsr.ConstantMidpoint(2, "elementwise")),
        lambda y0: problem(step, y0),
        lambda key, step: initial_states(jr.fold_in(key, step)),
        num_steps=updates,
        optimizer=optax.sign_sgd(optax.exponential_decay(0.1, updates, 1e-12)),
        reference=dsr.training.Reference(num_steps=1, rtol=1e-13, atol=1e-13),
        solver_steps=1,
        key=key,
    )
    assert isinstance(fitted.solver, dsr.TaylorLagrangeSolver)
    return fitted.solver


def initial_states(key: Key[Array, ""]) -> States:
    return jr.uniform(key, (SAMPLES, 2), minval=-1.0, maxval=-0.9)


def execute(run: Run) -> Record:
    y0 = initial_states(jr.fold_in(run.key, 1))
    updates = 20 if run.options.quick else run.options.updates
    rows = []
    for degree in DEGREES:
        for step in STEPS[:3] if run.options.quick else STEPS:
            factors = midpoints_of_modes(degree, step)
            mode = jnp.full(2, factors[0])
            solvers = dict(
                truncated=dsr.TaylorLagrangeSolver(degree),
                stiff_mode=solver_with(degree, "elementwise", mode),
                trained=trained(degree, step, updates, run.key),
                matrix=solver_with(degree, "matrix", of_modes(factors).reshape(-1)),
            )
            errors = {k: relative_error(s, step, y0) for k, s in solvers.items()}
            rows.append(dict(degree=degree, step=step) | errors)
    return dataclasses.replace(run.record, rows=rows)


def errors_table(records: Sequence[Record]) -> pd.DataFrame:
    first, *_ = records
    frame = pd.DataFrame(first.rows).rename(columns=lambda name: name.replace("_", " "))
    return frame.map(lambda number: f"{number:.2g}")


TASK = Task(
    name="midpoints",
    options=MidpointsOptions,
    heeds={"one step": ()},
    execute=execute,
    tables={"errors": errors_table},
    x64=True,
)
