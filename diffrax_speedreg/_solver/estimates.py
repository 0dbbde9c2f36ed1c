from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from equinox.internal import ω
from jaxtyping import Array, PyTree, Real

from .._checks import check_solver
from .._custom_types import Args, BoolScalarLike, DenseInfo, RealScalarLike, VF, Y
from .._misc import real_dtype


class EstimateState(eqx.Module):
    r"""The state of an [`diffrax_speedreg.EstimateRegularizedSolver`][].

    **Attributes:**

    - `inner`: the wrapped solver's state.
    - `error`: $\sum_i \lVert E_i \rVert \, |h_i|$ over the accepted steps, in the units
        of the state times those of time.
    - `stiffness`: $\sum_i S_i \, |h_i|$, a pure number; `None` if it was not asked for.
    """

    inner: PyTree[Any]
    error: Real[Array, ""]
    stiffness: Real[Array, ""] | None


class EstimateRegularizedSolver(
    dfx.AbstractAdaptiveSolver[EstimateState], dfx.AbstractWrappedSolver[EstimateState]
):
    r"""Wraps a solver, to gather its own estimates of how hard the equation is.

    With the estimate $E_i$ of the local error, by which an adaptive solver chooses its
    steps, it gathers $\sum_i \lVert E_i \rVert \, |h_i|$, the root mean square of the
    entries of the estimate integrated over time. On demand also the stiffness

    $$S_i = \frac{\lVert f(t_{i + 1}, y_{i + 1}) - f(t_{i + 1}, y_{i + 1} - E_i)
    \rVert}{\lVert E_i \rVert},$$

    that is, by how much the embedded method's result changes the vector field:
    approximately the absolute value of the Jacobian's dominant eigenvalue.

    !!! example

        ```python
        solver = dsr.EstimateRegularizedSolver(diffrax.Tsit5())
        saveat = diffrax.SaveAt(t1=True, solver_state=True)
        solution = diffrax.diffeqsolve(term, solver, ..., saveat=saveat)
        penalty = dsr.solver_state(solution).error
        ```

    The steps and the solution are those of the wrapped solver.

    **Cost:** none for the error; two evaluations of the vector field in each step for
    the stiffness.

    !!! warning

        In an adaptive solve, Diffrax does not differentiate through the choice of step
        sizes: the gradient is that for the steps as they were.

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

        - `solver`: a Diffrax solver that estimates its error. (Others do so inside of
            `diffrax.HalfSolver`.)
        - `stiffness`: whether to gather the stiffness too.

        A `ValueError` is raised for a class in place of a solver, and at the first step
        for a solver without an estimate.
        """
        check_solver(solver)
        self.solver = solver
        self.stiffness = stiffness

    @property
    def term_structure(self) -> Any:
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.solver.interpolation_cls

    @property
    def term_compatible_contr_kwargs(self) -> Any:
        return self.solver.term_compatible_contr_kwargs

    # Diffrax sees the wrapped solver's class, and sets these two for it.

    @property
    def root_finder(self) -> Any:
        return self.solver.root_finder  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def scan_kind(self) -> Any:
        return self.solver.scan_kind  # pyright: ignore[reportAttributeAccessIssue]

    def order(self, terms: PyTree[dfx.AbstractTerm]) -> int | None:
        return self.solver.order(terms)

    def strong_order(self, terms: PyTree[dfx.AbstractTerm]) -> RealScalarLike | None:
        return self.solver.strong_order(terms)

    def error_order(self, terms: PyTree[dfx.AbstractTerm]) -> RealScalarLike | None:
        return self.solver.error_order(terms)

    def init(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> EstimateState:
        inner = self.solver.init(terms, t0, t1, y0, args)
        nothing = jnp.zeros((), real_dtype(y0))
        return EstimateState(inner, nothing, nothing if self.stiffness else None)

    def step(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Y,
        args: Args,
        solver_state: EstimateState,
        made_jump: BoolScalarLike,
    ) -> tuple[Y, Y | None, DenseInfo, EstimateState, dfx.RESULTS]:
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
            moved = size > 0
            ratio = jnp.where(moved, change / jnp.where(moved, size, 1), 0)
            stiffness = stiffness + ratio.astype(dtype)
        state = EstimateState(inner, error, stiffness)
        return y1, y_error, dense_info, state, result

    def func(
        self,
        terms: PyTree[dfx.AbstractTerm],
        t0: RealScalarLike,
        y0: Y,
        args: Args,
    ) -> VF:
        return self.solver.func(terms, t0, y0, args)


def solver_state(solution: dfx.Solution) -> Any:
    """What a solver gathered during a solve.

    **Arguments:**

    - `solution`: what `diffrax.diffeqsolve` returned.

    **Returns:**

    The solver's final state: a [`diffrax_speedreg.TaylorLagrangeState`][] or a
    [`diffrax_speedreg.EstimateState`][].

    **Raises:**

    A `ValueError` if it was not saved.
    """
    if solution.solver_state is None:
        raise ValueError(
            "The solver's state was not saved: pass "
            "`saveat=diffrax.SaveAt(t1=True, solver_state=True)` to "
            "`diffrax.diffeqsolve`."
        )
    return solution.solver_state
