"""Learns an unknown Brusselator from pairs of states 0.1 apart.

A chemical reaction with A = 1 and B = 3.5, which oscillates by jumps.
"""

from pathlib import Path

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import dynamics, dynamics_training


A, B = 1.0, 3.5


def vector_field(
    t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
) -> Float[Array, " state"]:
    del t, args
    first, second = y
    reaction = first**2 * second
    return jnp.stack([A + reaction - (B + 1) * first, B * first - reaction])


TASK = dynamics.Task(
    name="brusselator",
    solution=dynamics.solution_of(dfx.ODETerm(vector_field)),
    lowest=(0.8, 0.0),
    highest=(1.5, 0.6),
    step=0.1,
    num_steps=200,
    shown_steps=200,
    trajectories=40,
    network=dynamics.network,
    midpoint=dynamics.matrix_midpoint,
    epochs=25,
    paper_epochs=400,
    learning_rate=1e-2,
    remainder_rate=3e-3,
    remainder_every=10,
    penalty=1e-3,
)


def table(folder: Path) -> str | None:
    return dynamics_training.table(folder, TASK, {})


def main() -> None:
    dynamics_training.main(TASK, __doc__, {})


if __name__ == "__main__":
    main()
