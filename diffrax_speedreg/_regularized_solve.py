from typing import Any

import diffrax as dfx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Real

from ._checks import (
    check_is,
    check_real_scalar,
    check_solver,
    check_that,
    check_time_driven,
)
from ._custom_types import Args, BoolScalarLike, RealScalarLike, Y
from ._methods import (
    AbstractMethod,
    augmented,
    ends_within_step,
    in_solver,
    SolveCall,
)
from ._misc import as_time_dependent
from ._quadrature import gauss_legendre
from ._regularizers import AbstractRegularizer, DerivativeNorm
from ._solver.dense_output import largest_order
from ._solver.derivative_regularized import is_precise
from ._solver.taylor_lagrange import TaylorLagrangeSolver


def regularized_solve(
    terms: dfx.AbstractTerm,
    solver: dfx.AbstractSolver,
    t0: RealScalarLike,
    t1: RealScalarLike,
    dt0: RealScalarLike | None,
    y0: Y,
    args: Args = None,
    *,
    saveat: dfx.SaveAt = dfx.SaveAt(t1=True),
    stepsize_controller: dfx.AbstractStepSizeController = dfx.ConstantStepSize(),
    adjoint: dfx.AbstractAdjoint = dfx.RecursiveCheckpointAdjoint(),
    event: dfx.Event | None = None,
    max_steps: int | None = 4096,
    throw: bool = True,
    progress_meter: dfx.AbstractProgressMeter = dfx.NoProgressMeter(),
    solver_state: PyTree[Array] | None = None,
    controller_state: PyTree[Array] | None = None,
    made_jump: BoolScalarLike | None = None,
    regularizer: AbstractRegularizer = DerivativeNorm(3),
    method: AbstractMethod | None = None,
) -> tuple[dfx.Solution, Real[Array, ""]]:
    r"""Solves a differential equation, and integrates a regularizer along its solution.

    Use it in place of `diffrax.diffeqsolve` in the loss of a neural ODE. It takes the
    same arguments and makes the same steps. The integral is

    $$\left| \int_{t_0}^{t_1} R(t, y(t))\, \mathrm{d}t \right|,$$

    where $R$ is the regularizer, by default the mean square of the third derivative of
    the solution. Add a multiple of the integral to the loss, so that the trained
    equation takes fewer evaluations to solve. A [`diffrax_speedreg.NFEBudget`][]
    chooses the multiple.

    !!! example

        ```python
        solution, integral = dsr.regularized_solve(
            term, diffrax.Tsit5(), t0, t1, dt0, y0, args,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
            regularizer=dsr.DerivativeNorm(3),
        )
        loss = data_loss(solution.ys) + 0.01 * integral
        ```

    **Arguments:**

    - `terms`, `solver`, `t0`, `t1`, `dt0`, `y0`, `args`, `saveat`,
        `stepsize_controller`, `adjoint`, `event`, `max_steps`, `throw`,
        `progress_meter`, `solver_state`, `controller_state`, `made_jump`: as for
        `diffrax.diffeqsolve`. The term must be of the form
        $f(t, y, \text{args})\,\mathrm{d}t$, such as `diffrax.ODETerm`.
    - `regularizer`: the [`diffrax_speedreg.AbstractRegularizer`][]. The default,
        `DerivativeNorm(3)`, suits solvers of order 3 and above. A derivative of an
        order above that of the solver does not affect the step sizes.
    - `method`: how to integrate. Pass one to compare numbers between solvers. By
        default it is the first of these that supports the solve:

        - [`diffrax_speedreg.augmented`][], as one more entry of the state, for
            `diffrax.BacksolveAdjoint` and for events with `max_steps=None`.
        - [`diffrax_speedreg.in_solver`][], from the steps of the solver, for adaptive
            solves with a derivative norm of an order up to 3 that the solver's dense
            output has, and for a Taylor-Lagrange solver of a degree above the order.
            The value depends on the tolerance.
        - [`diffrax_speedreg.gauss_legendre`][], after the solve, from eight nodes.
            This includes half precision, and single precision if the times are
            about a hundred times larger than the interval.

        The others are [`diffrax_speedreg.random_nodes`][], for an unbiased estimate;
        [`diffrax_speedreg.trapezoidal`][], from the saved states; and a
        [`diffrax_speedreg.Quadrature`][] with your nodes.

    **Returns:**

    A pair: the `diffrax.Solution` that `diffrax.diffeqsolve` returns, with the same
    values, steps and statistics; and the integral, a nonnegative scalar. If an event
    ended the solve, the integral ends there. If the solve failed, it is NaN.

    **Raises:**

    A `ValueError` if the term is not of the form $f\,\mathrm{d}t$, or if the method
    does not support the regularizer, the solver, the adjoint or `saveat`.

    **Cost:** that of `diffrax.diffeqsolve` and of the method. `in_solver` takes no
    evaluations. The others evaluate the regularizer at each node, or with `augmented`
    at each evaluation. This costs about K vector field evaluations.

    ??? cite "Reference"

        Kelly, Bettencourt, Johnson and Duvenaud, "Learning Differential Equations that
        are Easy to Solve", NeurIPS 2020.
    """
    check_solver(solver)
    check_time_driven(terms)
    check_real_scalar(t0, "t0")
    check_real_scalar(t1, "t1")
    check_is(saveat, dfx.SaveAt, "saveat", "diffrax.SaveAt(t1=True)")
    controllers, example = dfx.AbstractStepSizeController, "diffrax.ConstantStepSize()"
    check_is(stepsize_controller, controllers, "stepsize_controller", example)
    example = "diffrax.RecursiveCheckpointAdjoint()"
    check_is(adjoint, dfx.AbstractAdjoint, "adjoint", example)
    if event is not None:
        check_is(event, dfx.Event, "event", "diffrax.Event(cond_fn)")
    check_is(regularizer, AbstractRegularizer, "regularizer", "DerivativeNorm(3)")
    if method is not None:
        wanted = "`None` or a way to integrate, such as `gauss_legendre(8)`"
        check_that(isinstance(method, AbstractMethod), "method", wanted, method)
    others: dict[str, Any] = dict(
        max_steps=max_steps,
        throw=throw,
        progress_meter=progress_meter,
        controller_state=controller_state,
        made_jump=made_jump,
    )
    call = SolveCall(
        *(terms, solver, t0, t1, dt0, y0, args),
        *(saveat, stepsize_controller, adjoint, event, solver_state, others),
    )
    method = _default_method(call, regularizer) if method is None else method
    solution, integral = method.solve(call, regularizer)
    okay = dfx.is_okay(solution.result)
    return solution, jnp.where(okay, integral, jnp.nan)


def _default_method(
    call: SolveCall, regularizer: AbstractRegularizer
) -> AbstractMethod:
    solver, controller = call.solver, call.stepsize_controller
    unbounded = call.event is not None and call.others["max_steps"] is None
    if isinstance(call.adjoint, dfx.BacksolveAdjoint) or unbounded:
        return augmented()
    if (
        not isinstance(regularizer, DerivativeNorm)
        or isinstance(call.adjoint, dfx.ImplicitAdjoint)
        or ends_within_step(call.event)
    ):
        return gauss_legendre()
    if type(solver) is TaylorLagrangeSolver:
        largest = solver.degree - 1 if solver.regularizer is None else 0
    elif isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
        # Larger orders are inaccurate in single precision.
        largest = min(largest_order(solver) or 0, 3) if _is_precise(call) else 0
    else:
        largest = 0
    return in_solver() if regularizer.order <= largest else gauss_legendre()


def _is_precise(call: SolveCall) -> bool:
    """Returns whether differences of stages have digits left, as far as is known."""
    dtype = call.times[0].dtype
    if not is_precise(as_time_dependent(call.y0, dtype)):
        return False
    if any(isinstance(t, jax.core.Tracer) for t in (call.t0, call.t1)):
        return True
    t0, t1 = float(call.t0), float(call.t1)
    return max(abs(t0), abs(t1)) < 1e-5 / float(jnp.finfo(dtype).eps) * abs(t1 - t0)
