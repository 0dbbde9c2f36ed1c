"""Measures adaptive solves of stiff problems, in double precision.

Compares the exponential integrator with implicit and explicit methods: steps, errors
and run times over tolerances.
"""

from collections.abc import Iterator

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import pandas as pd

from .harness import Options, Record, Row
from .report import Benchmark, relative
from .systems import solves, STIFF


SOLVERS: dict[str, dfx.AbstractAdaptiveSolver] = {
    "ExponentialTaylorSolver": dsr.ExponentialTaylorSolver(),
    "Kvaerno5": dfx.Kvaerno5(),
    "Kvaerno3": dfx.Kvaerno3(),
    "Kvaerno4": dfx.Kvaerno4(),
    "Dopri5": dfx.Dopri5(),
}
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def rows(options: Options) -> Iterator[tuple[str, list[Row]]]:
    with jax.enable_x64(True):
        for name, system in options.choose(STIFF).items():
            yield (
                "solves",
                solves(name, system, SOLVERS, options.few(TOLERANCES), options),
            )


def frames(record: Record) -> dict[str, pd.DataFrame]:
    """Makes a frame of solves, with steps and times in parts of those of Kvaerno5."""
    made, same = record.frame("solves"), "problem tolerance"
    steps = relative(made, "steps", same, method="Kvaerno5")
    seconds = relative(made, "seconds", same, method="Kvaerno5")
    return dict(solves=made.assign(steps_ratio=steps, seconds_ratio=seconds))


BENCHMARK = Benchmark("stiff", __doc__, rows, frames)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
