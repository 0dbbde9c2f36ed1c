"""Pictures of all tasks, from the arrays in their records by label."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .record import Record


# Records of several seeds by label. Only `accuracies` shows all seeds.
Records = Mapping[str, Sequence[Record]]


def _panels(
    count: int, *, columns: int = 4, size: tuple[float, float] = (3.1, 3.1)
) -> tuple[Figure, list[Axes]]:
    """Makes a figure with some panels of a size, in rows."""
    columns = min(count, columns)
    rows = -(-count // columns)
    width, height = size
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


def _by_epoch(axes: Axes, records: Records) -> None:
    for label, (made, *_) in records.items():
        counts = made.curves["nfe"]
        axes.plot(np.arange(1, len(counts) + 1), counts, label=label)
    axes.set(title="NFE during training", xlabel="epoch", ylabel="NFE", ylim=(0, None))
    axes.legend(fontsize="x-small")


def accuracies(records: Records) -> Figure:
    """Draws the accuracy over the NFE for all seeds, and the NFE by epoch."""
    figure, (left, right) = _panels(2, size=(5.0, 3.6))
    for label, group in records.items():
        counts = [made.metrics["nfe"] for made in group]
        percent = [100 * made.metrics["own_accuracy"] for made in group]
        left.plot(counts, percent, "o", markersize=4, label=label)
    left.set(title="Accuracy over NFE", xlabel="NFE", ylabel="%", xlim=(0, None))
    left.legend(fontsize="x-small", loc="lower right")
    _by_epoch(right, records)
    return figure


def trajectories(records: Records) -> Figure:
    """Draws the NFE by epoch, and a solution with steps for each method."""
    figure, (left, *others) = _panels(1 + len(records))
    _by_epoch(left, records)
    for axes in others[1:]:
        axes.sharey(others[0])
    for axes, (label, (made, *_)) in zip(others, records.items()):
        picture = made.picture
        axes.plot(picture["times"], np.array(picture["states"]), linewidth=1)
        if "observed" in picture:
            axes.plot(picture["observed_times"], picture["observed"], ".", markersize=4)
        for step in picture["steps"]:
            axes.axvline(step, color="black", alpha=0.2, linewidth=0.8)
        axes.set_title(f"{label}: {len(picture['steps'])} steps", fontsize="small")
        axes.set_xlabel("time")
    others[0].set_ylabel("parts of a state, and steps")
    return figure


def toy(records: Records) -> Figure:
    """Draws trajectories in the color of their third derivative, for each method.

    Dots are the times at which the solver evaluates the field.
    """
    figure, panels = _panels(len(records), columns=1, size=(6.0, 2.9))
    pictures = {label: made.picture for label, (made, *_) in records.items()}
    largest = max(np.max(picture["derivatives"]) for picture in pictures.values())
    norm = LogNorm(1e-3 * largest, largest, clip=True)
    for axes, (label, picture) in zip(panels, pictures.items()):
        times = np.array(picture["times"])
        for states, derivatives, evaluations in zip(
            picture["states"], picture["derivatives"], picture["evaluations"]
        ):
            points = np.stack([times, states], axis=1)
            parts = np.stack([points[:-1], points[1:]], axis=1)
            lines = LineCollection(list(parts), norm=norm, linewidths=4)
            lines.set_array(np.array(derivatives)[:-1])
            axes.add_collection(lines)
            at = np.interp(evaluations, times, states)
            axes.plot(evaluations, at, "k.", markersize=1.5)
        axes.set(
            title=f"{label}: mean NFE {records[label][0].metrics['nfe_bosh3']:.1f}"
        )
        axes.set(ylabel="state", xlim=(0, 1))
    panels[-1].set_xlabel("time; dots: evaluations by Bosh3")
    colors = ScalarMappable(norm)
    figure.colorbar(colors, ax=panels, label="modulus of the third derivative")
    return figure


def orders(records: Records) -> Figure:
    """Draws the error over the NFE, for each solver and K."""
    first, *_ = next(iter(records.values()))
    solvers = list(first.rows[0]["nfe"])
    figure, panels = _panels(len(solvers))
    for axes, solver in zip(panels, solvers):
        for label, (made, *_) in records.items():
            plain, *others = made.rows
            counts = [row["nfe"][solver] for row in others]
            errors = [row["error"] for row in others]
            axes.semilogy(counts, errors, ".-", label=label)
            axes.plot(plain["nfe"][solver], plain["error"], "k*")
        axes.set(title=solver, xlabel="mean NFE")
    panels[0].set_ylabel("error; star: plain")
    panels[0].legend()
    return figure


def dynamics(records: Records) -> Figure:
    """Draws the error of a step by epoch, and trajectories for each method."""
    figure, (by_epoch, *others) = _panels(1 + len(records))
    for label, (made, *_) in records.items():
        errors = made.curves["error"]
        by_epoch.plot(np.arange(1, len(errors) + 1), errors, ".-", label=label)
    by_epoch.set(title="Error of a step", xlabel="epoch", yscale="log")
    by_epoch.legend(fontsize="x-small")
    for axes, (label, (made, *_)) in zip(others, records.items()):
        exact = np.array(made.picture["exact"], float)
        predicted = np.array(made.picture["predicted"], float)
        for one, other in zip(exact, predicted):
            axes.plot(made.picture["times"], one, "k:", linewidth=1)
            for entry in range(one.shape[1]):
                axes.plot(made.picture["times"], other[:, entry], f"C{entry}")
        margin = 0.1 * np.ptp(exact)
        axes.set(ylim=(exact.min() - margin, exact.max() + margin), xlabel="time")
        axes.set_title(label, fontsize="small")
    others[0].set_ylabel("states: predicted, and exact (dotted)")
    return figure


def densities(records: Records, extent: float) -> Figure | None:
    """Draws the density and samples of each flow in the plane."""
    drawn = {k: r for k, (r, *_) in records.items() if r.picture}
    if not drawn:
        return None
    count = len(drawn)
    figure, panels = _panels(2 * count, columns=count, size=(2.2, 2.3))
    box = (-extent, extent, -extent, extent)
    for (label, made), top, bottom in zip(
        drawn.items(), panels[:count], panels[count:]
    ):
        density = np.exp(np.array(made.picture["log_density"]))
        top.imshow(density, extent=box, origin="lower", interpolation="bilinear")
        top.set_title(f"{label}: NFE {made.metrics['nfe']:.4g}", fontsize="small")
        bottom.plot(*np.array(made.picture["samples"]).T, ".", markersize=1.5)
    for axes in panels:
        axes.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
    return figure


def budgets(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the accuracy over the NFE, for all ways: means over seeds."""
    figure, (axes,) = _panels(1, size=(6.5, 4.2))
    markers = iter("os^vDP*X<>ph8d")
    groups: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for row in rows:
        label = row["way"] + (" with fixed weights" if row["weight"] else "")
        at = row["budget"] or row["weight"] or 0
        point = row["nfe"], 100 * row["accuracy"]
        groups.setdefault(label, {}).setdefault(at, []).append(point)
    for label, points in groups.items():
        means = sorted(tuple(np.mean(p, axis=0)) for p in points.values())
        axes.plot(*zip(*means), marker=next(markers), linewidth=1, label=label)
    # The points of stiffness are far outside.
    axes.set(xlim=(20, 70), ylim=(93, 98.5))
    axes.set(xlabel="NFE", ylabel="accuracy on held-out digits (%)")
    axes.legend(fontsize="x-small", ncols=2)
    return figure


def samples(pictures: Mapping[str, Any]) -> Figure:
    """Draws samples in the plane, or images in rows, by the label of their solver."""
    count = len(pictures)
    arrays = {label: np.array(x) for label, x in pictures.items()}
    planar = all(x.shape[1] == 2 for x in arrays.values())
    columns, size = (5, (2.2, 2.4)) if planar else (1, (7.0, 0.6))
    figure, panels = _panels(count, columns=columns, size=size)
    for axes, (label, x) in zip(panels, arrays.items()):
        axes.set(xticks=[], yticks=[])
        if planar:
            axes.plot(*x.T, ".", markersize=1)
            axes.set_title(label, fontsize="x-small")
            axes.set(xlim=(-4, 4), ylim=(-3, 3), aspect="equal")
        else:
            images = np.hstack(list(x.reshape(-1, 8, 8)))
            axes.imshow(images, cmap="gray_r", vmin=-1, vmax=1)
            axes.set_ylabel(label, fontsize=6, rotation=0, ha="right", va="center")
    return figure


def tolerances(records: Records) -> Figure:
    """Draws the NFE over the tolerance: lines in float64, crosses in float32."""
    figure, (axes,) = _panels(1, size=(5.0, 3.6))
    for i, (label, (made, *_)) in enumerate(records.items()):
        for dtype, style in (("float64", ".-"), ("float32", "x")):
            rows = [r for r in made.tolerances if r["dtype"] == dtype and r["nfe"]]
            points = [(row["tolerance"], row["nfe"]) for row in rows]
            name = label if dtype == "float64" else None
            if points:
                axes.loglog(*zip(*points), style, color=f"C{i}", label=name)
    axes.set(xlabel="rtol = atol", ylabel="NFE", title="Crosses: float32")
    axes.invert_xaxis()
    axes.legend(fontsize="x-small")
    return figure
