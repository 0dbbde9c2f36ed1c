"""The results of the flows: their files, their table, their picture."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from . import command_line, records, report


EXTENT, POINTS = 4.0, 64


class Result(NamedTuple):
    """What was measured of one method.

    **Attributes:**

    - `nll`: negative log likelihood of the test samples, in nats, by exact traces and
        an adaptive solve of high accuracy.
    - `own_nll`: the same by the solve that the method was trained by.
    - `nfe`: evaluations of that adaptive solve, a mean over the batches.
    - `solve_seconds`: of the method's own solve of a test batch.
    - `training_samples`, `partial`: how many samples there were to train on, and
        whether these are a part of the official training split.
    - `log_density`, `samples`: of a flow in the plane, for its picture: on a grid of
        `POINTS` from `-EXTENT` to `EXTENT` each way, and drawn from it.
    """

    method: str
    nll: float
    own_nll: float
    nfe: float
    solve_seconds: float
    step_seconds: float
    training_seconds: float
    training_samples: int | None
    partial: bool
    nfe_by_epoch: list[float]
    loss_by_epoch: list[float]
    log_density: list[list[float]] | None
    samples: list[list[float]] | None


def path_of(folder: Path, task: str, method: str) -> Path:
    return folder / f"{command_line.file_name(f'ffjord {task} {method}')}.json"


def save(options: argparse.Namespace, method: str, outcome: Result | str) -> None:
    """Keeps what came of one method: the result, or by which error it ended."""
    path = path_of(options.output, options.task, method)
    figures = outcome if isinstance(outcome, str) else outcome._asdict()
    records.save_figures(path, options, figures, indent=None)


class Run(NamedTuple):
    """A file of results: the settings, and the result or by which error it ended."""

    options: dict[str, str]
    outcome: Result | str


def load(folder: Path, task: str, methods: Sequence[str]) -> dict[str, Run]:
    """The runs of a task, of those methods of which there are any."""
    runs = {}
    for method in methods:
        path = path_of(folder, task, method)
        if path.exists():
            found = records.load_figures(path)
            outcome = found if isinstance(found, str) else Result(**found)
            runs[method] = Run(records.options(path), outcome)
    return runs


def table(
    runs: Mapping[str, Mapping[str, Run]],
    published: Mapping[str, Mapping[str, str]],
    command: Callable[[str, Mapping[str, str]], str],
) -> str:
    """In Markdown, a row for each run.

    **Arguments:**

    - `runs`: by task and method.
    - `published`: the paper's figures, likewise.
    - `command`: from a method and the options recorded to what makes the row again.
    """
    header = ["task", "method", "schedule", "test NLL", "NFE", "its own solve"]
    rows = [[*header, "training step", "training", "in the paper", "command"]]
    for task, of_task in runs.items():
        plain = of_task["plain"].outcome if "plain" in of_task else None
        for method, (options, outcome) in of_task.items():
            if isinstance(outcome, str):
                figures = [outcome, "", "", "", ""]
            else:
                nll, nfe = f"{outcome.nll:.3f}", f"{outcome.nfe:.4g}"
                if isinstance(plain, Result) and outcome is not plain:
                    nll += f" ({100 * (outcome.nll / plain.nll - 1):+.1f} %)"
                    nfe += f" ({outcome.nfe / plain.nfe:.2f} of plain's)"
                figures = [
                    nll,
                    nfe,
                    f"{1e3 * outcome.solve_seconds:.1f} ms, NLL {outcome.own_nll:.3f}",
                    f"{1e3 * outcome.step_seconds:.1f} ms",
                    f"{outcome.training_seconds:.0f} s",
                ]
            schedule = (
                f"{options['epochs']} epochs, batch {options['batch_size']}, "
                f"width {options['width']}"
            )
            paper = published.get(task, {}).get(method, "-")
            again = f"`{command(method, options)}`"
            rows.append([task, method, schedule, *figures, paper, again])
    return report.table(rows)


def draw(
    data: Mapping[str, Float[np.ndarray, "count 2"]],
    runs: Mapping[str, Mapping[str, Run]],
    path: Path,
) -> None:
    """For each density in the plane: samples of it, and the density and samples of
    each flow.

    **Arguments:**

    - `data`: samples, by task.
    - `runs`: by task and method.
    """
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(method for r in runs.values() for method in r))
    shape = (2 * len(data), 1 + len(methods))
    figure = Figure(figsize=(2 * shape[1], 2.1 * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False)
    box = (-EXTENT, EXTENT, -EXTENT, EXTENT)
    for row, (task, points) in enumerate(data.items()):
        density, samples = panels[2 * row : 2 * row + 2]
        bins = np.linspace(-EXTENT, EXTENT, POINTS + 1)
        density[0].hist2d(*points.T, bins=bins)
        density[0].set_title(f"{task}: data", fontsize="small")
        samples[0].plot(*points[:1000].T, ".", markersize=1.5)
        for left, right, method in zip(density[1:], samples[1:], methods):
            run = runs[task].get(method)
            if run is None or isinstance(run.outcome, str):
                continue
            result = run.outcome
            values = np.exp(np.array(result.log_density))
            left.imshow(values, extent=box, origin="lower", interpolation="bilinear")
            title = f"{method}: NFE {result.nfe:.4g}"
            left.set_title(title, fontsize="small")
            right.plot(*np.array(result.samples).T, ".", markersize=1.5)
    for axes in panels.flat:
        axes.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
    figure.savefig(path, dpi=110)
