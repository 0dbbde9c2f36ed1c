"""Learns an unknown stiff linear system from pairs of states 0.01 apart.

The system has the eigenvalues -1000 and -1. A step of RK4 multiplies a real decaying
mode by 0.27 at least, and one of the truncated Taylor method of order 2 by 0.5: no
field lets them come close to the fast mode, which a step multiplies by 5e-5.

For known dynamics, see `python -m experiments.midpoints`.
"""

from pathlib import Path

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from . import dynamics, dynamics_training
from .dynamics_report import Published
from .midpoints import EIGENVALUES, MODES


def solution(
    y0: Float[Array, "samples state"], times: Float[Array, " times"]
) -> Float[Array, "samples times state"]:
    """In closed form, mode by mode."""
    amplitudes = y0 @ np.linalg.inv(MODES).T
    decays = jnp.exp(times[:, None] * EIGENVALUES[None])
    return jnp.einsum("nj,tj,ij->nti", amplitudes, decays, MODES)


def network(key: Key[Array, ""]) -> eqx.nn.MLP:
    """Two layers without an activation between them, as the paper has it."""
    return eqx.nn.MLP(2, 2, 64, 1, activation=lambda x: x, key=key)


def midpoint(key: Key[Array, ""]) -> dsr.CorrectionMLP:
    return dsr.CorrectionMLP(
        2, inputs=("y",), width=16, activation=jax.nn.relu, key=key
    )


TASK = dynamics.Task(
    name="stiff",
    solution=solution,
    lowest=(-0.5, -0.5),
    highest=(0.5, 0.5),
    step=0.01,
    num_steps=2000,
    shown_steps=200,
    trajectories=100,
    network=network,
    midpoint=midpoint,
    epochs=25,
    paper_epochs=100,
    learning_rate=1e-2,
    remainder_rate=3e-2,
    remainder_every=10,
    penalty=1e-3,
)
_SEEN = "seen; errors read off a plot"
PUBLISHED = {
    "adaptive Dopri5": Published(609.8, "1.3e-5 to 1.8e-5", _SEEN),
    "RK4": Published(35.8, "5.2e-5", _SEEN),
    "truncated Taylor": Published(21.2, "7.8e-5", _SEEN),
    "Taylor-Lagrange": Published(31.9, "1.0e-5 to 1.5e-5", _SEEN),
}


def table(folder: Path) -> str | None:
    return dynamics_training.table(folder, TASK, PUBLISHED)


def main() -> None:
    dynamics_training.main(TASK, __doc__, PUBLISHED)


if __name__ == "__main__":
    main()
