import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest

from .helpers import finite_difference, tree_allclose


_rotation = jnp.array([[0.0, 2.0], [-2.0, 0.0]])


class _Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, y, args):
        return y @ self.matrix.T


def _problem(model, batch):
    return dsr.InitialValueProblem(dfx.ODETerm(model), batch[0])


def _loss(model, y1, batch):
    return jnp.mean((y1 - batch[1]) ** 2)


def _batch(key, size=16):
    x = jr.normal(key, (size, 2))
    return x, x @ jax.scipy.linalg.expm(_rotation).T


def _batches(number):
    return (_batch(jr.key(i)) for i in range(number))


def _trainer(**kwargs):
    options = dict(
        problem=_problem,
        loss=_loss,
        num_steps=2,
        model_optimizer=optax.adam(2e-2),
        solver_optimizer=optax.adam(1e-2),
    )
    return dsr.AlternatingTrainer(**(options | kwargs))


@pytest.fixture
def trainer():
    return _trainer(penalty=1e-3)


@pytest.fixture
def state(trainer, key):
    solver = dsr.TaylorLagrangeSolver(2, dsr.CorrectionMLP(2, key=key))
    return trainer.init(_Linear(_rotation + 0.3), solver)


def _arrays(tree):
    return eqx.filter(tree, eqx.is_array)


def test_each_half_leaves_the_other_alone(trainer, state):
    batch = _batch(jr.key(1))
    after, loss = trainer.dynamics_step(state, batch)
    assert loss > 0 and after.step == state.step + 1
    assert eqx.tree_equal(_arrays(after.solver), _arrays(state.solver))
    assert eqx.tree_equal(after.solver_opt_state, state.solver_opt_state)
    assert not eqx.tree_equal(_arrays(after.model), _arrays(state.model))

    after, error = trainer.midpoint_step(state, batch)
    assert error > 0 and after.step == state.step
    assert eqx.tree_equal(_arrays(after.model), _arrays(state.model))
    assert eqx.tree_equal(after.model_opt_state, state.model_opt_state)
    assert not eqx.tree_equal(_arrays(after.solver), _arrays(state.solver))


def test_no_retrace():
    traces = 0

    def counted(model, batch):
        nonlocal traces
        traces += 1
        return _problem(model, batch)

    trainer = _trainer(problem=counted)
    solver = dsr.TaylorLagrangeSolver(1, dsr.CorrectionMLP(2, key=jr.key(0)))
    state = trainer.init(_Linear(_rotation), solver)
    state = dsr.fit(trainer, state, _batches(2), midpoint_every=1)
    assert traces == 2
    dsr.fit(trainer, state, _batches(4), midpoint_every=1)
    assert traces == 2


def test_dynamics_loss(state):
    """Data loss and penalty, against a solve by hand."""
    batch = _batch(jr.key(1))
    total, data_loss = dsr.dynamics_loss(
        state.model,
        state.solver,
        batch,
        problem=_problem,
        loss=_loss,
        num_steps=2,
        penalty=0.5,
    )
    solution = dsr.solve_fixed(_problem(state.model, batch), state.solver, 2)
    expected = jnp.mean((dsr.final_state(solution) - batch[1]) ** 2)
    assert tree_allclose(data_loss, expected, rtol=1e-12, atol=0.0)
    expected_total = expected + 0.5 * solution.solver_state.penalty
    assert tree_allclose(total, expected_total, rtol=1e-12, atol=0.0)
    assert solution.solver_state.penalty > 0


def test_gradient_of_dynamics_loss(state):
    batch = _batch(jr.key(1))

    def total(matrix):
        return dsr.dynamics_loss(
            _Linear(matrix),
            state.solver,
            batch,
            problem=_problem,
            loss=_loss,
            num_steps=2,
            penalty=0.5,
        )[0]

    direction = jr.normal(jr.key(2), (2, 2))
    expected = finite_difference(total, _rotation, direction)
    actual = jnp.sum(jax.grad(total)(_rotation) * direction)
    assert tree_allclose(actual, expected, rtol=1e-8, atol=1e-8)


def test_midpoint_learns_the_solver(trainer, state):
    batch = _batch(jr.key(1))
    _, first = trainer.midpoint_step(state, batch)
    for i in range(200):
        state, error = trainer.midpoint_step(state, _batch(jr.key(i)))
    _, last = trainer.midpoint_step(state, batch)
    assert last < first / 2


def test_fit_learns_the_dynamics(trainer, state):
    losses = []
    steps = []

    def callback(state, loss):
        losses.append(loss)
        steps.append(int(state.step))

    state = dsr.fit(trainer, state, _batches(300), midpoint_every=5, callback=callback)
    assert steps == list(range(1, 301))
    assert losses[-1] < losses[0] / 100
    assert jnp.max(jnp.abs(state.model.matrix - _rotation)) < 0.05


def test_fit_without_a_midpoint(trainer):
    state = trainer.init(_Linear(_rotation), dsr.TaylorLagrangeSolver(3))
    state = dsr.fit(trainer, state, _batches(3), midpoint_every=1)
    assert state.step == 3


def test_midpoint_step_without_a_midpoint(trainer):
    state = trainer.init(_Linear(_rotation), dsr.TaylorLagrangeSolver(3))
    with pytest.raises(ValueError, match="no midpoint to train.*remainder=None"):
        trainer.midpoint_step(state, _batch(jr.key(0)))


def test_divergence_says_when():
    trainer = _trainer()
    state = trainer.init(_Linear(_rotation), dsr.TaylorLagrangeSolver(2))
    good, (x, y) = list(_batches(2)), _batch(jr.key(3))
    with pytest.raises(dsr.TrainingDiverged, match="loss is nan at step 3"):
        dsr.fit(trainer, state, [*good, (x * jnp.nan, y)])


def test_diverged_penalty_is_noticed_at_once():
    """Though the loss on data is still finite, and there is no next step."""
    trainer = _trainer(penalty=float("inf"))
    state = trainer.init(_Linear(_rotation), dsr.TaylorLagrangeSolver(2))
    with pytest.raises(dsr.TrainingDiverged, match="loss is inf at step 1"):
        dsr.fit(trainer, state, _batches(1))


def test_unsolvable_equation_says_when(key):
    def stiff(model, batch):
        field = dfx.ODETerm(lambda t, y, args: -1e6 * y)
        return dsr.InitialValueProblem(field, batch[0])

    trainer = _trainer(problem=stiff, loss=lambda model, y1, batch: jnp.array(0.0))
    solver = dsr.TaylorLagrangeSolver(1, dsr.CorrectionMLP(2, key=key))
    state = trainer.init(_Linear(_rotation), solver)
    with pytest.raises(
        dsr.TrainingDiverged, match="at step 2.*maximum number of solver steps"
    ):
        dsr.fit(trainer, state, _batches(3), midpoint_every=2)


@pytest.mark.parametrize("name", ("num_steps", "midpoint_every"))
def test_bad_counts(name, trainer, state, without_type_checks):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*0"):
        if name == "num_steps":
            _trainer(num_steps=0)
        else:
            dsr.fit(trainer, state, _batches(1), midpoint_every=0)
