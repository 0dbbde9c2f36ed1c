import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from ._checks import check_is, check_solver
from ._custom_types import Args, BoolScalarLike, RealScalarLike, VF, Y


_SolverState = TypeVar("_SolverState")


class Evaluations(NamedTuple):
    """Numbers of evaluations of the vector field.

    They are those at the start of a solve, those in each attempt at a step, and the
    further ones in each attempt at the first step and at a step after a jump.
    """

    at_start: int
    per_step: int
    at_first_step: int = 0
    after_jump: int = 0

    def of_steps(self, num_steps: int) -> int:
        """Returns the number of evaluations in that many steps of constant size."""
        first = self.at_first_step if num_steps > 0 else 0
        return self.at_start + first + self.per_step * num_steps


class AbstractCountedSolver(dfx.AbstractSolver[_SolverState]):
    """Abstract base class for solvers that count their own evaluations."""

    @abc.abstractmethod
    def evaluations(self, adaptive: bool | None) -> tuple[int, ...]:
        """Counts the evaluations of the vector field.

        **Arguments:**

        - `adaptive`: whether the steps are adaptive; `None` if the user did not say.

        **Returns:**

        The number of evaluations at the start of a solve, and in each step.
        """


class CountingState(eqx.Module):
    """The state of a [`diffrax_speedreg.CountingController`][].

    **Attributes:**

    - `inner`: the wrapped controller's state.
    - `is_first`, `after_jump`: whether the next attempt is one at the first step, and
        at a step that starts at a jump.
    - `first_attempts`, `jump_attempts`: the number of such attempts so far.
    """

    inner: PyTree[Any]
    is_first: Bool[Array, ""]
    after_jump: Bool[Array, ""]
    first_attempts: Int[Array, ""]
    jump_attempts: Int[Array, ""]


class CountingController(dfx.AbstractAdaptiveStepSizeController):
    """Wraps a step size controller, and counts attempts that a solution does not
    record.

    Use it if [`diffrax_speedreg.nfe`][] has to be exact. Solvers with the
    first-same-as-last property make one more evaluation in each attempt at the first
    step, and at a step that starts at a jump. Save the final state of this controller,
    so that `nfe` counts these evaluations.

    !!! example

        ```python
        controller = dsr.CountingController(diffrax.PIDController(rtol, atol))
        saveat = diffrax.SaveAt(t1=True, controller_state=True)
        solution = diffrax.diffeqsolve(
            ..., saveat=saveat, stepsize_controller=controller
        )
        evaluations = dsr.nfe(solver, solution)
        ```

    The steps are those of the wrapped controller.
    """

    controller: dfx.AbstractAdaptiveStepSizeController

    def __init__(self, controller: dfx.AbstractAdaptiveStepSizeController):
        """**Arguments:**

        - `controller`: an adaptive step size controller of Diffrax. If you use a
            `diffrax.ClipStepSizeController`, wrap that one.

        **Raises:**

        A `ValueError` if `controller` is not an adaptive step size controller.
        """
        example = "diffrax.PIDController(rtol=1e-6, atol=1e-6)"
        kind = dfx.AbstractAdaptiveStepSizeController
        check_is(controller, kind, "controller", example)
        self.controller = controller

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    @property
    def norm(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm

    def wrap(self, direction: Any) -> "CountingController":
        return CountingController(self.controller.wrap(direction))  # pyright: ignore[reportArgumentType]

    def init(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        dt0: RealScalarLike | None,
        args: Args,
        func: Callable[..., VF],
        error_order: RealScalarLike | None,
    ) -> tuple[RealScalarLike, CountingState]:
        t1, inner = self.controller.init(
            terms, t0, t1, y0, dt0, args, func, error_order
        )
        no, zero = jnp.array(False), jnp.array(0)
        return t1, CountingState(inner, ~no, no, zero, zero)

    def adapt_step_size(
        self,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        y1_candidate: Y,
        args: Args,
        y_error: Y | None,
        error_order: RealScalarLike,
        controller_state: CountingState,
    ) -> tuple[
        BoolScalarLike,
        RealScalarLike,
        RealScalarLike,
        BoolScalarLike,
        CountingState,
        dfx.RESULTS,
    ]:
        state = controller_state
        keep_step, next_t0, next_t1, made_jump, inner, result = (
            self.controller.adapt_step_size(
                *(t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner)
            )
        )
        state = CountingState(
            inner,
            state.is_first & ~keep_step,
            jnp.where(keep_step, made_jump, state.after_jump),
            jnp.where(state.is_first, 1, 0) + state.first_attempts,
            jnp.where(state.after_jump, 1, 0) + state.jump_attempts,
        )
        return keep_step, next_t0, next_t1, made_jump, state, result


def nfe(
    solver: dfx.AbstractSolver, solution: dfx.Solution, *, adaptive: bool | None = None
) -> Int[Array, "..."]:
    """Counts the vector field evaluations of a solve (NFE).

    Use it to compare models and solvers: solve the plain equation, without a
    regularizer. The count includes rejected steps. For a
    [`diffrax_speedreg.TaylorLagrangeSolver`][] it is the number of Taylor coefficients,
    each of which costs about one evaluation.

    The count is exact, except in the following cases for solvers with the
    first-same-as-last property (`Tsit5`, `Dopri5`, `Dopri8`, `Bosh3`). Solve with a
    [`diffrax_speedreg.CountingController`][] to make it exact.

    - If steps are rejected, the count is an upper bound. These solvers evaluate one
        more stage in each attempt at the first step. Diffrax does not record how many
        rejected steps were such attempts, so the count assumes that all were.
    - If steps end at jumps (`jump_ts` of `diffrax.ClipStepSizeController`), these
        solvers and `ReversibleHeun` make one more evaluation in each attempt at the
        next step, which is not counted.

    Evaluations by an event, or by a function of `diffrax.SaveAt`, are never counted.

    **Arguments:**

    - `solver`: the solver: an explicit one of Diffrax's (`Tsit5`, `Dopri5`, `Dopri8`,
        `Bosh3`, `Heun`, `Midpoint`, `Ralston`, `Euler`, `LeapfrogMidpoint`,
        `ReversibleHeun`, `SemiImplicitEuler`), a
        [`diffrax_speedreg.AbstractLearnedSolver`][], or one of these within a
        `diffrax.HalfSolver` or [`diffrax_speedreg.ErrorRegularizedSolver`][].
    - `solution`: the solution that `diffrax.diffeqsolve` returned with that solver.
    - `adaptive`: if `True`, the steps were adaptive. This is needed only for a Taylor
        method, which evaluates an error estimate then.

    **Returns:**

    An integer scalar. For a solution under `jax.vmap`, it is an array of integers: the
    evaluations that each sample needs.

    **Raises:**

    A `ValueError` if the evaluations of the solver are not known, as for implicit
    solvers; or if `adaptive` is missing for a Taylor method.
    """
    check_solver(solver)
    check_is(solution, dfx.Solution, "solution", "diffrax.diffeqsolve(...)")
    counts = evaluations(solver, adaptive)
    num_steps = jnp.asarray(solution.stats["num_steps"])
    state = solution.controller_state
    if isinstance(state, CountingState):
        first_attempts, jump_attempts = state.first_attempts, state.jump_attempts
    else:
        rejected = jnp.asarray(solution.stats["num_rejected_steps"])
        first_attempts, jump_attempts = jnp.minimum(1 + rejected, num_steps), 0
    # The size of the first step costs no evaluations: Diffrax wraps the term, so that
    # its selection for ODEs does not apply, and `dt0=None` stands for 0.01.
    return (
        counts.at_start
        + counts.per_step * num_steps
        + counts.at_first_step * first_attempts
        + counts.after_jump * jump_attempts
    )


def evaluations(solver: Any, adaptive: bool | None) -> Evaluations:
    """Counts the evaluations of a solver."""
    # `type`, since for Diffrax a wrapping solver is an instance of the wrapped class.
    kind = type(solver)
    if issubclass(kind, AbstractCountedSolver):
        return Evaluations(*solver.evaluations(adaptive))
    elif kind is dfx.HalfSolver:
        # It makes its own error estimate. Of its three steps, only the second half step
        # follows another step.
        start, per_step, first, jump = evaluations(solver.solver, adaptive=False)
        return Evaluations(start, 3 * per_step, 2 * first, 2 * jump)
    elif kind in _diffrax_solvers:
        return _diffrax_solvers[kind]
    elif issubclass(kind, dfx.AbstractERK) and isinstance(
        solver.tableau, dfx.ButcherTableau
    ):
        first = int(solver.tableau.fsal)
        return Evaluations(0, solver.tableau.num_stages - first, first, first)
    check_solver(solver)
    raise ValueError(
        "The number of evaluations is known for explicit Runge-Kutta methods, "
        f"{', '.join(f'`{k.__name__}`' for k in _diffrax_solvers)}, "
        "`AbstractLearnedSolver`, and solvers that wrap one of these, but got "
        f"{kind.__name__}."
    )


_diffrax_solvers = {
    dfx.Euler: Evaluations(0, 1),
    dfx.LeapfrogMidpoint: Evaluations(0, 1),
    dfx.ReversibleHeun: Evaluations(1, 1, 0, 1),
    # A step evaluates each of the vector fields once.
    dfx.SemiImplicitEuler: Evaluations(0, 2),
}
