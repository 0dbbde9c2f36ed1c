"""Checkpoints: whole or not there, and a training that goes on to the bit."""

import json
import os
import sys
from pathlib import Path

import diffrax_speedreg as dsr
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from tools.kill_and_resume import kill_and_resume

from .helpers.training import (
    Linear,
    make_batches,
    make_state,
    make_trainer,
    ROTATION,
    same_bits,
)


@pytest.fixture(scope="module")
def trainer():
    return make_trainer()


@pytest.fixture(scope="module")
def states(trainer):
    """At the start of a training, and later."""
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    return state, dsr.fit(trainer, state, make_batches(), until=3)


def _names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.thorough
def test_killed_at_any_moment(tmp_path):
    """A process, by SIGKILL; it ends with the bits of an undisturbed one."""
    command = [sys.executable, "-m", "tests.helpers.train_linear"]
    *kills, undisturbed, killed = kill_and_resume(command, tmp_path, 3, 0.4, seed=0)
    assert len(kills) == 3
    assert len(undisturbed.split()[-1]) == 64
    assert undisturbed.split()[-1] == killed.split()[-1]


def test_round_trip(tmp_path, states):
    """Of a state, into the mere shapes of one: keys, integers, optimizers and all."""
    start, later = states
    path = tmp_path / "model.ckpt"
    dsr.save_checkpoint(path, later, dict(width=3, names=["a"]))
    assert same_bits(dsr.load_checkpoint(path, start), later)
    shapes = eqx.filter_eval_shape(lambda: start)
    assert same_bits(dsr.load_checkpoint(path, shapes), later)
    assert dsr.read_hyperparameters(path) == dict(width=3, names=["a"])
    assert _names(tmp_path) == ["model.ckpt"]


@pytest.mark.parametrize("impl", ("threefry2x32", "rbg"))
def test_leaves_of_all_kinds(tmp_path, impl):
    tree = dict(
        keys=jr.split(jr.key(1, impl=impl), 3),
        low=jnp.arange(3, dtype=jnp.bfloat16),
        wave=jnp.array(1 + 2j),
        host=np.arange(4, dtype=np.int16),
        numbers=(1, 2.5, True),
        function=jnp.tanh,
        nothing=None,
    )
    dsr.save_checkpoint(tmp_path / "tree.ckpt", tree)
    changed = dict(tree, numbers=(0, 0.0, False), host=np.zeros(4, np.int16))
    loaded = dsr.load_checkpoint(tmp_path / "tree.ckpt", changed)
    assert loaded["numbers"] == (1, 2.5, True)
    assert isinstance(loaded["host"], np.ndarray) and loaded["function"] is jnp.tanh
    assert same_bits(loaded, tree)


def test_readable_with_numpy_alone(tmp_path):
    """What it is can be told without this package, and nothing is pickled."""
    path = tmp_path / "model.ckpt"
    dsr.save_checkpoint(path, Linear(ROTATION), dict(rate=0.5))
    with open(path, "rb") as file:
        assert file.readline() == b"diffrax-speedreg checkpoint 2\n"
        assert len(file.readline()) == 65
        header = json.loads(file.readline())
        assert header["hyperparameters"] == dict(rate=0.5)
        assert header["leaves"] == [[".matrix", "float64[2, 2]"]]
        assert np.array_equal(np.load(file, allow_pickle=False), ROTATION)
        assert file.read() == b""


def test_pickles_are_refused(tmp_path, monkeypatch):
    """Even in a file whose digest is right."""
    opened = []

    class Trap:
        def __reduce__(self):
            return opened.append, (1,)

    path = tmp_path / "model.ckpt"

    def write_trap(file, tree):
        np.save(file, np.array([Trap()], object), allow_pickle=True)

    monkeypatch.setattr(eqx, "tree_serialise_leaves", write_trap)
    dsr.save_checkpoint(path, Linear(ROTATION))
    with pytest.raises(dsr.CheckpointError, match="are not plain arrays"):
        dsr.load_checkpoint(path, Linear(ROTATION))
    assert opened == []


def test_resumed_by_fit(tmp_path, trainer, states):
    start, later = states
    checkpoints = dsr.Checkpoints(tmp_path, seconds=0.0, keep=2)
    assert checkpoints.restore(start) is start
    state = dsr.fit(trainer, start, make_batches(), until=2, checkpoints=checkpoints)
    resumed = checkpoints.restore(start)
    assert same_bits(resumed, state)
    end = dsr.fit(trainer, resumed, make_batches(), until=3, checkpoints=checkpoints)
    assert same_bits(end, later)
    assert _names(tmp_path) == ["step-0000000002.ckpt", "step-0000000003.ckpt"]


def test_other_hyperparameters(tmp_path, states):
    """They may decide on the data, of which a checkpoint knows nothing."""
    start, later = states
    settings = dict(seed=0, widths=(3, 4), rate=0.1)
    dsr.Checkpoints(tmp_path, settings).save(later, 3)
    assert same_bits(dsr.Checkpoints(tmp_path, settings).restore(start), later)
    assert same_bits(dsr.Checkpoints(tmp_path).restore(start), later)
    changed = dsr.Checkpoints(tmp_path, settings | dict(seed=1, new=2))
    with pytest.warns(UserWarning, match="training with seed=0, which is not.*anew"):
        assert same_bits(changed.restore(start), later)


def test_other_settings_of_what_is_not_saved(tmp_path, recwarn):
    """A function or an order that changed is told; addresses in memory are not."""
    solver = dsr.TaylorLagrangeSolver(2)
    path = tmp_path / "solver.ckpt"
    dsr.save_checkpoint(path, (solver, lambda x: x, object()))
    dsr.load_checkpoint(path, (solver, lambda x: x, object()))
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match=r"(?s)There \(-\).*- .*degree=2.*\+ .*degree=3"
    ):
        dsr.load_checkpoint(path, (dsr.TaylorLagrangeSolver(3), lambda x: x, object()))


def test_forgotten_to_restore(tmp_path, trainer, states):
    start, later = states
    checkpoints = dsr.Checkpoints(tmp_path)
    checkpoints.save(later, 3)
    with pytest.raises(ValueError, match=r"step 3.*of step 0.*checkpoints.restore\(st"):
        dsr.fit(trainer, start, make_batches(), until=9, checkpoints=checkpoints)


def test_divergence_writes_the_last_good_state(tmp_path, states):
    trainer = make_trainer(model_optimizer=optax.sgd(1e200))
    start = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    checkpoints = dsr.Checkpoints(tmp_path)
    with pytest.raises(dsr.TrainingDiverged, match="step 2") as caught:
        dsr.fit(trainer, start, make_batches(), until=9, checkpoints=checkpoints)
    assert caught.value.state.step == 1
    assert same_bits(checkpoints.restore(start), caught.value.state)


@pytest.mark.parametrize("kind", (KeyboardInterrupt, ZeroDivisionError))
def test_anything_that_stops_a_training(tmp_path, trainer, states, kind):
    """Such as Ctrl-C, or a mistake in a callback: the steps made are kept."""
    start, later = states
    checkpoints = dsr.Checkpoints(tmp_path)

    def stop(progress):
        if progress.step == 3:
            raise kind("here")

    with pytest.raises(kind, match="here"):
        dsr.fit(
            trainer,
            start,
            make_batches(),
            until=9,
            callbacks=[stop],
            checkpoints=checkpoints,
        )
    assert same_bits(checkpoints.restore(start), later)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _empty(path):
    path.write_bytes(b"")


def _foreign(path):
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(3))


@pytest.mark.parametrize(
    "damage, message",
    (
        (_truncate, "is torn: its .* bytes are not those that were written"),
        (_flip, "is torn"),
        (_empty, "is not a checkpoint.*begins with b''"),
        (_foreign, "is not a checkpoint.*begins with b'PK"),
    ),
)
def test_damaged_file(tmp_path, states, damage, message):
    """The one before is used, and the damaged one stays where it is."""
    start, later = states
    checkpoints = dsr.Checkpoints(tmp_path, keep=1)
    checkpoints.save(later, 3)
    bad = tmp_path / "step-0000000007.ckpt"
    dsr.save_checkpoint(bad, start)
    damage(bad)
    damaged = bad.read_bytes()
    with pytest.raises(dsr.CheckpointError, match=message):
        dsr.load_checkpoint(bad, start)
    with pytest.warns(UserWarning, match=f"step-0000000007.*{message}.*An earlier"):
        assert same_bits(checkpoints.restore(start), later)
    assert checkpoints.latest_step() == 3
    checkpoints.save(later, 7)
    checkpoints.save(start, 8)
    assert bad.read_bytes() == damaged
    assert _names(tmp_path) == [bad.name, "step-0000000008.ckpt"]


def test_damaged_files_do_not_count(tmp_path, states):
    """However many later ones are torn: the good ones are not removed for them."""
    start, later = states
    checkpoints = dsr.Checkpoints(tmp_path, keep=2)
    for step in (7, 8):
        (tmp_path / f"step-{step:010d}.ckpt").write_bytes(b"torn")
    for step in (4, 5, 6):
        checkpoints.save(start if step < 6 else later, step)
    assert [int(name[5:15]) for name in _names(tmp_path)] == [5, 6, 7, 8]
    with pytest.warns(UserWarning, match="An earlier checkpoint"):
        assert same_bits(checkpoints.restore(start), later)


def test_step_back(tmp_path, states):
    """What is written now is kept, even if later steps are there."""
    checkpoints = dsr.Checkpoints(tmp_path, keep=1)
    for step in (9, 4):
        checkpoints.save(states[0], step)
    assert _names(tmp_path) == ["step-0000000004.ckpt"]


def test_many_steps(tmp_path, states):
    checkpoints = dsr.Checkpoints(tmp_path, keep=1)
    for step in (9, 10**11):
        checkpoints.save(states[0], step)
        assert checkpoints.latest_step() == step
    assert _names(tmp_path) == ["step-100000000000.ckpt"]


def test_all_are_damaged(tmp_path, states):
    (tmp_path / "step-0000000007.ckpt").write_bytes(b"something")
    with pytest.warns(UserWarning, match="not a checkpoint"):
        with pytest.raises(dsr.CheckpointError, match="None of.*is intact.*start anew"):
            dsr.Checkpoints(tmp_path).restore(states[0])


def test_of_another_model(tmp_path, trainer, states):
    start, _ = states
    checkpoints = dsr.Checkpoints(tmp_path)
    checkpoints.save(start, 1)
    solver = dsr.TaylorLagrangeSolver(1)
    other = trainer.init(Linear(jnp.zeros((3, 3))), solver, key=jr.key(0))
    message = (
        r"another model.*`state.model.matrix` is float64\[2, 2\] in the file, but "
        r"float64\[3, 3\] here, and 3 leaves differ"
    )
    with pytest.raises(dsr.CheckpointError, match=message):
        checkpoints.restore(other)


def test_of_another_precision(tmp_path):
    path = tmp_path / "model.ckpt"
    dsr.save_checkpoint(path, Linear(ROTATION))
    with pytest.raises(dsr.CheckpointError, match="float64.*float32"):
        dsr.load_checkpoint(path, Linear(ROTATION.astype(jnp.float32)))


def test_missing_file(tmp_path):
    with pytest.raises(dsr.CheckpointError, match="could not be read: No such file"):
        dsr.read_hyperparameters(tmp_path / "model.ckpt")


@pytest.mark.parametrize("value", (jnp.tanh, float("nan")))
def test_hyperparameters_that_are_not_json(tmp_path, value):
    with pytest.raises(dsr.CheckpointError, match="can't be written as JSON.*names"):
        dsr.save_checkpoint(tmp_path / "x.ckpt", jnp.zeros(2), dict(value=value))
    # Before a training, and not only when it is time for a checkpoint.
    with pytest.raises(dsr.CheckpointError, match="can't be written as JSON.*names"):
        dsr.Checkpoints(tmp_path / "run", dict(value=value))


@pytest.mark.parametrize(
    "array", (np.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float8_e4m3fn))
)
def test_dtypes_that_could_not_be_read_again(tmp_path, array):
    message = rf"`state\['x'\]` can't be written.*{array.dtype}. Convert it"
    with pytest.raises(dsr.CheckpointError, match=message):
        dsr.save_checkpoint(tmp_path / "x.ckpt", dict(x=array))
    assert _names(tmp_path) == []


needs_dev_full = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="There is no device that is always full."
)


@needs_dev_full
def test_full_disk(tmp_path, states):
    """Of the operating system's own; what is there already stays as it is."""
    start, later = states
    path = tmp_path / "model.ckpt"
    dsr.save_checkpoint(path, start)
    before = path.read_bytes()
    (tmp_path / f".model.ckpt.{os.getpid()}.unfinished").symlink_to("/dev/full")
    with pytest.raises(dsr.CheckpointError, match="No space left on device.*Make room"):
        dsr.save_checkpoint(path, later)
    assert path.read_bytes() == before and _names(tmp_path) == ["model.ckpt"]


def test_read_only_disk(tmp_path, monkeypatch):
    """Nothing can be removed there either; that is the same error."""

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(dsr.CheckpointError, match="Read-only.*Make room, or choose"):
        dsr.save_checkpoint(tmp_path / "model.ckpt", jnp.zeros(2))


def test_full_disk_for_a_while(tmp_path, monkeypatch, trainer, states):
    """Training goes on, and at the end everything is written."""
    start, later = states
    fsync, calls = os.fsync, 0

    def full_twice(descriptor):
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_twice)
    checkpoints = dsr.Checkpoints(tmp_path, seconds=0.0)
    with pytest.warns(UserWarning, match="No space left.*training goes on"):
        dsr.fit(trainer, start, make_batches(), until=3, checkpoints=checkpoints)
    assert same_bits(checkpoints.restore(start), later)


def test_full_disk_to_the_end(tmp_path, monkeypatch, trainer, states):
    start, later = states

    def full(descriptor):
        raise OSError(28, "No space left on device")

    checkpoints = dsr.Checkpoints(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(dsr.CheckpointError, match="No space left") as caught:
        dsr.fit(trainer, start, make_batches(), until=3, checkpoints=checkpoints)
    assert same_bits(caught.value.state, later)
    assert _names(tmp_path) == []


def test_bad_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dsr.CheckpointError, match="could not be made.*Choose another"):
        dsr.Checkpoints(tmp_path / "file" / "run")


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="`seconds` must not be negative.*-1"):
        dsr.Checkpoints(tmp_path, seconds=-1.0)
    with pytest.raises(ValueError, match="`keep` must be a positive integer.*0"):
        dsr.Checkpoints(tmp_path, keep=0)
