"""Writes `docs/support.md`, and tries all combinations in its tables."""

from collections.abc import Iterable
from pathlib import Path

import jax


# This must be set before the saved times are made.
jax.config.update("jax_enable_x64", True)

from tests.helpers.support import ADJOINTS, outcome, SAVEATS, SOLVERS


ROOT = Path(__file__).parents[1]

PAGE = """# Solvers and adjoints

The tables show whether a solve of a `SpeedRegularizedTerm` has a finite gradient:
**yes**; **no**; or **neither**, if a solve of the wrapped term has none either. The
tests try every cell. `python -m tools.support` writes this page.

## Solvers

{solvers}

## Saved times

The solver is `Tsit5`.

{saveats}

## Notes

- `ImplicitAdjoint` differentiates a steady state. The regularizer is an integral along
  the path to it, and not a function of that state: use another adjoint.
- A `Quadrature` saves the state at its nodes, and evaluates the regularizer after the
  solve. In `diffeqsolve`, it works with every adjoint that can save at `ts`.
- The integral of `in_solver()`, and the estimates of an `ErrorRegularizedSolver`, are
  in the state of the solver, which `BacksolveAdjoint` does not save.
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
