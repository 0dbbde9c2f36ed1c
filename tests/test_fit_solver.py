from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from .helpers import tree_allclose
from .helpers.solves import final_state, solve_adaptive, solve_fixed
from .helpers.training import make_reference, same_bits


_matrix = jnp.array([[-2.0, 1.0], [0.5, -3.0]])
_term = dfx.ODETerm(lambda t, y, args: y @ _matrix.T)


def _equation(y0):
    return dsr.training.InitialValueProblem(_term, y0, 0.0, 0.5)


def _batches(key, step):
    return jr.uniform(jr.fold_in(key, step), (20, 2), minval=-1, maxval=1)


def _fit(solver, num_steps=3, batches=_batches, **options):
    defaults: dict[str, Any] = dict(
        optimizer=optax.adam(1e-2), reference=make_reference(1)
    )
    return dsr.training.fit_solver(
        solver, _equation, batches, num_steps=num_steps, **(defaults | options)
    )


@pytest.mark.parametrize(
    "make",
    (
        lambda midpoint: dsr.TaylorLagrangeSolver(1, midpoint),
        lambda midpoint: dsr.HyperSolver(dfx.Euler(), midpoint),
    ),
)
def test_linear_equation(make):
    """A constant matrix makes one step exact, also outside of the training box."""
    fitted = _fit(
        make(dsr.ConstantMidpoint(2, "matrix")),
        100,
        optimizer=optax.adam(optax.exponential_decay(0.1, 400, 1e-3)),
        key=jr.key(1),
    )
    errors = fitted.errors
    assert errors.shape == (100,) and errors[-1] < 1e-3 * errors[0]
    problem = _equation(5 * jr.normal(jr.key(1), (20, 2)))
    y1 = final_state(solve_fixed(problem, fitted.solver, 1))
    exact = final_state(solve_adaptive(problem, dfx.Dopri8(), 1e-10))
    assert tree_allclose(y1, exact, rtol=1e-3, atol=1e-3)


def test_comparison_with_runge_kutta_methods():
    """The errors on a held-out batch, with no more evaluations, are those by hand."""
    fitted = _fit(dsr.TaylorLagrangeSolver(2, dsr.ConstantMidpoint(2)))
    assert fitted.nfe == 3
    # With three evaluations, Euler's method makes three steps. Bosh3 needs four.
    assert set(fitted.runge_kutta) == {"Euler", "Heun", "Midpoint", "Ralston"}
    problem = _equation(_batches(jr.key(0), 3))
    exact = final_state(solve_adaptive(problem, dfx.Dopri8(), 1e-10))

    def error(solver, num_steps):
        y1 = final_state(solve_fixed(problem, solver, num_steps))
        return float(jnp.mean(jnp.abs(y1 - exact)))

    assert fitted.error == pytest.approx(error(fitted.solver, 1), rel=1e-3)
    assert fitted.runge_kutta["Euler"] == pytest.approx(error(dfx.Euler(), 3), rel=1e-3)
    assert fitted.runge_kutta["Heun"] == pytest.approx(error(dfx.Heun(), 1), rel=1e-3)
    errors = list(fitted.runge_kutta.values())
    assert errors == sorted(errors)


def test_validation_and_progress():
    seen = []
    held_out = jnp.ones((4, 2))
    fitted = _fit(
        dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2)),
        4,
        validation=held_out,
        validate_every=2,
        callbacks=[seen.append],
    )
    values = [progress.validation.get("validation") for progress in seen]
    assert values[0] is None and values[1] == values[2] != values[3]
    assert fitted.error == pytest.approx(float(values[3]), rel=1e-6)
    losses = [progress.losses[-1] for progress in seen]
    np.testing.assert_array_equal(fitted.errors, losses)


def test_resumption(tmp_path):
    """A resumed run has the bits, and the curve, of an undisturbed run."""
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    undisturbed = _fit(solver, 5)

    def batches(key, step):
        if step == 3:
            raise KeyboardInterrupt("here")
        return _batches(key, step)

    checkpoints = dsr.training.Checkpoints(tmp_path, seconds=0.0)
    with pytest.raises(KeyboardInterrupt, match="here"):
        _fit(solver, 5, batches, checkpoints=checkpoints)
    assert checkpoints.latest_step() == 3
    resumed = _fit(solver, 5, checkpoints=checkpoints)
    assert same_bits(resumed.solver, undisturbed.solver)
    np.testing.assert_array_equal(resumed.errors, undisturbed.errors)


def test_several_steps_for_each_reference():
    """Several steps are the default, and share one reference solve."""
    solves = 0

    def equation(y0):
        def count():
            nonlocal solves
            solves += 1

        jax.debug.callback(count)
        return _equation(y0)

    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    trainer = dsr.training.Trainer(
        *(None, None, lambda model, batch: equation(batch)),
        *(optax.adam(1e-2), make_reference(1)),
    )
    state = trainer.init(None, solver, key=jr.key(0))
    state = dsr.training.fit(trainer, state, _batches, num_steps=2)
    jax.effects_barrier()
    assert solves == 2 * (1 + 4)
    count = optax.tree_utils.tree_get(state.solver_opt_state, "count")
    assert count == 8 and state.step == 2


def test_nothing_to_learn():
    with pytest.raises(ValueError, match="nothing to train in the solver"):
        _fit(dsr.TaylorLagrangeSolver(2))


@pytest.mark.parametrize("num_steps", (1, 3))
def test_divergence(num_steps):
    """Divergence is found in the last step, too, which no other error follows."""
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    with pytest.raises(
        dsr.training.TrainingDiverged, match="error of the solver is.*at step 1"
    ):
        _fit(solver, num_steps, optimizer=optax.sgd(jnp.inf))


@pytest.mark.thorough
def test_arguments_that_differ_by_sample():
    """The `args` have a condition of each sample, such as a label: y' = -rate * y."""
    term = dfx.ODETerm(lambda t, y, args: -args[:, None] * y)

    def equation(batch):
        y0, rates = batch
        return dsr.training.InitialValueProblem(term, y0, 0.0, 0.5, rates)

    def batches(key, step):
        keys = jr.split(jr.fold_in(key, step))
        return jr.normal(keys[0], (16, 2)), jr.uniform(keys[1], (16,))

    midpoint = dsr.MidpointMLP(
        2, inputs=("dt", "args"), args=jnp.zeros(()), key=jr.key(0)
    )
    fitted = dsr.training.fit_solver(
        *(dsr.TaylorLagrangeSolver(1, midpoint), equation, batches),
        num_steps=5,
        solver_steps=40,
        optimizer=optax.adam(1e-2),
        reference=make_reference(1),
    )
    assert fitted.error < min(fitted.runge_kutta.values()) / 10


@pytest.mark.parametrize(
    "options, message",
    (
        (dict(optimizer=optax.adam), r"`optimizer` must .*call it: `adam\(...\)`"),
        (dict(optimizer=None), "`optimizer` must be an Optax optimizer.*got None"),
        (dict(batches=[jnp.ones((4, 2))]), r"`batches` must be a function `\(key, st"),
        (dict(reference=2), "`reference` must be a `Reference`"),
        (dict(num_steps=0), "`num_steps` must be a positive integer"),
        (dict(checkpoints="run"), "`checkpoints` must be a `Checkpoints`"),
        (dict(key=0), "`key` must be one random key"),
    ),
)
def test_arguments_that_are_something_else(options, message, without_type_checks):
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    with pytest.raises(ValueError, match=message):
        _fit(solver, **options)
