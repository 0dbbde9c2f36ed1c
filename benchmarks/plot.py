"""Draws run and compile times of the gradient over the order."""

from collections.abc import Callable
from pathlib import Path

from .records import Results, YARDSTICK
from .runs import build_seconds, Run, seconds


def draw(results: Results, path: Path) -> None:
    """Of the first field, at the largest batch it was measured at."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    field = results.measurements[0].field
    batch = max(results.batches(field))
    kind = "gradient" if results.measurements[0].gradient else "forward"
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    run_axes, compile_axes = figure.subplots(1, 2)
    for axes, quantity, title in (
        (run_axes, seconds, "run time"),
        (compile_axes, build_seconds, "compile time"),
    ):
        _curves(axes, results, quantity, kind, field, batch)
        axes.set_title(f"{title}, {kind}, {field}, batch {batch}")
        axes.set(xlabel="order K", ylabel="seconds", yscale="log")
        axes.set_xticks(results.orders(field, batch))
        axes.grid(alpha=0.3)
    # The run times', for they have the field's too.
    figure.legend(*run_axes.get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=150)


def _curves(
    axes,
    results: Results,
    quantity: Callable[[Run | None], float | None],
    kind: str,
    field: str,
    batch: int,
) -> None:
    runs = [m for m in results.measurements if m[:2] == (field, batch)]
    for number, name in enumerate(dict.fromkeys(m.contestant for m in runs)):
        points = [
            (m.order, value)
            for m in runs
            if m.contestant == name
            and (value := quantity(getattr(m, kind))) is not None
        ]
        if not points:
            continue
        orders, values = zip(*points)
        if name != YARDSTICK:
            style = dict(color=f"C{number}", marker="o", markersize=3)
            axes.plot(orders, values, label=name, **style)
        elif quantity is seconds:
            # What K evaluations take: the least that can be hoped for.
            values = [k * value for k, value in points]
            axes.plot(orders, values, color="black", linestyle="--", label="K fields")
