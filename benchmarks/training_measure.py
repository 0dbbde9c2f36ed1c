"""Measures the parts of a training."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import diffrax_speedreg as dsr
import jax
from jaxtyping import Array, PyTree

from .timing import interleaved_seconds, Rounds
from .training_problem import Training, training
from .training_records import Case, Loop, Scaling


# Of `fit`, in a turn: what it does once should not weigh.
STEPS_PER_TURN = 50


def measure_loop(case: Case, seed: int, rounds: Rounds) -> Loop:
    parts = training(case, seed)
    trainer, state, batches = parts
    batch = jax.device_put(batches(state.key, 0))
    targets = trainer.targets(state, batch)

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        path = Path(folder) / "state.ckpt"

        def checkpoint() -> PyTree[Array]:
            dsr.save_checkpoint(path, state)
            return state.step

        def fit() -> PyTree[Array]:
            # Without remainder steps: they are measured by themselves.
            every = STEPS_PER_TURN + 1
            with dsr.ProgressBar(STEPS_PER_TURN, file=nowhere, disable=False) as bar:
                return dsr.fit(
                    trainer,
                    state,
                    batches,
                    until=STEPS_PER_TURN,
                    remainder_every=every,
                    callbacks=[bar],
                ).step

        calls = dict(
            bare=lambda: _bare(parts, lambda step: batch),
            supplied=lambda: _bare(parts, lambda step: batches(state.key, step)),
            fit=fit,
            targets=lambda: trainer.targets(state, batch).y1,
            remainder=lambda: trainer.remainder_step(state, batch, targets)[1],
            checkpoint=checkpoint,
        )
        for call in calls.values():
            call()  # Compiles.
        seconds = interleaved_seconds(calls, rounds)
        size = path.stat().st_size
    return Loop(
        *case,
        bare=seconds["bare"] / STEPS_PER_TURN,
        supplied=seconds["supplied"] / STEPS_PER_TURN,
        fit=seconds["fit"] / STEPS_PER_TURN,
        targets=seconds["targets"],
        remainder=seconds["remainder"],
        checkpoint=seconds["checkpoint"],
        checkpoint_bytes=size,
    )


def _bare(parts: Training, batches: Callable[[int], PyTree[Array]]) -> PyTree[Array]:
    """What a user's own loop can't do without."""
    state = parts.state
    for step in range(STEPS_PER_TURN):
        state, _ = parts.trainer.dynamics_step(state, batches(step))
    return state.step


def measure_scaling(case: Case, devices: int, cores: int, seed: int) -> Scaling:
    """In a process of its own, for the number of devices is set but once."""
    options = dict(case=case, devices=devices, cores=cores, seed=seed)
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_worker", json.dumps(options)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Scaling(*case, devices, cores, *json.loads(result.stdout))
