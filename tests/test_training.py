"""The parts of alternating training, by themselves."""

from functools import partial
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
from .helpers.training import (
    arrays,
    Linear,
    loss,
    make_batch,
    make_state,
    make_trainer,
    problem,
    ROTATION,
    same_bits,
)


@pytest.fixture(scope="module")
def trainer():
    return make_trainer(penalty=1e-3)


@pytest.fixture(scope="module")
def state(trainer):
    return make_state(trainer)


def _dynamics_loss(state, batch, **kwargs):
    options: dict[str, Any] = dict(problem=problem, loss=loss, num_steps=2)
    return dsr.dynamics_loss(state.model, state.solver, batch, **(options | kwargs))


def test_each_half_leaves_the_other_alone(trainer, state):
    batch = make_batch(jr.key(1))
    after, report = trainer.dynamics_step(state, batch)
    assert report.finite and report.total > report.terms.loss > 0
    assert after.step == state.step + 1
    assert same_bits(after.solver, state.solver)
    assert same_bits(after.solver_opt_state, state.solver_opt_state)
    assert same_bits(after.key, state.key)
    assert not eqx.tree_equal(arrays(after.model), arrays(state.model))

    targets = trainer.targets(state, batch)
    after, report = trainer.remainder_step(state, batch, targets)
    assert report.finite and report.error > 0 and after.step == state.step
    assert same_bits(after.model, state.model)
    assert same_bits(after.model_opt_state, state.model_opt_state)
    assert same_bits(after.key, state.key)
    assert not eqx.tree_equal(arrays(after.solver), arrays(state.solver))


@pytest.mark.parametrize("mean", ("square", "absolute"))
def test_dynamics_loss(state, mean):
    """Data loss, penalty and speed, against a solve by hand."""
    batch = make_batch(jr.key(1))
    solver = dsr.TaylorLagrangeSolver(2, state.solver.remainder, speed=dsr.Speed(2))
    state = eqx.tree_at(lambda s: s.solver, state, solver)
    total, terms = _dynamics_loss(
        state, batch, penalty=0.5, penalty_mean=mean, speed_weight=0.25
    )
    solution = dsr.solve_fixed(problem(state.model, batch), solver, 2)
    gathered: Any = solution.solver_state
    sizes = dict(square=gathered.penalty, absolute=gathered.absolute_penalty)
    expected = jnp.mean((dsr.final_state(solution) - batch[1]) ** 2)
    expected_total = expected + 0.5 * sizes[mean] + 0.25 * gathered.speed
    assert tree_allclose(total, expected_total, rtol=1e-12, atol=0.0)
    assert tree_allclose(terms.loss, expected, rtol=1e-12, atol=0.0)
    assert tree_allclose(terms.remainder, sizes[mean], rtol=1e-12, atol=0.0)
    assert tree_allclose(terms.speed, gathered.speed, rtol=1e-12, atol=0.0)
    assert sizes[mean] > 0 and gathered.speed > 0


def test_hypersolver_has_both_means():
    solver = dsr.HyperSolver(dfx.Heun(), dsr.ConstantCorrection(2))
    solver = eqx.tree_at(
        lambda s: s.remainder.factors, solver, replace_fn=lambda x: x + 1
    )
    ivp = problem(Linear(ROTATION), make_batch(jr.key(1)))
    gathered: Any = dsr.solve_fixed(ivp, solver, 1).solver_state
    residual = ivp.y0 @ ROTATION.T
    assert tree_allclose(gathered.penalty, jnp.mean(residual**2), rtol=1e-12, atol=0.0)
    absolute = jnp.mean(jnp.abs(residual))
    assert tree_allclose(gathered.absolute_penalty, absolute, rtol=1e-12, atol=0.0)


def test_gradient_of_dynamics_loss(state):
    batch = make_batch(jr.key(1))

    def total(matrix):
        changed = eqx.tree_at(lambda s: s.model.matrix, state, matrix)
        return _dynamics_loss(changed, batch, penalty=0.5)[0]

    direction = jr.normal(jr.key(2), (2, 2))
    expected = finite_difference(total, ROTATION, direction)
    actual = jnp.sum(jax.grad(total)(ROTATION) * direction)
    assert tree_allclose(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("one_step", (False, True))
@pytest.mark.parametrize("t1", (1.0, -1.0))
def test_targets_are_on_the_solution(one_step, t1):
    """Against the matrix exponential, at the end of the solve and of each step."""
    y0, _ = make_batch(jr.key(1))
    ivp = dsr.InitialValueProblem(dfx.ODETerm(Linear(ROTATION)), y0, 0.0, t1)
    targets = dsr.reference_targets(ivp, 4, tolerance=1e-10, one_step=one_step)
    assert targets.t0.shape == ((4,) if one_step else (1,))
    assert targets.num_steps == (1 if one_step else 4)
    for times, states in ((targets.t0, targets.y0), (targets.t1, targets.y1)):
        flows = jax.vmap(lambda t: jax.scipy.linalg.expm(ROTATION * t))(times)
        expected = jnp.einsum("pij,bj->pbi", flows, y0)
        assert tree_allclose(states, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("one_step", (False, True))
@pytest.mark.parametrize("mean", ("absolute", "square"))
def test_remainder_loss(state, one_step, mean):
    """Against solves one after the other, by hand."""
    ivp = problem(state.model, make_batch(jr.key(1)))
    targets = dsr.reference_targets(ivp, 2, solver=dfx.Tsit5(), one_step=one_step)
    errors = []
    for t0, t1, y0, y1 in zip(targets.t0, targets.t1, targets.y0, targets.y1):
        part = dsr.InitialValueProblem(ivp.term, y0, t0, t1)
        solution = dsr.solve_fixed(part, state.solver, 1 if one_step else 2)
        errors.append(dsr.final_state(solution) - y1)
    error = jnp.abs(jnp.stack(errors))
    expected = jnp.mean(error if mean == "absolute" else error**2)
    actual = dsr.remainder_loss(state.solver, ivp, targets, mean=mean)
    assert expected > 0 and tree_allclose(actual, expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("one_step", (False, True))
def test_remainder_learns_the_solver(one_step):
    trainer = make_trainer(one_step=one_step)
    state = make_state(trainer)
    batch = make_batch(jr.key(1))
    first = trainer.evaluate(state, batch).error
    targets = trainer.targets(state, batch)
    for _ in range(200):
        state, report = trainer.remainder_step(state, batch, targets)
    assert trainer.evaluate(state, batch).error < first / 2


def test_evaluation(trainer, state):
    batch = make_batch(jr.key(1))

    def metrics(model, y1, batch):
        return dict(largest=jnp.max(jnp.abs(y1 - batch[1])))

    evaluation = trainer.evaluate(state, batch, metrics)
    ivp = problem(state.model, batch)
    cheap = dsr.final_state(dsr.solve_fixed(ivp, state.solver, 2))
    reference = dsr.solve_adaptive(ivp, dfx.Tsit5(), 1e-6)
    error = jnp.mean(jnp.abs(cheap - dsr.final_state(reference)))
    assert tree_allclose(evaluation.error, error, rtol=1e-10, atol=0.0)
    expected = loss(state.model, cheap, batch)
    assert tree_allclose(evaluation.loss, expected, rtol=1e-10, atol=0.0)
    assert evaluation.nfe == dsr.nfe(dfx.Tsit5(), reference)
    largest = jnp.max(jnp.abs(cheap - batch[1]))
    assert tree_allclose(
        evaluation.metrics, dict(largest=largest), rtol=1e-10, atol=0.0
    )


def test_evaluation_of_what_can_not_be_solved():
    """How far the reference solve came is not mistaken for what it needs."""
    trainer = make_trainer(reference_max_steps=4, num_steps=1)
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    evaluation = trainer.evaluate(state, make_batch(jr.key(1)))
    assert jnp.isnan(evaluation.error) and evaluation.nfe == -1
    assert jnp.isfinite(evaluation.loss)


def test_implicit_reference_solver():
    """For a stiff equation; how many evaluations it makes is not known."""
    trainer = make_trainer(reference_solver=dfx.Kvaerno5(), reference_tolerance=1e-5)
    state, batch = make_state(trainer), make_batch(jr.key(1))
    state = eqx.tree_at(
        lambda s: s.model.matrix, state, jnp.diag(jnp.array([-1e4, -1]))
    )
    targets = trainer.targets(state, batch)
    expected = batch[0] * jnp.array([[0.0, jnp.exp(-1)]])
    assert tree_allclose(targets.y1[0], expected, rtol=1e-4, atol=1e-4)
    assert trainer.evaluate(state, batch).nfe is None


def test_encoder_and_decoder_around_the_equation():
    """A model in which the equation is one part: all of it learns, by one gradient."""

    class Model(eqx.Module):
        encoder: eqx.nn.Linear
        dynamics: Linear
        decoder: eqx.nn.Linear

    keys = jr.split(jr.key(0), 2)
    model = Model(
        eqx.nn.Linear(3, 2, key=keys[0]),
        Linear(ROTATION),
        eqx.nn.Linear(2, 1, key=keys[1]),
    )
    trainer = make_trainer(
        problem=lambda model, batch: dsr.InitialValueProblem(
            dfx.ODETerm(model.dynamics), jax.vmap(model.encoder)(batch[0])
        ),
        loss=lambda model, y1, batch: jnp.mean(
            (jax.vmap(model.decoder)(y1) - batch[1]) ** 2
        ),
    )
    solver = dsr.TaylorLagrangeSolver(2, dsr.CorrectionMLP(2, key=jr.key(1)))
    state = trainer.init(model, solver, key=jr.key(2))
    batch = jr.normal(jr.key(3), (8, 3)), jnp.ones((8, 1))
    after, _ = trainer.dynamics_step(state, batch)
    for part in ("encoder", "dynamics", "decoder"):
        old, new = (arrays(getattr(s.model, part)) for s in (state, after))
        assert not eqx.tree_equal(old, new), part
    targets = trainer.targets(after, batch)
    again, _ = trainer.remainder_step(after, batch, targets)
    assert same_bits(again.model, after.model)
    assert not eqx.tree_equal(arrays(again.solver), arrays(after.solver))


@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
def test_complex_parameters():
    """Both parts go downhill, to where the loss is least."""
    goal = 1 + 2j
    trainer = make_trainer(
        problem=lambda shift, batch: dsr.InitialValueProblem(
            dfx.ODETerm(lambda t, y, args: jnp.zeros_like(y)), batch + shift
        ),
        loss=lambda shift, y1, batch: jnp.mean(jnp.abs(y1 - goal) ** 2),
        num_steps=1,
        model_optimizer=optax.sgd(0.25),
    )
    solver = dsr.TaylorLagrangeSolver(1)
    state = trainer.init(jnp.zeros((), complex), solver, key=jr.key(0))
    batch = jnp.zeros((4, 2), complex)
    for _ in range(60):
        state, report = trainer.dynamics_step(state, batch)
    assert tree_allclose(state.model, jnp.array(goal), rtol=1e-12, atol=0.0)


def test_single_precision_in_both_halves():
    """Python's times of the problem are no reason for a remainder step in double."""
    single = partial(
        jax.tree_util.tree_map,
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x,
    )
    trainer = make_trainer(num_steps=1)
    solver = single(dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2)))
    state = trainer.init(single(Linear(ROTATION)), solver, key=jr.key(0))
    batch = single(make_batch(jr.key(1)))
    targets = trainer.targets(state, batch)
    assert targets.t0.dtype == targets.t1.dtype == jnp.float32
    _, report = trainer.remainder_step(state, batch, targets)
    assert report.error.dtype == jnp.float32


def test_penalty_may_change_without_a_retrace():
    """For a warm-up: an array is not a constant of the program."""
    traces = 0

    def counted(model, batch):
        nonlocal traces
        traces += 1
        return problem(model, batch)

    batch, totals = make_batch(jr.key(1)), []
    # One only: the optimizers are functions, and another trainer has others.
    first = make_trainer(problem=counted, penalty=jnp.array(0.0))
    state = make_state(first)
    for penalty in (0.0, 1.0):
        trainer = eqx.tree_at(lambda t: t.penalty, first, jnp.array(penalty))
        totals.append(trainer.dynamics_step(state, batch)[1].total)
    assert traces == 1 and totals[1] > totals[0]


def test_no_remainder_to_train(trainer):
    state = make_state(trainer, dsr.TaylorLagrangeSolver(3))
    batch = make_batch(jr.key(0))
    message = "no remainder to train.*remainder=None"
    with pytest.raises(ValueError, match=message):
        trainer.targets(state, batch)
    targets = dsr.reference_targets(problem(state.model, batch), 2, solver=dfx.Tsit5())
    with pytest.raises(ValueError, match=message):
        trainer.remainder_step(state, batch, targets)


def test_solver_that_has_nothing_to_train(trainer, without_type_checks):
    with pytest.raises(ValueError, match="`TaylorLagrangeSolver` or.*got Tsit5.*loop"):
        trainer.init(Linear(ROTATION), dfx.Tsit5(), key=jr.key(0))


def test_no_speed_to_weigh(state):
    with pytest.raises(
        ValueError, match=r"`speed_weight=0.5` needs a speed.*Speed\(K\)"
    ):
        _dynamics_loss(state, make_batch(jr.key(0)), speed_weight=0.5)


def test_loss_that_is_not_a_scalar(state):
    with pytest.raises(ValueError, match=r"must return a scalar.*\(16, 2\).*mean"):
        _dynamics_loss(
            state, make_batch(jr.key(0)), loss=lambda model, y1, batch: y1 - batch[1]
        )


def test_unknown_mean(state, without_type_checks):
    with pytest.raises(ValueError, match='`penalty_mean` must be "absolute".*max'):
        _dynamics_loss(state, make_batch(jr.key(0)), penalty_mean="max")
    for name in ("penalty_mean", "error_mean"):
        with pytest.raises(ValueError, match=f'`{name}` must be "absolute".*max'):
            make_trainer(**{name: "max"})


def test_batch_of_another_shape(trainer, state):
    x = jnp.ones((16, 3))
    with pytest.raises(ValueError, match=r"(?s)\(2,\).*The batch was \(f64\[16,3\]"):
        trainer.dynamics_step(state, (x, x))


@pytest.mark.parametrize("one_step", (False, True))
def test_targets_of_another_batch(state, one_step):
    """Roundoff is forgiven: an encoder may be compiled in two ways."""
    trainer = make_trainer(one_step=one_step)
    x, y = make_batch(jr.key(1))
    targets = trainer.targets(state, (x, y))
    _, report = trainer.remainder_step(state, (x * (1 + 1e-14), y), targets)
    assert report.finite
    with pytest.raises(eqx.EquinoxRuntimeError, match="are of another batch"):
        trainer.remainder_step(state, make_batch(jr.key(2)), targets)


def test_what_was_infinite_may_stay_so(state):
    """A mask of minus infinity in the model is a constant, not a divergence."""

    class Masked(eqx.Module):
        linear: Linear
        mask: jax.Array

        def __call__(self, t, y, args):
            weights = jax.nn.softmax(jax.lax.stop_gradient(self.mask))
            return self.linear(t, y, args) * weights[None, 1:]

    trainer = make_trainer()
    mask = jnp.array([-jnp.inf, 0.0, 0.0])
    masked = Masked(state.model, mask)
    start = trainer.init(masked, state.solver, key=jr.key(0))
    after, report = trainer.dynamics_step(start, make_batch(jr.key(1)))
    assert report.finite
    assert same_bits(after.model.mask, mask)
    assert not same_bits(after.model.linear, masked.linear)


@pytest.mark.parametrize("half", ("model", "solver"))
def test_optimizer_state_of_another_model(trainer, state, half):
    batch = make_batch(jr.key(0))
    name = f"{half}_opt_state"
    larger: Any = Linear(jnp.zeros((3, 3)))
    opt_state = optax.adam(1e-3).init(larger)
    wrong = eqx.tree_at(lambda s: getattr(s, name), state, opt_state)
    with pytest.raises(
        ValueError, match=f"(?s)`{name}` is of another model.*trainer.init"
    ):
        if half == "model":
            trainer.dynamics_step(wrong, batch)
        else:
            targets = trainer.targets(state, batch)
            trainer.remainder_step(wrong, batch, targets)


def test_reference_that_fails_says_where():
    """At the hardest sample, and how far the solve came."""

    def field(t, y, args):
        return y**2

    trainer = make_trainer(
        problem=lambda model, batch: dsr.InitialValueProblem(dfx.ODETerm(field), batch),
        reference_max_steps=64,
    )
    y0 = jnp.full((5, 2), 0.1).at[3].set(2.0)  # Infinite at time 1/2.
    state = make_state(trainer)
    message = (
        "by Tsit5 at tolerance 1e-06 failed at time 0.49.*where sample 3 changes "
        "fastest.*steps.*Kvaerno5"
    )
    with pytest.raises(dsr.ReferenceFailed, match=message):
        trainer.targets(state, y0)


def test_cross_entropy():
    logits = jr.normal(jr.key(0), (4, 3))
    labels = jnp.array([0, 2, 1, 2])
    expected = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), labels])
    assert tree_allclose(
        dsr.cross_entropy(logits, labels), expected, rtol=1e-12, atol=0.0
    )


@pytest.mark.parametrize("label", (-1, 3))
def test_label_out_of_range(label):
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be from 0 to 2"):
        dsr.cross_entropy(jnp.zeros((2, 3)), jnp.array([0, label]))


@pytest.mark.parametrize("name", ("num_steps", "reference_max_steps"))
def test_bad_counts(name, without_type_checks):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*0"):
        make_trainer(**{name: 0})
