"""Writes `docs/support.md`, by trying everything that is in its tables."""

from collections.abc import Iterable
from pathlib import Path

import jax


# Before the saved times are made.
jax.config.update("jax_enable_x64", True)

from tests.helpers.support import ADJOINTS, outcome, SAVEATS, SOLVERS


ROOT = Path(__file__).parents[1]

PAGE = """# What works with what

Whether `SpeedRegularizedTerm` has a finite gradient with these solvers, adjoints and
saved times: **yes**; **no**; or **neither**, if the term that it wraps has none in the
same place. The tests try every cell. Written by `python -m tools.support`.

## Solvers and adjoints

{solvers}

## Saved times and adjoints

With `Tsit5`.

{saveats}

## Notes

- `ImplicitAdjoint` differentiates the state at which a solve has come to rest. The
  regularizer is an integral over the way there, of which that state knows nothing: use
  a `Quadrature`, or another adjoint.
- A `Quadrature` adds times at which to save, and evaluates the regularizer after the
  solve: it works with whatever can save at `ts`. The speed that a
  `TaylorLagrangeSolver` gathers, and the estimates of an `EstimateRegularizedSolver`,
  are in the solver's state, which `BacksolveAdjoint` does not save.
"""


def table(rows: Iterable[str], cells: dict[str, list[str]]) -> str:
    header = ["", *(f"`{adjoint}`" for adjoint in ADJOINTS)]
    lines = [header, ["---"] * len(header)]
    lines += [[f"`{row}`", *cells[row]] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    solvers = {s: [outcome(s, a, "t1") for a in ADJOINTS] for s in SOLVERS}
    saveats = {s: [outcome("Tsit5", a, s) for a in ADJOINTS] for s in SAVEATS}
    page = PAGE.format(
        solvers=table(SOLVERS, solvers),
        saveats=table([s for s in SAVEATS if s != "t1"], saveats),
    )
    path = ROOT / "docs" / "support.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page)


if __name__ == "__main__":
    main()
