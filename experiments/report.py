"""What the experiments share: timing, tables, pictures."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, PyTree

from .command_line import (
    HelpFormatter as HelpFormatter,
    nonnegative as nonnegative,
    positive as positive,
    seed as seed,
    writable_folder as writable_folder,
)
from .records import brief, circumstances as circumstances, figures, Result


def median_seconds(function: Callable[[], PyTree[Array]], repeats: int = 30) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def write(
    name: str, results: Sequence[Result], caption: str, options: argparse.Namespace
) -> None:
    """Prints the table, and writes it with the picture and the figures behind it."""
    text = f"{results_table(results)}\n\n{caption}\n"
    picture = options.output / f"{name}.png"
    draw(results, picture)
    (options.output / f"{name}.md").write_text(text)
    record = circumstances(options)
    record |= dict(caption=caption, results=[figures(result) for result in results])
    path = options.output / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\n{text}\nPicture: {picture}\nFigures: {path}")


def results_table(results: Sequence[Result]) -> str:
    """In Markdown, a row for each method."""
    rows = [["method", "test accuracy", "NFE", "solve", "training step", "training"]]
    rows += [
        [
            result.method,
            f"{100 * result.accuracy:.1f} %",
            f"{result.nfe:g}",
            f"{1e3 * result.solve_seconds:.2f} ms",
            f"{1e3 * result.step_seconds:.1f} ms",
            f"{result.training_seconds:.1f} s",
        ]
        for result in results
    ]
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; the first row is the header."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        for row in rows
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Evaluations over the training, and a trajectory for each method."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    columns = min(1 + len(results), 4)
    rows = -(-(1 + len(results)) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.2 * rows), layout="constrained")
    left, *others = figure.subplots(rows, columns, squeeze=False).flat
    for result in results:
        epochs = np.arange(1, len(result.nfe_by_epoch) + 1)
        left.plot(epochs, result.nfe_by_epoch, label=result.method)
    left.set(title="Evaluations during training", xlabel="epoch", ylabel="NFE")
    left.set_ylim(bottom=0)
    left.legend(fontsize="x-small")
    for axes, result in zip(others, results):
        times, states, steps = brief(result.trajectory)
        if axes is not others[0]:
            axes.sharey(others[0])
        axes.plot(times, states, linewidth=1)
        for step in steps:
            axes.axvline(step, color="black", alpha=0.2, linewidth=0.8)
        axes.set(title=f"{result.method}: NFE {result.nfe:g}", xlabel="time")
    for axes in others[len(results) :]:
        axes.remove()
    others[0].set_ylabel("some pixels of an image, and steps")
    figure.savefig(path, dpi=150)
