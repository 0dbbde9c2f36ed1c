"""A user's own learned solver, and equations with arguments by sample."""

from collections.abc import Callable
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
    make_reference,
    make_state,
    make_trainer,
    same_bits,
    solve,
)


class _HeunWithGain(dsr.AbstractLearnedSolver):
    """A user's own learned solver: Heun's method with a learned gain of its step."""

    gain: jax.Array
    scale: jax.Array  # Not learned.

    term_structure: Any = eqx.field(static=True, default=dfx.AbstractTerm)
    interpolation_cls: Any = eqx.field(
        static=True, default=dfx.LocalLinearInterpolation
    )

    @property
    def learned(self):
        return self.gain

    def evaluations(self, adaptive):
        return 0, 2

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        control = terms.contr(t0, t1)
        first = terms.vf_prod(t0, y0, args, control)
        second = terms.vf_prod(t1, y0 + first, args, control)
        y1 = y0 + self.scale * (first + self.gain * second) / 2
        return y1, None, dict(y0=y0, y1=y1), None, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


class TestOwnSolver:
    def test_is_trained_and_counted(self):
        solver = _HeunWithGain(jnp.array(1.2), jnp.array(1.0))
        trainer = make_trainer(solver_optimizer=optax.adam(2e-2))
        state, batch = make_state(trainer, solver), make_batch(jr.key(1))
        first = trainer.evaluate(state, batch).error
        for _ in range(50):
            reference = trainer.solve_reference(state, batch)
            state, report = trainer.solver_step(state, batch, reference)
        assert trainer.evaluate(state, batch).error < 0.9 * first
        trained: Any = state.solver
        assert trained.gain != 1.2 and trained.scale == 1.0
        solution = solve(state.model, trained, batch)
        assert dsr.nfe(trained, solution) == 4

    def test_within_another(self):
        """Only the learned part of the wrapped solver is trained."""
        inner = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
        trainer = make_trainer()
        state = make_state(trainer, dsr.ErrorRegularizedSolver(inner))
        assert trainer.trains_solver(state)
        batch = make_batch(jr.key(1))
        reference = trainer.solve_reference(state, batch)
        after, _ = trainer.solver_step(state, batch, reference)
        factors = [s.solver.solver.midpoint.factors for s in (state, after)]
        assert not np.array_equal(*factors)


class TestConditional:
    """Equations with arguments that differ from sample to sample."""

    @staticmethod
    def _rates(size=32):
        keys = jr.split(jr.key(5), 2)
        y0 = jr.normal(keys[0], (size, 2))
        return y0, dict(rate=jr.uniform(keys[1], (size, 1), minval=0.5, maxval=3.0))

    @staticmethod
    def _equation(batch, y1=None):
        y0, args = batch
        term = dfx.ODETerm(lambda t, y, args: -args["rate"] * y)
        return dsr.training.InitialValueProblem(term, y0, 0.0, 1.0, args, y1)

    def _solver(self):
        midpoint = dsr.MidpointMLP(
            *(2, "elementwise", "args"),
            depth=1,
            args=dict(rate=jnp.ones(1)),
            key=jr.key(0),
        )
        return dsr.TaylorLagrangeSolver(1, midpoint)

    def _fit(self, equation: Callable, batch):
        return dsr.training.fit_solver(
            self._solver(),
            equation,
            lambda key, step: batch,
            num_steps=40,
            solver_steps=10,
            optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 400)),
            reference=make_reference(1, rtol=1e-8, atol=1e-8),
        )

    def test_midpoints_that_see_the_arguments(self):
        """Each rate has another exact midpoint."""
        fitted = self._fit(self._equation, self._rates())
        # A midpoint without these inputs reaches 0.036.
        assert fitted.errors[-1] < 1e-3

    def test_given_pairs(self):
        """There is no reference solve, which would fail here."""
        y0, args = self._rates()
        y1 = y0 * jnp.exp(-args["rate"])

        problem = self._equation((y0, args), y1)
        reference = make_reference(1, max_steps=1).solve(problem)
        assert same_bits(reference.y1[0], y1) and reference.outcome is None
        fitted = self._fit(lambda b: self._equation(b[0], b[1]), ((y0, args), y1))
        assert fitted.errors[-1] < 1e-3

    def test_pairs_have_no_states_between_steps(self):
        problem = self._equation(self._rates(), self._rates()[0])
        with pytest.raises(ValueError, match="per_step=True.*y1=.*Use `per_step=False"):
            make_reference(2, per_step=True).solve(problem)

    def test_pairs_of_other_shapes(self, without_type_checks):
        y0, args = self._rates()
        for y1 in (y0[0], y0[:, :1], jnp.array(0.0)):
            problem = self._equation((y0, args), y1)
            with pytest.raises(ValueError, match="given `y1` must have arrays of the"):
                make_reference(1).solve(problem)

    def test_arguments_of_another_batch(self):
        y0, args = self._rates()
        args = dict(rate=args["rate"][:5])
        term = dfx.ODETerm(lambda t, y, args: -y)
        message = r"leading axes \(5,\), but the state has \(32,\). Pass arguments for"
        with pytest.raises(ValueError, match=message):
            dsr.fixed_step_solve(term, self._solver(), 0.0, 1.0, 1, y0, args)

    def test_arguments_that_all_samples_share(self):
        y0, _ = self._rates()
        shared, each = (dict(rate=jnp.ones(n)) for n in ((1,), (len(y0), 1)))
        term = dfx.ODETerm(lambda t, y, args: -y)

        def final(args):
            solver = eqx.tree_at(
                lambda s: s.midpoint.mlp.layers[-1].bias, self._solver(), jnp.ones(2)
            )
            return dsr.fixed_step_solve(term, solver, 0.0, 1.0, 1, y0, args).ys

        assert same_bits(final(shared), final(each))

    def test_arguments_to_size_the_network_by(self):
        with pytest.raises(ValueError, match=r"sees `args`, but got none.*args=\.\.\."):
            dsr.MidpointMLP(2, inputs=("y", "args"), key=jr.key(0))
