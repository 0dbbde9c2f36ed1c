from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import check_is, check_positive_integer, check_time_driven
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._solution import vector_field
from .learned import AbstractLearnedSolver


class LearnedTableau(eqx.Module):
    """The coefficients of a [`diffrax_speedreg.LearnedRungeKutta`][].

    **Attributes:**

    - `a`: those of the stages: for each stage after the first, one for each stage
        before it.
    - `b`: those of the result.
    - `c`: the times of the stages, in parts of the step.
    """

    a: tuple[Array, ...]
    b: Float[Array, " stages"]
    c: Float[Array, " stages"]


class LearnedRungeKutta(AbstractLearnedSolver[None]):
    r"""Explicit Runge-Kutta solver with a learned tableau.

    Use it for a vector field that is solved often, over the same interval and from many
    states, such as that of a generative model.
    [`diffrax_speedreg.training.fit_solver`][] trains it. It is valid for the interval
    and the step size of its training. It makes constant steps, since it has no order in
    general and no error estimate.

    A step is

    $$\begin{aligned}
    k_i &= f\Big(t_0 + c_i h,\; y_0 + h \sum_{j < i} a_{ij} k_j\Big), \\
    y_1 &= y_0 + h \sum_i b_i k_i,
    \end{aligned}$$

    where all $a_{ij}$, $b_i$ and $c_i$ are learned. Initially, a step equals several
    equal steps of another solver. Training then changes the lengths of these steps, and
    adds to each stage a dependence on all earlier slopes. With $n$ evaluations there
    are $n (n + 3) / 2$ numbers to learn.

    !!! example

        ```python
        # Four evaluations. It starts as two steps of the midpoint rule.
        solver = dsr.LearnedRungeKutta(diffrax.Midpoint(), num_steps=2)
        solution = dsr.fixed_step_solve(term, solver, 0.0, 1.0, 1, y0)
        ```

    Uses linear interpolation for dense/ts output.

    ??? cite "Reference"

        Shaul, Perez, Chen, Thabet, Pumarola and Lipman, "Bespoke Solvers for Generative
        Flow Models", ICLR 2024; and Shaul, Singer, Chen, Le, Thabet, Pumarola and
        Lipman, "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow
        Models", ICML 2024. There the factor of $y_0$ in a stage is learned too. Here it
        is 1, as in every Runge-Kutta method.
    """

    tableau: LearnedTableau

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., dfx.LocalLinearInterpolation]] = (
        dfx.LocalLinearInterpolation
    )

    def __init__(self, solver: dfx.AbstractERK = dfx.Midpoint(), num_steps: int = 2):
        """**Arguments:**

        - `solver`: the explicit Runge-Kutta solver of Diffrax to start from.
        - `num_steps`: the number of steps of `solver` that one step replaces.

        **Raises:**

        A `ValueError` if `solver` is not an explicit Runge-Kutta method of Diffrax, or
        `num_steps` is not a positive integer.
        """
        check_is(solver, dfx.AbstractERK, "solver", "diffrax.Midpoint()")
        num_steps = check_positive_integer(num_steps, "num_steps")
        tableau = solver.tableau
        check_is(tableau, dfx.ButcherTableau, "solver.tableau", "Midpoint.tableau")
        assert isinstance(tableau, dfx.ButcherTableau)
        self.tableau = _composed(tableau, num_steps)

    @property
    def learned(self) -> LearnedTableau:
        return self.tableau

    def evaluations(self, adaptive: bool | None) -> tuple[int, int]:
        del adaptive
        return 0, len(self.tableau.b)

    def order(self, terms: dfx.AbstractTerm) -> None:
        del terms

    def init(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> None:
        del t0, t1, y0, args
        check_time_driven(terms)

    def step(
        self,
        terms: dfx.AbstractTerm,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: None,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, None, DenseInfo, None, dfx.RESULTS]:
        del solver_state, made_jump
        field, h = vector_field(terms, args, terms.contr(t0, t1)), jnp.asarray(t1 - t0)
        rows = (jnp.zeros(0), *self.tableau.a)
        slopes: list[PyTree[Array]] = []
        for row, fraction in zip(rows, self.tableau.c):
            t = t0 + fraction.astype(h.dtype) * h
            slopes.append(field(t, _combined(y0, row, slopes)))
        y1 = _combined(y0, self.tableau.b, slopes)
        return y1, None, dict(y0=y0, y1=y1), None, dfx.RESULTS.successful

    def func(
        self, terms: dfx.AbstractTerm, t0: RealScalarLike, y0: Y, args: Args
    ) -> VF:
        return terms.vf(t0, y0, args)


def _combined(
    y0: PyTree[Array], weights: Float[Array, " n"], slopes: list[PyTree[Array]]
) -> PyTree[Array]:
    def leaf(y: Array, *ks: Array) -> Array:
        for weight, k in zip(weights, ks):
            y = y + weight.astype(y.dtype) * k
        return y

    return jtu.tree_map(leaf, y0, *slopes)


def _composed(tableau: dfx.ButcherTableau, num_steps: int) -> LearnedTableau:
    """Computes the tableau of several equal steps, without unused stages."""
    stages = len(tableau.b_sol)
    own = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a_lower, 1):
        own[i, :i] = row
    times = np.concatenate([[0.0], tableau.c])
    # A step depends on the results of the steps before it, and on its own stages.
    after = np.tile(tableau.b_sol, (stages, 1))
    a = np.kron(np.tri(num_steps, k=-1), after) + np.kron(np.eye(num_steps), own)
    b = np.tile(tableau.b_sol, num_steps)
    c = np.add.outer(np.arange(num_steps), times).ravel()
    used = (b != 0) | (a != 0).any(axis=0)
    a, b, c = (
        jnp.asarray(x / num_steps, float) for x in (a[used][:, used], b[used], c[used])
    )
    return LearnedTableau(tuple(a[i, :i] for i in range(1, len(b))), b, c)
