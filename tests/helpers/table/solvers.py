"""Solvers inside of a vector field."""

from typing import Any

import diffrax as dfx
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.scipy.cluster
import lineax as lx
import optimistix as optx

from .entry import (
    definite_system,
    group,
    like,
    NODES,
    on,
    positive,
    real,
    residual,
    system,
    tall,
)


def _solve(
    x,
    solver=None,
    adjoint: dfx.AbstractAdjoint = dfx.ForwardMode(),
    **options: Any,
):
    """Solves an equation whose initial state and field depend on `x`."""
    term = dfx.ODETerm(lambda t, z, x: -z * jnp.sin(x) + t)
    options = dict(dt0=0.5, max_steps=8) | options
    solver = solver or dfx.Heun()
    return dfx.diffeqsolve(
        term, solver, 0.0, 1.0, y0=x, args=x, adjoint=adjoint, **options
    )


def _precisely(x, make):
    precision = 10 * float(jnp.finfo(x.dtype).eps)
    return make(precision, precision)


def _find(find, solver, **options):
    return lambda x: find(residual, _precisely(x, solver), 0 * x, x, **options).value


def _linear_solve(solver, *tags):
    return lambda a, b: (
        lx.linear_solve(lx.MatrixLinearOperator(a, tags), b, solver).value
    )


def _krylov(solver):
    return lambda a, b: _linear_solve(_precisely(b, solver), _definite)(a, b)


_definite = lx.positive_semidefinite_tag
_adaptive = dfx.PIDController(1e-3, 1e-3)
DIFFRAX = group(
    on(
        real,
        {
            "ForwardMode": lambda x: _solve(x).ys,
            "DirectAdjoint": lambda x: _solve(x, adjoint=dfx.DirectAdjoint()).ys,
            "SaveAt(ts)": lambda x: _solve(x, saveat=dfx.SaveAt(ts=[0.2, 0.9])).ys,
            "SaveAt(dense)": lambda x: _solve(
                x, saveat=dfx.SaveAt(dense=True)
            ).evaluate(0.3),
        },
        order=2,
        strict=False,
    ),
    on(
        real,
        {
            "PIDController": lambda x: (
                _solve(x, dfx.Tsit5(), stepsize_controller=_adaptive).ys
            ),
        },
        order=2,
        single=False,
        strict=False,
    ),
    on(
        real,
        {
            "Kvaerno3": lambda x: (
                _solve(x, dfx.Kvaerno3(), stepsize_controller=_adaptive).ys
            ),
        },
        # The iteration ends early, and `stop_gradient` applies to its Jacobian, so that
        # it is a constant for nested derivatives.
        tolerance=1e8,
        order=2,
        single=False,
        strict=False,
    ),
    on(
        real,
        {
            "RecursiveCheckpointAdjoint": lambda x: (
                _solve(x, adjoint=dfx.RecursiveCheckpointAdjoint()).ys
            ),
            "BacksolveAdjoint": lambda x: _solve(x, adjoint=dfx.BacksolveAdjoint()).ys,
        },
        order=2,
        strict=False,
        reference=lambda x: _solve(x).ys,
    ),
    on(
        positive,
        {
            "CubicInterpolation": lambda x: dfx.CubicInterpolation(
                like(x, NODES),
                dfx.backward_hermite_coefficients(like(x, NODES), jnp.sin(x)),
            ).evaluate(x[0]),
            "LinearInterpolation": lambda x: dfx.LinearInterpolation(
                like(x, NODES), jnp.sin(x)
            ).evaluate(x[0]),
        },
        order=3,
    ),
)
OPTIMISTIX = group(
    on(
        real,
        {
            "root_find(Newton)": _find(optx.root_find, optx.Newton),
            "root_find(Chord)": _find(optx.root_find, optx.Chord),
            "root_find(Bisection)": lambda x: _find(
                optx.root_find, optx.Bisection, options=dict(lower=-9.0, upper=9.0)
            )(x[0]),
            "least_squares(GaussNewton)": _find(optx.least_squares, optx.GaussNewton),
        },
        order=3,
        strict=False,
    ),
    on(
        real,
        {
            "fixed_point": lambda x: (
                optx.fixed_point(
                    lambda z, x: 0.4 * jnp.cos(z + x),
                    optx.FixedPointIteration(1e-14, 1e-14),
                    x,
                    x,
                ).value
            ),
            "minimise(BFGS)": lambda x: (
                optx.minimise(
                    lambda z, x: jnp.sum(residual(z, x) ** 2),
                    optx.BFGS(1e-13, 1e-13),
                    x,
                    x,
                ).value
            ),
        },
        order=3,
        single=False,
        strict=False,
        tolerance=1e4,
    ),
)
LINEAX = group(
    on(
        system,
        {
            "LU": _linear_solve(lx.LU()),
            "SVD": _linear_solve(lx.SVD()),
            "Triangular": lambda a, b: _linear_solve(
                lx.Triangular(), lx.lower_triangular_tag
            )(jnp.tril(a), b),
            "FunctionLinearOperator": lambda a, b: (
                lx.linear_solve(
                    lx.FunctionLinearOperator(
                        lambda v: a @ v, jax.eval_shape(lambda: b)
                    ),
                    b,
                ).value
            ),
        },
        order=3,
    ),
    on(tall, {"QR": lambda a: _linear_solve(lx.QR())(a, a[:, 0] ** 2)}, order=3),
    on(
        definite_system,
        {
            "BiCGStab": _krylov(lx.BiCGStab),
            "CG": _krylov(lx.CG),
            "Cholesky": _linear_solve(lx.Cholesky(), _definite),
            "GMRES": _krylov(lx.GMRES),
        },
        order=2,
        strict=False,
    ),
    on(
        positive,
        {
            "Diagonal": lambda x: (
                lx.linear_solve(lx.DiagonalLinearOperator(3 + x), jnp.sin(x)).value
            ),
            "JacobianLinearOperator": lambda x: (
                lx.linear_solve(
                    lx.JacobianLinearOperator(lambda z, _: 3 * z + jnp.sin(z), x), x
                ).value
            ),
            "Tridiagonal": lambda x: (
                lx.linear_solve(
                    lx.TridiagonalLinearOperator(5 + x, x[1:], jnp.cos(x[1:])), x
                ).value
            ),
        },
        order=3,
    ),
)
