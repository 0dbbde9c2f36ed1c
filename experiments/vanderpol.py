"""Learns an unknown Van der Pol oscillator from pairs of states 0.04 apart.

It is damped with a strength of mu = 8, which makes it stiff away from the origin, and
lets trajectories jump. The box of initial states is ours.
"""

from pathlib import Path

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from . import dynamics, dynamics_training


DAMPING = 8.0


def vector_field(
    t: Float[ArrayLike, ""], y: Float[Array, " state"], args: None
) -> Float[Array, " state"]:
    del t, args
    position, velocity = y
    return jnp.stack([velocity, DAMPING * (1 - position**2) * velocity - position])


TASK = dynamics.Task(
    name="vanderpol",
    solution=dynamics.solution_of(dfx.ODETerm(vector_field)),
    lowest=(-2.0, -2.0),
    highest=(2.0, 2.0),
    step=0.04,
    num_steps=125,
    shown_steps=125,
    trajectories=40,
    network=dynamics.network,
    midpoint=dynamics.matrix_midpoint,
    epochs=25,
    paper_epochs=125,
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
