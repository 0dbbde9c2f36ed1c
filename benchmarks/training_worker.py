"""Times a dynamics step on some devices of a CPU, of which it uses some cores."""

import json
import os
import sys
import time

import diffrax_speedreg as dsr
import jax

from .timing import interleaved_seconds, Rounds
from .training_problem import training
from .training_records import Case


# Of steps, for the time that all cores together work.
COUNT = 10


def main() -> None:
    options = json.loads(sys.argv[1])
    # Before JAX starts its threads.
    cores = sorted(os.sched_getaffinity(0))[: options["cores"]]
    os.sched_setaffinity(0, cores)
    jax.config.update("jax_num_cpu_devices", options["devices"])
    jax.config.update("jax_enable_compilation_cache", False)
    mesh = dsr.data_mesh()
    trainer, state, batches = training(Case(*options["case"]), options["seed"], mesh)
    state = dsr.replicate(state, mesh)
    batch = dsr.shard_batch(batches(state.key, 0), mesh)
    trainer.dynamics_step(state, batch)  # Compiles.
    seconds = interleaved_seconds(
        dict(step=lambda: trainer.dynamics_step(state, batch)[1]),
        Rounds(most_seconds=5.0),
    )
    start = time.process_time()
    for _ in range(COUNT):
        jax.block_until_ready(trainer.dynamics_step(state, batch)[1])
    print(json.dumps([seconds["step"], (time.process_time() - start) / COUNT]))


if __name__ == "__main__":
    main()
