"""A short training run to be killed; prints a digest of its end."""

import sys

import diffrax as dfx
import diffrax_speedreg as dsr
from experiments.parallel import digest

from .training import make_batches, make_state, make_trainer


def main(folder: str) -> None:
    reference = dsr.training.Reference(2, dfx.Heun(), rtol=1e-3, atol=1e-3)
    trainer = make_trainer(reference=reference)
    solver = dsr.TaylorLagrangeSolver(1, dsr.ConstantMidpoint(2))
    checkpoints = dsr.training.Checkpoints(folder, seconds=0.0, keep=2)
    state = dsr.training.fit(
        trainer,
        checkpoints.restore(make_state(trainer, solver)),
        make_batches(),
        num_steps=200,
        solver_every=3,
        solver_steps=1,
        checkpoints=checkpoints,
    )
    print(digest(state))


if __name__ == "__main__":
    main(sys.argv[1])
