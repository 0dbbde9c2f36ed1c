"""Draws the frames of all benchmarks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def _figure(columns: int, rows: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(4.5 * columns, 4 * rows), layout="constrained")
    return figure, [*figure.subplots(rows, columns, squeeze=False).flat]


def _curves(axes: Any, frame: pd.DataFrame, x: str, y: str, label: str) -> None:
    """Draws a curve for each entry of the column `label`."""
    for number, name in enumerate(sorted(frame[label].unique())):
        points = frame[frame[label] == name].dropna(subset=[x, y])
        if len(points):
            style = dict(marker="o", markersize=3, color=f"C{number}")
            axes.plot(points[x], points[y], label=name, **style)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="x-small")


def derivatives(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws run and compile times of the first field, at its largest batch."""
    shown = frames["largest"]
    shown = shown[shown["field"] == shown["field"].iloc[0]]
    shown = shown[shown["kind"] == shown["kind"].iloc[-1]]
    field = shown["contestant"] == "field"
    # The time of K evaluations is the least that can be expected.
    shown = shown.assign(
        contestant=shown["contestant"].mask(field, "K fields"),
        seconds=shown["seconds"].where(~field, shown["seconds"] * shown["order"]),
        build=shown["build"].mask(field),
    )
    figure, axes = _figure(2)
    for panel, column, name in zip(axes, ("seconds", "build"), ("run", "compile")):
        _curves(panel, shown, "order", column, "contestant")
        title = f"{name} time, {shown['kind'].iloc[0]}, {shown['field'].iloc[0]}"
        panel.set(title=title, yscale="log", xlabel="order K", ylabel="seconds")
    return figure


def regularization(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the costs for the first field and batch, and the error of quadrature."""
    steps, (figure, (costs, errors)) = frames["steps"], _figure(2)
    shown = steps[steps["field"] == steps["field"].iloc[0]]
    shown = shown[
        (shown["batch"] == shown["batch"].iloc[0]) & (shown["way"] != "plain")
    ]
    shown = shown.assign(label=shown["solver"] + ", " + shown["way"])
    _curves(costs, shown, "order", "ratio", "label")
    ylabel = "in parts of that without the regularizer"
    costs.set(title="gradient step", xlabel="order K", ylabel=ylabel, ylim=(0, None))
    _curves(errors, frames["quadrature"], "num_nodes", "error", "activation")
    errors.set(title="Gauss-Legendre quadrature", ylabel="relative error of R_K")
    errors.set(xlabel="nodes", xscale="log", yscale="log")
    return figure


def solver(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the evaluations of each network, and the smooth problems."""
    smooth, networks = frames["smooth"], frames["networks"]
    panels = [*smooth.groupby("problem")] if len(smooth) else []
    if len(networks):
        whole = networks[networks["kind"] == "evaluation"]
        panels += whole.groupby("network", sort=False)
    return _work_precision(panels, ("seconds", "evaluations"))


def stiff(frames: Mapping[str, pd.DataFrame]) -> Figure:
    panels = [*frames["solves"].groupby("problem", sort=False)]
    return _work_precision(panels, ("steps", "seconds"))


def _work_precision(panels: Sequence[Any], costs: Sequence[str]) -> Figure:
    """Draws errors over costs: a row for each cost, and a column for each frame."""
    figure, axes = _figure(len(panels), len(costs))
    cells = [(cost, *panel) for cost in costs for panel in panels]
    for panel, (cost, title, frame) in zip(axes, cells):
        _curves(panel, frame, cost, "error", "method")
        panel.set(title=title, xscale="log", yscale="log")
        panel.xaxis.set_minor_formatter("")  # Their labels would overlap.
    return figure


def training(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the costs of cadences, and the times on the layouts of devices."""
    figure, (left, right) = _figure(2)
    counts = np.array([1, 2, 5, 10, 20, 50, 100, 200, 400])
    for case in frames["cadences"].to_dict("records"):
        costs = 1 + (case["reference"] + case["solver"]) / (counts * case["bare"])
        left.plot(counts, costs, "o-", markersize=3, label=case["field"])
    left.set(title="A solver step after every n", xlabel="model steps n", xscale="log")
    left.set(ylabel="in parts of these alone")
    left.legend()
    for case in frames["devices"].to_dict("records"):
        right.bar(f"{case['devices']} on {case['cores']}", 1e3 * case["seconds"])
    right.set(title="A model step", xlabel="devices, on cores", ylabel="milliseconds")
    return figure
