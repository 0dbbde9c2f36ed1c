"""The error estimate of Taylor steps, for forcings of the period of the step."""

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .helpers.solves import diffeqsolve


_pi = np.pi
# Forcings of period 1, for steps that begin with the length 1.
_forcings = {
    "cos(2 pi t)": lambda t: jnp.cos(2 * _pi * t),
    "sin(2 pi t)": lambda t: jnp.sin(2 * _pi * t),
    "cos(4 pi t)": lambda t: jnp.cos(4 * _pi * t),
    "sin(4 pi t)": lambda t: jnp.sin(4 * _pi * t),
    "cos(6 pi t)": lambda t: jnp.cos(6 * _pi * t),
    "sin(6 pi t)": lambda t: jnp.sin(6 * _pi * t),
    "cos(10 pi t)": lambda t: jnp.cos(10 * _pi * t),
    "cos(16 pi t)": lambda t: jnp.cos(16 * _pi * t),
    "sin(pi t)**2": lambda t: 1 + jnp.sin(_pi * t) ** 2,
    "sin(pi t)**4": lambda t: jnp.sin(_pi * t) ** 4,
    "sin(pi t)**6": lambda t: jnp.sin(_pi * t) ** 6,
    "sin(pi t)**8": lambda t: jnp.sin(_pi * t) ** 8,
    "sin(pi t)**10": lambda t: jnp.sin(_pi * t) ** 10,
    # They vanish, with two derivatives, at each half or quarter of a step of 1.
    "sin(2 pi t)**4": lambda t: jnp.sin(2 * _pi * t) ** 4,
    "sin(2 pi t)**6": lambda t: jnp.sin(2 * _pi * t) ** 6,
    "sin(4 pi t)**4": lambda t: jnp.sin(4 * _pi * t) ** 4,
    "a bump": lambda t: jnp.exp((jnp.sin(_pi * t) ** 2 - 1) / 0.09),
    "a triangle": lambda t: jnp.abs(2 * (t - jnp.floor(t + 0.5))),
    "a saw": lambda t: t - jnp.floor(t),
    "two cosines": lambda t: jnp.cos(2 * _pi * t) + jnp.cos(4 * _pi * t) / 2,
    "flat at 0": lambda t: (1 - jnp.cos(2 * _pi * t)) ** 2 * (1 + jnp.cos(4 * _pi * t)),
    "exp(sin**2)": lambda t: jnp.exp(jnp.sin(2 * _pi * t) ** 2),
    "|sin|": lambda t: jnp.abs(jnp.sin(_pi * t)),
}
_solvers: dict[str, dfx.AbstractAdaptiveSolver] = {
    "exponential": dsr.ExponentialTaylorSolver(),
    **{f"degree {p}": dsr.TaylorLagrangeSolver(p) for p in (1, 2, 3, 4, 6)},
    **{
        f"degree {p}, midpoint": dsr.TaylorLagrangeSolver(
            p, dsr.ConstantMidpoint(jnp.array(0.0))
        )
        for p in (1, 2, 3)
    },
}


@pytest.mark.parametrize("name", _solvers)
def test_no_forcing_of_the_steps_period_is_missed(name):
    """A solve that does not fail is accurate."""
    forcings = list(_forcings.values())

    @jax.jit
    def solve(i):
        solution = diffeqsolve(
            dfx.ODETerm(lambda t, y, args: jax.lax.switch(i, forcings, t)),
            _solvers[name],
            *(0.0, 10.0, 1.0, jnp.array(0.0)),
            stepsize_controller=dfx.PIDController(rtol=1e-4, atol=1e-4),
            max_steps=10_000,
            throw=False,
        )
        return solution.ys[-1], dfx.is_successful(solution.result)

    times = jnp.asarray((np.arange(100_000) + 0.5) / 100_000)
    for i, forcing in enumerate(forcings):
        got, successful = solve(i)
        right = 10 * np.mean(np.asarray(forcing(times)))
        assert np.abs(got - right) < 0.1 or not successful


@pytest.mark.parametrize("degree", (1, 2, 3, 4))
@pytest.mark.parametrize("learned", (False, True))
def test_estimate_is_that_at_the_end_for_smooth_fields(degree, learned):
    """The point within has a smaller defect, and does not make steps smaller: the
    estimate is that at the end, with a midpoint and without."""
    midpoint = dsr.ConstantMidpoint(jnp.array(0.0)) if learned else None
    solver = dsr.TaylorLagrangeSolver(degree, midpoint)
    term = dfx.ODETerm(lambda t, y, args: y)
    y0, h = jnp.array(1.0), 1e-2
    state = solver.init(term, 0.0, h, y0, None)
    step = jax.jit(lambda h: solver.step(term, 0.0, h, y0, None, state, False)[1])
    # The leading term of the defect at the end: (p + 1) c for the coefficient c of
    # degree p + 1 that is left out, or c if the remainder's coefficient has it.
    c = h ** (degree + 1) / np.prod(np.arange(1.0, degree + 2))
    right = c if learned else (degree + 1) * c
    assert np.allclose(step(jnp.array(h)), right, rtol=0.05)


@pytest.mark.parametrize("within", (False, True))
def test_what_is_not_a_number_is_an_error(within):
    """NaN counts as the larger of the defects at the end of the step and within."""
    solver = dsr.TaylorLagrangeSolver(2)
    inside = lambda t: (t > 0.5) & (t < 0.9) if within else t > 0.9
    term = dfx.ODETerm(lambda t, y, args: jnp.where(inside(t), jnp.nan, 1.0))
    y0 = jnp.array(0.0)
    state = solver.init(term, 0.0, 1.0, y0, None)
    y1, error, *_ = solver.step(term, 0.0, 1.0, y0, None, state, False)
    assert np.isfinite(y1) and np.isnan(error)
