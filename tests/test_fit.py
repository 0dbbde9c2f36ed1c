"""The loop of alternating training, and the batches that it gets."""

import sys
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

from .helpers.training import (
    make_batch,
    make_batches,
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
def without_remainder():
    """The cheapest training there is."""
    trainer = make_trainer()
    return trainer, make_state(trainer, dsr.TaylorLagrangeSolver(1))


_compilations = 0


def _count_compilation(event, duration_secs, **kwargs):
    global _compilations
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def test_fit_learns_the_dynamics_and_the_remainder(trainer):
    records = []
    state = make_state(trainer)
    start = trainer.evaluate(state, make_batch(jr.key(9)))
    state = dsr.fit(
        trainer,
        state,
        make_batches(),
        until=300,
        remainder_every=5,
        remainder_steps=2,
        callbacks=[records.append],
    )
    end = trainer.evaluate(state, make_batch(jr.key(9)))
    assert [record.step for record in records] == list(range(1, 301))
    assert records[3].remainder is None and records[4].remainder is not None
    assert end.loss < start.loss / 100
    assert end.error < start.error
    assert jnp.max(jnp.abs(state.model.matrix - ROTATION)) < 0.05
    assert state.step == 300


def test_no_retrace():
    """One trace for each jitted function, whatever the batches are, and no compilation
    behind anybody's back."""
    traces = 0

    def counted(model, batch):
        nonlocal traces
        traces += 1
        return problem(model, batch)

    trainer = make_trainer(problem=counted)
    state = make_state(trainer)
    cadence: dict[str, Any] = dict(remainder_every=2, remainder_steps=3)
    state = dsr.fit(trainer, state, make_batches(), until=2, **cadence)
    assert traces == 3
    before = _compilations
    dsr.fit(trainer, state, make_batches(), until=8, **cadence)
    assert traces == 3
    assert _compilations == before > 0


def test_cadence(trainer):
    """As many steps of each half as were asked for: their optimizers count them."""
    state = make_state(trainer)
    cadence: dict[str, Any] = dict(remainder_every=2, remainder_steps=3)
    state = dsr.fit(trainer, state, make_batches(), until=5, **cadence)
    assert optax.tree_utils.tree_get(state.model_opt_state, "count") == 5
    assert optax.tree_utils.tree_get(state.solver_opt_state, "count") == 6


def test_same_seed_same_numbers(trainer):
    def run(state):
        return dsr.fit(trainer, state, make_batches(), until=12, remainder_every=5)

    state = make_state(trainer)
    first, second = run(state), run(state)
    assert same_bits(first, second)
    other = eqx.tree_at(lambda s: s.key, state, jr.key(4))
    assert not same_bits(first.model, run(other).model)


def test_in_pieces_as_in_one(trainer):
    state = make_state(trainer)
    batches = make_batches()
    cadence: dict[str, Any] = dict(remainder_every=4)
    whole = dsr.fit(trainer, state, batches, until=10, **cadence)
    for until in (3, 4, 10, 10):
        state = dsr.fit(trainer, state, batches, until=until, **cadence)
    assert same_bits(whole, state)


def test_without_a_remainder(without_remainder):
    trainer, state = without_remainder
    state = dsr.fit(trainer, state, make_batches(), until=3, remainder_every=1)
    assert state.step == 3


def test_validation(without_remainder):
    trainer, state = without_remainder
    records = []
    dsr.fit(
        trainer,
        state,
        make_batches(),
        until=5,
        validate=lambda state: dict(step=state.step),
        validate_every=2,
        callbacks=[records.append],
    )
    seen = [int(record.validation.get("step", 0)) for record in records]
    assert seen == [0, 2, 2, 4, 5]


def test_progress_bar(without_remainder, capsys):
    trainer, state = without_remainder
    with dsr.ProgressBar(3, disable=False, mininterval=0.0) as bar:
        dsr.fit(
            trainer,
            state,
            make_batches(),
            until=3,
            validate=lambda state: dict(accuracy=0.75, nfe=jnp.array(38)),
            validate_every=1,
            callbacks=[bar],
        )
    shown = capsys.readouterr().err
    assert "3/3" in shown
    for entry in ("loss=", "remainder=", "accuracy=0.75", "nfe=38"):
        assert entry in shown


def test_progress_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"needs tqdm.*diffrax-speedreg\[progress\]"):
        dsr.ProgressBar(3)


def _nan_at(step):
    """Batches, of which one has something that is not a number."""
    batches = make_batches()

    def call(key, index):
        x, y = batches(key, index)
        return (x * np.nan, y) if index == step - 1 else (x, y)

    return call


@pytest.mark.parametrize("step, until", ((3, 9), (3, 3)))
def test_divergence_keeps_the_last_good_state(without_remainder, step, until):
    trainer, state = without_remainder
    good = dsr.fit(trainer, state, make_batches(), until=step - 1)
    message = r"loss is nan at step 3. `batch\[0\]` is nan at index \(0, 0\), and 32"
    with pytest.raises(dsr.TrainingDiverged, match=message) as caught:
        dsr.fit(trainer, state, _nan_at(step), until=until)
    assert same_bits(caught.value.state, good)


def _nan_gradient(model, y1, batch):
    """Finite, and so is the solve, but not differentiable where it is taken."""
    return jnp.mean(batch[1] ** 2) + jnp.sqrt(jnp.sum((y1 - y1) ** 2))


def test_nan_gradient_in_the_last_step():
    """Of a loss that is finite: only the state after the step tells."""
    trainer = make_trainer(loss=_nan_gradient)
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    with pytest.raises(
        dsr.TrainingDiverged, match="at step 1, but the model .* is not finite"
    ) as caught:
        dsr.fit(trainer, state, make_batches(), until=1)
    assert same_bits(caught.value.state, state)


def test_diverged_remainder():
    """The state is that before both halves: a resumed training repeats both."""
    trainer = make_trainer(solver_optimizer=optax.sgd(jnp.inf))
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    state = make_state(trainer, solver)
    with pytest.raises(dsr.TrainingDiverged, match="step 2, but the solver") as caught:
        dsr.fit(trainer, state, make_batches(), until=3, remainder_every=2)
    assert caught.value.state.step == 1
    assert same_bits(caught.value.state.solver, state.solver)


def test_nan_beside_numbers_and_keys():
    """What else is in a batch is not in the way of the message."""

    def batches(key, step):
        x = np.full((4, 2), np.nan)
        return dict(name="a", weight=0.5, count=3, key=key, x=x)

    trainer = make_trainer(
        problem=lambda model, batch: dsr.InitialValueProblem(
            dfx.ODETerm(model), batch["x"]
        ),
        loss=lambda model, y1, batch: batch["weight"] * jnp.mean(y1),
        num_steps=1,
    )
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    message = r"loss is nan at step 1. `batch\['x'\]` is nan at index \(0, 0\)"
    with pytest.raises(dsr.TrainingDiverged, match=message):
        dsr.fit(trainer, state, batches, until=1)


def test_diverged_penalty():
    trainer = make_trainer(penalty=float("inf"))
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    with pytest.raises(dsr.TrainingDiverged, match="loss is inf at step 1"):
        dsr.fit(trainer, state, make_batches(), until=1)


def test_unsolvable_equation_says_when():
    def stiff(model, batch):
        field = dfx.ODETerm(lambda t, y, args: -1e6 * y)
        return dsr.InitialValueProblem(field, batch[0])

    trainer = make_trainer(problem=stiff, loss=lambda model, y1, batch: jnp.array(0.0))
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    state = make_state(trainer, solver)
    with pytest.raises(
        dsr.TrainingDiverged,
        match="at step 2. The reference solve by Tsit5.*maximum number of solver steps",
    ) as caught:
        dsr.fit(trainer, state, make_batches(), until=3, remainder_every=2)
    assert caught.value.state.step == 1


@pytest.mark.parametrize(
    "name", ("until", "remainder_every", "remainder_steps", "validate_every")
)
def test_bad_counts(name, without_remainder, without_type_checks):
    trainer, state = without_remainder
    options: dict[str, Any] = dict(until=1) | {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*0"):
        dsr.fit(trainer, state, make_batches(), **options)


class TestBatches:
    def test_epochs(self):
        """Each sample once an epoch, in another order each time."""
        batches = dsr.Batches(dict(x=np.arange(11), y=10 * np.arange(11)), 3)
        assert batches.num_batches == 3
        key, orders = jr.key(0), []
        for epoch in range(3):
            parts = [batches(key, 3 * epoch + i) for i in range(3)]
            assert all(np.array_equal(10 * p["x"], p["y"]) for p in parts)
            orders.append(np.concatenate([p["x"] for p in parts]).tolist())
            assert len(set(orders[-1])) == 9
        assert len(set(map(tuple, orders))) == 3

    def test_key_and_step_decide(self):
        batches = dsr.Batches(np.arange(1000), 10)
        again = dsr.Batches(np.arange(1000), 10)
        assert np.array_equal(batches(jr.key(0), 205), again(jr.key(0), 205))
        assert not np.array_equal(batches(jr.key(0), 205), again(jr.key(1), 205))

    def test_step_of_a_state(self):
        batches = dsr.Batches(np.arange(1000), 10)
        assert np.array_equal(batches(jr.key(0), jnp.array(7)), batches(jr.key(0), 7))

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="have 5 samples.*batch of 6.*smaller"):
            dsr.Batches(np.zeros((5, 2)), 6)

    def test_different_lengths(self):
        with pytest.raises(ValueError, match=r"same number.*data.*x.*: 5.*y.*: 4"):
            dsr.Batches(dict(x=np.zeros(5), y=np.zeros(4)), 2)

    def test_no_arrays(self):
        with pytest.raises(ValueError, match=r"have no arrays: got \(\)"):
            dsr.Batches((), 2)

    def test_not_finite(self):
        data = np.zeros((5, 2), np.float32)
        data[3, 1] = np.inf
        message = r"`data\['x'\]` is inf at index \(3, 1\), and 1 of its 10 numbers"
        with pytest.raises(ValueError, match=message):
            dsr.Batches(dict(x=data, labels=np.arange(5)), 2)

    def test_size(self, without_type_checks):
        with pytest.raises(ValueError, match="`size` must be a positive integer.*0"):
            dsr.Batches(np.zeros(5), 0)
