"""A short training to be killed; prints a digest of its end."""

import hashlib
import sys

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.random as jr
import numpy as np

from .training import make_batches, make_state, make_trainer


def main(folder: str) -> None:
    trainer = make_trainer(reference_solver=dfx.Heun(), reference_tolerance=1e-3)
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    checkpoints = dsr.Checkpoints(folder, seconds=0.0, keep=2)
    state = checkpoints.restore(make_state(trainer, solver))
    state = dsr.fit(
        trainer,
        state,
        make_batches(),
        until=200,
        remainder_every=3,
        checkpoints=checkpoints,
    )
    numbers = [
        np.asarray(x)
        for x in jax.tree_util.tree_leaves(
            (
                state.model.matrix,
                state.solver.remainder.factors,
                state.model_opt_state,
                state.solver_opt_state,
                jr.key_data(state.key),
                state.step,
            )
        )
    ]
    print(hashlib.sha256(b"".join(x.tobytes() for x in numbers)).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])
