"""`LearnedRungeKutta`: several steps of a method in one, with a learned tableau."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest

from .helpers import finite_difference, tree_allclose
from .helpers.solves import fixed_step_solve


def _pendulum(t: Any, y: Any, args: Any) -> Any:
    position, speed = y
    return speed, -args * jnp.sin(position) + jnp.cos(t) * speed**2


_term = dfx.ODETerm(_pendulum)
_y0 = (jnp.array([1.0, 2.0]), jnp.array([0.3, -0.1]))


@pytest.mark.parametrize("t0, t1", ((0.2, 1.0), (1.0, -0.5)))
@pytest.mark.parametrize(
    "solver, num_steps, stages",
    (
        (dfx.Ralston(), 3, 6),
        (dfx.Midpoint(), 2, 4),
        (dfx.Heun(), 1, 2),
        (dfx.Bosh3(), 2, 6),
        (dfx.Dopri5(), 2, 12),
        (dfx.Dopri8(), 1, 13),
    ),
)
def test_it_starts_as_several_steps(solver, num_steps, stages, t0, t1):
    learned = dsr.LearnedRungeKutta(solver, num_steps)
    assert len(learned.tableau.b) == stages
    actual, expected = (
        fixed_step_solve(_term, s, t0, t1, n, _y0, 2.0).ys
        for s, n in ((learned, 1), (solver, num_steps))
    )
    assert tree_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_evaluations():
    learned = dsr.LearnedRungeKutta(dfx.Midpoint(), 3)
    solution = fixed_step_solve(_term, learned, 0.0, 1.0, 2, _y0, 2.0)
    assert dsr.nfe(learned, solution) == 12
    # n (n + 3) / 2 numbers, for n = 6.
    assert sum(x.size for x in jax.tree.leaves(learned.learned)) == 27


def test_complex_slopes_of_a_real_state_are_an_error():
    term = dfx.ODETerm(lambda t, y, args: 1j * y)
    with pytest.raises((TypeError, ValueError), match="complex"):
        fixed_step_solve(
            term, dsr.LearnedRungeKutta(), 0.0, 1.0, 1, jnp.array([1.0, 2.0])
        )


def test_dtypes_and_gradient():
    learned = dsr.LearnedRungeKutta(dfx.Midpoint(), 2)
    y0 = jnp.array([1.0], jnp.float32), jnp.array([0.3])
    solution = fixed_step_solve(_term, learned, 0.0, 1.0, 1, y0, 2.0)
    assert [y.dtype for y in solution.ys] == [jnp.float64] * 2

    def final(b: Any) -> Any:
        changed = eqx.tree_at(lambda s: s.tableau.b, learned, b)
        return fixed_step_solve(_term, changed, 0.0, 1.0, 1, _y0, 2.0).ys[0][-1, 0]

    b, direction = learned.tableau.b, jnp.array([1.0, -2.0, 0.5, 3.0])
    expected = finite_difference(final, b, direction)
    assert jnp.allclose(jax.grad(final)(b) @ direction, expected, rtol=1e-7)


def test_it_learns_a_vector_field():
    """With four evaluations, it is far better than other methods with as many."""
    term = dfx.ODETerm(lambda t, y, args: jnp.stack([y[:, 1], -jnp.sin(y[:, 0])], 1))

    def batches(key: Any, step: int) -> Any:
        return jr.uniform(jr.fold_in(key, step), (64, 2), minval=-1.0)

    fitted = dsr.training.fit_solver(
        dsr.LearnedRungeKutta(dfx.Midpoint(), 2),
        lambda y0: dsr.training.InitialValueProblem(term, y0, 0.0, 2.0),
        batches,
        num_steps=150,
        optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, 600)),
        reference=dsr.training.Reference(num_steps=1),
    )
    assert fitted.nfe == 4
    assert fitted.error < 0.25 * min(fitted.runge_kutta.values())


def test_bad_arguments(without_type_checks):
    with pytest.raises(ValueError, match="`solver` must be a `AbstractERK`"):
        dsr.LearnedRungeKutta(dfx.Kvaerno3())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`num_steps` must be a positive integer"):
        dsr.LearnedRungeKutta(dfx.Midpoint(), 0)
