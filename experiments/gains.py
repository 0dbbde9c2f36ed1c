"""The experiments in brief: what a method gains over plain training, and at what price.

`python -m experiments.results` writes the table, from files that the experiments have
written, into a file of its own, which other pages include.
"""

from pathlib import Path
from typing import Any, NamedTuple

from . import records, report


FILE = "gains.md"


class Comparison(NamedTuple):
    """Two files of results; and the figure by which to judge what was learned."""

    experiment: str
    method: str
    plain: str
    regularized: str
    figure: str
    format: str


COMPARISONS = (
    Comparison(
        "MNIST",
        "speed R_3",
        "mnist-plain",
        "mnist-quadrature-r_k",
        "accuracy",
        "accuracy {:.1%}",
    ),
    Comparison(
        "MNIST",
        "Taylor-Lagrange",
        "mnist-plain",
        "mnist-taylor-lagrange",
        "accuracy",
        "accuracy {:.1%}",
    ),
    Comparison(
        "PhysioNet",
        "speed R_3",
        "latent_ode-plain",
        "latent_ode-quadrature-r_k-1",
        "error",
        "squared error {:.2e}",
    ),
    Comparison(
        "Stiff system, unknown",
        "Taylor-Lagrange, constant midpoint",
        "stiff-adaptive-dopri5",
        "stiff-constant-midpoint",
        "rollout_error",
        "error {:.1e}",
    ),
)
_NOTES = """On data that were not trained on. Evaluations: of the vector field, by an
adaptive solve. Solve: by the method's own solver. Times: of two cores, which had other
work as well."""


def table(folder: Path) -> str:
    """In Markdown, a row for each comparison whose files are in the folder."""
    rows = [["experiment", "with", "evaluations", "quality"]]
    rows[0] += ["training faster by", "solve faster by"]
    for experiment, method, *names, figure, shown in COMPARISONS:
        paths = [folder / f"{name}.json" for name in names]
        if not all(path.exists() for path in paths):
            continue
        plain, other = (records.load_figures(path) for path in paths)
        if isinstance(plain, str) or isinstance(other, str):
            continue  # It ended with an error.
        quality = [shown.format(x[figure]) for x in (plain, other)]
        rows.append(
            [
                experiment,
                method,
                f"{plain['nfe']:.0f} → {other['nfe']:.0f}",
                " → ".join([quality[0], quality[1].split()[-1]]),
                _faster(plain, other, "training_seconds"),
                _faster(plain, other, "solve_seconds"),
            ]
        )
    return f"{report.table(rows)}\n\n{_NOTES}\n"


def _faster(plain: dict[str, Any], other: dict[str, Any], figure: str) -> str:
    """How many times; a dash where it was not measured."""
    if figure not in plain:
        return "-"
    return f"{plain[figure] / other[figure]:.2g}x"
