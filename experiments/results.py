"""Writes docs/results.md: all experiments' results, beside what the papers report;
and a table of them in brief.

Nothing is run: both are made of the files that the experiments have written.
"""

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType

from . import command_line, gains


# In the order of the page. Each has a `table(folder)`: Markdown from the module's files
# in there, or None if there are none.
MODULES = (
    "toy",
    "mnist",
    "orders",
    "midpoints",
    "stiff",
    "vanderpol",
    "brusselator",
    "ffjord",
    "latent_ode",
    "existing_model",
    "digits",
)
_ROOT = Path(__file__).parents[1]
RESULTS = _ROOT / "experiments" / "results"
PAGE = _ROOT / "docs" / "results.md"
GAINS = RESULTS / gains.FILE
_INTRODUCTION = """# Results

The papers' experiments, by this package: what was measured, beside what the papers
report. `python -m experiments.results` writes this page, from the files in
[experiments/results](../experiments/results) that the commands in the tables write;
`--output experiments/results` puts them there.

*TayNODE* is Kelly, Bettencourt, Johnson, Duvenaud, "Learning Differential Equations
that are Easy to Solve", NeurIPS 2020; *TL-NODE* is Djeumou, Neary, Goubault, Putot,
Topcu, "Taylor-Lagrange Neural Ordinary Differential Equations", IJCAI 2022.

**The papers' figures** have a status. *Seen*: read in the paper, its poster or its
authors' code. *Derived*: computed from something seen, in the way that is told.
*Unverified*: recalled, and found nowhere. A dash: not known.

**NFE** are the evaluations of the vector field that an adaptive solve of the
learned equation takes, without the regularizer. With n steps, rejected ones
included, Dopri5 takes 1 + 6 n: each step's last stage is the next one's first. The
first step is one of 0.01, as Diffrax has it, and steps grow tenfold at most: no
solve over a unit of time takes less than three steps. The papers' code counts
2 + 6 n, one evaluation more to find a first step.

All figures are of data that were not trained on. TayNODE's code evaluates MNIST and
PhysioNet on training data.

**Times** are wall time on two cores, which had other work as well in most of these
runs; those of *mnist* and *ffjord*'s MINIBOONE on one of two cores, whose other one
was busy, too. They tell orders of magnitude. Ratios measured side by side are in
[the benchmarks](../benchmarks/results).
"""


_SHORT = """## What was aimed at, and missed

At first sight: [gains in brief](../experiments/results/gains.md). What is behind it:

- *mnist*: no more than 50 evaluations, at plain's accuracy. The evaluations are met by
  both R_3 and Taylor-Lagrange; both are some tenths of a percent less accurate after
  as many epochs, with a smaller penalty less so, at more evaluations. Training and
  evaluation 25 times faster: met by the evaluation, not by the training, of which
  compilation and the accurate solves for the correction are a good part.
- *ffjord*, MINIBOONE: half of plain's evaluations at a loss that is 2 % worse at most.
  A weight that leaves the loss as good as plain's saves a part of that; larger ones
  save more, and cost more than 2 % (tried up to thirty times the weight, with R_3). A
  network of this width, trained on a part of the data, has little to spare.
- *stiff*: 25 times faster than adaptive training and ten times as accurate as RK4. The
  constant midpoint does both, the midpoint network neither: its training is not stable
  over settings of the alternation.
- *vanderpol*, *brusselator*: the correction does not make the steps better than RK4's.
- *existing_model*: data that tell the solution at all times leave nothing to gain.
"""


def modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__package__}.{name}") for name in MODULES]


def page(folder: Path) -> str:
    """All tables of results in a folder."""
    parts = [_INTRODUCTION, _SHORT]
    for module in modules():
        table = module.table(folder)
        if table is not None:
            _, _, name = module.__name__.rpartition(".")
            parts += [f"## {name}\n", f"{_summary(module)}\n", f"{table}\n"]
            parts.append(f"{circumstances(folder, name)}\n")
    return "\n".join(parts)


def _summary(module: ModuleType) -> str:
    """The first paragraph of its docstring."""
    assert module.__doc__ is not None
    summary, *_ = module.__doc__.strip().split("\n\n")
    return summary


def circumstances(folder: Path, name: str) -> str:
    """On what, and with which versions, the files of an experiment were written."""
    found: dict[str, list[str]] = {}
    for path in sorted([*folder.glob(f"{name}.json"), *folder.glob(f"{name}-*.json")]):
        record = json.loads(path.read_text())
        on = {**record["hardware"], **record["versions"]}
        key = ", ".join(f"{name} {value}" for name, value in on.items())
        link = f"[{path.name}](../experiments/results/{path.name})"
        found.setdefault(key, []).append(link)
    return "\n".join(f"Measured on {k}: {', '.join(v)}." for k, v in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results",
        description=__doc__,
        formatter_class=command_line.HelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args()
    for path, text in (PAGE, page(RESULTS)), (GAINS, gains.table(RESULTS)):
        path.write_text(text)
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
