r"""One step of the stiff linear system of the Taylor-Lagrange paper, midpoints beside.

The system is dx/dt = A x with eigenvalues -1000 and -1. Compares the truncated Taylor
method with midpoints that are constant: the one that makes the stiff mode exact, in
closed form; the best elementwise one, by linear programming; a trained one; and the
full matrix that makes every step exact. Writes a table and a file of results.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import scipy.sparse
from jaxtyping import Array, Float, Key
from scipy.optimize import linprog

from . import records, report


EIGENVALUES = np.array([-1000.0, -1.0])
MODES = np.linalg.inv([[3.0, 1.0], [1.0, -2.0]])
STEPS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ORDERS = (2, 3)
TRAINED_STEPS = (0.01, 0.1)
SAMPLES = 500


class Row(NamedTuple):
    """Relative errors of one step: of the truncated method and of four midpoints."""

    order: int
    step: float
    truncated: float
    stiff_mode: float
    elementwise: float
    matrix: float
    trained: float | None = None


def of_modes(values: Float[np.ndarray, " modes"]) -> Float[Array, "state state"]:
    """The matrix with these eigenvalues, and the eigenvectors of the system."""
    return jnp.asarray(MODES @ np.diag(values) @ np.linalg.inv(MODES))


def problem(
    step: float | Float[Array, ""], y0: Float[Array, "samples state"]
) -> dsr.InitialValueProblem:
    matrix = of_modes(EIGENVALUES)
    return dsr.InitialValueProblem(
        dfx.ODETerm(lambda t, y, args: y @ matrix.T), y0, 0.0, step
    )


def exact(step: float, y0: Float[Array, "samples state"]) -> Float[Array, "..."]:
    return y0 @ of_modes(np.exp(step * EIGENVALUES)).T


def midpoints_of_modes(order: int, step: float) -> Float[np.ndarray, " modes"]:
    r"""For each mode the $\varphi$ that makes a step of it exact.

    With $z = \lambda h$ and $\theta = 1 / (p + 1)$ it is the solution of
    $\sum_{k < p} z^k / k! + z^p / p! \, (1 + \theta (1 + \varphi) z) = e^z$.
    """
    z = step * EIGENVALUES
    series = sum(z**k / math.factorial(k) for k in range(order))
    midpoint = (np.exp(z) - series) * math.factorial(order) / z**order
    return (order + 1) * (midpoint - 1) / z - 1


def solver_with(
    order: int, form: Literal["elementwise", "matrix"], factors: Float[Array, " n"]
) -> dsr.TaylorLagrangeSolver:
    untrained = dsr.TaylorLagrangeSolver(order, dsr.ConstantCorrection(2, form))
    return with_factors(untrained, factors)


def with_factors(
    solver: dsr.TaylorLagrangeSolver, factors: Float[Array, " n"]
) -> dsr.TaylorLagrangeSolver:
    return eqx.tree_at(lambda s: s.remainder.factors, solver, factors)


@eqx.filter_jit
def step_of(
    solver: dsr.TaylorLagrangeSolver,
    step: float | Float[Array, ""],
    y0: Float[Array, "samples state"],
) -> Float[Array, "samples state"]:
    return dsr.final_state(dsr.solve_fixed(problem(step, y0), solver, 1))


@eqx.filter_jit
def effects_of(
    solver: dsr.TaylorLagrangeSolver,
    step: float | Float[Array, ""],
    y0: Float[Array, "samples state"],
) -> Float[Array, "entries state"]:
    """The derivative of a step by the two factors of an elementwise midpoint."""

    def flat(factors: Float[Array, " state"]) -> Float[Array, " entries"]:
        return step_of(with_factors(solver, factors), step, y0).reshape(-1)

    assert isinstance(solver.remainder, dsr.ConstantCorrection)
    return jax.jacrev(flat)(solver.remainder.factors)


def relative_error(
    solver: dsr.TaylorLagrangeSolver, step: float, y0: Float[Array, "samples state"]
) -> float:
    r"""The mean over samples of ‖ŷ - y‖ / (‖ŷ‖ + ‖y‖)."""
    actual, expected = step_of(solver, jnp.asarray(step), y0), exact(step, y0)
    norm = lambda y: jnp.linalg.norm(y, axis=1)
    return float(jnp.mean(norm(actual - expected) / (norm(actual) + norm(expected))))


def best_elementwise(
    order: int, step: float, y0: Float[Array, "samples state"]
) -> Float[Array, " state"]:
    r"""The $\varphi$ of the least mean absolute error, which is affine in it.

    A linear program in two unknowns: how far to go from the midpoint of the stiff mode
    in directions whose effects on the samples are orthonormal.
    """
    start = jnp.full(2, midpoints_of_modes(order, step)[0])
    solver = solver_with(order, "elementwise", start)
    at_start = step_of(solver, jnp.asarray(step), y0) - exact(step, y0)
    at_start = np.asarray(at_start).reshape(-1)
    effects, factors = np.linalg.qr(effects_of(solver, jnp.asarray(step), y0))
    size, count = np.linalg.norm(at_start), len(at_start)
    # Minimize the sum of the bounds b of |error + effects @ shift|.
    bound = scipy.sparse.eye_array(count)
    solution = linprog(
        np.concatenate([np.zeros(2), np.ones(count)]),
        A_ub=scipy.sparse.block_array([[effects, -bound], [-effects, -bound]]),
        b_ub=np.concatenate([-at_start, at_start]) / size,
        bounds=[(None, None)] * 2 + [(0, None)] * count,
    )
    if not solution.success:
        raise RuntimeError(f"No best midpoint found: {solution.message}")
    return start + jnp.asarray(size * np.linalg.solve(factors, solution.x[:2]))


def trained(
    order: int, step: float, updates: int, seed: int
) -> dsr.TaylorLagrangeSolver:
    """From a constant midpoint that starts at zero, by the errors of one step.

    The loss is a mean absolute error, which has a kink at its minimum: signs of
    gradients, and steps that become smaller, find it to more digits than Adam does.
    """
    keys = jr.split(jr.key(seed), updates)
    solver, _ = dsr.fit_solver(
        dsr.TaylorLagrangeSolver(order, dsr.ConstantCorrection(2)),
        problem(step, initial_states(keys[0])),
        (initial_states(key) for key in keys),
        num_steps=1,
        optimizer=optax.sign_sgd(optax.exponential_decay(0.1, updates, 1e-12)),
        reference_tolerance=1e-13,
    )
    assert isinstance(solver, dsr.TaylorLagrangeSolver)
    return solver


def initial_states(key: Key[Array, ""]) -> Float[Array, "samples state"]:
    return jr.uniform(key, (SAMPLES, 2), minval=-1.0, maxval=-0.9)


def rows_of(options: argparse.Namespace) -> list[Row]:
    y0 = initial_states(jr.key(options.seed + 1))
    rows = []
    for order in ORDERS:
        for step in STEPS:
            midpoints = midpoints_of_modes(order, step)
            solvers = dict(
                truncated=dsr.TaylorLagrangeSolver(order),
                stiff_mode=solver_with(order, "elementwise", jnp.full(2, midpoints[0])),
                elementwise=solver_with(
                    order, "elementwise", best_elementwise(order, step, y0)
                ),
                matrix=solver_with(order, "matrix", of_modes(midpoints).reshape(-1)),
            )
            if step in TRAINED_STEPS:
                solvers["trained"] = trained(order, step, options.updates, options.seed)
            errors = {k: relative_error(s, step, y0) for k, s in solvers.items()}
            rows.append(Row(order, step, **errors))
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.midpoints",
        description=__doc__,
        formatter_class=report.HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seed", type=report.seed, default=0, help="decides everything")
    add("--updates", type=report.positive(int), default=600, help="of the training")
    add("--quick", action="store_true", help="under a minute: a few updates")
    add(
        "--output",
        type=report.writable_folder,
        default="demo-output",
        help="folder for the results",
    )
    return parser.parse_args()


def table_of(rows: Sequence[Row]) -> str:
    """In Markdown."""
    cells = [["p", "h", "truncated", "stiff mode", "elementwise", "matrix", "trained"]]
    for order, step, *errors in rows:
        numbers = ["" if error is None else f"{error:.2g}" for error in errors]
        cells.append([str(order), f"{step:g}", *numbers])
    return report.table(cells)


def table(folder: Path) -> str | None:
    """Of the results in a folder; `None` if there are none."""
    path = folder / "midpoints.json"
    if not path.exists():
        return None
    rows = [Row(**row) for row in json.loads(path.read_text())["results"]]
    return f"{table_of(rows)}\n\n{_EXPLANATION}"


_EXPLANATION = """\
Mean of ‖ŷ - y‖ / (‖ŷ‖ + ‖y‖) after one step of size h, by the method of order p, from
states that were not trained on. The paper has a plot of these, which was not seen; its
definitions give the same errors for the truncated method, and 1.2e-11 to 3.1e-3 (p = 2)
and 2.5e-15 to 2.3e-4 (p = 3) for the best elementwise midpoints. Command:
`python -m experiments.midpoints`."""


def main() -> None:
    options = arguments()
    if options.quick:
        options.updates = 20
    jax.config.update("jax_enable_x64", True)
    rows = rows_of(options)
    shown = table_of(rows)
    (options.output / "midpoints.md").write_text(shown + "\n")
    record = records.circumstances(options) | dict(results=[r._asdict() for r in rows])
    figures = options.output / "midpoints.json"
    figures.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{shown}\n\nFigures: {figures}")


if __name__ == "__main__":
    main()
