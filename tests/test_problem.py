from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import pytest

from .helpers import tree_allclose


_decay = dfx.ODETerm(lambda t, y, args: -args * y)


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, -0.5)))
def test_fixed_and_adaptive(t0, t1):
    problem = dsr.InitialValueProblem(_decay, jnp.array([2.0]), t0, t1, args=3.0)
    expected = 2 * jnp.exp(-3.0 * jnp.array([t1 - t0]))
    fixed = dsr.solve_fixed(problem, dfx.Dopri8(), 100)
    adaptive = dsr.solve_adaptive(problem, dfx.Dopri8(), 1e-11)
    assert fixed.stats["num_steps"] == 100
    assert tree_allclose(dsr.final_state(fixed), expected, rtol=1e-9, atol=0.0)
    assert tree_allclose(dsr.final_state(adaptive), expected, rtol=1e-9, atol=0.0)


def test_steps_end_where_states_are_saved():
    """Without interpolation, whose error may be larger."""
    y0, args = jnp.array([2.0]), 3.0
    whole = dsr.InitialValueProblem(_decay, y0, 0.0, 1.0, args)
    stops = jnp.array([0.0, 0.37])
    solution: Any = dsr.solve_adaptive(whole, dfx.Tsit5(), 1e-3, stop_at=stops)
    part = dsr.InitialValueProblem(_decay, y0, 0.0, 0.37, args)
    expected = dsr.final_state(dsr.solve_adaptive(part, dfx.Tsit5(), 1e-3))
    assert tree_allclose(solution.ys[1], expected, rtol=1e-12, atol=0.0)


def test_state_keeps_its_dtype_under_x64():
    y0 = jnp.array([2.0], jnp.float32)
    problem = dsr.InitialValueProblem(_decay, y0, args=jnp.float32(3.0))
    fixed = dsr.solve_fixed(problem, dfx.Dopri5(), 10)
    adaptive = dsr.solve_adaptive(problem, dfx.Dopri5(), 1e-4)
    assert dsr.final_state(fixed).dtype == jnp.float32
    assert dsr.final_state(adaptive).dtype == jnp.float32


def test_many_steps_in_float32():
    """Steps are neither lost nor added by rounding."""
    y0 = jnp.array([2.0], jnp.float32)
    problem = dsr.InitialValueProblem(_decay, y0, 0.1, 0.7, args=jnp.float32(3.0))
    solution = dsr.solve_fixed(problem, dfx.Euler(), 1237)
    assert solution.stats["num_steps"] == 1237


@pytest.mark.parametrize("num_steps", (0, -3, 1.0))
def test_bad_number_of_steps(num_steps, without_type_checks):
    problem = dsr.InitialValueProblem(_decay, jnp.array([2.0]), args=1.0)
    with pytest.raises(ValueError, match="`num_steps` must be a positive integer"):
        dsr.solve_fixed(problem, dfx.Euler(), num_steps)


def test_final_state_of_saved_steps():
    problem = dsr.InitialValueProblem(_decay, jnp.array([2.0]), args=1.0)
    solution: Any = dfx.diffeqsolve(
        problem.term,
        dfx.Tsit5(),
        0.0,
        1.0,
        0.1,
        problem.y0,
        problem.args,
        saveat=dfx.SaveAt(steps=True),
        max_steps=64,
    )
    assert not jnp.all(jnp.isfinite(solution.ys))
    expected = 2 * jnp.exp(jnp.array([-1.0]))
    assert tree_allclose(dsr.final_state(solution), expected, rtol=1e-6, atol=0.0)


def test_final_state_of_dense_output():
    solution = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, args: -y),
        dfx.Tsit5(),
        0.0,
        1.0,
        0.1,
        jnp.array(1.0),
        saveat=dfx.SaveAt(dense=True),
    )
    with pytest.raises(ValueError, match="must have saved one sequence of states"):
        dsr.final_state(solution)


def test_final_state_of_a_batch():
    problem = dsr.InitialValueProblem(_decay, jnp.ones((3, 2)), args=1.0)
    solutions = jax.vmap(
        lambda y: dsr.solve_fixed(
            dsr.InitialValueProblem(_decay, y, args=1.0), dfx.Euler(), 2
        )
    )(problem.y0)
    with pytest.raises(ValueError, match="under `jax.vmap`, call this inside it"):
        dsr.final_state(solutions)


def test_integer_initial_state():
    problem = dsr.InitialValueProblem(_decay, jnp.array([2]), args=1.0)
    with pytest.raises(ValueError, match=r"floating-point.*i64\[1\]"):
        dsr.solve_fixed(problem, dfx.Euler(), 3)


@pytest.mark.parametrize("tolerance", (0.0, -1e-6, float("nan")))
def test_bad_tolerance(tolerance):
    problem = dsr.InitialValueProblem(_decay, jnp.array([2.0]), args=1.0)
    with pytest.raises(ValueError, match="`tolerance` must be positive"):
        dsr.solve_adaptive(problem, dfx.Tsit5(), tolerance)
