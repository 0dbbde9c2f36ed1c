"""Draws what the speed costs by each way, and the error of quadrature."""

from pathlib import Path

from .regularization_records import Results
from .regularization_ways import PLAIN


def draw(results: Results, path: Path) -> None:
    """Costs of the first field, at its largest batch, in all solvers."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    costs, errors = figure.subplots(1, 2)
    if results.steps:
        _costs(costs, results)
    if results.quadrature:
        _errors(errors, results)
    figure.savefig(path, dpi=150)


def _costs(axes, results: Results) -> None:
    field = results.steps[0].field
    batch = max(step.batch for step in results.steps if step.field == field)
    steps = [step for step in results.steps if step[:2] == (field, batch)]
    ways = [w for w in dict.fromkeys(step.way for step in steps) if w != PLAIN]
    markers = dict(zip(dict.fromkeys(step.solver for step in steps), "os^"))
    for solver, way in dict.fromkeys((step.solver, step.way) for step in steps):
        points = [
            (step.order, ratio)
            for step in steps
            if (step.solver, step.way) == (solver, way)
            and (ratio := results.ratio(*step[:5])) is not None
        ]
        if points and way != PLAIN:
            look = dict(color=f"C{ways.index(way)}", marker=markers[solver])
            axes.plot(*zip(*points), label=f"{solver}, {way}", **look)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_title(f"gradient step, {field}, batch {batch}")
    axes.set(xlabel="order K", ylabel="in parts of that without the speed")
    axes.set_xticks(sorted({step.order for step in steps}))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _errors(axes, results: Results) -> None:
    for name, order in dict.fromkeys(row[:2] for row in results.quadrature):
        points = [row[2:] for row in results.quadrature if row[:2] == (name, order)]
        axes.plot(*zip(*points), marker="o", markersize=3, label=f"{name}, K = {order}")
    axes.set_title("Gauss-Legendre quadrature")
    axes.set(xlabel="nodes", ylabel="relative error of the speed")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
