"""Draws work-precision diagrams: errors over run times."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from .runs import seconds
from .solver_records import NetworkSolve, Results, SmoothSolve
from .solver_ways import FITTED


_Solves: TypeAlias = Sequence[NetworkSolve | SmoothSolve]
_COLUMNS = 4


def draw(results: Results, path: Path) -> None:
    """Of networks, at the largest batch they were measured at, and smooth problems."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    panels = [
        (title, group[title], quantity)
        for group in (_networks(results), _smooth(results))
        for quantity in (_seconds, _evaluations)
        for title in group
    ]
    height = max(1, -(-len(panels) // _COLUMNS))
    figure = Figure(figsize=(16, 4 * height), layout="constrained")
    grid = list(figure.subplots(height, _COLUMNS, squeeze=False).flat)
    for axes, (title, solves, quantity) in zip(grid, panels):
        _curves(axes, solves, quantity)
        axes.set_title(title)
        axes.set_xlabel(quantity.__name__.strip("_"))
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.savefig(path, dpi=150)


def _seconds(solve: NetworkSolve | SmoothSolve) -> float | None:
    return seconds(solve.run)


def _evaluations(solve: NetworkSolve | SmoothSolve) -> float | None:
    return solve.evaluations


def _networks(results: Results) -> Mapping[str, _Solves]:
    """By title, the evaluations of one network."""
    batch = max((one.batch for one in results.networks), default=0)
    solves = [s for s in results.networks if s[1:3] == (batch, "evaluation")]
    return {
        f"{name} network, batch {batch}": [s for s in solves if s.network == name]
        for name in dict.fromkeys(solve.network for solve in solves)
    }


def _smooth(results: Results) -> Mapping[str, _Solves]:
    return {
        problem: [solve for solve in results.smooth if solve.problem == problem]
        for problem in dict.fromkeys(solve.problem for solve in results.smooth)
    }


def _curves(
    axes,
    solves: _Solves,
    quantity: Callable[[NetworkSolve | SmoothSolve], float | None],
) -> None:
    methods = list(dict.fromkeys(solve.method for solve in solves))
    # A fitted method has the color of the one that it was.
    originals = [method.removesuffix(FITTED) for method in methods]
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(originals))}
    for method, original in zip(methods, originals):
        points = [
            (cost, solve.error)
            for solve in solves
            if solve.method == method
            and solve.error is not None
            and (cost := quantity(solve)) is not None
        ]
        if points:
            axes.plot(
                *zip(*points),
                label=method,
                color=colors[original],
                linestyle="-" if "Taylor" in method else "--",
                **dict(marker="o", markersize=3)
                if method == original
                else dict(marker="*", markersize=10),
            )
    axes.set(ylabel="error", xscale="log", yscale="log")
    axes.xaxis.set_minor_formatter("")  # Labels of these would overlap.
    axes.grid(alpha=0.3)
    axes.legend(fontsize="xx-small")
