from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from equinox.internal import ω
from jaxtyping import Array, PyTree, Real

from .._checks import check_solver
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, Y
from .._misc import real_dtype
from .._nfe import Evaluations, evaluations
from .wrapping import AbstractWrappingSolver


class ErrorState(eqx.Module):
    r"""The state of an [`diffrax_speedreg.ErrorRegularizedSolver`][].

    **Attributes:**

    - `inner`: the wrapped solver's state.
    - `error`: $\sum_i \lVert E_i \rVert \, |h_i|$ over the accepted steps, in the units
        of the state times those of time.
    - `stiffness`: $\sum_i S_i \, |h_i|$, a pure number; `None` unless requested.
    """

    inner: PyTree[Any]
    error: Real[Array, ""]
    stiffness: Real[Array, ""] | None


class ErrorRegularizedSolver(AbstractWrappingSolver[ErrorState]):
    r"""Wraps a solver, and integrates its estimate of the local error.

    Use it as another regularizer than $R_K$ (ERNODE, SRNODE). The steps and the
    solution are those of the wrapped solver. Its final state has the sums `error` and
    `stiffness`.

    Let $E_i$ be the estimate of the local error in step $i$. Then `error` is $\sum_i
    \lVert E_i \rVert \, |h_i|$ with the root mean square of the entries. With
    `stiffness=True`, `stiffness` is the sum of $S_i\, |h_i|$ with

    $$S_i = \frac{\lVert f(t_{i + 1}, y_{i + 1}) - f(t_{i + 1}, y_{i + 1} - E_i)
    \rVert}{\lVert E_i \rVert},$$

    which approximates the absolute value of the Jacobian's dominant eigenvalue.

    !!! example

        ```python
        solver = dsr.ErrorRegularizedSolver(diffrax.Tsit5())
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        solution = diffrax.diffeqsolve(term, solver, ..., saveat=saveat)
        penalty = solution.solver_state.error
        ```

    **Cost:** no vector field evaluations for the error, and two in each step for the
    stiffness.

    !!! warning

        In an adaptive solve, Diffrax does not differentiate through the choice of step
        sizes: the gradient treats them as constants.

    ??? cite "Reference"

        Pal, Ma, Shah and Rackauckas, "Opening the Blackbox: Accelerating Neural
        Differential Equations by Regularizing Internal Solver Heuristics", ICML 2021.
        There the stiffness is a sum over steps that is not weighted by their lengths,
        and taken between two stages of the method, which not all methods have.
    """

    solver: dfx.AbstractSolver
    stiffness: bool = eqx.field(static=True)

    def __init__(self, solver: dfx.AbstractSolver, *, stiffness: bool = False):
        """**Arguments:**

        - `solver`: a Diffrax solver that estimates its error. Wrap other solvers in a
            `diffrax.HalfSolver`.
        - `stiffness`: if `True`, the stiffness is computed too. If `False`, it is
            `None`.

        **Raises:**

        A `ValueError` if `solver` is not a solver, and at the first step if it does not
        estimate its error.
        """
        check_solver(solver)
        self.solver = solver
        self.stiffness = stiffness

    def evaluations(self, adaptive: bool | None) -> Evaluations:
        del adaptive  # The error estimate is always evaluated.
        counts = evaluations(self.solver, adaptive=True)
        return counts._replace(per_step=counts.per_step + 2 * int(self.stiffness))

    def init(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> ErrorState:
        inner = self.solver.init(terms, t0, t1, y0, args)
        zero = jnp.zeros((), real_dtype(y0))
        return ErrorState(inner, zero, zero if self.stiffness else None)

    def step(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: ErrorState,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, Y | None, DenseInfo, ErrorState, dfx.RESULTS]:
        y1, y_error, dense_info, inner, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state.inner, made_jump
        )
        if y_error is None:
            raise ValueError(
                f"{type(self.solver).__name__} does not estimate its error. Wrap it as "
                "`diffrax.HalfSolver(solver)`, or choose another solver, such as "
                "`diffrax.Tsit5()`."
            )
        size = optx.rms_norm(y_error)
        dtype = solver_state.error.dtype
        h = jnp.abs(jnp.asarray(t1 - t0, dtype))
        error = solver_state.error + size.astype(dtype) * h
        stiffness = solver_state.stiffness
        if stiffness is not None:
            control = terms.contr(t0, t1)
            embedded = (y1**ω - y_error**ω).ω
            slopes = [terms.vf_prod(t1, y, args, control) for y in (y1, embedded)]
            change = optx.rms_norm((slopes[0] ** ω - slopes[1] ** ω).ω)
            moved = size != 0  # This holds for NaN, which must not count as zero.
            ratio = jnp.where(moved, change / jnp.where(moved, size, 1), 0)
            stiffness = stiffness + ratio.astype(dtype)
        state = ErrorState(inner, error, stiffness)
        return y1, y_error, dense_info, state, result
