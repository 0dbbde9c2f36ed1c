from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from .helpers import convergence_orders, tolerance, tree_allclose
from .helpers.marks import thorough


_pendulum = dfx.ODETerm(
    lambda t, y, args: jnp.stack([y[1], -jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(t))
)
_y0 = jnp.array([1.0, 0.2])
_solvers = (dfx.Euler(), dfx.Heun(), dfx.Bosh3(), dfx.Tsit5())


def _constant(value):
    return eqx.tree_at(
        lambda c: c.factors, dsr.ConstantCorrection(2, "scalar"), jnp.array([value])
    )


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("solver", _solvers, ids=lambda solver: type(solver).__name__)
def test_uncorrected_is_the_solver(solver, t0, t1):
    problem = dsr.InitialValueProblem(_pendulum, _y0, t0, t1)
    hyper = dsr.HyperSolver(solver, dsr.CorrectionMLP(2, key=jr.key(0)))
    actual = dsr.final_state(dsr.solve_fixed(problem, hyper, 5))
    expected = dsr.final_state(dsr.solve_fixed(problem, solver, 5))
    assert tree_allclose(actual, expected, **tolerance(_y0.dtype))


@pytest.mark.parametrize("t0, t1", (thorough(0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("solver", _solvers, ids=lambda solver: type(solver).__name__)
def test_order_stays(solver, t0, t1):
    """Whatever the correction: it is of the size of the local error."""
    problem = dsr.InitialValueProblem(_pendulum, _y0, t0, t1)
    exact = dsr.final_state(dsr.solve_fixed(problem, dfx.Dopri8(), 100))
    hyper = dsr.HyperSolver(solver, _constant(0.7))

    def error(steps):
        y1 = dsr.final_state(dsr.solve_fixed(problem, hyper, steps))
        return float(jnp.max(jnp.abs(y1 - exact)))

    orders = convergence_orders([error(steps) for steps in (16, 32, 64)])
    assert np.allclose(orders, solver.order(_pendulum), atol=0.25)


def test_steps_start_from_what_was_corrected():
    """A first-same-as-last method's last slope is that of the uncorrected state."""
    hyper = dsr.HyperSolver(dfx.Bosh3(), _constant(0.7))
    whole = dsr.InitialValueProblem(_pendulum, _y0, 0.0, 1.0)
    actual = dsr.final_state(dsr.solve_fixed(whole, hyper, 2))
    expected = _y0
    for t0, t1 in ((0.0, 0.5), (0.5, 1.0)):
        half = dsr.InitialValueProblem(_pendulum, expected, t0, t1)
        expected = dsr.final_state(dsr.solve_fixed(half, hyper, 1))
    assert tree_allclose(actual, expected, **tolerance(_y0.dtype))


def test_exact_with_the_right_correction():
    """For y' = a y, Euler's step lacks exp(z) - 1 - z, of which h z is a multiple."""
    a, h = -2.0, 0.5
    z = a * h
    hyper = dsr.HyperSolver(dfx.Euler(), _constant((np.exp(z) - 1 - z) / (h * z)))
    term = dfx.ODETerm(lambda t, y, args: a * y)
    problem = dsr.InitialValueProblem(term, _y0, 0.0, 2 * h)
    y1 = dsr.final_state(dsr.solve_fixed(problem, hyper, 2))
    assert tree_allclose(y1, _y0 * np.exp(2 * z), **tolerance(_y0.dtype))


def test_dense_output():
    hyper = dsr.HyperSolver(dfx.Heun(), _constant(0.7))
    saveat = dfx.SaveAt(dense=True, steps=True)
    solution: Any = dfx.diffeqsolve(
        _pendulum, hyper, 0.0, 1.0, 0.25, _y0, saveat=saveat
    )
    meets = jax.vmap(solution.evaluate)(solution.ts[:4])
    assert tree_allclose(meets, solution.ys[:4], **tolerance(_y0.dtype))
    slope = jax.jacfwd(solution.evaluate)(0.5 - 1e-12)
    expected = _pendulum.vf(0.5, solution.ys[1], None)
    assert tree_allclose(slope, expected, rtol=1e-9, atol=1e-9)


def test_training():
    """By the trainer of Taylor-Lagrange solvers, of the solver alone."""
    trainer = dsr.AlternatingTrainer(
        problem=lambda model, y0: dsr.InitialValueProblem(_pendulum, y0),
        loss=lambda model, y1, batch: jnp.sum(y1**2),
        num_steps=4,
        model_optimizer=optax.sgd(0.0),
        solver_optimizer=optax.adam(1e-2),
    )
    hyper = dsr.HyperSolver(dfx.Euler(), dsr.CorrectionMLP(2, key=jr.key(0)))
    state = trainer.init(jnp.zeros(()), hyper, key=jr.key(1))
    losses = []
    for _ in range(100):
        targets = trainer.targets(state, _y0)
        state, report = trainer.remainder_step(state, _y0, targets)
        losses.append(report.error)
    assert losses[-1] < 0.2 * losses[0]


def test_adaptive_steps():
    hyper = dsr.HyperSolver(dfx.Tsit5(), _constant(0.0))
    controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
    with pytest.raises(Exception, match="does not provide error estimates"):
        dfx.diffeqsolve(
            _pendulum, hyper, 0.0, 1.0, 0.1, _y0, stepsize_controller=controller
        )
