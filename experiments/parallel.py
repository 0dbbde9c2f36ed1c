"""Trains the digits' classifier on all devices of one or several hosts.

On one host with all of its devices:

    python -m experiments.parallel

On two hosts, of which the first one is called `first`, started on each with its own
number, and with a folder that both can see:

    python -m experiments.parallel --processes 2 --process 0 --coordinator first:9876 \\
        --checkpoints /shared/run-1
    python -m experiments.parallel --processes 2 --process 1 --coordinator first:9876 \\
        --checkpoints /shared/run-1

To try that on one host, use `127.0.0.1:9876`. Killed and started again, it goes on from
the last checkpoint, on as many devices as there are then.
"""

import argparse
import hashlib
from collections.abc import Sequence

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from . import classification, command_line, digits
from .classification import Batch, Classifier


TEST_SIZE = 448


def accuracy(
    model: Classifier, y1: Float[Array, "batch pixels"], batch: Batch
) -> dict[str, Float[Array, ""]]:
    predicted = jnp.argmax(model.logits(y1), axis=1)
    return dict(accuracy=jnp.mean(predicted == batch.labels))


def train(
    options: argparse.Namespace, mesh: Mesh | None
) -> tuple[dsr.AlternatingState, dsr.Evaluation]:
    small = options.small
    trainer = dsr.AlternatingTrainer(
        problem=classification.problem,
        loss=classification.cross_entropy,
        num_steps=1 if small else digits.TAYLOR_STEPS,
        model_optimizer=optax.adam(3e-3),
        solver_optimizer=optax.adam(1e-3),
        penalty=1.0,
        reference_solver=dfx.Tsit5(),
        mesh=mesh,
    )
    model_key, remainder_key, data_key = jr.split(jr.key(options.seed), 3)
    remainder = dsr.CorrectionMLP(digits.PIXELS, key=remainder_key)
    solver = dsr.TaylorLagrangeSolver(1 if small else 2, remainder)
    state = trainer.init(digits.classifier(model_key), solver, key=data_key)
    dtype = jnp.result_type(float)
    data, test = (
        Batch(part.images.astype(dtype), part.labels)
        for part in digits.load(options.seed)
    )
    # Devices get equal parts.
    test = dsr.shard_batch(Batch(*(x[:TEST_SIZE] for x in test)), mesh)
    checkpoints = None
    if options.checkpoints is not None:
        settings = dict(seed=options.seed, small=small, batch=options.batch)
        checkpoints = dsr.Checkpoints(
            options.checkpoints, settings, seconds=options.seconds
        )
        state = checkpoints.restore(state)

    def validate(state: dsr.AlternatingState) -> dict[str, Array]:
        evaluation = trainer.evaluate(state, test, accuracy)
        assert evaluation.nfe is not None
        return evaluation.metrics | dict(nfe=evaluation.nfe)

    with dsr.ProgressBar(options.steps) as bar:
        state = dsr.fit(
            trainer,
            state,
            dsr.Batches(data, options.batch),
            until=options.steps,
            remainder_every=2 if small else digits.REMAINDER_EVERY,
            validate=validate,
            callbacks=[bar],
            checkpoints=checkpoints,
        )
    return state, trainer.evaluate(state, test, accuracy)


def digest(state: dsr.AlternatingState) -> str:
    """Of the bits of all that was trained."""
    trained = (state.model, state.solver, state.model_opt_state, state.solver_opt_state)
    leaves = jtu.tree_leaves(eqx.filter(trained, eqx.is_array))
    parts = [np.asarray(leaf).tobytes() for leaf in leaves]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.parallel",
        description=__doc__,
        formatter_class=command_line.HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--seed", type=command_line.seed, default=0, help="decides everything")
    add("--steps", type=command_line.positive(int), default=600, help="of the dynamics")
    add("--batch", type=command_line.positive(int), default=128, help="of all devices")
    add("--checkpoints", metavar="FOLDER", help="where to keep some, and go on from")
    add(
        "--seconds",
        type=command_line.nonnegative(float),
        default=60.0,
        help="from one checkpoint to the next",
    )
    add(
        "--devices", type=command_line.positive(int), help="how many to make of one CPU"
    )
    add(
        "--processes",
        type=command_line.positive(int),
        default=1,
        help="how many there are",
    )
    add(
        "--process",
        type=command_line.nonnegative(int),
        default=0,
        help="which one this is",
    )
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--x64", action="store_true", help="in double precision")
    add("--small", action="store_true", help="cheaper steps, to see that it works")
    return parser.parse_args(given)


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
    state, evaluation = train(options, dsr.data_mesh())
    print(
        f"loss {float(evaluation.loss):.12g} "
        f"accuracy {float(evaluation.metrics['accuracy']):.12g} "
        f"nfe {evaluation.nfe}"
    )
    print(f"digest {digest(state)}")


if __name__ == "__main__":
    main()
