"""Checkpoints: written completely or not at all, and resumed bit by bit."""

import json
import os
import sys
from pathlib import Path
from typing import Any

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
    """States at the start of a training, and later."""
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    return state, dsr.training.fit(trainer, state, make_batches(), num_steps=3)


def _names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.thorough
def test_killed_at_any_moment(tmp_path):
    """A killed process resumes, and ends with the bits of an undisturbed one."""
    command = [sys.executable, "-m", "tests.helpers.train_linear"]
    *kills, undisturbed, killed = kill_and_resume(command, tmp_path, 3, 0.4, seed=0)
    assert len(kills) == 3
    assert len(undisturbed.split()[-1]) == 64
    assert undisturbed.split()[-1] == killed.split()[-1]


def test_round_trip(tmp_path, states):
    """A state is loaded into its shapes: keys, integers, optimizers and the rest."""
    start, later = states
    path = tmp_path / "model.ckpt"
    dsr.training.save_checkpoint(path, later, dict(width=3, names=["a"]))
    assert same_bits(dsr.training.load_checkpoint(path, start), later)
    shapes = eqx.filter_eval_shape(lambda: start)
    assert same_bits(dsr.training.load_checkpoint(path, shapes), later)
    assert _names(tmp_path) == ["model.ckpt"]


@pytest.mark.parametrize("impl", ("threefry2x32", "rbg"))
def test_leaves_of_all_kinds(tmp_path, impl):
    tree: Any = dict(
        keys=jr.split(jr.key(1, impl=impl), 3),
        low=jnp.arange(3, dtype=jnp.bfloat16),
        wave=jnp.array(1 + 2j),
        host=np.arange(4, dtype=np.int16),
        words=np.array(["a", "bc"]),
        dates=np.array(["2020-01-01"], "datetime64[D]"),
        rows=np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
        scalars=(np.float16(1.5), np.timedelta64(3, "s"), np.bool_(True)),
        empty=(jnp.zeros((0, 3)), np.zeros((2, 0)), np.array(2.0)),
        numbers=(1, 2.5, True),
        function=jnp.tanh,
        nothing=None,
    )
    dsr.training.save_checkpoint(tmp_path / "tree.ckpt", tree)
    changed = dict(
        tree,
        numbers=(0, 0.0, False),
        host=np.zeros(4, np.int16),
        scalars=(np.float16(0), np.timedelta64(0, "s"), np.bool_(False)),
    )
    loaded = dsr.training.load_checkpoint(tmp_path / "tree.ckpt", changed)
    assert loaded["numbers"] == (1, 2.5, True)
    assert loaded["scalars"] == tree["scalars"]
    assert loaded["scalars"][1].dtype == "timedelta64[s]"
    assert isinstance(loaded["host"], np.ndarray) and loaded["function"] is jnp.tanh
    assert same_bits(loaded, tree)


@pytest.mark.parametrize(
    "number", (2**63, -(2**63), -(2**63) - 1, 2**64, 2**128 - 1, -(10**40))
)
def test_large_integers(tmp_path, number):
    """Large integers, such as the entropy of a `SeedSequence`, are not pickled."""
    path = tmp_path / "seed.ckpt"
    dsr.training.save_checkpoint(path, dict(seed=number))
    loaded = dsr.training.load_checkpoint(path, dict(seed=0))["seed"]
    assert type(loaded) is int and loaded == number


def test_readable_with_numpy_alone(tmp_path):
    """A file can be read without this package, and nothing is pickled."""
    path = tmp_path / "model.ckpt"
    dsr.training.save_checkpoint(path, Linear(ROTATION), dict(rate=0.5))
    with open(path, "rb") as file:
        assert file.readline() == b"diffrax-speedreg checkpoint 3\n"
        assert len(file.readline()) == 65
        header = json.loads(file.readline())
        assert header["metadata"] == dict(rate=0.5)
        assert header["leaves"] == [[".matrix", "float64[2, 2]"]]
        assert np.array_equal(np.load(file, allow_pickle=False), ROTATION)
        assert file.read() == b""


def test_pickles_are_refused(tmp_path, monkeypatch):
    """A pickle is refused even in a file with a correct digest."""
    opened = []

    class Trap:
        def __reduce__(self):
            return opened.append, (1,)

    path = tmp_path / "model.ckpt"

    def write_trap(file, tree):
        np.save(file, np.array([Trap()], object), allow_pickle=True)

    monkeypatch.setattr(eqx, "tree_serialise_leaves", write_trap)
    dsr.training.save_checkpoint(path, Linear(ROTATION))
    with pytest.raises(dsr.training.CheckpointError, match="are not plain arrays"):
        dsr.training.load_checkpoint(path, Linear(ROTATION))
    assert opened == []


def test_resumed_by_fit(tmp_path, trainer, states):
    start, later = states
    checkpoints = dsr.training.Checkpoints(tmp_path, seconds=0.0, keep=2)
    assert checkpoints.restore(start) is start
    state = dsr.training.fit(
        trainer, start, make_batches(), num_steps=2, checkpoints=checkpoints
    )
    resumed = checkpoints.restore(start)
    assert same_bits(resumed, state)
    end = dsr.training.fit(
        trainer, resumed, make_batches(), num_steps=3, checkpoints=checkpoints
    )
    assert same_bits(end, later)
    assert _names(tmp_path) == ["step-0000000002.ckpt", "step-0000000003.ckpt"]


def test_other_metadata(tmp_path, states):
    """Metadata may determine the data, which are not in a checkpoint."""
    start, later = states
    settings = dict(seed=0, widths=(3, 4), rate=0.1)
    dsr.training.Checkpoints(tmp_path, settings).save(later, 3)
    assert same_bits(dsr.training.Checkpoints(tmp_path, settings).restore(start), later)
    assert same_bits(dsr.training.Checkpoints(tmp_path).restore(start), later)
    changed = dsr.training.Checkpoints(tmp_path, settings | dict(seed=1, new=2))
    message = "`seed` was 0, and is 1; `new` was not there, and is 2. To start again"
    with pytest.warns(UserWarning, match=message):
        assert same_bits(changed.restore(start), later)


@pytest.mark.parametrize(
    "then, now, message",
    (
        (dict(a=1), dict(b=1), "`a` was 1, and is not there; `b` was not there, and"),
        (dict(a=1), dict(a=1, b=2), "metadata: `b` was not there, and is 2. To"),
        (dict(a=1, b=2), dict(a=1), "metadata: `b` was 2, and is not there. To"),
        (dict(), dict(a=None), "`a` was not there, and is None"),
        (dict(a=dict(b=1)), dict(a=dict(b=2)), "`a` was {'b': 1}, and is {'b': 2}"),
    ),
)
def test_metadata_that_differ_in_any_way(tmp_path, then, now, message):
    dsr.training.Checkpoints(tmp_path, then).save(dict(x=1.0), 1)
    with pytest.warns(UserWarning, match=message) as caught:
        dsr.training.Checkpoints(tmp_path, now).restore(dict(x=0.0))
    assert len(caught) == 1


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("step", (-1, 1.5, True))
def test_steps_that_are_none(tmp_path, step):
    checkpoints = dsr.training.Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=f"`step` must be an integer, at.*got {step}"):
        checkpoints.save(dict(x=1.0), step)
    checkpoints.save(dict(x=1.0), 0)
    assert checkpoints.latest_step() == 0


def test_other_settings_of_what_is_not_saved(tmp_path, recwarn):
    """A warning names a function or an order that changed, but no memory address."""
    solver = dsr.TaylorLagrangeSolver(2)
    path = tmp_path / "solver.ckpt"
    dsr.training.save_checkpoint(path, (solver, lambda x: x, object()))
    dsr.training.load_checkpoint(path, (solver, lambda x: x, object()))
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match=r"(?s)There \(-\).*- .*degree=2.*\+ .*degree=3"
    ):
        dsr.training.load_checkpoint(
            path, (dsr.TaylorLagrangeSolver(3), lambda x: x, object())
        )


def test_forgotten_to_restore(tmp_path, trainer, states):
    start, later = states
    checkpoints = dsr.training.Checkpoints(tmp_path)
    checkpoints.save(later, 3)
    with pytest.raises(ValueError, match=r"step 3.*of step 0.*checkpoints.restore\(st"):
        dsr.training.fit(
            trainer, start, make_batches(), num_steps=9, checkpoints=checkpoints
        )


def test_divergence_writes_the_last_good_state(tmp_path, states):
    trainer = make_trainer(model_optimizer=optax.sgd(1e200))
    start = make_state(trainer, dsr.TaylorLagrangeSolver(1))
    checkpoints = dsr.training.Checkpoints(tmp_path)
    with pytest.raises(dsr.training.TrainingDiverged, match="step 2") as caught:
        dsr.training.fit(
            trainer, start, make_batches(), num_steps=9, checkpoints=checkpoints
        )
    assert caught.value.state.step == 1
    assert same_bits(checkpoints.restore(start), caught.value.state)


@pytest.mark.parametrize("kind", (KeyboardInterrupt, ZeroDivisionError))
def test_anything_that_stops_a_training(tmp_path, trainer, states, kind):
    """After Ctrl-C, or a mistake in a callback, the steps made are kept."""
    start, later = states
    checkpoints = dsr.training.Checkpoints(tmp_path)

    def stop(progress):
        if progress.step == 3:
            raise kind("here")

    with pytest.raises(kind, match="here"):
        dsr.training.fit(
            trainer,
            start,
            make_batches(),
            num_steps=9,
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
        (_truncate, "is corrupt: its .* bytes are not those that were written"),
        (_flip, "is corrupt"),
        (_empty, "is not a checkpoint.*begins with b''"),
        (_foreign, "is not a checkpoint.*begins with b'PK"),
    ),
)
def test_damaged_file(tmp_path, states, damage, message):
    """The file before is used, and the damaged one stays in place."""
    start, later = states
    checkpoints = dsr.training.Checkpoints(tmp_path, keep=1)
    checkpoints.save(later, 3)
    bad = tmp_path / "step-0000000007.ckpt"
    dsr.training.save_checkpoint(bad, start)
    damage(bad)
    damaged = bad.read_bytes()
    with pytest.raises(dsr.training.CheckpointError, match=message):
        dsr.training.load_checkpoint(bad, start)
    with pytest.warns(UserWarning, match=f"step-0000000007.*{message}.*An earlier"):
        assert same_bits(checkpoints.restore(start), later)
    assert checkpoints.latest_step() == 3
    checkpoints.save(later, 7)
    checkpoints.save(start, 8)
    assert bad.read_bytes() == damaged
    assert _names(tmp_path) == [bad.name, "step-0000000008.ckpt"]


def test_damaged_files_do_not_count(tmp_path, states):
    """Good files are not removed, even if many later ones are damaged."""
    start, later = states
    checkpoints = dsr.training.Checkpoints(tmp_path, keep=2)
    for step in (7, 8):
        (tmp_path / f"step-{step:010d}.ckpt").write_bytes(b"torn")
    for step in (4, 5, 6):
        checkpoints.save(start if step < 6 else later, step)
    assert [int(name[5:15]) for name in _names(tmp_path)] == [5, 6, 7, 8]
    with pytest.warns(UserWarning, match="An earlier checkpoint"):
        assert same_bits(checkpoints.restore(start), later)


def test_step_back(tmp_path, states):
    """A new checkpoint is kept, even if there are checkpoints of later steps."""
    checkpoints = dsr.training.Checkpoints(tmp_path, keep=1)
    for step in (9, 4):
        checkpoints.save(states[0], step)
    assert _names(tmp_path) == ["step-0000000004.ckpt"]


def test_many_steps(tmp_path, states):
    checkpoints = dsr.training.Checkpoints(tmp_path, keep=1)
    for step in (9, 10**11):
        checkpoints.save(states[0], step)
        assert checkpoints.latest_step() == step
    assert _names(tmp_path) == ["step-100000000000.ckpt"]


def test_all_are_damaged(tmp_path, states):
    (tmp_path / "step-0000000007.ckpt").write_bytes(b"something")
    with pytest.warns(UserWarning, match="not a checkpoint"):
        with pytest.raises(
            dsr.training.CheckpointError, match="None of.*is intact.*start again"
        ):
            dsr.training.Checkpoints(tmp_path).restore(states[0])


def test_of_another_model(tmp_path, trainer, states):
    start, _ = states
    checkpoints = dsr.training.Checkpoints(tmp_path)
    checkpoints.save(start, 1)
    solver = dsr.TaylorLagrangeSolver(1)
    other = trainer.init(Linear(jnp.zeros((3, 3))), solver, key=jr.key(0))
    message = (
        r"another model.*`state.model.matrix` is float64\[2, 2\] in the file, but "
        r"float64\[3, 3\] here, and 3 leaves differ"
    )
    with pytest.raises(dsr.training.CheckpointError, match=message):
        checkpoints.restore(other)


def test_of_another_precision(tmp_path):
    path = tmp_path / "model.ckpt"
    dsr.training.save_checkpoint(path, Linear(ROTATION))
    with pytest.raises(dsr.training.CheckpointError, match="float64.*float32"):
        dsr.training.load_checkpoint(path, Linear(ROTATION.astype(jnp.float32)))


def test_missing_file(tmp_path):
    with pytest.raises(
        dsr.training.CheckpointError, match="could not be read: No such file"
    ):
        dsr.training.load_checkpoint(tmp_path / "model.ckpt", Linear(ROTATION))


@pytest.mark.parametrize("value", (jnp.tanh, float("nan")))
def test_hyperparameters_that_are_not_json(tmp_path, value):
    with pytest.raises(
        dsr.training.CheckpointError, match="can't be written as JSON.*names"
    ):
        dsr.training.save_checkpoint(
            tmp_path / "x.ckpt", jnp.zeros(2), dict(value=value)
        )
    # The error comes before the training, and not at the first checkpoint.
    with pytest.raises(
        dsr.training.CheckpointError, match="can't be written as JSON.*names"
    ):
        dsr.training.Checkpoints(tmp_path / "run", dict(value=value))


@pytest.mark.parametrize(
    "array", (np.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float8_e4m3fn))
)
def test_dtypes_that_could_not_be_read_again(tmp_path, array):
    message = rf"`state\['x'\]` can't be written.*{array.dtype}. Convert it"
    with pytest.raises(dsr.training.CheckpointError, match=message):
        dsr.training.save_checkpoint(tmp_path / "x.ckpt", dict(x=array))
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "leaf, message",
    (
        (np.array(["a", "bc"], object), r"Python objects.*`names.astype\(str\)`"),
        (np.array([(1, None)], [("a", "i4"), ("b", "O")]), "made of Python objects"),
        (
            np.ma.array([1.0, 2.0], mask=np.array([False, True])),
            "a MaskedArray. Convert it by `numpy",
        ),
        (np.rec.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), "it is a recarray"),
    ),
)
def test_leaves_that_could_not_be_read_again(tmp_path, leaf, message):
    with pytest.raises(dsr.training.CheckpointError, match=message):
        dsr.training.save_checkpoint(tmp_path / "x.ckpt", dict(x=leaf))
    assert _names(tmp_path) == []


needs_dev_full = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="There is no device that is always full."
)


@needs_dev_full
def test_full_disk(tmp_path, states):
    """On a full disk of the operating system, existing files do not change."""
    start, later = states
    path = tmp_path / "model.ckpt"
    dsr.training.save_checkpoint(path, start)
    before = path.read_bytes()
    (tmp_path / f".model.ckpt.{os.getpid()}.unfinished").symlink_to("/dev/full")
    with pytest.raises(
        dsr.training.CheckpointError, match="No space left on device.*Make room"
    ):
        dsr.training.save_checkpoint(path, later)
    assert path.read_bytes() == before and _names(tmp_path) == ["model.ckpt"]


def test_read_only_disk(tmp_path, monkeypatch):
    """On a read-only disk nothing can be removed, with the same error."""

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(
        dsr.training.CheckpointError, match="Read-only.*Make room, or choose"
    ):
        dsr.training.save_checkpoint(tmp_path / "model.ckpt", jnp.zeros(2))


def test_full_disk_for_a_while(tmp_path, monkeypatch, trainer, states):
    """Training goes on, and everything is written at the end."""
    start, later = states
    fsync, calls = os.fsync, 0

    def full_twice(descriptor):
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_twice)
    checkpoints = dsr.training.Checkpoints(tmp_path, seconds=0.0)
    with pytest.warns(UserWarning, match="No space left.*training run goes on"):
        dsr.training.fit(
            trainer, start, make_batches(), num_steps=3, checkpoints=checkpoints
        )
    assert same_bits(checkpoints.restore(start), later)


def test_full_disk_to_the_end(tmp_path, monkeypatch, trainer, states):
    start, later = states

    def full(descriptor):
        raise OSError(28, "No space left on device")

    checkpoints = dsr.training.Checkpoints(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(dsr.training.CheckpointError, match="No space left") as caught:
        dsr.training.fit(
            trainer, start, make_batches(), num_steps=3, checkpoints=checkpoints
        )
    assert same_bits(caught.value.state, later)
    assert _names(tmp_path) == []


def test_bad_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        dsr.training.CheckpointError, match="could not be made.*Choose another"
    ):
        dsr.training.Checkpoints(tmp_path / "file" / "run")


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="`seconds` must be zero or positive.*-1"):
        dsr.training.Checkpoints(tmp_path, seconds=-1.0)
    with pytest.raises(ValueError, match="`keep` must be a positive integer.*0"):
        dsr.training.Checkpoints(tmp_path, keep=0)
