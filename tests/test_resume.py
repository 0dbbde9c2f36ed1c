"""Training runs of the experiments: stopped, and resumed from their checkpoints."""

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from experiments import record
from experiments.config import Options
from experiments.training import KEPT, Run, train

from .helpers.training import Linear, make_batch, ROTATION, same_bits


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

_epochs, _per_epoch = 3, 4


class _Stopped(Exception):
    pass


def _batches(stop_at):
    """Batches with a random key, for a loss with noise."""

    def batches(key, step):
        if step == stop_at:
            raise _Stopped("as asked for")
        return *make_batch(jr.fold_in(jr.key(7), step)), jr.fold_in(key, step)

    return batches


def _count(model, solver):
    """Computes a number that distinguishes models."""
    return jnp.round(1e6 * jnp.abs(model.matrix[0, 0]))


def _noisy_loss(model, solver, batch):
    """Loss by one step of Euler's method, with noise that depends on the key."""
    x, y, key = batch
    y1 = x + model(0.0, x, None) + 0.01 * jr.normal(key, x.shape)
    return jnp.mean((y1 - y) ** 2)


def _loss(model, solver, batch):
    x, y, _ = batch
    solution = dsr.fixed_step_solve(dfx.ODETerm(model), solver, 0.0, 1.0, 2, x)
    assert solution.ys is not None
    return jnp.mean((solution.ys[-1] - y) ** 2)


# One for all tests, whose steps are compiled once.
_plain = dsr.training.Trainer(_noisy_loss, optax.sgd(1e-2, momentum=0.9))
_alternating = dsr.training.Trainer(
    _loss,
    optax.adam(2e-2),
    lambda model, batch: dsr.training.InitialValueProblem(dfx.ODETerm(model), batch[0]),
    optax.adam(1e-2),
    dsr.training.Reference(2, dfx.Heun(), rtol=1e-3, atol=1e-3),
)
_taylor = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
_ways = {
    "plain": (_plain, None, {}),
    "alternating": (_alternating, _taylor, dict(solver_every=3)),
    "in rounds": (
        _alternating,
        _taylor,
        dict(solver_every=3, steps_per_round=2, scan=True),
    ),
}


def _train(way, folder, stop_at=None, restart=False):
    trainer, solver, fit = _ways[way]
    return train(
        Run(record.new("toy", way, 1, {}), Options(output=folder, restart=restart)),
        trainer,
        Linear(ROTATION + 0.3),
        solver,
        _batches(stop_at),
        _count,
        epochs=_epochs,
        per_epoch=_per_epoch,
        **fit,
    )


@pytest.mark.parametrize("way", _ways)
# Stops at the start, within an epoch (after solver steps, too), and at its end.
@pytest.mark.parametrize("stops", ([0], [2], [3, 6], [8]))
def test_same_bits_and_curves(way, stops, tmp_path):
    expected = _train(way, tmp_path / "undisturbed")
    for stop in stops:
        with pytest.raises(_Stopped, match="as asked"):
            _train(way, tmp_path, stop)
    trained = _train(way, tmp_path)
    assert same_bits((trained.model, trained.solver), (expected.model, expected.solver))
    curves, undisturbed = trained.curves, expected.curves
    np.testing.assert_array_equal(curves.losses, undisturbed.losses)
    np.testing.assert_array_equal(curves.counts, undisturbed.counts)
    assert len(set(curves.counts)) == _epochs
    # Models are kept, to be timed.
    assert len(list(tmp_path.glob("checkpoints/*/epoch-*.model"))) == KEPT
    # There is nothing left to train, except from the start.
    assert same_bits(_train(way, tmp_path, stop_at=0).model, trained.model)
    with pytest.raises(_Stopped, match="as asked"):
        _train(way, tmp_path, 0, restart=True)
