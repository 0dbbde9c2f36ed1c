"""Draws work-precision diagrams: errors over run times."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from .runs import seconds
from .solver_records import NetworkSolve, Results, SmoothSolve


_COLUMNS = 3


def draw(results: Results, path: Path) -> None:
    """Of networks, at the largest batch they were measured at, and smooth problems."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    panels = {**_networks(results), **_smooth(results)}
    height = max(1, -(-len(panels) // _COLUMNS))
    figure = Figure(figsize=(12, 4 * height), layout="constrained")
    grid = figure.subplots(height, _COLUMNS, squeeze=False).flat
    for axes, (title, solves) in zip(grid, panels.items()):
        _curves(axes, solves)
        axes.set_title(title)
    for axes in list(grid)[len(panels) :]:
        axes.remove()
    figure.savefig(path, dpi=150)


def _networks(results: Results) -> Mapping[str, list[NetworkSolve]]:
    """By title, the evaluations of one network."""
    batch = max((one.batch for one in results.networks), default=0)
    solves = [s for s in results.networks if s[1:3] == (batch, "evaluation")]
    return {
        f"{name} network, batch {batch}": [s for s in solves if s.network == name]
        for name in dict.fromkeys(solve.network for solve in solves)
    }


def _smooth(results: Results) -> Mapping[str, list[SmoothSolve]]:
    return {
        problem: [solve for solve in results.smooth if solve.problem == problem]
        for problem in dict.fromkeys(solve.problem for solve in results.smooth)
    }


def _curves(axes, solves: Iterable[NetworkSolve | SmoothSolve]) -> None:
    solves = list(solves)
    for method in dict.fromkeys(solve.method for solve in solves):
        points = [
            (time, solve.error)
            for solve in solves
            if solve.method == method
            and solve.error is not None
            and (time := seconds(solve.run)) is not None
        ]
        if points:
            dashed = "--" if "Taylor" not in method else "-"
            look = dict(marker="o", markersize=3, linestyle=dashed)
            axes.plot(*zip(*points), label=method, **look)
    axes.set(xlabel="seconds", ylabel="error", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
