"""A short training to be killed; prints a digest of its end."""

import sys

import diffrax as dfx
import diffrax_speedreg as dsr
from experiments.parallel import digest

from .training import make_batches, make_state, make_trainer


def main(folder: str) -> None:
    trainer = make_trainer(reference_solver=dfx.Heun(), reference_tolerance=1e-3)
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantCorrection(2))
    checkpoints = dsr.Checkpoints(folder, seconds=0.0, keep=2)
    state = dsr.fit(
        trainer,
        checkpoints.restore(make_state(trainer, solver)),
        make_batches(),
        until=200,
        remainder_every=3,
        checkpoints=checkpoints,
    )
    print(digest(state))


if __name__ == "__main__":
    main(sys.argv[1])
