import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest

from .helpers import tree_allclose


_matrix = jnp.array([[-2.0, 1.0], [0.5, -3.0]])
_problem = dsr.InitialValueProblem(
    dfx.ODETerm(lambda t, y, args: y @ _matrix.T), jnp.zeros((20, 2)), 0.0, 0.5
)


def _states(num_steps, key):
    return (
        jr.uniform(k, (20, 2), minval=-1, maxval=1) for k in jr.split(key, num_steps)
    )


@pytest.mark.parametrize(
    "make",
    (
        lambda c: dsr.TaylorLagrangeSolver(1, c),
        lambda c: dsr.HyperSolver(dfx.Euler(), c),
    ),
)
def test_linear_equation(make):
    """A constant matrix makes one step exact, in a box that was not trained on."""
    untrained = make(dsr.ConstantCorrection(2, "matrix"))
    optimizer = optax.adam(optax.exponential_decay(0.1, 400, 1e-3))
    solver, errors = dsr.fit_solver(
        untrained, _problem, _states(400, jr.key(0)), num_steps=1, optimizer=optimizer
    )
    assert errors.shape == (400,) and errors[-1] < 1e-3 * errors[0]
    y0 = 5 * jr.normal(jr.key(1), (20, 2))
    problem = dsr.InitialValueProblem(_problem.term, y0, 0.0, 0.5)
    y1 = dsr.final_state(dsr.solve_fixed(problem, solver, 1))
    exact = dsr.final_state(dsr.solve_adaptive(problem, dfx.Dopri8(), 1e-10))
    assert tree_allclose(y1, exact, rtol=1e-3, atol=1e-3)


def test_the_problem_is_left_alone():
    solver = dsr.TaylorLagrangeSolver(1, dsr.CorrectionMLP(2, key=jr.key(0)))
    states = [jnp.ones((20, 2))]
    dsr.fit_solver(solver, _problem, states, num_steps=1, optimizer=optax.sgd(0.1))
    assert jnp.all(_problem.y0 == 0)


def test_nothing_to_learn():
    solver = dsr.TaylorLagrangeSolver(2)
    with pytest.raises(ValueError, match="no remainder to train"):
        dsr.fit_solver(
            solver,
            _problem,
            _states(1, jr.key(0)),
            num_steps=1,
            optimizer=optax.sgd(0.1),
        )


def test_no_states():
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    with pytest.raises(ValueError, match="no `states` to learn from.*only once"):
        dsr.fit_solver(solver, _problem, [], num_steps=1, optimizer=optax.sgd(0.1))


@pytest.mark.parametrize("num_states", (1, 3))
def test_divergence(num_states):
    """In the last step, too, after which there is no error to be looked at."""
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    with pytest.raises(
        dsr.TrainingDiverged, match="error of the solver is.*step 1, but the solver"
    ):
        dsr.fit_solver(
            solver,
            _problem,
            _states(num_states, jr.key(0)),
            num_steps=1,
            optimizer=optax.sgd(jnp.inf),
        )
