"""Problems of the DETEST collection, against SciPy's DOP853.

Hull, Enright, Fellen and Sedgwick, "Comparing Numerical Methods for Ordinary
Differential Equations", SIAM Journal on Numerical Analysis 9 (1972).
"""

import functools

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from .helpers import tree_allclose
from .helpers.marks import thorough
from .helpers.solves import final_state, solve_adaptive


def _predator_and_prey(t, y):
    a, b = y
    return jnp.stack([2 * (a - a * b), -(b - a * b)])


def _rigid_body(t, y):
    a, b, c = y
    return jnp.stack([b * c, -a * c, -0.51 * a * b])


def _decay_chain(t, y):
    gain = jnp.concatenate([jnp.zeros(1), y[:-1]])
    loss = jnp.concatenate([y[:-1], jnp.zeros(1)])
    return gain - loss


def _orbit(t, y):
    position, velocity = y[:2], y[2:]
    cubed = jnp.sum(position**2) ** 1.5
    return jnp.concatenate([velocity, -position / cubed])


def _van_der_pol(t, y):
    return jnp.stack([y[1], (1 - y[0] ** 2) * y[1] - y[0]])


# All of them from t = 0 to t = 20.
_problems = dict(
    A1=(lambda t, y: -y, [1.0]),
    A2=(lambda t, y: -(y**3) / 2, [1.0]),
    A3=(lambda t, y: y * jnp.cos(t), [1.0]),
    A4=(lambda t, y: y / 4 * (1 - y / 20), [1.0]),
    A5=(lambda t, y: (y - t) / (y + t), [4.0]),
    B1=(_predator_and_prey, [1.0, 3.0]),
    B5=(_rigid_body, [0.0, 1.0, 1.0]),
    C1=(_decay_chain, [1.0] + 9 * [0.0]),
    D2=(_orbit, [0.7, 0.0, 0.0, (1.3 / 0.7) ** 0.5]),
    E2=(_van_der_pol, [2.0, 0.0]),
)


def _problem(name):
    field, y0 = _problems[name]
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    return dsr.training.InitialValueProblem(term, jnp.array(y0), 0.0, 20.0)


@functools.cache
def _reference(name):
    """Computes the final state, to many more digits than the tests need."""
    field, y0 = _problems[name]
    compiled = jax.jit(field)
    solution = solve_ivp(
        lambda t, y: np.asarray(compiled(t, y)),
        (0.0, 20.0),
        y0,
        method="DOP853",
        rtol=1e-13,
        atol=1e-13,
    )
    assert solution.success
    return solution.y[:, -1]


@pytest.mark.parametrize("tolerance", (thorough(1e-6), 1e-10))
@pytest.mark.parametrize("name", _problems)
def test_adaptive(name, tolerance):
    """Errors are proportional to the tolerance, which bounds those of single steps."""
    problem = _problem(name)
    if tolerance == 1e-6:
        correction = dsr.MidpointMLP(len(problem.y0), key=jr.key(0))
        solver = dsr.TaylorLagrangeSolver(3, correction)
    else:
        solver = dsr.TaylorLagrangeSolver(8)
    y1 = final_state(solve_adaptive(problem, solver, tolerance))
    expected = jnp.asarray(_reference(name))
    assert tree_allclose(y1, expected, rtol=0.0, atol=100 * tolerance)
