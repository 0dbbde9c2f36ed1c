from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import optimistix as optx
import pytest

from .helpers import finite_difference, tree_allclose


_root_finder = dfx.VeryChord(rtol=1e-10, atol=1e-10, norm=optx.max_norm)
_decay = dfx.ODETerm(lambda t, y, args: -args * y)


def _solve(solver, num_steps, t0=0.0, t1=1.0, y0=jnp.array([2.0]), args=3.0, **options):
    arguments = (_decay, solver, t0, t1, num_steps, y0, args)
    solution: Any = dsr.fixed_step_solve(*arguments, **options)
    return solution


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, -0.5)))
def test_solution(t0, t1):
    solution = _solve(dfx.Dopri8(), 100, t0, t1)
    expected = 2 * jnp.exp(-3.0 * jnp.array([t1 - t0]))
    assert solution.stats["num_steps"] == 100
    assert tree_allclose(solution.ys[-1], expected, rtol=1e-9, atol=0.0)


def test_options_are_those_of_diffeqsolve():
    ts = jnp.linspace(0.0, 1.0, 4)
    saved = _solve(dfx.Dopri8(), 30, saveat=dfx.SaveAt(ts=ts))
    expected = 2 * jnp.exp(-3.0 * ts)[:, None]
    assert tree_allclose(saved.ys, expected, rtol=1e-8, atol=0.0)
    assert saved.solver_state is None
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] < 1.0)
    ended = _solve(dfx.Heun(), 30, event=event)
    assert 0.2 < ended.ts[-1] < 0.3


@pytest.mark.parametrize("adjoint", (None, dfx.DirectAdjoint()))
def test_gradient(adjoint):
    def final(args):
        return _solve(dfx.Heun(), 5, args=args, adjoint=adjoint).ys[-1, 0]

    args = jnp.array(3.0)
    expected = finite_difference(final, args, jnp.array(1.0))
    assert tree_allclose(jax.grad(final)(args), expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, -0.5)))
@pytest.mark.parametrize(
    "solver",
    (dfx.Dopri5(), dfx.Kvaerno3(root_finder=_root_finder), dfx.LeapfrogMidpoint()),
)
def test_unrolled_steps_are_those_of_a_loop(solver, t0, t1):
    """Unrolled steps keep the solver's state, and are counted."""
    loop = dfx.RecursiveCheckpointAdjoint(checkpoints=4)
    unrolled, looped = (
        _solve(solver, 4, t0, t1, adjoint=adjoint) for adjoint in (None, loop)
    )
    assert tree_allclose(unrolled.ys, looped.ys, rtol=1e-14, atol=0.0)
    assert unrolled.stats == looped.stats and unrolled.stats["num_steps"] == 4
    assert tree_allclose(
        unrolled.solver_state, looped.solver_state, rtol=1e-12, atol=1e-14
    )


def test_a_gradient_makes_no_unrolled_step_again():
    def final(args, adjoint=None):
        return _solve(dfx.Heun(), 3, args=args, adjoint=adjoint).ys[-1, 0]

    args = jnp.array(3.0)
    jaxpr = str(jax.make_jaxpr(jax.grad(final))(args))
    assert "remat" not in jaxpr and "checkpoint" not in jaxpr
    forward = jax.jvp(final, (args,), (jnp.array(1.0),))[1]
    loop = dfx.RecursiveCheckpointAdjoint(checkpoints=3)
    expected = jax.grad(final)(args, loop)
    assert tree_allclose(forward, expected, rtol=1e-12, atol=0.0)
    assert tree_allclose(jax.grad(final)(args), expected, rtol=1e-12, atol=0.0)


def test_an_unrolled_step_that_fails():
    """An implicit step fails, whose iteration does not converge."""
    solver = dfx.ImplicitEuler(root_finder=_root_finder)
    term = dfx.ODETerm(lambda t, y, args: jnp.where(t > 0.4, jnp.nan, -y))
    options: Any = dict(throw=False, saveat=dfx.SaveAt(t1=True))
    y0 = jnp.array([2.0])
    solution = dsr.fixed_step_solve(term, solver, 0.0, 1.0, 3, y0, **options)
    assert solution.result != dfx.RESULTS.successful


def test_buffers_are_for_the_steps_that_are_made():
    """Buffers do not have Diffrax's default of 4096 steps."""

    def gradient(args):
        return jax.grad(lambda args: _solve(dfx.Heun(), 5, args=args).ys[-1, 0])(args)

    jaxpr = str(jax.make_jaxpr(gradient)(jnp.array(3.0)))
    assert "4096" not in jaxpr and "[5" in jaxpr


def test_state_keeps_its_dtype_under_x64():
    y0 = jnp.array([2.0], jnp.float32)
    t0, t1 = jnp.array([0, 1], jnp.float32)
    solution = _solve(dfx.Dopri5(), 10, t0, t1, y0, jnp.float32(3.0))
    assert solution.ys.dtype == jnp.float32


def test_many_steps_in_float32():
    """Steps are neither lost nor added by rounding."""
    y0 = jnp.array([2.0], jnp.float32)
    t0, t1 = jnp.array([0.1, 0.7], jnp.float32)
    solution = _solve(dfx.Euler(), 1237, t0, t1, y0, jnp.float32(3.0))
    assert solution.stats["num_steps"] == 1237


@pytest.mark.parametrize("num_steps", (0, -3, 1.0))
def test_bad_number_of_steps(num_steps, without_type_checks):
    with pytest.raises(ValueError, match="`num_steps` must be a positive integer"):
        _solve(dfx.Euler(), num_steps)


def test_times_that_do_not_differ():
    with pytest.raises(ValueError, match="`t0` and `t1` must differ.*both are 0.5"):
        _solve(dfx.Euler(), 3, 0.5, 0.5)


def test_integer_initial_state():
    """Diffrax converts it to real numbers."""
    got, right = (_solve(dfx.Euler(), 3, y0=jnp.array([y])).ys for y in (2, 2.0))
    assert jnp.array_equal(got, right) and got.dtype == right.dtype
