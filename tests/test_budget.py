"""Weights of regularizers under a budget."""

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

from .helpers.marks import thorough
from .helpers.solves import regularized_solve
from .helpers.training import equation, Linear, make_reference, same_bits, solve


NFEBudget: Any = dsr.NFEBudget
ErrorBudget: Any = dsr.training.ErrorBudget
fit: Any = dsr.training.fit
SOLVER = dfx.Tsit5()
# A rotation by this angle takes more evaluations than the budgets here.
ROTATION = 5 * jnp.array([[0.0, 1.0], [-1.0, 0.0]])


def _regularized_loss(method=None, order=3) -> Any:
    def loss(model, solver, batch) -> Any:
        x, y = batch
        solution, integral = regularized_solve(
            *(dfx.ODETerm(model), solver, 0.0, 1.0, None, x),
            regularizer=dsr.DerivativeNorm(order),
            method=method,
            stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-5),
            max_steps=64,
        )
        value = jnp.mean((solution.ys[-1] - y) ** 2)
        nfe = dsr.nfe(solver, solution)
        return dsr.training.RegularizedLoss(value, integral, nfe)

    return loss


def _batches():
    x = jr.normal(jr.key(7), (64, 2))
    data = x, x @ jax.scipy.linalg.expm(ROTATION).T
    return dsr.training.Batches(data, 32)


def _trainer(**options) -> Any:
    loss = _regularized_loss(**options)
    return dsr.training.Trainer(loss, optax.adam(2e-2))


def _state(trainer, budget, solver: Any = SOLVER, **options) -> Any:
    model = Linear(0.8 * ROTATION)
    return trainer.init(model, solver, key=jr.key(1), budget=budget, **options)


def _nfe(state) -> int:
    batch = _batches()(state.key, 0)
    return int(_regularized_loss()(state.model, state.solver, batch).nfe)


class TestController:
    def test_the_first_weight(self):
        """The weight is zero before the budget is exceeded, and then adds 1 %."""
        budget = NFEBudget(31)
        assert budget.weight == 0
        for nfe in (19, 31):
            budget = budget.update(nfe, 2.0, 0.5)
            assert budget.weight == 0 and not budget.at_limit
        budget = budget.update(37, -3.0, 0.5)
        # The share is that of a moving average of the losses.
        assert np.allclose(budget.weight, 0.01 * (0.9 * 2.0 + 0.1 * 3.0) / 0.5)
        # The losses do not matter any more.
        again = budget.update(31, 100.0, 0.4)
        assert np.allclose(again.weight, budget.weight)

    @pytest.mark.parametrize(
        "nfe, change",
        ((100, 1.0), (40, 1.0), (31, 1 / 3), (30, 0.0), (29, -1 / 3), (6, -1)),
    )
    def test_the_change(self, nfe, change):
        budget = NFEBudget(30, rate=0.2).update(36, 1.0, 1.0)
        changed = budget.update(nfe, 1.0, 1.0)
        got = jnp.log(changed.weight / budget.weight)
        assert np.allclose(got, 0.2 * change, atol=1e-5)

    def test_batches(self):
        """The mean over a batch is used."""
        budget = NFEBudget(30).update(36, 1.0, 1.0)
        one = budget.update(jnp.array(32), 1.0, 1.0)
        several = jax.jit(lambda b, n: b.update(n, 1.0, 1.0))(
            budget, jnp.array([[26, 38], [31, 33]])
        )
        assert np.allclose(one.weight, several.weight) and one.weight > budget.weight

    @pytest.mark.parametrize("nfe", (jnp.nan, jnp.inf))
    def test_what_is_no_number(self, nfe):
        for budget in (NFEBudget(30), NFEBudget(30).update(36, 1.0, 1.0)):
            assert budget.update(nfe, 1.0, 1.0).weight == budget.weight

    @pytest.mark.parametrize("loss, integral", ((jnp.nan, 1.0), (0.0, 1.0), (1.0, 0.0)))
    def test_losses_without_a_scale(self, loss, integral):
        """The weight does not change until there are losses with a scale."""
        budget = NFEBudget(30).update(36, loss, integral)
        assert budget.weight == 0
        assert np.allclose(budget.update(36, 1.0, 1.0).weight, 0.01)

    def test_bounds(self):
        """The regularizer adds at most as much as the data did."""
        budget = NFEBudget(30, rate=5.0).update(36, 2.0, 0.5)
        high = low = budget
        for _ in range(10):
            high, low = high.update(60, 0.1, 0.5), low.update(12, 0.1, 0.5)
        assert np.allclose(high.weight * 0.5, 2.0) and high.at_limit
        assert np.allclose(low.weight * 0.5, 2e-6) and not low.at_limit
        # If the regularizer has decreased, the weight may be larger.
        assert np.allclose(high.update(60, 0.1, 0.25).weight * 0.25, 2.0)
        assert not high.update(30, 0.1, 0.25).at_limit
        # It comes back at once.
        assert high.update(24, 0.1, 0.5).weight < high.weight

    def test_one_regularizer_that_is_far_off(self):
        """No update changes the weight by more than the rate."""
        budget = NFEBudget(30, rate=0.1).update(36, 1.0, 1.0)
        for nfe, integral in ((36, 1e9), (24, 1e-9)):
            changed = float(budget.update(nfe, 1.0, integral).weight / budget.weight)
            assert np.exp(-0.11) < changed < np.exp(0.11)

    def test_loss_that_passes_zero(self):
        budget = NFEBudget(30)
        for loss in (3.0, 2.0, 1.0):
            budget = budget.update(24, loss, 1.0)
        budget = budget.update(36, 1e-9, 1.0)
        assert 0.01 < budget.weight < 0.03

    @pytest.mark.parametrize("integral", (jnp.inf, jnp.nan))
    def test_no_penalty_without_a_weight(self, integral):
        penalty = jax.value_and_grad(NFEBudget(30).penalty)
        assert penalty(jnp.array(integral)) == (0, 0)

    def test_units(self):
        """The regularizer gets its share for any size."""
        for integral in (1e30, 1e-30):
            budget = NFEBudget(30).update(36, 1.0, integral)
            assert np.allclose(budget.penalty(jnp.array(integral)), 0.01)
        budget = NFEBudget(30).update(36, 1.0, 1e-7)
        assert np.allclose(budget.penalty(jnp.array(1e-7, jnp.float16)), 0.01, rtol=0.3)

    def test_no_numbers_that_are_none(self):
        """`jax_debug_nans` finds nothing."""
        with jax.debug_nans(True):
            budget = NFEBudget(30)
            for nfe, loss, integral in ((24, 0.0, 0.0), (36, 1.0, 1.0), (36, 1.0, 0.0)):
                budget = budget.update(nfe, loss, integral)
                assert jnp.isfinite(budget.penalty(jnp.array(integral)))

    def test_no_gradient(self):
        def weight(loss):
            return NFEBudget(30).update(36, loss, 1.0).weight

        assert jax.grad(weight)(1.0) == 0


@pytest.mark.parametrize(
    "options",
    (
        dict(),
        dict(method=dsr.gauss_legendre(4), order=2),
        thorough(dict(method=dsr.augmented(), order=4)),
    ),
    ids=str,
)
def test_training_lands_on_the_budget(options):
    trainer = _trainer(**options)
    plain = _state(trainer, NFEBudget(1000))
    plain = fit(trainer, plain, _batches(), num_steps=150)
    assert plain.budget.weight == 0 and _nfe(plain) >= 48
    for nfe in (30, 42):
        state = _state(trainer, NFEBudget(nfe, rate=0.2))
        state = fit(trainer, state, _batches(), num_steps=300)
        assert abs(_nfe(state) - nfe) <= 6
        assert state.budget.weight > 0


def test_loop_of_ones_own():
    """The results are those of `fit`, bit by bit."""
    trainer, batches = _trainer(), _batches()
    state = _state(trainer, NFEBudget(36, rate=0.2))
    optimizer, loss = optax.adam(2e-2), _regularized_loss()

    @eqx.filter_jit
    def step(model, opt_state, budget, batch):
        def total(model):
            parts = loss(model, SOLVER, batch)
            measured = parts.nfe, parts.loss, parts.integral
            return parts.loss + budget.penalty(parts.integral), measured

        grads, measured = eqx.filter_grad(total, has_aux=True)(model)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, opt_state)
        model = eqx.apply_updates(model, updates)
        return model, opt_state, budget.update(*measured)

    model, opt_state, budget = state.model, optimizer.init(state.model), state.budget
    for i in range(20):
        batch = batches(state.key, i)
        model, opt_state, budget = step(model, opt_state, budget, batch)
    fitted = fit(trainer, state, batches, num_steps=20)
    assert budget.weight > 0
    assert np.allclose(budget.weight, fitted.budget.weight, rtol=1e-6)
    assert np.allclose(model.matrix, fitted.model.matrix, rtol=1e-9)


@pytest.mark.parametrize("scan", (False, True))
def test_resumed_and_in_rounds(tmp_path, scan):
    trainer, batches = _trainer(), _batches()
    state = _state(trainer, NFEBudget(36))
    options: dict[str, Any] = dict(scan=scan, steps_per_round=4)
    whole = fit(trainer, state, batches, num_steps=16, **options)
    checkpoints = dsr.training.Checkpoints(tmp_path)
    options["checkpoints"] = checkpoints
    fit(trainer, state, batches, num_steps=8, **options)
    restored = checkpoints.restore(state)
    assert restored.budget.weight > 0
    resumed = fit(trainer, restored, batches, num_steps=16, **options)
    assert same_bits(whole, resumed)


def test_reports_and_validation():
    trainer = _trainer()
    state = _state(trainer, NFEBudget(36))
    batch = _batches()(state.key, 0)
    state, report = trainer.model_step(state, batch)
    assert report.parts.nfe > 36 and report.loss == report.parts.loss
    weight = float(state.budget.weight)
    state, report = trainer.model_step(state, batch)
    weighted = report.parts.loss + weight * report.parts.integral
    assert np.allclose(report.loss, weighted) and weight > 0
    # A validation has the data's part of the loss.
    expected = _regularized_loss()(state.model, state.solver, batch).loss
    assert np.allclose(trainer.evaluate(state, batch).loss, expected)


@pytest.mark.skipif(jax.device_count() < 2, reason="one device")
@pytest.mark.skipif(
    jax.__version_info__ < (0, 7),
    reason="JAX 0.6 fails to differentiate this loop of a batch on several devices",
)
def test_mesh():
    trainer, mesh = _trainer(), dsr.training.data_mesh(2)
    state = _state(trainer, NFEBudget(36))
    alone = fit(trainer, state, _batches(), num_steps=6)
    several = fit(trainer, state, _batches(), num_steps=6, mesh=mesh)
    assert np.allclose(alone.budget.weight, several.budget.weight, rtol=1e-4)
    assert np.allclose(alone.model.matrix, several.model.matrix, rtol=1e-5)


def test_vmapped_solves():
    """The mean over the samples meets the budget."""
    alone = _regularized_loss()

    def loss(model, solver, batch) -> Any:
        parts = jax.vmap(lambda x, y: alone(model, solver, (x[None], y[None])))(*batch)
        mean = jnp.mean(parts.integral)
        return dsr.training.RegularizedLoss(jnp.mean(parts.loss), mean, parts.nfe)

    trainer = dsr.training.Trainer(loss, optax.adam(2e-2))
    state = _state(trainer, NFEBudget(36, rate=0.2))
    state = fit(trainer, state, _batches(), num_steps=300)
    batch = _batches()(state.key, 0)
    nfe = loss(state.model, state.solver, batch).nfe
    assert nfe.shape == (32,) and abs(jnp.mean(nfe) - 36) <= 6


def test_out_of_reach():
    """The weight ends at its limit, with a message."""
    trainer = _trainer()
    state = _state(trainer, NFEBudget(12, rate=1.0))
    with pytest.warns(UserWarning, match="budget of 12 was not reached.*largest one"):
        state = fit(trainer, state, _batches(), num_steps=60)
    assert jnp.isfinite(state.budget.weight) and jnp.isfinite(state.model.matrix).all()
    assert state.budget.at_limit


@pytest.mark.parametrize("error", (5e-3, thorough(8e-3)))
def test_error_of_a_taylor_lagrange_solver(error):
    """The learned equation is one that the solver solves within the budget."""

    def loss(model, solver, batch) -> Any:
        solution = solve(model, solver, batch)
        value = jnp.mean((solution.ys[-1] - batch[1]) ** 2)
        penalty = solution.solver_state.midpoint_penalty
        return dsr.training.RegularizedLoss(value, penalty)

    trainer = dsr.training.Trainer(
        *(loss, optax.adam(2e-2), equation, optax.adam(1e-9), make_reference())
    )
    solver = dsr.TaylorLagrangeSolver(2, dsr.ConstantMidpoint(jnp.zeros(2)))
    budget, model = ErrorBudget(error), Linear(0.3 * ROTATION)
    state = trainer.init(model, solver, key=jr.key(1), budget=budget)
    options: dict[str, Any] = dict(solver_every=1, solver_steps=1)
    state = fit(trainer, state, _batches(), num_steps=700, **options)
    batch = _batches()(state.key, 0)
    assert state.budget.weight > 0
    got: Any = trainer.evaluate(state, batch)
    assert np.allclose(got.error, error, rtol=0.2)


def test_error_budget_without_solver_steps():
    trainer = _trainer()
    with pytest.raises(ValueError, match="follows the errors in solver steps.*learned"):
        fit(trainer, _state(trainer, ErrorBudget(1e-3)), _batches(), num_steps=2)


def test_no_scale_for_a_weight():
    def loss(model, solver, batch) -> Any:
        parts = _regularized_loss()(model, solver, batch)
        return dsr.training.RegularizedLoss(parts.loss, jnp.array(0.0), parts.nfe)

    trainer = dsr.training.Trainer(loss, optax.adam(1e-3))
    with pytest.warns(UserWarning, match="36 was not reached.*no scale for a weight"):
        fit(trainer, _state(trainer, NFEBudget(36)), _batches(), num_steps=2)


def test_bad_updates(without_type_checks):
    with pytest.raises(ValueError, match="`integral` must be a real scalar"):
        NFEBudget(31).update(36, 1.0, jnp.ones(3))
    with pytest.raises(ValueError, match="`measured` must be a number.*got None"):
        NFEBudget(31).update(None, 1.0, 1.0)


def test_bad_budgets(without_type_checks):
    for value in (0, -3, 0.5, np.nan, np.inf, "31", True, None):
        with pytest.raises(ValueError, match="`nfe` must be a number, at least 1"):
            NFEBudget(value)
    for value in (0.0, -1.0, np.nan, "small"):
        with pytest.raises(ValueError, match="`error` must be a positive number"):
            ErrorBudget(value)
        with pytest.raises(ValueError, match="`rate` must be a positive number"):
            NFEBudget(31, rate=value)
    with pytest.raises(ValueError, match="step of Tsit5 takes 7.*nfe=6.*three"):
        NFEBudget(6, solver=SOLVER)
    with pytest.raises(ValueError, match="number of evaluations is known.*Kvaerno3"):
        NFEBudget(31, solver=dfx.Kvaerno3())
    trainer = _trainer()
    with pytest.raises(ValueError, match="step of Tsit5 takes 7.*nfe=6"):
        _state(trainer, NFEBudget(6))
    with pytest.raises(
        ValueError, match=r"`budget` must be a.*NFEBudget\(31\).*got 31"
    ):
        _state(trainer, 31)


def test_losses_that_do_not_fit_the_budget():
    batch = _batches()(jr.key(0), 0)
    trainer = _trainer()
    with pytest.raises(ValueError, match=r"state has no budget. Pass .*trainer.init"):
        trainer.model_step(_state(trainer, None), batch)
    plain: Any = dsr.training.Trainer(lambda *args: jnp.array(1.0), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`loss` returned weak_f64.*RegularizedLoss"):
        plain.model_step(_state(plain, NFEBudget(31)), batch)

    def without_count(model, solver, batch) -> Any:
        return dsr.training.RegularizedLoss(jnp.array(1.0), jnp.array(1.0))

    uncounted = dsr.training.Trainer(without_count, optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"got `nfe=None`.*dsr.nfe\(solver, solution\)"
    ):
        uncounted.model_step(_state(uncounted, NFEBudget(31)), batch)
