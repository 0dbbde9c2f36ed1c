"""Ways to integrate a regularizer in `regularized_solve`."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optimistix as optx
from jaxtyping import Array, PyTree, Real

from ._custom_types import Args, RealScalarLike, Y
from ._misc import as_time_dependent, as_times, nan_as
from ._regularizers import AbstractRegularizer, DerivativeNorm
from ._solver.derivative_regularized import (
    DerivativeRegularizedSolver,
    DerivativeState,
)
from ._solver.taylor_lagrange import TaylorLagrangeSolver, TaylorLagrangeState
from ._term import is_augmented, RegularizedState, SpeedRegularizedTerm


_requested, _added = "requested", "added"


@dataclasses.dataclass(frozen=True)
class SolveCall:
    """The arguments of a call of `diffrax.diffeqsolve`."""

    terms: PyTree[dfx.AbstractTerm]
    solver: dfx.AbstractSolver
    t0: RealScalarLike
    t1: RealScalarLike
    dt0: RealScalarLike | None
    y0: Y
    args: Args
    saveat: dfx.SaveAt
    stepsize_controller: dfx.AbstractStepSizeController
    adjoint: dfx.AbstractAdjoint
    event: dfx.Event | None
    solver_state: PyTree[Array] | None
    others: dict[str, Any]

    @property
    def subs(self) -> list[dfx.SubSaveAt]:
        return jtu.tree_leaves(self.saveat.subs, is_leaf=_is_sub)

    @property
    def times(self) -> tuple[Array, Array]:
        """The times `t0` and `t1` in the dtype that Diffrax gives to time."""
        return as_times(self.t0, self.t1, self.dt0, *(s.ts for s in self.subs))

    def solve(self, **changes: Any) -> dfx.Solution:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        options = fields | changes
        others = options.pop("others")
        return dfx.diffeqsolve(**options, **others)

    def solve_saving(
        self, added: dfx.SubSaveAt, **changes: Any
    ) -> tuple[dfx.Solution, Array, PyTree[Array]]:
        """Solves, and saves further states.

        Returns the requested solution, and the times and states that were added.
        """
        if isinstance(self.adjoint, dfx.BacksolveAdjoint | dfx.ImplicitAdjoint):
            raise ValueError(
                f"With `adjoint=diffrax.{type(self.adjoint).__name__}()` a solve saves "
                "no states besides those requested. Use another adjoint, or, with "
                "`BacksolveAdjoint`, `method=augmented()`."
            )
        saveat = add_sub(changes.pop("saveat", self.saveat), added)
        return split_sub(self.solve(saveat=saveat, **changes))


class AbstractMethod(eqx.Module):
    """Abstract base class for ways to integrate a regularizer along a solution."""

    @abc.abstractmethod
    def solve(
        self, call: SolveCall, regularizer: AbstractRegularizer
    ) -> tuple[dfx.Solution, Real[Array, ""]]:
        """Solves, and integrates the regularizer up to the end of the solve."""


def add_sub(saveat: dfx.SaveAt, added: dfx.SubSaveAt) -> dfx.SaveAt:
    subs = {_requested: saveat.subs, _added: added}
    return eqx.tree_at(lambda s: s.subs, saveat, subs, is_leaf=lambda x: x is None)


def split_sub(solution: dfx.Solution) -> tuple[dfx.Solution, Array, PyTree[Array]]:
    ts, ys = solution.ts, solution.ys
    if not isinstance(ys, dict) or ys.keys() != {_requested, _added}:
        raise ValueError(
            "The solution was not saved at the nodes of this quadrature: pass "
            "`saveat=quadrature.saveat(...)` to `diffrax.diffeqsolve`."
        )
    assert isinstance(ts, dict)
    solution = eqx.tree_at(
        lambda s: (s.ts, s.ys),
        solution,
        (ts[_requested], ys[_requested]),
        is_leaf=lambda leaf: leaf is None or leaf is ts or leaf is ys,
    )
    return solution, ts[_added], ys[_added]


class _Augmented(AbstractMethod):
    def solve(
        self, call: SolveCall, regularizer: AbstractRegularizer
    ) -> tuple[dfx.Solution, Real[Array, ""]]:
        if call.solver_state is not None:
            raise ValueError(
                "`method=augmented()` cannot continue from `solver_state=...`, which "
                "has no part for the regularizer. Use `method=gauss_legendre()`."
            )
        y0 = as_time_dependent(call.y0, call.times[0].dtype)
        term = SpeedRegularizedTerm(call.terms, regularizer=regularizer)
        changes = dict(
            terms=term,
            y0=term.init(y0),
            solver=_ignoring_integral(call.solver),
            stepsize_controller=_ignoring_integral(call.stepsize_controller),
            event=_on_states(call.event),
        )
        if isinstance(call.adjoint, dfx.BacksolveAdjoint):
            solution, final = _solve_saving_end(call, changes)
        else:
            saveat = eqx.tree_at(
                lambda s: [sub.fn for sub in jtu.tree_leaves(s.subs, is_leaf=_is_sub)],
                call.saveat,
                replace_fn=_OfState,
            )
            solution, _, final = call.solve_saving(
                dfx.SubSaveAt(t1=True), saveat=saveat, **changes
            )
        # The higher derivatives of a NaN may be zero.
        (integral,) = nan_as(jnp.real(final.signed_integral), final.y)
        integral = jnp.where(call.t1 < call.t0, -integral, integral)
        return _without_integral(solution), integral


def augmented() -> AbstractMethod:
    r"""Method that integrates the regularizer during the solve, as one more entry of
    the state.

    Use it with `diffrax.BacksolveAdjoint`, or for an integral that is as accurate as
    the solve. It solves a [`diffrax_speedreg.SpeedRegularizedTerm`][]. The steps do not
    change, since the norm of the step size controller is applied to the wrapped state.

    **Returns:**

    A method for [`diffrax_speedreg.regularized_solve`][].

    **Cost:** about K vector field evaluations for each evaluation of the solve.
    """
    return _Augmented()


class _InSolver(AbstractMethod):
    def solve(
        self, call: SolveCall, regularizer: AbstractRegularizer
    ) -> tuple[dfx.Solution, Real[Array, ""]]:
        if ends_within_step(call.event):
            raise ValueError(
                "`method=in_solver()` integrates over whole steps, and an event with a "
                "root finder ends within one. Use `method=gauss_legendre()`."
            )
        if isinstance(call.adjoint, dfx.BacksolveAdjoint | dfx.ImplicitAdjoint):
            raise ValueError(
                f"With `adjoint=diffrax.{type(call.adjoint).__name__}()` a solve has "
                "no gradient for its solver state. Use another adjoint, or, with "
                "`BacksolveAdjoint`, `method=augmented()`."
            )
        taylor = type(call.solver) is TaylorLagrangeSolver
        changes = (_taylor_changes if taylor else _stages_changes)(call, regularizer)
        saveat = eqx.tree_at(lambda s: s.solver_state, call.saveat, True)
        solution = call.solve(saveat=saveat, **changes)
        final = solution.solver_state
        if taylor:
            assert isinstance(final, TaylorLagrangeState)
            inner, integral = _with_integral(final, None), final.regularizer
        else:
            assert isinstance(final, DerivativeState)
            inner, integral = final.inner, final.integral
        assert integral is not None
        returned = inner if call.saveat.solver_state else None
        return eqx.tree_at(lambda s: s.solver_state, solution, returned), integral


def in_solver() -> AbstractMethod:
    r"""Method that integrates the regularizer during the solve, from the steps of the
    solver.

    This is the default for adaptive solves with `DerivativeNorm(3)`. The regularizer
    must be a [`diffrax_speedreg.DerivativeNorm`][] of order $K$.

    - With a Runge-Kutta solver, the integral is that of the dense output, which is
        computed from the stages. [`diffrax_speedreg.DerivativeRegularizedSolver`][]
        lists the orders $K$ that each solver allows, and the errors.
    - With a [`diffrax_speedreg.TaylorLagrangeSolver`][] of degree $p \ge K$, it is
        computed from the coefficients of the solver's expansions. The error is
        $O(h^{p + 1 - K})$ for steps of size $h$.

    **Returns:**

    A method for [`diffrax_speedreg.regularized_solve`][].

    **Cost:** no vector field evaluations.
    """
    return _InSolver()


def _taylor_changes(
    call: SolveCall, regularizer: AbstractRegularizer
) -> dict[str, Any]:
    solver, state = call.solver, call.solver_state
    assert isinstance(solver, TaylorLagrangeSolver)
    if solver.regularizer is not None:
        raise ValueError(
            "The solver integrates a regularizer already, but got "
            f"`regularizer={solver.regularizer!r}` of the solver and "
            f"`regularizer={regularizer!r}` of the solve. Make the solver without one."
        )
    solver = TaylorLagrangeSolver(
        solver.degree,
        solver.midpoint,
        regularizer=regularizer,  # pyright: ignore[reportArgumentType]
    )
    if isinstance(state, TaylorLagrangeState):
        state = _with_integral(state, jnp.zeros_like(state.midpoint_penalty))
    return dict(solver=solver, solver_state=state)


def _stages_changes(
    call: SolveCall, regularizer: AbstractRegularizer
) -> dict[str, Any]:
    if not isinstance(regularizer, DerivativeNorm):
        raise ValueError(
            "`method=in_solver()` integrates a `DerivativeNorm`, but got "
            f"`regularizer={regularizer!r}`. Use `method=gauss_legendre()`."
        )
    solver = DerivativeRegularizedSolver(call.solver, regularizer.order)
    state = call.solver_state
    if state is not None:
        y0 = as_time_dependent(call.y0, call.times[0].dtype)
        state = DerivativeState.start(state, y0)
    return dict(solver=solver, solver_state=state)


def ends_within_step(event: dfx.Event | None) -> bool:
    return event is not None and event.root_finder is not None


def _with_integral(
    state: TaylorLagrangeState, integral: Array | None
) -> TaylorLagrangeState:
    return dataclasses.replace(state, regularizer=integral)


def _solve_saving_end(
    call: SolveCall, changes: dict[str, Any]
) -> tuple[dfx.Solution, RegularizedState]:
    """Solves, and saves the final state, too.

    It is in the same sequence of states, since `BacksolveAdjoint` allows only one.
    """
    sub = call.saveat.subs
    if not isinstance(sub, dfx.SubSaveAt):
        raise ValueError(
            "With `adjoint=diffrax.BacksolveAdjoint()` a solve saves one sequence of "
            f"states, but got `saveat={call.saveat}`. Use another adjoint."
        )
    saveat = eqx.tree_at(lambda s: s.subs.t1, call.saveat, True)
    solution = call.solve(saveat=saveat, **changes)
    final = jtu.tree_map(lambda x: x[-1:], solution.ys)
    if not sub.t1:
        without_end = jtu.tree_map(lambda x: x[:-1], (solution.ts, solution.ys))
        solution = eqx.tree_at(lambda s: (s.ts, s.ys), solution, without_end)
    return solution, final


def _is_sub(leaf: Any) -> bool:
    return isinstance(leaf, dfx.SubSaveAt)


def _without_integral(tree: PyTree[Any]) -> PyTree[Any]:
    """Replaces augmented states, slopes and terms in a pytree by the wrapped ones."""

    def strip(leaf: Any) -> Any:
        if isinstance(leaf, SpeedRegularizedTerm):
            return leaf.term
        return leaf.y if is_augmented(leaf) else leaf

    is_leaf = lambda x: is_augmented(x) or isinstance(x, SpeedRegularizedTerm)
    return jtu.tree_map(strip, tree, is_leaf=is_leaf)


class _OfState(eqx.Module):
    """Function of time and the augmented state that ignores the integral."""

    function: Callable[..., Any]

    def __call__(
        self, t: RealScalarLike, y: RegularizedState, args: Args, **options: Any
    ) -> Any:
        return self.function(t, y.y, args, **_without_integral(options))


def _on_states(event: dfx.Event | None) -> dfx.Event | None:
    if event is None:
        return None
    functions = jtu.tree_map(_OfState, event.cond_fn, is_leaf=callable)
    return eqx.tree_at(lambda e: e.cond_fn, event, functions, is_leaf=callable)


class _Norm(eqx.Module):
    norm: Callable[[PyTree[Any]], RealScalarLike]

    def __call__(self, state: PyTree[Any]) -> RealScalarLike:
        # Root finders apply the norm to slopes. `BacksolveAdjoint` solves for more than
        # the state, with the same controller.
        return self.norm(state.y if is_augmented(state) else state)


def _has_norm(node: Any) -> bool:
    kinds = dfx.AbstractStepSizeController | optx.AbstractRootFinder
    # The norm of a wrapping controller may be a property. A root finder that inherits
    # the controller's norm has a placeholder in its place.
    return isinstance(node, kinds) and any(
        field.name == "norm" and callable(node.norm)
        for field in dataclasses.fields(node)
    )


def _ignoring_integral(node: PyTree[Any]) -> PyTree[Any]:
    """Replaces the norms of step size controllers and root finders in a pytree.

    The new norms ignore the integral.
    """

    def replace(leaf: Any) -> Any:
        if not _has_norm(leaf):
            return leaf
        return eqx.tree_at(lambda c: c.norm, leaf, replace_fn=_Norm)

    return jtu.tree_map(replace, node, is_leaf=_has_norm)
