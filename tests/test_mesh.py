"""Training on several devices, and in several processes."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from experiments import parallel

from .helpers import tree_allclose
from .helpers.marks import thorough
from .helpers.training import (
    arrays,
    make_batch,
    make_batches,
    make_state,
    make_trainer,
    same_bits,
)


def _run(mesh, one_step=False):
    trainer = make_trainer(mesh=mesh, penalty=0.1, speed_weight=0.1, one_step=one_step)
    correction = dsr.CorrectionMLP(2, width=4, key=jr.key(0))
    solver = dsr.TaylorLagrangeSolver(2, correction, speed=dsr.Speed(2))
    state = make_state(trainer, solver)
    return dsr.fit(trainer, state, make_batches(), until=6, remainder_every=2)


@pytest.mark.parametrize("one_step", (thorough(False), True))
def test_eight_devices_as_one(one_step):
    """Losses, penalties, targets and steps: to the precision of the sums."""
    mesh = dsr.data_mesh()
    assert mesh.size == 8
    one, eight = _run(None, one_step), _run(mesh, one_step)
    for name in ("model", "solver", "model_opt_state", "solver_opt_state", "step"):
        expected, actual = (arrays(getattr(state, name)) for state in (one, eight))
        assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9), name
    leaves = jax.tree_util.tree_leaves(arrays(eight.model))
    assert all(len(x.devices()) == 8 and x.is_fully_replicated for x in leaves)


def test_frozen_and_without_retraces():
    traces = 0

    def counted(model, batch):
        nonlocal traces
        traces += 1
        return dsr.InitialValueProblem(dfx.ODETerm(model), batch[0])

    mesh = dsr.data_mesh(2)
    trainer = make_trainer(mesh=mesh, problem=counted)
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    state = dsr.replicate(make_state(trainer, solver), mesh)
    for step in range(3):
        batch = dsr.shard_batch(make_batch(jr.key(step)), mesh)
        after, _ = trainer.dynamics_step(state, batch)
        assert same_bits(after.solver, state.solver)
        assert same_bits(after.solver_opt_state, state.solver_opt_state)
        targets = trainer.targets(after, batch)
        state, _ = trainer.remainder_step(after, batch, targets)
        assert same_bits(after.model, state.model)
        assert same_bits(after.model_opt_state, state.model_opt_state)
    assert traces == 3


def test_evaluation():
    batch = make_batch(jr.key(1))
    evaluations = []
    for mesh in (None, dsr.data_mesh(2)):
        trainer = make_trainer(mesh=mesh)
        solver = dsr.TaylorLagrangeSolver(1)
        state = dsr.replicate(make_state(trainer, solver), mesh)
        evaluations.append(trainer.evaluate(state, dsr.shard_batch(batch, mesh)))
    one, two = evaluations
    assert one.nfe == two.nfe
    assert tree_allclose(one.loss, jnp.asarray(np.asarray(two.loss)), rtol=1e-9, atol=0)
    assert tree_allclose(
        one.error, jnp.asarray(np.asarray(two.error)), rtol=1e-9, atol=0
    )


def test_reference_that_fails_names_the_sample_of_the_whole_batch():
    trainer = make_trainer(
        problem=lambda model, batch: dsr.InitialValueProblem(
            dfx.ODETerm(lambda t, y, args: y**2), batch
        ),
        reference_max_steps=64,
        mesh=dsr.data_mesh(4),
    )
    y0 = jnp.full((8, 2), 0.1).at[5].set(2.0)
    with pytest.raises(dsr.ReferenceFailed, match="sample 5 changes fastest"):
        trainer.targets(make_state(trainer), y0)


def test_checkpoint_of_a_mesh(tmp_path):
    """Written from eight devices, read on one, and the other way round."""
    mesh = dsr.data_mesh()
    state = make_state(make_trainer(), dsr.TaylorLagrangeSolver(1))
    dsr.save_checkpoint(tmp_path / "mesh.ckpt", dsr.replicate(state, mesh))
    dsr.save_checkpoint(tmp_path / "one.ckpt", state)
    whole, one = ((tmp_path / f"{name}.ckpt").read_bytes() for name in ("mesh", "one"))
    assert whole == one
    assert same_bits(dsr.load_checkpoint(tmp_path / "mesh.ckpt", state), state)


def test_keys_and_scalars_are_not_split():
    mesh = dsr.data_mesh(4)
    batch = dict(x=np.zeros((8, 2)), key=jr.key(0), weight=jnp.array(2.0))
    placed = dsr.shard_batch(batch, mesh)
    assert placed["x"].addressable_shards[0].data.shape == (2, 2)
    assert placed["weight"].is_fully_replicated
    assert same_bits(placed, batch | dict(x=jnp.zeros((8, 2))))


def test_batch_that_can_not_be_split():
    with pytest.raises(ValueError, match="9 samples can't be split over 8 devices"):
        dsr.shard_batch(np.zeros((9, 2)), dsr.data_mesh())


@pytest.mark.parametrize("number", (0, 9))
def test_number_of_devices(number):
    with pytest.raises(ValueError, match=f"must be from 1 to 8.*got {number}.*config"):
        dsr.data_mesh(number)


@pytest.mark.thorough
def test_two_processes(tmp_path):
    """By the script of the docs: as one process with one device does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["--small", "--x64", "--steps", "4"]

    def start(process):
        options = ["--processes", "2", "--process", str(process)]
        options += ["--coordinator", address, "--checkpoints", str(tmp_path / "run")]
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.parallel", *common, *options],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    processes = [start(0), start(1)]
    alone, evaluation = parallel.train(parallel.arguments(common), None)
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        outputs.append(output.strip().splitlines())
    assert outputs[0][0] == "process 0 of 2: 1 of 2 devices"
    assert outputs[0][-1] == outputs[1][-1]
    assert outputs[0][-1].startswith("digest ")
    printed = re.match(r"loss (\S+)", outputs[0][-2])
    assert printed is not None
    loss = float(printed[1])
    assert loss == pytest.approx(float(evaluation.loss), rel=1e-9)
    path = max((tmp_path / "run").glob("*.ckpt"))
    together = dsr.load_checkpoint(path, alone)
    assert together.step == 4
    for name in ("model", "solver", "model_opt_state", "solver_opt_state"):
        expected, actual = (arrays(getattr(state, name)) for state in (alone, together))
        assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9), name
