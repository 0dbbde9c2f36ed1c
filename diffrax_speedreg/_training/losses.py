from collections.abc import Callable
from typing import Any

from equinox.internal import ω
from jaxtyping import Array, Inexact, PyTree

from .._misc import mean_absolute
from .._problem import final_state, InitialValueProblem, solve_fixed
from .._solver.hypersolver import HyperSolver
from .._solver.taylor_lagrange import TaylorLagrangeSolver


def dynamics_loss(
    model: PyTree[Any],
    solver: TaylorLagrangeSolver | HyperSolver,
    batch: PyTree[Array],
    *,
    problem: Callable[[PyTree[Any], PyTree[Array]], InitialValueProblem],
    loss: Callable[[PyTree[Any], PyTree[Array], PyTree[Array]], Inexact[Array, ""]],
    num_steps: int,
    penalty: float = 0.0,
) -> tuple[Inexact[Array, ""], Inexact[Array, ""]]:
    r"""The loss of the half that trains the dynamics, the midpoint being fixed:
    $\text{loss} + \lambda \sum_i \frac{1}{N} \lVert r_i \rVert^2$.

    The remainders $r_i$ of the steps are small where a few coarse steps are enough, so
    that the penalty makes the dynamics easy to solve.

    **Arguments:**

    - `model`: everything that is trained on data; the dynamics are a part of it.
    - `solver`: a Taylor-Lagrange solver, or a hypersolver.
    - `batch`: what `problem` and `loss` know how to read.
    - `problem`: `(model, batch)` to the differential equation to solve.
    - `loss`: `(model, final state, batch)` to a scalar.
    - `num_steps`: the number of equal steps.
    - `penalty`: $\lambda$, in the units of the loss divided by those of the squared
        state.

    **Returns:**

    The sum, and the first summand: the loss on data alone.
    """
    solution = solve_fixed(problem(model, batch), solver, num_steps)
    data_loss = loss(model, final_state(solution), batch)
    assert solution.solver_state is not None  # `solve_fixed` saves it.
    return data_loss + penalty * solution.solver_state.penalty, data_loss


def midpoint_loss(
    solver: TaylorLagrangeSolver | HyperSolver,
    problem: InitialValueProblem,
    target: PyTree[Array],
    *,
    num_steps: int,
) -> Inexact[Array, ""]:
    r"""The loss of the half that trains the midpoint, the dynamics being fixed:
    $\frac{1}{N} \lVert \hat{y}(t_1) - y(t_1) \rVert_1$.

    **Arguments:**

    - `solver`: a Taylor-Lagrange solver with a midpoint.
    - `problem`: the differential equation.
    - `target`: its solution $y(t_1)$ at high fidelity.
    - `num_steps`: the number of equal steps in which the solver computes
        $\hat{y}(t_1)$.

    **Returns:**

    The mean absolute error of the final state's entries, in units of the state.
    """
    y1 = final_state(solve_fixed(problem, solver, num_steps))
    error = (y1**ω - target**ω).ω
    return mean_absolute(error)
