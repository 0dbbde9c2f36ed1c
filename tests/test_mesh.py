"""Training on several devices, and in several processes."""

import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from experiments import parallel

from .helpers import tree_allclose
from .helpers.marks import thorough
from .helpers.training import (
    arrays,
    loss,
    make_batch,
    make_batches,
    make_reference,
    make_state,
    make_trainer,
    same_bits,
    solve,
)


def _loss(model, solver, batch):
    """Loss with a penalty and a regularizer, which are means over the batch, too."""
    solution = solve(model, solver, batch)
    value = jnp.mean((solution.ys[-1] - batch[1]) ** 2)
    statistics = solution.solver_state
    return value + 0.1 * (statistics.midpoint_penalty + statistics.regularizer)


def _run(mesh, per_step=False, steps_per_round=1):
    trainer = make_trainer(loss=_loss, reference=make_reference(per_step=per_step))
    midpoint = dsr.MidpointMLP(2, width=4, key=jr.key(0))
    solver = dsr.TaylorLagrangeSolver(2, midpoint, regularizer=dsr.DerivativeNorm(2))
    return dsr.training.fit(
        trainer,
        make_state(trainer, solver),
        make_batches(),
        num_steps=6,
        solver_every=2,
        steps_per_round=steps_per_round,
        scan=steps_per_round > 1,
        mesh=mesh,
    )


@pytest.mark.parametrize(
    "per_step, steps_per_round", (thorough(False, 1), (True, 1), thorough(False, 2))
)
def test_eight_devices_as_one(per_step, steps_per_round):
    """Losses, penalties, references and steps agree to the precision of the sums."""
    mesh = dsr.training.data_mesh()
    assert mesh.size == 8
    one, eight = (_run(m, per_step, steps_per_round) for m in (None, mesh))
    for name in ("model", "solver", "model_opt_state", "solver_opt_state", "step"):
        expected, actual = (arrays(getattr(state, name)) for state in (one, eight))
        assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9), name
    leaves = jax.tree_util.tree_leaves(arrays(eight.model))
    assert all(len(x.devices()) == 8 and x.is_fully_replicated for x in leaves)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 7),
    reason="JAX 0.6 takes a tangent without a mesh to be of another type.",
)
def test_adaptive_regularized_solve_on_eight_devices():
    """With one error norm over all devices, steps and R_3 are those of a single one."""

    def adaptive_loss(model, solver, batch):
        solution: Any
        solution, integral = dsr.regularized_solve(
            *(dfx.ODETerm(model), solver, 0.0, 1.0, None, batch[0]),
            stepsize_controller=dfx.PIDController(rtol=1e-6, atol=1e-6),
            max_steps=64,
        )
        value = jnp.mean((solution.ys[-1] - batch[1]) ** 2) + 0.1 * integral
        return value, dict(num_steps=solution.stats["num_steps"], integral=integral)

    trainer = dsr.training.Trainer(adaptive_loss, optax.sgd(0.1))
    state, batch = make_state(trainer, dfx.Tsit5()), make_batch(jr.key(1))
    one, expected = trainer.model_step(state, batch)
    mesh = dsr.training.data_mesh()
    placed = dsr.training.shard_batch(batch, mesh)
    eight, actual = trainer.model_step(dsr.training.replicate(state, mesh), placed)
    assert actual.aux["num_steps"] == expected.aux["num_steps"]
    for name in ("loss", "aux"):
        values = [jax.device_get(getattr(r, name)) for r in (actual, expected)]
        assert jax.tree_util.tree_all(
            jax.tree_util.tree_map(
                lambda x, y: np.allclose(x, y, rtol=1e-9, atol=0.0), *values
            )
        )
    assert tree_allclose(arrays(eight.model), arrays(one.model), rtol=1e-9, atol=1e-9)


def test_frozen_and_without_retraces():
    traces = 0

    def counted(model, batch):
        nonlocal traces
        traces += 1
        return dsr.training.InitialValueProblem(dfx.ODETerm(model), batch[0])

    def counted_loss(model, solver, batch):
        counted(model, batch)
        return loss(model, solver, batch)

    mesh = dsr.training.data_mesh(2)
    trainer = make_trainer(equation=counted, loss=counted_loss)
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    state = dsr.training.replicate(make_state(trainer, solver), mesh)
    for step in range(3):
        batch = dsr.training.shard_batch(make_batch(jr.key(step)), mesh)
        after, _ = trainer.model_step(state, batch)
        assert same_bits(after.solver, state.solver)
        assert same_bits(after.solver_opt_state, state.solver_opt_state)
        after = dsr.training.replicate(after, mesh)
        reference = trainer.solve_reference(after, batch)
        state, _ = trainer.solver_step(after, batch, reference)
        assert same_bits(after.model, state.model)
        assert same_bits(after.model_opt_state, state.model_opt_state)
        state = dsr.training.replicate(state, mesh)
    assert traces == 3


def test_evaluation():
    batch = make_batch(jr.key(1))
    evaluations = []
    for mesh in (None, dsr.training.data_mesh(2)):
        trainer = make_trainer()
        solver = dsr.TaylorLagrangeSolver(1)
        state = dsr.training.replicate(make_state(trainer, solver), mesh)
        placed = dsr.training.shard_batch(batch, mesh)
        evaluations.append(jax.device_get(trainer.evaluate(state, placed)))
    one, two = evaluations
    assert one.nfe == two.nfe
    np.testing.assert_allclose(one.loss, two.loss, rtol=1e-9)
    np.testing.assert_allclose(one.error, two.error, rtol=1e-9)


def test_reference_that_fails_names_the_sample_of_the_whole_batch():
    term = dfx.ODETerm(lambda t, y, args: y**2)
    trainer = make_trainer(
        equation=lambda model, y0: dsr.training.InitialValueProblem(term, y0),
        reference=make_reference(max_steps=64),
    )
    mesh = dsr.training.data_mesh(4)
    y0 = jnp.full((8, 2), 0.1).at[5].set(2.0)
    state = dsr.training.replicate(make_state(trainer), mesh)
    with pytest.raises(dsr.training.ReferenceFailed, match="sample 5 changes fastest"):
        trainer.solve_reference(state, dsr.training.shard_batch(y0, mesh))


def test_curves_stay_on_the_host():
    trainer = dsr.training.Trainer(loss, optax.sgd(0.1))
    state = make_state(trainer, dsr.TaylorLagrangeSolver(1), aux=np.zeros(3))

    def record(losses, progress):
        losses[progress.step - 1] = progress.losses[0]
        return losses

    mesh = dsr.training.data_mesh(2)
    options: dict[str, Any] = dict(num_steps=3, record=record, mesh=mesh)
    state = dsr.training.fit(trainer, state, make_batches(), **options)
    assert isinstance(state.aux, np.ndarray) and np.all(state.aux > 0)


def test_checkpoint_of_a_mesh(tmp_path):
    """A checkpoint of eight devices can be read on one, and vice versa."""
    mesh = dsr.training.data_mesh()
    state = make_state(make_trainer(), dsr.TaylorLagrangeSolver(1))
    dsr.training.save_checkpoint(
        tmp_path / "mesh.ckpt", dsr.training.replicate(state, mesh)
    )
    dsr.training.save_checkpoint(tmp_path / "one.ckpt", state)
    whole, one = ((tmp_path / f"{name}.ckpt").read_bytes() for name in ("mesh", "one"))
    assert whole == one
    assert same_bits(dsr.training.load_checkpoint(tmp_path / "mesh.ckpt", state), state)


def test_keys_and_scalars_are_not_split():
    mesh = dsr.training.data_mesh(4)
    batch = dict(x=np.zeros((8, 2)), key=jr.key(0), weight=jnp.array(2.0))
    placed = dsr.training.shard_batch(batch, mesh)
    assert placed["x"].addressable_shards[0].data.shape == (2, 2)
    assert placed["weight"].is_fully_replicated
    assert same_bits(placed, batch | dict(x=jnp.zeros((8, 2))))


def test_batch_that_can_not_be_split():
    with pytest.raises(ValueError, match="9 samples can't be split over 8 devices"):
        dsr.training.shard_batch(np.zeros((9, 2)), dsr.training.data_mesh())


@pytest.mark.parametrize("number", (0, 9))
def test_number_of_devices(number):
    with pytest.raises(ValueError, match=f"must be from 1 to 8.*got {number}.*config"):
        dsr.training.data_mesh(number)


@pytest.mark.thorough
def test_two_processes(tmp_path):
    """The script of the docs gives the results of one process with one device."""
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

    outputs = []
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start(number)) for number in (0, 1)]
        for process in processes:
            stack.callback(process.kill)  # The other one of a process that failed.
        alone, evaluation = parallel.train(parallel.arguments(common), None)
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
    assert loss == pytest.approx(np.asarray(evaluation.loss, float), rel=1e-9)
    path = max((tmp_path / "run").glob("*.ckpt"))
    together = dsr.training.load_checkpoint(path, alone)
    assert together.step == 4
    for name in ("model", "solver", "model_opt_state", "solver_opt_state"):
        expected, actual = (arrays(getattr(state, name)) for state in (alone, together))
        assert tree_allclose(actual, expected, rtol=1e-9, atol=1e-9), name
