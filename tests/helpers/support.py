"""Solvers and adjoints that `SpeedRegularizedTerm` works with, found by solving."""

import warnings
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import optimistix as optx


SOLVERS = dict(
    Euler=dfx.Euler(),
    Tsit5=dfx.Tsit5(),
    Dopri8=dfx.Dopri8(),
    ReversibleHeun=dfx.ReversibleHeun(),
    HalfSolver=dfx.HalfSolver(dfx.Midpoint()),
    Kvaerno3=dfx.Kvaerno3(root_finder=optx.Newton(rtol=1e-6, atol=1e-6)),
    TaylorLagrangeSolver=dsr.TaylorLagrangeSolver(2),
    ExponentialTaylorSolver=dsr.ExponentialTaylorSolver(),
    ErrorRegularizedSolver=dsr.ErrorRegularizedSolver(dfx.Bosh3()),
)
ADJOINTS = dict(
    RecursiveCheckpointAdjoint=dfx.RecursiveCheckpointAdjoint(),
    DirectAdjoint=dfx.DirectAdjoint(),
    BacksolveAdjoint=dfx.BacksolveAdjoint(),
    ImplicitAdjoint=dfx.ImplicitAdjoint(),
    ForwardMode=dfx.ForwardMode(),
)
SAVEATS = dict(
    t0=dfx.SaveAt(t0=True),
    t1=dfx.SaveAt(t1=True),
    ts=dfx.SaveAt(ts=[0.2, 0.7, 1.0]),
    steps=dfx.SaveAt(steps=True),
    dense=dfx.SaveAt(dense=True),
    fn=dfx.SaveAt(t1=True, fn=lambda t, y, args: y),
    subs=dfx.SaveAt(subs=(dfx.SubSaveAt(t1=True), dfx.SubSaveAt(ts=[0.5]))),
)


def _field(t: Any, y: Any, args: Any) -> Any:
    return jnp.tanh(args * y) * (1 + t)


def _gradient(term: Any, init: Callable, solver: Any, adjoint: Any, saveat: Any) -> Any:
    def loss(args: Any) -> Any:
        y0 = init(jnp.array([0.3, -0.7]))
        solution = dfx.diffeqsolve(
            term,
            solver,
            0.0,
            1.0,
            0.25,
            y0,
            args,
            saveat=saveat,
            adjoint=adjoint,
            max_steps=8,
        )
        states = solution.evaluate(1.0) if saveat.dense else solution.ys
        leaves = jax.tree.leaves(states)
        return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0)) for x in leaves)

    forward = isinstance(adjoint, dfx.ForwardMode)
    return (jax.jacfwd if forward else jax.grad)(loss)(jnp.array(1.5))


def outcome(solver: str, adjoint: str, saveat: str) -> str:
    """Returns whether a solve has a finite gradient: "yes", "no", or "neither" if the
    wrapped term has none either."""
    plain = dfx.ODETerm(_field)
    wrapped = dsr.SpeedRegularizedTerm(plain, order=2)
    if _works(wrapped, wrapped.init, solver, adjoint, saveat):
        return "yes"
    return "no" if _works(plain, jnp.asarray, solver, adjoint, saveat) else "neither"


def _works(term: Any, init: Callable, solver: str, adjoint: str, saveat: str) -> bool:
    try:
        # Diffrax itself sometimes needs implicit promotion.
        with (
            warnings.catch_warnings(action="ignore"),
            jax.numpy_dtype_promotion("standard"),
        ):
            gradient = _gradient(
                term, init, SOLVERS[solver], ADJOINTS[adjoint], SAVEATS[saveat]
            )
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return bool(jnp.isfinite(gradient))


CELLS = [
    *((solver, adjoint, "t1") for solver in SOLVERS for adjoint in ADJOINTS),
    *(("Tsit5", a, saveat) for saveat in SAVEATS for a in ADJOINTS if saveat != "t1"),
]
