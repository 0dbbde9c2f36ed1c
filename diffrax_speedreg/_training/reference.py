import dataclasses
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from equinox.internal import ω
from jaxtyping import Array, Bool, Inexact, Int, PyTree, Real

from .._checks import (
    as_state,
    check_is,
    check_like_state,
    check_positive_integer,
    check_real_scalar,
    check_solver,
    check_that,
)
from .._custom_types import Args, RealScalarLike, Y
from .._fixed_steps import fixed_step_solve
from .._misc import as_times, mean_absolute
from .._nfe import CountingController, nfe


class InitialValueProblem(eqx.Module):
    """Differential equation with its initial state and its interval.

    **Attributes:**

    - `term`: a Diffrax term.
    - `y0`: the state at `t0`, a pytree of arrays.
    - `t0`, `t1`: the start and the end of the solve, scalars. `t1` may be before `t0`.
    - `args`: the arguments of the vector field.
    - `y1`: the state at `t1`, a pytree like `y0`, if it is known. Then no reference
        solve is made.
    """

    term: dfx.AbstractTerm
    y0: Y
    t0: RealScalarLike = 0.0
    t1: RealScalarLike = 1.0
    args: Args = None
    y1: Y | None = None


class Outcome(eqx.Module):
    """Outcome of a reference solve.

    **Attributes:**

    - `result`: the `diffrax.RESULTS`.
    - `time`: the time that the solve reached.
    - `hardest`: the index, along the first axis of the state, at which the solution
        changes fastest at that time.
    - `nfe`: the evaluations of the vector field; `None` if they are not known, as for
        an implicit solver.
    """

    result: dfx.RESULTS
    time: Real[Array, ""]
    hardest: Int[Array, ""]
    nfe: Int[Array, ""] | None


class ReferenceSolution(eqx.Module):
    """States from which a learned solver starts, and states that it should reach.

    **Attributes:**

    - `t0`, `y0`: the times and states at the starts of one or several parts of a
        trajectory, along a first axis.
    - `t1`, `y1`: the times and states at the ends of these parts.
    - `outcome`: the outcome of the reference solve; `None` if the final state was
        known.
    """

    t0: Real[Array, " parts"]
    t1: Real[Array, " parts"]
    y0: PyTree[Inexact[Array, "parts ..."]]
    y1: PyTree[Inexact[Array, "parts ..."]]
    outcome: Outcome | None


class ReferenceFailed(RuntimeError):
    """Exception for a reference solve that failed. The message says at which time, and
    for which sample."""


class Reference(eqx.Module):
    """Settings of the accurate solve from which a learned solver is trained.

    **Arguments:**

    - `num_steps`: the number of equal steps that the learned solver makes from `t0` to
        `t1`.
    - `solver`: the adaptive Diffrax solver of the reference solve. Use an implicit one
        if the equation is stiff.
    - `rtol`, `atol`: the relative and absolute tolerances of the reference solve.
    - `max_steps`: the largest number of steps of the reference solve.
    - `per_step`: if `True`, each step of the learned solver starts from a state on the
        reference trajectory, and has a separate target. If `False`, the target is the
        state at the end of all steps.

    **Raises:**

    A `ValueError` if a number of steps is not a positive integer, a tolerance is not
    positive, or `solver` is not a solver.
    """

    num_steps: int = eqx.field(static=True)
    solver: dfx.AbstractSolver = dfx.Dopri8()
    rtol: float = eqx.field(static=True, default=1e-6)
    atol: float = eqx.field(static=True, default=1e-6)
    max_steps: int = eqx.field(static=True, default=4096)
    per_step: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_positive_integer(self.num_steps, "num_steps")
        check_positive_integer(self.max_steps, "max_steps")
        check_solver(self.solver)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            check_real_scalar(value, name)
            check_that(value > 0, name, "positive", value)

    @property
    def steps_per_part(self) -> int:
        return 1 if self.per_step else self.num_steps

    def whole(self) -> "Reference":
        """Returns a copy with one target at the end of the solve."""
        return dataclasses.replace(self, per_step=False)

    def solve(self, problem: InitialValueProblem) -> ReferenceSolution:
        """Solves an equation accurately.

        **Arguments:**

        - `problem`: the equation.

        **Returns:**

        A [`diffrax_speedreg.training.ReferenceSolution`][], through which no gradient
        flows. If the solve failed, `check` raises an error for it.
        """
        example = "InitialValueProblem(term, y0)"
        check_is(problem, InitialValueProblem, "problem", example)
        check_real_scalar(problem.t0, "t0")
        check_real_scalar(problem.t1, "t1")
        y0 = as_state(problem.y0)
        t0, t1 = as_times(problem.t0, problem.t1)
        if problem.y1 is not None:
            return self._given(problem, y0, t0, t1)
        parts = self.num_steps if self.per_step else 1
        ts = jnp.linspace(t0, t1, parts + 1)
        controller = dfx.PIDController(rtol=self.rtol, atol=self.atol)
        # Interpolated states would be less accurate than those at the ends of steps.
        controller = dfx.ClipStepSizeController(controller, step_ts=ts[:-1])
        solution = dfx.diffeqsolve(
            problem.term,
            self.solver,
            t0,
            t1,
            None,
            y0,
            problem.args,
            saveat=dfx.SaveAt(t1=True, ts=ts[:-1], controller_state=True),
            stepsize_controller=CountingController(controller),
            max_steps=self.max_steps,
            throw=False,
        )
        ys = jax.lax.stop_gradient(solution.ys)
        before, after = (
            jtu.tree_map(lambda y: y[part], ys) for part in (slice(-1), slice(1, None))
        )
        outcome = _outcome(problem, self.solver, solution)
        return ReferenceSolution(ts[:-1], ts[1:], before, after, outcome)

    def check(self, solution: ReferenceSolution) -> None:
        """Raises [`diffrax_speedreg.training.ReferenceFailed`][] if the solve failed.

        **Arguments:**

        - `solution`: the solution that `solve` returned, outside of `jax.jit`.
        """
        check_is(solution, ReferenceSolution, "solution", "reference.solve(problem)")
        outcome = solution.outcome
        if outcome is None or bool(outcome.result == dfx.RESULTS.successful):
            return
        raise ReferenceFailed(
            f"The reference solve by {type(self.solver).__name__} at "
            f"rtol={self.rtol:g}, atol={self.atol:g} failed at time "
            f"{float(outcome.time):.6g}, where sample {int(outcome.hardest)} changes "
            f"fastest: {dfx.RESULTS[outcome.result]} Allow more steps, a coarser "
            "tolerance, or use an implicit solver, such as `diffrax.Kvaerno5()`."
        )

    def _given(
        self, problem: InitialValueProblem, y0: PyTree[Array], t0: Array, t1: Array
    ) -> ReferenceSolution:
        if self.per_step:
            raise ValueError(
                "With `per_step=True` each step needs a reference state, but "
                "`InitialValueProblem` has `y1=...`, the one at the end. Use "
                "`per_step=False`, or problems of one step."
            )
        y1 = jtu.tree_map(jnp.asarray, problem.y1)
        check_like_state(y1, y0, "The given `y1`", dtypes=False)
        y1 = jtu.tree_map(lambda y, like: y.astype(like.dtype), y1, y0)
        starts, ends = (jtu.tree_map(lambda x: x[None], y) for y in (y0, y1))
        return ReferenceSolution(t0[None], t1[None], starts, ends, None)


def solver_error(
    solver: dfx.AbstractSolver,
    problem: InitialValueProblem,
    reference: ReferenceSolution,
    num_steps: int,
) -> Inexact[Array, ""]:
    """Computes the mean absolute error over all parts and entries of the state."""
    reference = _check_start(reference, problem.y0)

    def error(t0: Array, t1: Array, y0: PyTree[Array], y1: PyTree[Array]) -> Array:
        solution = fixed_step_solve(
            *(problem.term, solver, t0, t1, num_steps, y0, problem.args), throw=False
        )
        final = jtu.tree_map(lambda y: y[-1], solution.ys)
        return mean_absolute((final**ω - y1**ω).ω)

    parts = (reference.t0, reference.t1, reference.y0, reference.y1)
    return jnp.mean(jax.vmap(error)(*parts))


def _check_start(reference: ReferenceSolution, y0: PyTree[Any]) -> ReferenceSolution:
    """Raises an error at run time if a reference starts from other states than `y0`.

    Differences up to roundoff are allowed.
    """

    def differs(start: Array, leaf: Array) -> Bool[Array, ""]:
        scale = jnp.max(jnp.abs(start), initial=0)
        roundoff = jnp.sqrt(jnp.finfo(start.dtype).eps)
        return jnp.any(jnp.abs(start[0] - leaf.astype(start.dtype)) > roundoff * scale)

    wrong = jtu.tree_leaves(jtu.tree_map(differs, reference.y0, y0))
    return eqx.error_if(
        reference,
        jnp.stack(wrong).any(),
        "This reference does not start from the initial state of this problem: it is "
        "that of another batch, or another encoder. Make a new one for each batch.",
    )


def _outcome(
    problem: InitialValueProblem, solver: dfx.AbstractSolver, solution: dfx.Solution
) -> Outcome:
    assert solution.ts is not None
    # Infinities stand for the times that a failed solve did not reach.
    last = jnp.sum(jnp.isfinite(solution.ts)) - 1
    time = solution.ts[last]
    y = jax.lax.stop_gradient(jtu.tree_map(lambda leaf: leaf[last], solution.ys))
    control = problem.term.contr(solution.t0, solution.t1)
    speeds = _per_sample(problem.term.vf_prod(time, y, problem.args, control))
    hardest = jnp.argmax(jnp.where(jnp.isnan(speeds), jnp.inf, speeds))
    try:
        count = nfe(solver, solution, adaptive=True)
    except ValueError:  # An implicit solver.
        count = None
    return Outcome(solution.result, time, hardest, count)


def _per_sample(slope: PyTree[Any]) -> Inexact[Array, " samples"]:
    """Computes the mean square of each sample, if all leaves have the samples' axis."""
    leaves = jtu.tree_leaves(slope)
    size = leaves[0].shape[0] if leaves[0].ndim and leaves[0].size else 1
    if any(leaf.ndim == 0 or leaf.shape[0] != size for leaf in leaves):
        size = 1
    squares = [jnp.abs(leaf.reshape(size, -1)) ** 2 for leaf in leaves]
    means = [jnp.sum(square, axis=1) / max(square.shape[1], 1) for square in squares]
    return sum(means[1:], means[0])
