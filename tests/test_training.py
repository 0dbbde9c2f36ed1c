"""The single parts of alternating training."""

import dataclasses
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
from .helpers.solves import final_state, solve_adaptive, solve_fixed
from .helpers.training import (
    arrays,
    equation,
    Linear,
    loss,
    make_batch,
    make_reference,
    make_state,
    make_trainer,
    penalized,
    ROTATION,
    same_bits,
    solve,
)


@pytest.fixture(scope="module")
def trainer():
    return make_trainer(loss=penalized(1e-3))


@pytest.fixture(scope="module")
def state(trainer):
    return make_state(trainer)


def test_each_half_leaves_the_other_alone(trainer, state):
    batch = make_batch(jr.key(1))
    after, report = trainer.model_step(state, batch)
    assert report.finite and report.loss > report.aux["data"] > 0
    assert after.step == state.step + 1
    assert same_bits(after.solver, state.solver)
    assert same_bits(after.solver_opt_state, state.solver_opt_state)
    assert same_bits(after.key, state.key)
    assert not eqx.tree_equal(arrays(after.model), arrays(state.model))

    reference = trainer.solve_reference(state, batch)
    after, report = trainer.solver_step(state, batch, reference)
    assert report.finite and report.error > 0 and after.step == state.step
    assert same_bits(after.model, state.model)
    assert same_bits(after.model_opt_state, state.model_opt_state)
    assert same_bits(after.key, state.key)
    assert not eqx.tree_equal(arrays(after.solver), arrays(state.solver))


def test_the_loss_is_the_users_sum():
    """The sum of data, midpoint penalty and regularizer is that computed by hand."""

    def total(model, solver, batch):
        solution = solve(model, solver, batch)
        statistics = solution.solver_state
        value = jnp.mean((solution.ys[-1] - batch[1]) ** 2)
        penalty = statistics.absolute_midpoint_penalty
        return value + 0.5 * penalty + 0.25 * statistics.regularizer

    midpoint = dsr.MidpointMLP(2, key=jr.key(0))
    solver = dsr.TaylorLagrangeSolver(2, midpoint, regularizer=dsr.DerivativeNorm(2))
    trainer = make_trainer(loss=total, model_optimizer=optax.sgd(1.0))
    state, batch = make_state(trainer, solver), make_batch(jr.key(1))
    after, report = trainer.model_step(state, batch)
    assert tree_allclose(
        report.loss, total(state.model, solver, batch), rtol=1e-12, atol=0.0
    )
    direction = jr.normal(jr.key(2), (2, 2))
    expected = finite_difference(
        lambda matrix: total(Linear(matrix), solver, batch),
        state.model.matrix,
        direction,
    )
    gradient = state.model.matrix - after.model.matrix
    actual = jnp.sum(gradient * direction)
    assert tree_allclose(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("per_step", (False, True))
@pytest.mark.parametrize("t1", (1.0, -1.0))
def test_reference_is_on_the_solution(per_step, t1):
    """The reference is the matrix exponential, at the ends of the solve and steps."""
    y0, _ = make_batch(jr.key(1))
    term = dfx.ODETerm(Linear(ROTATION))
    problem = dsr.training.InitialValueProblem(term, y0, 0.0, t1)
    settings = make_reference(4, rtol=1e-10, atol=1e-10, per_step=per_step)
    reference = settings.solve(problem)
    assert reference.t0.shape == ((4,) if per_step else (1,))
    parts = ((reference.t0, reference.y0), (reference.t1, reference.y1))
    for times, states in parts:
        flows = jax.vmap(lambda t: jax.scipy.linalg.expm(ROTATION * t))(times)
        expected = jnp.einsum("pij,bj->pbi", flows, y0)
        assert tree_allclose(states, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("per_step", (False, True))
def test_error_of_a_solver_step(per_step):
    """The error is that of single solves by hand."""
    trainer = make_trainer(reference=make_reference(per_step=per_step))
    state, batch = make_state(trainer), make_batch(jr.key(1))
    reference = trainer.solve_reference(state, batch)
    problem, errors = equation(state.model, batch), []
    for t0, t1, y0, y1 in zip(reference.t0, reference.t1, reference.y0, reference.y1):
        part = dsr.training.InitialValueProblem(problem.term, y0, t0, t1)
        solution = solve_fixed(part, state.solver, 1 if per_step else 2)
        errors.append(final_state(solution) - y1)
    expected = jnp.mean(jnp.abs(jnp.stack(errors)))
    actual = trainer.solver_step(state, batch, reference)[1].error
    assert expected > 0 and tree_allclose(actual, expected, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("per_step", (False, True))
def test_solver_steps_learn_the_midpoint(per_step):
    trainer = make_trainer(reference=make_reference(per_step=per_step))
    state = make_state(trainer)
    batch = make_batch(jr.key(1))
    first = trainer.evaluate(state, batch).error
    reference = trainer.solve_reference(state, batch)
    for _ in range(200):
        state, report = trainer.solver_step(state, batch, reference)
    assert trainer.evaluate(state, batch).error < first / 2


def test_steps_by_scan(trainer, state):
    """The results are those of single steps, to roundoff."""
    batches = [make_batch(jr.key(i)) for i in range(3)]
    one_by_one, losses = state, []
    for batch in batches:
        one_by_one, report = trainer.model_step(one_by_one, batch)
        losses.append(report.loss)
    stacked = jax.tree_util.tree_map(lambda *x: jnp.stack(x), *batches)
    after, last, by_step, finite = trainer.model_steps(state, stacked)
    expected = (arrays(one_by_one.model), jnp.stack(losses))
    actual = (arrays(after.model), by_step)
    assert tree_allclose(actual, expected, rtol=1e-10, atol=1e-12)
    assert after.step == 3 and finite.all() and last.loss == by_step[-1]
    assert same_bits(after.solver, state.solver)


def test_evaluation(trainer, state):
    batch = make_batch(jr.key(1))
    evaluation = trainer.evaluate(state, batch)
    problem = equation(state.model, batch)
    cheap = final_state(solve_fixed(problem, state.solver, 2))
    reference = solve_adaptive(problem, dfx.Tsit5(), 1e-6)
    error = jnp.mean(jnp.abs(cheap - final_state(reference)))
    assert tree_allclose(evaluation.error, error, rtol=1e-10, atol=0.0)
    expected, aux = penalized(1e-3)(state.model, state.solver, batch)
    outputs = (evaluation.loss, evaluation.aux)
    assert tree_allclose(outputs, (expected, aux), rtol=1e-10, atol=0.0)
    assert evaluation.nfe == dsr.nfe(dfx.Tsit5(), reference)


def test_evaluation_without_a_reference():
    without: Any = make_trainer(loss=lambda model, solver, batch: jnp.array(1.0))
    state = without.init(Linear(ROTATION), key=jr.key(0))
    assert without.evaluate(state, make_batch(jr.key(1))).error is None
    trainer = dsr.training.Trainer(loss, optax.sgd(0.1))
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    evaluation: Any = trainer.evaluate(state, make_batch(jr.key(1)))
    assert evaluation.error is None and evaluation.nfe is None
    assert evaluation.loss > 0


def test_evaluation_of_an_equation_that_is_too_hard():
    """The evaluations of a failed reference solve do not count as its cost."""
    trainer = make_trainer(reference=make_reference(max_steps=4))
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    evaluation = trainer.evaluate(state, make_batch(jr.key(1)))
    assert jnp.isnan(evaluation.error) and evaluation.nfe == -1
    assert jnp.isfinite(evaluation.loss)


def test_implicit_reference_solver():
    """The reference solves a stiff equation. Its number of evaluations is not known."""
    reference = make_reference(2, dfx.Kvaerno5(), rtol=1e-5, atol=1e-5)
    trainer = make_trainer(reference=reference)
    state, batch = make_state(trainer), make_batch(jr.key(1))
    state = eqx.tree_at(
        lambda s: s.model.matrix, state, jnp.diag(jnp.array([-1e4, -1]))
    )
    solution = trainer.solve_reference(state, batch)
    expected = batch[0] * jnp.array([[0.0, jnp.exp(-1)]])
    assert tree_allclose(solution.y1[0], expected, rtol=1e-4, atol=1e-4)
    assert trainer.evaluate(state, batch).nfe is None


def test_encoder_and_decoder_around_the_equation():
    """The equation is a part of the model, and all of the model is trained."""

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

    def encoded(model, batch):
        term = dfx.ODETerm(model.dynamics)
        return dsr.training.InitialValueProblem(term, jax.vmap(model.encoder)(batch[0]))

    def decoded_loss(model, solver, batch):
        y1 = final_state(solve_fixed(encoded(model, batch), solver, 2))
        return jnp.mean((jax.vmap(model.decoder)(y1) - batch[1]) ** 2)

    trainer = make_trainer(equation=encoded, loss=decoded_loss)
    solver = dsr.TaylorLagrangeSolver(2, dsr.MidpointMLP(2, key=jr.key(1)))
    state = trainer.init(model, solver, key=jr.key(2))
    batch = jr.normal(jr.key(3), (8, 3)), jnp.ones((8, 1))
    after, _ = trainer.model_step(state, batch)
    for part in ("encoder", "dynamics", "decoder"):
        old, new = (arrays(getattr(s.model, part)) for s in (state, after))
        assert not eqx.tree_equal(old, new), part
    reference = trainer.solve_reference(after, batch)
    again, _ = trainer.solver_step(after, batch, reference)
    assert same_bits(again.model, after.model)
    assert not eqx.tree_equal(arrays(again.solver), arrays(after.solver))


@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
def test_complex_parameters():
    """Real and imaginary parts descend to the minimum of the loss."""
    goal = 1 + 2j
    term = dfx.ODETerm(lambda t, y, args: jnp.zeros_like(y))

    def shifted(shift, solver, batch):
        problem = dsr.training.InitialValueProblem(term, batch + shift)
        y1 = final_state(solve_fixed(problem, solver, 1))
        return jnp.mean(jnp.abs(y1 - goal) ** 2)

    trainer = dsr.training.Trainer(shifted, optax.sgd(0.25))
    solver = dsr.TaylorLagrangeSolver(1)
    state = trainer.init(jnp.zeros((), complex), solver, key=jr.key(0))
    batch = jnp.zeros((4, 2), complex)
    for _ in range(60):
        state, report = trainer.model_step(state, batch)
    assert tree_allclose(state.model, jnp.array(goal), rtol=1e-12, atol=0.0)


def test_single_precision_in_both_halves():
    """The precision is kept if the times of the problem have it too."""
    single = partial(
        jax.tree_util.tree_map,
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x,
    )

    def of_single_times(model, batch):
        problem = equation(model, batch)
        return dataclasses.replace(
            problem, t0=jnp.float32(problem.t0), t1=jnp.float32(problem.t1)
        )

    trainer = make_trainer(reference=make_reference(1), equation=of_single_times)
    solver = single(dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2)))
    state = trainer.init(single(Linear(ROTATION)), solver, key=jr.key(0))
    batch = single(make_batch(jr.key(1)))
    reference = trainer.solve_reference(state, batch)
    assert reference.t0.dtype == reference.t1.dtype == jnp.float32
    _, report = trainer.solver_step(state, batch, reference)
    assert report.error.dtype == jnp.float32


def test_a_weight_may_change_without_a_retrace():
    """For a warm-up, an array in a loss that is a module is not a constant."""
    traces = 0

    class Weighted(eqx.Module):
        weight: jax.Array

        def __call__(self, model, solver, batch):
            nonlocal traces
            traces += 1
            return loss(model, solver, batch) + self.weight

    first = make_trainer(loss=Weighted(jnp.array(0.0)))
    state, batch, values = make_state(first), make_batch(jr.key(1)), []
    for weight in (0.0, 1.0):
        trainer = eqx.tree_at(lambda t: t.loss.weight, first, jnp.array(weight))
        values.append(trainer.model_step(state, batch)[1].loss)
    assert traces == 1
    assert tree_allclose(values[1], values[0] + 1, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("solver", (dsr.TaylorLagrangeSolver(3), dfx.Tsit5()))
def test_nothing_to_train_in_the_solver(trainer, state, solver):
    other = make_state(trainer, solver)
    batch = make_batch(jr.key(0))
    message = "nothing to train in the solver.*MidpointMLP"
    with pytest.raises(ValueError, match=message):
        trainer.solve_reference(other, batch)
    reference = trainer.solve_reference(state, batch)
    with pytest.raises(ValueError, match=message):
        trainer.solver_step(other, batch, reference)


def test_any_solver_of_diffrax():
    """Without solver steps, any solver works, also an adaptive one."""

    def adaptive_loss(model, solver, batch):
        solution = solve_adaptive(equation(model, batch), solver, 1e-4, max_steps=64)
        return jnp.mean((final_state(solution) - batch[1]) ** 2)

    trainer: Any = dsr.training.Trainer(adaptive_loss, optax.adam(5e-2))
    state = make_state(trainer, dfx.Tsit5())
    batch = make_batch(jr.key(0))
    first = trainer.evaluate(state, batch).loss
    for _ in range(60):
        state, _ = trainer.model_step(state, batch)
    assert trainer.evaluate(state, batch).loss < first / 10


def test_halves_without_their_parts(state):
    with pytest.raises(ValueError, match="`solver_optimizer` needs `equation"):
        dsr.training.Trainer(loss, optax.sgd(0.1), solver_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="`loss` and `model_optimizer` go together"):
        dsr.training.Trainer(loss, None)
    trainer = dsr.training.Trainer(
        None, None, equation, optax.sgd(0.1), make_reference()
    )
    with pytest.raises(ValueError, match="There is no loss"):
        trainer.model_step(state, make_batch(jr.key(0)))


@pytest.mark.parametrize(
    "outputs, message",
    (
        (lambda y: y, r"return a real scalar.*f64\[16,2\].*mean over"),
        (lambda y: jnp.sum(y).astype(complex), r"return a real scalar.*c128\[\]"),
        (lambda y: "0.5", "return a real scalar.*'0.5'"),
        (lambda y: (jnp.sum(y), 1, 2), r"a scalar or `\(scalar, aux\)`.*3 outputs"),
    ),
    ids=("array", "complex", "text", "triple"),
)
def test_loss_that_returns_no_scalar(state, outputs, message, without_type_checks):
    trainer = make_trainer(
        loss=lambda model, solver, batch: outputs(model(0.0, batch[0], None))
    )
    with pytest.raises(ValueError, match=message):
        trainer.model_step(state, make_batch(jr.key(0)))


def test_batch_of_another_shape(trainer, state):
    x = jnp.ones((16, 3))
    with pytest.raises(ValueError, match=r"(?s)\(2,\).*The batch was \(f64\[16,3\]"):
        trainer.model_step(state, (x, x))


@pytest.mark.parametrize("per_step", (False, True))
def test_reference_of_another_batch(state, per_step):
    """Roundoff is allowed, since an encoder may be compiled in two ways."""
    trainer = make_trainer(reference=make_reference(per_step=per_step))
    x, y = make_batch(jr.key(1))
    reference = trainer.solve_reference(state, (x, y))
    _, report = trainer.solver_step(state, (x * (1 + 1e-14), y), reference)
    assert report.finite
    with pytest.raises(eqx.EquinoxRuntimeError, match="that of another batch"):
        trainer.solver_step(state, make_batch(jr.key(2)), reference)


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
    after, report = trainer.model_step(start, make_batch(jr.key(1)))
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
        ValueError, match=f"(?s)`{name}` belongs to another model.*trainer.init"
    ):
        if half == "model":
            trainer.model_step(wrong, batch)
        else:
            reference = trainer.solve_reference(state, batch)
            trainer.solver_step(wrong, batch, reference)


def test_reference_that_fails_says_where():
    """The message has the hardest sample, and the time that the solve reached."""
    term = dfx.ODETerm(lambda t, y, args: y**2)
    trainer = make_trainer(
        equation=lambda model, y0: dsr.training.InitialValueProblem(term, y0),
        reference=make_reference(max_steps=64),
    )
    y0 = jnp.full((5, 2), 0.1).at[3].set(2.0)  # Infinite at time 1/2.
    state = make_state(trainer)
    message = (
        "by Tsit5 at rtol=1e-06, atol=1e-06 failed at time 0.49.*where sample 3 "
        "changes fastest.*steps.*Kvaerno5"
    )
    with pytest.raises(dsr.training.ReferenceFailed, match=message):
        trainer.solve_reference(state, y0)


@pytest.mark.parametrize("name", ("num_steps", "max_steps"))
def test_bad_counts(name, without_type_checks):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*0"):
        make_reference(**{name: 0})


@pytest.mark.parametrize("name", ("rtol", "atol"))
def test_bad_tolerances(name):
    for value in (0.0, -1e-6, float("nan")):
        with pytest.raises(ValueError, match=f"`{name}` must be positive"):
            make_reference(**{name: value})


@pytest.mark.parametrize(
    "options, message",
    (
        (dict(model_optimizer=optax.adam), r"`model_optim.*call it: `adam\(...\)`"),
        (dict(solver_optimizer=optax.adam), r"`solver_opt.*call it: `adam\(...\)`"),
        (dict(model_optimizer=0.1), "`model_optimizer` must be an Optax.*but got 0.1"),
        (dict(loss="mse"), "`loss` must be a function.*but got 'mse'"),
        (dict(equation=1), r"`equation` must be a function `\(model, batch\)"),
        (dict(reference=2), "`reference` must be a `Reference`, such as"),
        (dict(reference=dsr.training.Reference), "`reference` must be a `Reference`"),
    ),
)
def test_parts_that_are_something_else(options, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)


def test_equation_that_is_something_else(state, without_type_checks):
    returned: Any = dfx.ODETerm(Linear(ROTATION))
    trainer = make_trainer(equation=lambda model, batch: returned)
    with pytest.raises(ValueError, match="must be a `InitialValueProblem`, such as"):
        trainer.solve_reference(state, make_batch(jr.key(1)))


def test_empty_batch_in_both_halves(trainer, state):
    batch = (jnp.zeros((0, 2)), jnp.zeros((0, 2)))
    reference = trainer.solve_reference(state, batch)
    _, report = trainer.solver_step(state, batch, reference)
    assert report.finite and report.error == 0
