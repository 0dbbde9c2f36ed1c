"""The experiments' trainings: stopped, and taken up from their checkpoints."""

from argparse import Namespace

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from experiments import command_line
from experiments.training import Recorder, train_adaptively, train_alternating

from .helpers.training import (
    Linear,
    loss,
    make_batch,
    make_trainer,
    ROTATION,
    same_bits,
)


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

_epochs, _per_epoch = 3, 4


class _Stopped(Exception):
    pass


def _batches(stop_at):
    def batches(step):
        if step == stop_at:
            raise _Stopped("as asked for")
        return make_batch(jr.fold_in(jr.key(7), step))

    return batches


def _count(model):
    """Some number that tells models apart."""
    return jnp.round(1e6 * jnp.abs(model.matrix[0, 0]))


def _noisy_loss(model, batch, key):
    """One step of Euler's method, with noise that depends on the key."""
    x, _ = batch
    y1 = x + model(0.0, x, None) + 0.01 * jr.normal(key, x.shape)
    return loss(model, y1, batch)


def _adaptively(record, stop_at):
    return train_adaptively(
        _noisy_loss,
        Linear(ROTATION + 0.3),
        _batches(stop_at),
        optax.sgd(1e-2, momentum=0.9),
        record,
        key=jr.key(1),
    )


# One for all tests, whose steps are compiled once.
_trainer = make_trainer(reference_solver=dfx.Heun(), reference_tolerance=1e-3)


def _alternating(record, stop_at):
    return train_alternating(
        _trainer,
        Linear(ROTATION + 0.3),
        dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2)),
        _batches(stop_at),
        record,
        key=jr.key(1),
        remainder_every=3,
    )


def _record(checkpoints=None):
    return Recorder("test", _epochs, _per_epoch, _count, checkpoints)


@pytest.mark.parametrize("train", (_adaptively, _alternating))
# At the start, within an epoch (after a remainder step, too), and at its end.
@pytest.mark.parametrize("stops", ([0], [2], [3, 6], [8]))
def test_same_bits_and_curves(train, stops, tmp_path):
    undisturbed = _record()
    expected = train(undisturbed, None)
    for stop in stops:
        with pytest.raises(_Stopped, match="as asked"):
            train(_record(dsr.Checkpoints(tmp_path, seconds=0.0)), stop)
    record = _record(dsr.Checkpoints(tmp_path, seconds=0.0))
    assert same_bits(train(record, None), expected)
    assert record.loss_by_epoch == undisturbed.loss_by_epoch
    assert record.nfe == undisturbed.nfe
    assert len(set(record.nfe)) == _epochs
    assert len(record.seconds) == _epochs * _per_epoch
    assert min(record.seconds) > 0


@pytest.mark.parametrize("train", (_adaptively, _alternating))
def test_nothing_left_to_train(train, tmp_path):
    first, again = (_record(dsr.Checkpoints(tmp_path)) for _ in range(2))
    trained = train(first, None)
    assert same_bits(train(again, 0), trained)
    assert (again.seconds, again.nfe) == (first.seconds, first.nfe)


def test_checkpoints_of_a_minute_only(tmp_path):
    checkpoints = dsr.Checkpoints(tmp_path)
    with pytest.raises(_Stopped, match="as asked"):
        _adaptively(_record(checkpoints), 9)
    assert checkpoints.latest_step() is None
    _adaptively(_record(checkpoints), None)
    assert checkpoints.latest_step() == _epochs * _per_epoch


def test_unwritable_checkpoint_is_a_warning(tmp_path):
    record = Recorder("test", 1, 1, _count, dsr.Checkpoints(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    with pytest.warns(UserWarning, match="could not be written"):
        record(Linear(ROTATION), 1.0, Linear(ROTATION))
    assert record.step == 1


def test_model_that_is_not_finite_after_the_last_step():
    def diverging(model, batch, key):
        # The value is finite, and the gradient is not.
        return jnp.sqrt(jnp.sum(model.matrix * 0.0))

    with pytest.raises(dsr.TrainingDiverged, match="model is not finite after step 1"):
        train_adaptively(
            diverging,
            Linear(ROTATION),
            _batches(None),
            optax.sgd(1.0),
            Recorder("test", 1, 1, _count),
            key=jr.key(0),
        )


def _options(folder, **others):
    given = dict(seed=0, regularization=0.1, resume=True, output=folder)
    return Namespace(**(given | others))


def test_folders_of_checkpoints(tmp_path, capsys):
    """The same ones for what computes the same, and no others."""
    first = command_line.checkpoints(_options(tmp_path), "toy plain")
    assert "no checkpoints with these options" in capsys.readouterr().out
    state = np.arange(3.0)
    first.save(state, 5)
    again = command_line.checkpoints(_options(tmp_path), "toy plain")
    np.testing.assert_array_equal(again.restore(np.zeros(3)), state)
    assert capsys.readouterr().out == ""
    others = [
        command_line.checkpoints(_options(tmp_path, seed=1), "toy plain"),
        command_line.checkpoints(_options(tmp_path, regularization=0.2), "toy plain"),
        command_line.checkpoints(_options(tmp_path), "toy speed"),
    ]
    assert [other.latest_step() for other in others] == [None] * 3


def test_without_resume_from_the_start(tmp_path):
    command_line.checkpoints(_options(tmp_path), "toy plain").save(np.zeros(3), 5)
    anew = _options(tmp_path, resume=False)
    assert command_line.checkpoints(anew, "toy plain").latest_step() is None
