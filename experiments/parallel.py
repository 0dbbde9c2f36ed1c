"""Trains the digits' classifier on all devices of one or several hosts.

On one host with all of its devices:

    python -m experiments.parallel

On two hosts, of which the first one is called `first`, started on each with its own
number, and with a folder that both can see:

    python -m experiments.parallel --processes 2 --process 0 --coordinator first:9876 \\
        --checkpoints /shared/run-1
    python -m experiments.parallel --processes 2 --process 1 --coordinator first:9876 \\
        --checkpoints /shared/run-1

To try that on one host, use `127.0.0.1:9876`. Killed and started again, it resumes from
the last checkpoint, on as many devices as there are then.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

from .classification import digits_data, digits_problem, Images
from .methods import Method
from .problem import Batch


TEST_SIZE = 448


@dataclasses.dataclass(frozen=True)
class Options:
    seed: int = 0
    steps: int = 600
    """Steps of the model."""
    batch: int = 128
    """Batch size of all devices together."""
    checkpoints: str | None = None
    """Folder to resume from."""
    seconds: float = 60.0
    """Time from one checkpoint to the next."""
    devices: int | None = None
    """Number of devices to make of one CPU."""
    processes: int = 1
    process: int = 0
    """Number of this process."""
    coordinator: str | None = None
    """Address where process 0 listens, such as first:9876."""
    x64: bool = False
    """Compute in double precision."""
    small: bool = False
    """Make cheaper steps, to see that it works."""


def train(
    options: Options, mesh: Mesh | None
) -> tuple[dsr.training.TrainingState, dsr.training.Evaluation]:
    model_key, midpoint_key, data_key = jr.split(jr.key(options.seed), 3)
    problem = digits_problem(model_key, options.seed)
    midpoint = dsr.MidpointMLP(64, key=midpoint_key)
    method = Method(
        dsr.TaylorLagrangeSolver(1 if options.small else 2, midpoint),
        num_steps=1 if options.small else 2,
        weight=1.0,
        solver_optimizer=optax.adam(1e-3),
    )
    trainer = method.trainer(problem, optax.adam(3e-3))
    state = trainer.init(problem.model, method.solver, key=data_key)
    dtype = jnp.result_type(float)
    data, test = (
        Images(part.images.astype(dtype), part.labels)
        for part in digits_data(options.seed)
    )
    batches = dsr.training.Batches(data, options.batch)
    # Devices get equal parts.
    test = jax.tree.map(lambda x: x[:TEST_SIZE], test)
    test = Batch(dsr.training.shard_batch(test, mesh))
    checkpoints = None
    if options.checkpoints is not None:
        settings = dict(seed=options.seed, small=options.small, batch=options.batch)
        checkpoints = dsr.training.Checkpoints(
            options.checkpoints, settings, seconds=options.seconds
        )
        state = checkpoints.restore(state)

    with dsr.training.ProgressBar(options.steps) as bar:
        state = dsr.training.fit(
            trainer,
            state,
            lambda key, step: Batch(batches(key, step)),
            num_steps=options.steps,
            solver_every=2 if options.small else 10,
            validate=lambda state: dict(nfe=trainer.evaluate(state, test).nfe),
            callbacks=[bar],
            checkpoints=checkpoints,
            mesh=mesh,
        )
    return state, trainer.evaluate(state, test)


def digest(state: dsr.training.TrainingState) -> str:
    """Computes the digest of the bits of all trained arrays."""
    trained = (state.model, state.solver, state.model_opt_state, state.solver_opt_state)
    leaves = jax.tree.leaves(eqx.filter(trained, eqx.is_array))
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()


def arguments(words: Sequence[str] | None = None) -> Options:
    program = "python -m experiments.parallel"
    return tyro.cli(Options, args=words, prog=program, description=__doc__)


def main() -> None:
    options = arguments()
    jax.config.update("jax_enable_x64", options.x64)
    if options.devices is not None:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.processes > 1:
        jax.distributed.initialize(
            options.coordinator, options.processes, options.process
        )
    print(
        f"process {jax.process_index()} of {jax.process_count()}: "
        f"{jax.local_device_count()} of {jax.device_count()} devices",
        flush=True,
    )
    state, evaluation = train(options, dsr.training.data_mesh())
    print(f"loss {float(evaluation.loss):.12g} nfe {evaluation.nfe}")  # pyright: ignore
    print(f"digest {digest(state)}")


if __name__ == "__main__":
    main()
