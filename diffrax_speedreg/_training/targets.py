"""What a solver's remainder is trained to reach."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optimistix as optx
from jaxtyping import Array, Inexact, PyTree, Real

from .._checks import check_positive_integer
from .._custom_types import RealScalarLike
from .._problem import InitialValueProblem, solve_adaptive, with_dtypes


class Outcome(eqx.Module):
    """How the solve at high fidelity ended.

    **Attributes:**

    - `result`: Diffrax's.
    - `time`: how far it came.
    - `speeds`: the mean square of the vector field there, for each index of the state's
        first axis: for each sample, if the state is a batch of them.
    """

    result: dfx.RESULTS
    time: Real[Array, ""]
    speeds: Inexact[Array, " samples"]


class Targets(eqx.Module):
    """Where a cheap solver starts, and where it should end.

    **Attributes:**

    - `t0`, `t1`, `y0`, `y1`: times and states at starts and ends, of one or several
        parts of a trajectory, along a first axis.
    - `num_steps`: in how many steps to go through each part.
    - `outcome`: how the solve that they are from ended.
    """

    t0: Real[Array, " parts"]
    t1: Real[Array, " parts"]
    y0: PyTree[Inexact[Array, "parts ..."]]
    y1: PyTree[Inexact[Array, "parts ..."]]
    num_steps: int = eqx.field(static=True)
    outcome: Outcome


class ReferenceFailed(RuntimeError):
    """Raised when an equation can't be solved at high fidelity; says where."""


def reference_targets(
    problem: InitialValueProblem,
    num_steps: int,
    *,
    solver: dfx.AbstractSolver = dfx.Dopri8(),
    tolerance: float = 1e-6,
    max_steps: int = 4096,
    one_step: bool = False,
    norm: Callable[[PyTree[Array]], RealScalarLike] = optx.rms_norm,
) -> Targets:
    """Solves an equation at high fidelity, once for several gradient steps.

    **Arguments:**

    - `problem`: the equation.
    - `num_steps`: the number of equal steps of the cheap solver from `t0` to `t1`.
    - `solver`: any adaptive Diffrax solver: an implicit one, where the equation is
        stiff.
    - `tolerance`: its relative and absolute tolerance per step.
    - `max_steps`: how many steps it may make.
    - `one_step`: whether each step of the cheap solver has a target of its own, and
        starts from a state on the reference trajectory; or else all steps together have
        one at the end of the solve.
    - `norm`: of the error, as for `diffrax.PIDController`.

    **Returns:**

    The targets, through which no gradient flows. They are of use only if the solve was
    successful, which [`diffrax_speedreg.check_targets`][] tells.
    """
    num_steps = check_positive_integer(num_steps, "num_steps")
    num_parts = num_steps if one_step else 1
    problem = with_dtypes(problem)
    ts = jnp.linspace(problem.t0, problem.t1, num_parts + 1)
    solution = solve_adaptive(
        problem,
        solver,
        tolerance,
        norm=norm,
        max_steps=max_steps,
        stop_at=ts[:-1],
        throw=False,
    )
    ys = jax.lax.stop_gradient(solution.ys)
    return Targets(
        ts[:-1],
        ts[1:],
        jtu.tree_map(lambda y: y[:-1], ys),
        jtu.tree_map(lambda y: y[1:], ys),
        num_steps // num_parts,
        _outcome(problem, solution),
    )


def check_targets(
    targets: Targets, solver: dfx.AbstractSolver, tolerance: float
) -> None:
    """Raises [`diffrax_speedreg.ReferenceFailed`][] if targets are not of use.

    **Arguments:**

    - `targets`: from [`diffrax_speedreg.reference_targets`][], outside of `jax.jit`.
    - `solver`, `tolerance`: what they were computed with, for the message.
    """
    result, speeds = targets.outcome.result, np.asarray(targets.outcome.speeds)
    if bool(result == dfx.RESULTS.successful):
        return
    hardest = int(np.argmax(np.where(np.isnan(speeds), np.inf, speeds)))
    raise ReferenceFailed(
        f"The reference solve by {type(solver).__name__} at tolerance {tolerance:g} "
        f"failed at time {float(targets.outcome.time):.6g}, where sample {hardest} "
        f"changes fastest: {dfx.RESULTS[result]} Allow more steps, a coarser "
        "tolerance, or use an implicit solver, such as `diffrax.Kvaerno5()`."
    )


def _outcome(problem: InitialValueProblem, solution: dfx.Solution) -> Outcome:
    assert solution.ts is not None
    # Infinities fill up what a solve that failed did not come to.
    last = jnp.sum(jnp.isfinite(solution.ts)) - 1
    time = solution.ts[last]
    y = jax.lax.stop_gradient(jtu.tree_map(lambda leaf: leaf[last], solution.ys))
    control = problem.term.contr(problem.t0, problem.t1)
    slope = problem.term.vf_prod(time, y, problem.args, control)
    return Outcome(solution.result, time, _per_sample(slope))


def _per_sample(slope: PyTree[Any]) -> Inexact[Array, " samples"]:
    """The mean square by the first axis, if all leaves have the same."""
    leaves = jtu.tree_leaves(slope)
    size = leaves[0].shape[0] if leaves[0].ndim else 1
    if any(leaf.ndim == 0 or leaf.shape[0] != size for leaf in leaves):
        size = 1
    squares = [jnp.abs(leaf.reshape(size, -1)) ** 2 for leaf in leaves]
    means = [jnp.mean(square, axis=1) for square in squares]
    return sum(means[1:], means[0])
