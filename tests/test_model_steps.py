"""Models with a state, and optimizers that need more than a gradient."""

from typing import Any

import diffrax_speedreg as dsr
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest

from .helpers import tree_allclose
from .helpers.marks import thorough
from .helpers.training import (
    arrays,
    Linear,
    loss,
    make_batch,
    make_state,
    make_trainer,
    ROTATION,
    same_bits,
)


class TestState:
    """Tests of a model's state without gradients: BatchNorm's, counters, Flax's."""

    def test_running_averages(self):
        """The state is that of Equinox, as for BatchNorm."""

        class Centered(eqx.Module):
            mean: eqx.nn.StateIndex
            dynamics: Linear

            def __init__(self):
                self.mean = eqx.nn.StateIndex(jnp.ones(2))
                self.dynamics = Linear(ROTATION)

            def __call__(self, x, state):
                mean = 0.9 * state.get(self.mean) + 0.1 * jnp.mean(x, axis=0)
                return x - mean[None], state.set(self.mean, mean)

        def normed_loss(model, solver, batch):
            x, state = model.model(batch[0], model.state)
            value = loss(model.model.dynamics, solver, (x, batch[1]))
            return value, dict(data=value), state

        model = dsr.training.Stateful(*eqx.nn.make_with_state(Centered)())
        # Weight decay would change a state that is treated as a parameter.
        optimizer = optax.adamw(1e-3, weight_decay=0.5)
        trainer = dsr.training.Trainer(normed_loss, optimizer)
        state = trainer.init(model, dsr.TaylorLagrangeSolver(1), key=jr.key(0))
        batch = make_batch(jr.key(1))
        after, report = trainer.model_step(state, batch)
        expected = normed_loss(model, state.solver, batch)[2]
        actual = arrays(after.model.state)
        assert tree_allclose(actual, arrays(expected), rtol=1e-12, atol=1e-12)
        assert not same_bits(after.model.model, model.model)
        assert tree_allclose(report.aux["data"], report.loss, rtol=1e-12, atol=0.0)

    def test_counter_in_rounds(self):
        def counting_loss(model, solver, batch):
            return loss(model.model, solver, batch), None, model.state + 1

        trainer = dsr.training.Trainer(counting_loss, optax.sgd(0.1))
        model = dsr.training.Stateful(Linear(ROTATION), jnp.array(0))
        state = trainer.init(model, dsr.TaylorLagrangeSolver(1), key=jr.key(0))
        state = dsr.training.fit(
            trainer,
            state,
            lambda key, step: make_batch(jr.key(step)),
            num_steps=5,
            steps_per_round=3,
            scan=True,
        )
        assert state.model.state == 5

    def test_state_that_is_not_finite(self):
        nan_state = lambda model, solver, batch: (
            jnp.sum(model.model.matrix),
            None,
            model.state * jnp.nan,
        )
        trainer: Any = dsr.training.Trainer(nan_state, optax.sgd(0.1))
        model = dsr.training.Stateful(Linear(ROTATION), jnp.ones(2))
        state = trainer.init(model, key=jr.key(0))
        assert not trainer.model_step(state, None)[1].finite

    def test_state_that_is_not_returned(self):
        nothing: Any = lambda model, solver, batch: 0.0
        trainer = dsr.training.Trainer(nothing, optax.sgd(0.1))
        model = dsr.training.Stateful(Linear(ROTATION), jnp.array(0))
        state = trainer.init(model, key=jr.key(0))
        with pytest.raises(ValueError, match=r"\(scalar, aux, state\)`.*1 outputs"):
            trainer.model_step(state, None)


class TestOptimizers:
    @pytest.mark.parametrize(
        "optimizer",
        (
            optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
            optax.polyak_sgd(),
            thorough(optax.lbfgs()),
        ),
        ids=("plateau", "polyak", "lbfgs"),
    )
    def test_that_need_the_value(self, optimizer):
        """Such optimizers work in either half."""
        trainer = make_trainer(model_optimizer=optimizer, solver_optimizer=optimizer)
        solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2, "matrix"))
        state, batch = make_state(trainer, solver), make_batch(jr.key(1))
        first = trainer.evaluate(state, batch)
        report: Any = None
        for _ in range(8):
            state, report = trainer.model_step(state, batch)
        assert report.finite and trainer.evaluate(state, batch).loss < first.loss / 2
        reference = trainer.solve_reference(state, batch)
        before = trainer.evaluate(state, batch).error
        for _ in range(8):
            state, report = trainer.solver_step(state, batch, reference)
        assert report.finite and trainer.evaluate(state, batch).error < before

    def test_missing_argument(self):
        def update(updates, state, params=None, *, noise_scale, **extra):
            return updates, state

        init: Any = lambda params: optax.EmptyState()
        optimizer = optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
        trainer = make_trainer(model_optimizer=optimizer)
        state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
        message = "needs an argument.*'noise_scale'.*passes `value`, `grad`.*Bind other"
        with pytest.raises(ValueError, match=message):
            trainer.model_step(state, make_batch(jr.key(0)))
