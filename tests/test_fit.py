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

from .helpers import tree_allclose
from .helpers.training import (
    arrays,
    equation,
    loss,
    make_batch,
    make_batches,
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
def without_solver_half():
    """Makes the cheapest training, without solver steps."""
    trainer = make_trainer()
    return trainer, make_state(trainer, dsr.TaylorLagrangeSolver(1))


_compilations = 0


def _count_compilation(event, duration_secs, **kwargs):
    global _compilations
    _compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def test_fit_learns_the_model_and_the_midpoint(trainer):
    records = []
    state = make_state(trainer)
    start = trainer.evaluate(state, make_batch(jr.key(9)))
    state = dsr.training.fit(
        trainer,
        state,
        make_batches(),
        num_steps=300,
        solver_every=5,
        solver_steps=2,
        callbacks=[records.append],
    )
    end = trainer.evaluate(state, make_batch(jr.key(9)))
    assert [record.step for record in records] == list(range(1, 301))
    assert records[3].solver is None and records[4].solver is not None
    assert end.aux["data"] < start.aux["data"] / 100
    assert end.error < start.error
    assert jnp.max(jnp.abs(state.model.matrix - ROTATION)) < 0.05
    assert state.step == 300


def test_no_retrace():
    """Each jitted function has one trace for all batches, and there is no other
    compilation."""
    traces = 0

    def counted(model, batch):
        nonlocal traces
        traces += 1
        return equation(model, batch)

    def counted_loss(model, solver, batch):
        counted(model, batch)
        return loss(model, solver, batch)

    trainer = make_trainer(equation=counted, loss=counted_loss)
    state = make_state(trainer)
    cadence: dict[str, Any] = dict(solver_every=2, solver_steps=3)
    state = dsr.training.fit(trainer, state, make_batches(), num_steps=2, **cadence)
    assert traces == 3
    before = _compilations
    dsr.training.fit(trainer, state, make_batches(), num_steps=8, **cadence)
    assert traces == 3
    assert _compilations == before > 0


def test_cadence(trainer):
    """Each half makes the requested number of steps, as counted by its optimizer."""
    state = make_state(trainer)
    cadence: dict[str, Any] = dict(solver_every=2, solver_steps=3)
    state = dsr.training.fit(trainer, state, make_batches(), num_steps=5, **cadence)
    assert optax.tree_utils.tree_get(state.model_opt_state, "count") == 5
    assert optax.tree_utils.tree_get(state.solver_opt_state, "count") == 6


def test_same_seed_same_numbers(trainer):
    def run(state):
        return dsr.training.fit(
            trainer, state, make_batches(), num_steps=12, solver_every=5
        )

    state = make_state(trainer)
    first, second = run(state), run(state)
    assert same_bits(first, second)
    other = eqx.tree_at(lambda s: s.key, state, jr.key(4))
    assert not same_bits(first.model, run(other).model)


def test_in_pieces_as_in_one(trainer):
    state = make_state(trainer)
    batches = make_batches()
    cadence: dict[str, Any] = dict(solver_every=4)
    whole = dsr.training.fit(trainer, state, batches, num_steps=10, **cadence)
    for num_steps in (3, 4, 10, 10):
        state = dsr.training.fit(
            trainer, state, batches, num_steps=num_steps, **cadence
        )
    assert same_bits(whole, state)


def test_without_a_solver_half(without_solver_half):
    trainer, state = without_solver_half
    state = dsr.training.fit(
        trainer, state, make_batches(), num_steps=3, solver_every=1
    )
    assert state.step == 3


def test_validation(without_solver_half):
    trainer, state = without_solver_half
    records = []
    dsr.training.fit(
        trainer,
        state,
        make_batches(),
        num_steps=5,
        validate=lambda state: dict(step=state.step),
        validate_every=2,
        callbacks=[records.append],
    )
    seen = [int(record.validation.get("step", 0)) for record in records]
    assert seen == [0, 2, 2, 4, 5]


def test_progress_bar(trainer, capsys):
    """The bar shows the auxiliary outputs of the loss."""
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    with dsr.training.ProgressBar(3, disable=False, mininterval=0.0) as bar:
        dsr.training.fit(
            trainer,
            state,
            make_batches(),
            num_steps=3,
            validate=lambda state: dict(accuracy=0.75, nfe=jnp.array(38)),
            validate_every=1,
            callbacks=[bar],
        )
    shown = capsys.readouterr().err
    assert "3/3" in shown
    for entry in ("loss=", "data=", "accuracy=0.75", "nfe=38"):
        assert entry in shown


def test_progress_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"needs tqdm.*diffrax-speedreg\[progress\]"):
        dsr.training.ProgressBar(3)


def _nan_at(step):
    """Makes batches, one of which has a NaN."""
    batches = make_batches()

    def call(key, index):
        x, y = batches(key, index)
        return (x * np.nan, y) if index == step - 1 else (x, y)

    return call


@pytest.mark.parametrize("step, num_steps", ((3, 9), (3, 3)))
def test_divergence_keeps_the_last_good_state(without_solver_half, step, num_steps):
    trainer, state = without_solver_half
    good = dsr.training.fit(trainer, state, make_batches(), num_steps=step - 1)
    message = r"loss is nan at step 3. `batch\[0\]` is nan at index \(0, 0\), and 32"
    with pytest.raises(dsr.training.TrainingDiverged, match=message) as caught:
        dsr.training.fit(trainer, state, _nan_at(step), num_steps=num_steps)
    assert same_bits(caught.value.state, good)


def _nan_gradient(model, solver, batch):
    """Loss that is finite, as is its solve, but has no finite gradient."""
    y1 = solve(model, solver, batch).ys[-1]
    return jnp.mean(batch[1] ** 2) + jnp.sqrt(jnp.sum((y1 - y1) ** 2))


def test_nan_gradient_in_the_last_step():
    """The loss is finite: only the state after the step has the NaN."""
    trainer = make_trainer(loss=_nan_gradient)
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    with pytest.raises(
        dsr.training.TrainingDiverged, match="at step 1, but the model .* is not finite"
    ) as caught:
        dsr.training.fit(trainer, state, make_batches(), num_steps=1)
    assert same_bits(caught.value.state, state)


def test_diverged_solver():
    """The state is that before both halves, so that a resumed training repeats both."""
    trainer = make_trainer(solver_optimizer=optax.sgd(jnp.inf))
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    state = make_state(trainer, solver)
    with pytest.raises(
        dsr.training.TrainingDiverged, match="step 2, but the solver"
    ) as caught:
        dsr.training.fit(trainer, state, make_batches(), num_steps=3, solver_every=2)
    assert caught.value.state.step == 1
    assert same_bits(caught.value.state.solver, state.solver)


def test_nan_beside_numbers_and_keys():
    """Numbers and keys in a batch do not disturb the message."""

    def batches(key, step):
        x = np.full((4, 2), np.nan)
        return dict(name="a", weight=0.5, count=3, key=key, x=x)

    def weighted(model, solver, batch):
        y1 = solve(model, solver, (batch["x"], None)).ys[-1]
        return batch["weight"] * jnp.mean(y1)

    trainer = make_trainer(loss=weighted)
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    message = r"loss is nan at step 1. `batch\['x'\]` is nan at index \(0, 0\)"
    with pytest.raises(dsr.training.TrainingDiverged, match=message):
        dsr.training.fit(trainer, state, batches, num_steps=1)


def test_diverged_penalty():
    trainer = make_trainer(loss=penalized(float("inf")))
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    with pytest.raises(dsr.training.TrainingDiverged, match="loss is inf at step 1"):
        dsr.training.fit(trainer, state, make_batches(), num_steps=1)


def test_unsolvable_equation_says_when():
    def stiff(model, batch):
        field = dfx.ODETerm(lambda t, y, args: -1e6 * y)
        return dsr.training.InitialValueProblem(field, batch[0])

    nothing = lambda model, solver, batch: jnp.sum(model.matrix) * 0.0
    trainer = make_trainer(equation=stiff, loss=nothing)
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    state = make_state(trainer, solver)
    with pytest.raises(
        dsr.training.TrainingDiverged,
        match="at step 2. The reference solve by Tsit5.*maximum number of solver steps",
    ) as caught:
        dsr.training.fit(trainer, state, make_batches(), num_steps=3, solver_every=2)
    assert caught.value.state.step == 1


@pytest.mark.parametrize(
    "name",
    ("num_steps", "steps_per_round", "solver_every", "solver_steps", "validate_every"),
)
def test_bad_counts(name, without_solver_half, without_type_checks):
    trainer, state = without_solver_half
    options: dict[str, Any] = dict(num_steps=1) | {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer.*0"):
        dsr.training.fit(trainer, state, make_batches(), **options)


class TestRounds:
    """Tests of rounds: several model steps, whose losses are read at once."""

    @pytest.mark.parametrize(
        "steps_per_round, scan", ((4, True), (7, True), (100, True), (4, False))
    )
    def test_as_one_by_one(self, trainer, steps_per_round, scan):
        """Rounds give the results of single steps, to roundoff, at the same cadence."""

        def run(steps_per_round, scan=False):
            records = []
            state = dsr.training.fit(
                trainer,
                make_state(trainer),
                make_batches(),
                num_steps=13,
                solver_every=5,
                steps_per_round=steps_per_round,
                scan=scan,
                validate=lambda state: dict(step=state.step),
                validate_every=6,
                callbacks=[records.append],
            )
            return state, records

        (expected, singly), (actual, rounds) = run(1), run(steps_per_round, scan)
        for half in ("model", "solver"):
            trained = [arrays(getattr(x, half)) for x in (actual, expected)]
            assert tree_allclose(*trained, rtol=1e-9, atol=1e-12)
        losses = np.concatenate([r.losses for r in rounds])
        np.testing.assert_allclose(losses, [r.losses[0] for r in singly], rtol=1e-6)
        steps = [r.step for r in rounds]
        assert {5, 6, 10, 12, 13} <= set(steps) and len(steps) < 13
        validated = {int(r.validation.get("step", 0)) for r in rounds}
        assert validated == {0, 6, 12, 13}

    def test_in_pieces_as_in_one(self, trainer):
        """A resumed run has the same rounds as an undisturbed one."""
        options: dict[str, Any] = dict(solver_every=6, steps_per_round=4, scan=True)
        start, batches = make_state(trainer), make_batches()
        whole = dsr.training.fit(trainer, start, batches, num_steps=12, **options)
        state = start
        for num_steps in (4, 6, 8, 12):
            state = dsr.training.fit(
                trainer, state, batches, num_steps=num_steps, **options
            )
        assert same_bits(whole, state)

    @pytest.mark.parametrize("scan", (False, True))
    def test_divergence_names_the_step(self, without_solver_half, scan):
        trainer, state = without_solver_half
        options: dict[str, Any] = dict(steps_per_round=4, scan=scan)
        good = dsr.training.fit(trainer, state, make_batches(), num_steps=4, **options)
        message = r"loss is nan at step 7. `batch\[0\]` is nan at index \(0, 0\)"
        with pytest.raises(dsr.training.TrainingDiverged, match=message) as caught:
            dsr.training.fit(trainer, state, _nan_at(7), num_steps=12, **options)
        assert same_bits(caught.value.state, good)

    def test_error_of_the_computation_names_the_round(self):
        def failing(model, solver, batch):
            value = loss(model, solver, batch)
            return eqx.error_if(value, batch[0][0, 0] > 5, "too large")

        def batches(key, step):
            x, y = make_batch(jr.key(step))
            return x.at[0, 0].set(step), y

        trainer = make_trainer(loss=failing)
        state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
        message = "at one of steps 5 to 8, by an error of the computation: too large"
        with pytest.raises(dsr.training.TrainingDiverged, match=message) as caught:
            dsr.training.fit(trainer, state, batches, num_steps=9, steps_per_round=4)
        assert caught.value.state.step == 4

    def test_batch_for_the_solver(self, trainer):
        """The function gets all batches since the last solver steps."""
        seen = []

        def choose(batches):
            seen.append([int(batch[0][0, 0]) for batch in batches])
            return make_batch(jr.key(0))

        def batches(key, step):
            x, y = make_batch(jr.key(step))
            return x.at[0, 0].set(step), y

        dsr.training.fit(
            trainer,
            make_state(trainer),
            batches,
            num_steps=6,
            solver_every=3,
            steps_per_round=2,
            solver_batch=choose,
        )
        assert seen == [[0, 1, 2], [3, 4, 5]]


def test_record_keeps_curves_in_the_state(without_solver_half):
    trainer, _ = without_solver_half
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1), aux=np.zeros(5))
    seen = []

    def record(losses, progress):
        return np.concatenate([losses[len(progress.losses) :], progress.losses])

    state = dsr.training.fit(
        trainer,
        state,
        make_batches(),
        num_steps=5,
        record=record,
        callbacks=[lambda progress: seen.append((progress.losses[0], progress))],
    )
    np.testing.assert_array_equal(state.aux, [value for value, _ in seen])
    assert all(progress.seconds > 0 for _, progress in seen)
    assert seen[-1][1].state.aux is state.aux
    assert seen[-1][1].model.loss == state.aux[-1]


class TestBatches:
    def test_epochs(self):
        """Each epoch has all samples once, in a new order."""
        batches = dsr.training.Batches(dict(x=np.arange(11), y=10 * np.arange(11)), 3)
        assert batches.num_batches == 3
        key, orders = jr.key(0), []
        for epoch in range(3):
            parts = [batches(key, 3 * epoch + i) for i in range(3)]
            assert all(np.array_equal(10 * p["x"], p["y"]) for p in parts)
            orders.append(np.concatenate([p["x"] for p in parts]).tolist())
            assert len(set(orders[-1])) == 9
        assert len(set(map(tuple, orders))) == 3

    def test_strided_data_are_made_contiguous(self):
        """A step takes its samples alone, and not a copy of all data."""
        data = np.arange(24.0).reshape(2, 12).T
        batches = dsr.training.Batches(data, 12)
        assert batches.data.flags.c_contiguous
        batch = batches(jr.key(0), 0)
        np.testing.assert_array_equal(batch[np.argsort(batch[:, 0])], data)

    def test_key_and_step_decide(self):
        batches = dsr.training.Batches(np.arange(1000), 10)
        again = dsr.training.Batches(np.arange(1000), 10)
        assert np.array_equal(batches(jr.key(0), 205), again(jr.key(0), 205))
        assert not np.array_equal(batches(jr.key(0), 205), again(jr.key(1), 205))

    def test_step_of_a_state(self):
        batches = dsr.training.Batches(np.arange(1000), 10)
        assert np.array_equal(batches(jr.key(0), jnp.array(7)), batches(jr.key(0), 7))

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="have 5 samples.*batch of 6.*smaller"):
            dsr.training.Batches(np.zeros((5, 2)), 6)

    def test_different_lengths(self):
        with pytest.raises(ValueError, match=r"same number.*data.*x.*: 5.*y.*: 4"):
            dsr.training.Batches(dict(x=np.zeros(5), y=np.zeros(4)), 2)

    def test_no_arrays(self):
        with pytest.raises(ValueError, match=r"have no arrays: got \(\)"):
            dsr.training.Batches((), 2)

    def test_not_finite(self):
        data = np.zeros((5, 2), np.float32)
        data[3, 1] = np.inf
        message = r"`data\['x'\]` is inf at index \(3, 1\), and 1 of its 10 numbers"
        with pytest.raises(ValueError, match=message):
            dsr.training.Batches(dict(x=data, labels=np.arange(5)), 2)

    def test_size(self, without_type_checks):
        with pytest.raises(ValueError, match="`size` must be a positive integer.*0"):
            dsr.training.Batches(np.zeros(5), 0)


@pytest.mark.parametrize(
    "data, message",
    (
        (
            [[1.0, 2.0], [3.0, 4.0]],
            r"`data\[0\]\[0\]` is np.float64\(1.0\). Convert lists",
        ),
        (1.0, "first axes are the samples, but `data` is np.float64"),
        (np.array(["a", None], object), "must be arrays of numbers"),
    ),
)
def test_data_that_are_no_arrays(data, message, without_type_checks):
    with pytest.raises(ValueError, match=message):
        dsr.training.Batches(data, 1)
