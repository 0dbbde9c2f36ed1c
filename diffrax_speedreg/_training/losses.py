"""What the two halves of alternating training minimize."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from equinox.internal import ω
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from .._custom_types import RealScalarLike
from .._misc import Mean, mean_absolute, mean_square
from .._problem import final_state, InitialValueProblem, solve_fixed
from .._solver.hypersolver import HyperSolver
from .._solver.taylor_lagrange import TaylorLagrangeSolver
from .targets import Targets


Solver: TypeAlias = TaylorLagrangeSolver | HyperSolver
Problem: TypeAlias = Callable[[PyTree[Any], PyTree[Any]], InitialValueProblem]
Loss: TypeAlias = Callable[
    [PyTree[Any], PyTree[Array], PyTree[Any]], Inexact[Array, ""]
]


class DynamicsTerms(eqx.Module):
    r"""The summands of the loss of a dynamics step.

    **Attributes:**

    - `loss`: the loss on data.
    - `remainder`: the size of the remainders, summed over the steps, without $\lambda$.
    - `speed`: the speed regularizer, without $\mu$; `None` if the solver gathers none.
    """

    loss: Inexact[Array, ""]
    remainder: Inexact[Array, ""]
    speed: Inexact[Array, ""] | None


def dynamics_loss(
    model: PyTree[Any],
    solver: Solver,
    batch: PyTree[Any],
    *,
    problem: Problem,
    loss: Loss,
    num_steps: int,
    penalty: RealScalarLike = 0.0,
    penalty_mean: Mean = "square",
    speed_weight: RealScalarLike = 0.0,
) -> tuple[Inexact[Array, ""], DynamicsTerms]:
    r"""The loss of the half that trains the dynamics, the remainder being fixed:
    $\text{loss} + \lambda \sum_i \frac{1}{N} \lVert r_i \rVert^2 + \mu R_K$.

    The remainders $r_i$ of the steps are small where a few coarse steps are enough, so
    that the penalty makes the dynamics easy to solve.

    **Arguments:**

    - `model`: everything that is trained on data; the dynamics are a part of it.
    - `solver`: a Taylor-Lagrange solver, or a hypersolver.
    - `batch`: what `problem` and `loss` know how to read.
    - `problem`: `(model, batch)` to the differential equation to solve. It says where
        in the model the dynamics are, and computes what comes before them.
    - `loss`: `(model, final state, batch)` to a scalar. It computes what comes after
        the dynamics.
    - `num_steps`: the number of equal steps.
    - `penalty`: $\lambda$, in the units of the loss divided by those of the (squared)
        state.
    - `penalty_mean`: whether to take the mean `"square"` of the remainders' entries, as
        in the paper's formula, or their mean `"absolute"` value, as in its reference
        implementation.
    - `speed_weight`: $\mu$, in the units of the loss divided by those of $R_K$. Unless
        it is zero, the solver must gather the regularizer: pass it `speed=Speed(K)`.

    **Returns:**

    The sum, and its summands.

    **Raises:**

    A `ValueError` if `loss` does not return a scalar, or there is no speed to weigh.

    ??? cite "Reference"

        Djeumou et al., "Taylor-Lagrange Neural Ordinary Differential Equations", IJCAI
        2022; for $R_K$, Kelly et al., "Learning Differential Equations that are Easy to
        Solve", NeurIPS 2020.
    """
    solution = solve_fixed(problem(model, batch), solver, num_steps)
    data_loss = loss(model, final_state(solution), batch)
    if jnp.shape(data_loss) != ():
        raise ValueError(
            "`loss` must return a scalar, but it returned an array of shape "
            f"{jnp.shape(data_loss)}. Take its mean over the batch."
        )
    gathered = solution.solver_state
    assert gathered is not None  # `solve_fixed` saves it.
    square = check_mean(penalty_mean, "penalty_mean") == "square"
    remainder = gathered.penalty if square else gathered.absolute_penalty
    speed = None if isinstance(solver, HyperSolver) else gathered.speed
    total = data_loss + penalty * remainder
    if speed is not None:
        total = total + speed_weight * speed
    elif not isinstance(speed_weight, int | float) or speed_weight != 0:
        raise ValueError(
            f"`speed_weight={speed_weight!r}` needs a speed, but the solver gathers "
            "none. Make it as `TaylorLagrangeSolver(order, remainder, speed=Speed(K))`."
        )
    return total, DynamicsTerms(data_loss, remainder, speed)


def remainder_loss(
    solver: Solver,
    problem: InitialValueProblem,
    targets: Targets,
    *,
    mean: Mean = "absolute",
) -> Inexact[Array, ""]:
    r"""The loss of the half that trains the remainder, the dynamics being fixed:
    $\frac{1}{N} \lVert \hat{y} - y \rVert_1$, or $\frac{1}{N} \lVert \hat{y} - y
    \rVert^2$.

    **Arguments:**

    - `solver`: a solver with a remainder.
    - `problem`: the differential equation. Its initial state and times are replaced by
        those of the targets.
    - `targets`: where to start, and what $y$ to reach; see
        [`diffrax_speedreg.reference_targets`][]. At run time it is an error if they do
        not start from the problem's initial state: they are of another batch then. That
        they are of these dynamics is up to you.
    - `mean`: of the error's entries: `"absolute"`, in units of the state, as in the
        paper, or `"square"`.

    **Returns:**

    The mean error over all targets and entries of the state.
    """

    targets = _check_start(targets, problem.y0)

    def solve(t0: Array, t1: Array, y0: PyTree[Array]) -> PyTree[Array]:
        part = InitialValueProblem(problem.term, y0, t0, t1, problem.args)
        return final_state(solve_fixed(part, solver, targets.num_steps))

    y1 = jax.vmap(solve)(targets.t0, targets.t1, targets.y0)
    error = (y1**ω - targets.y1**ω).ω
    absolute = check_mean(mean, "mean") == "absolute"
    return mean_absolute(error) if absolute else mean_square(error)


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The mean cross entropy of a classifier, for labels that exist.

    **Arguments:**

    - `logits`: the classifier's, for each sample and class.
    - `labels`: the true classes, from 0.

    **Returns:**

    The mean over the samples, in nats. At run time, a label out of range is an error: a
    negative one would count from the last class, without a word.
    """
    num_classes = logits.shape[1]
    labels = eqx.error_if(
        labels,
        (labels < 0) | (labels >= num_classes),
        f"A label is out of range: for {num_classes} logits, labels must be from 0 to "
        f"{num_classes - 1}. Check the data, or give the model more outputs.",
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


def check_mean(mean: Mean, name: str) -> Mean:
    if mean not in ("absolute", "square"):
        raise ValueError(f'`{name}` must be "absolute" or "square", but got {mean!r}.')
    return mean


def _check_start(targets: Targets, y0: PyTree[Array]) -> Targets:
    """An error at run time if targets do not start from there, but for roundoff."""

    def differs(start: Array, leaf: Array) -> Bool[Array, ""]:
        scale = jnp.max(jnp.abs(start), initial=0)
        roundoff = jnp.sqrt(jnp.finfo(start.dtype).eps)
        return jnp.any(jnp.abs(start[0] - leaf) > roundoff * scale)

    wrong = jtu.tree_leaves(jtu.tree_map(differs, targets.y0, y0))
    return eqx.error_if(
        targets,
        jnp.stack(wrong).any(),
        "These targets do not start from the initial state of this problem: they are "
        "of another batch, or another encoder. Make new ones for each batch.",
    )
