"""What is measured of learned dynamics: files, tables, pictures."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from . import command_line, records, report


BASELINE, FIXED = "adaptive Dopri5", "RK4"


class Result(NamedTuple):
    """What was measured of one method.

    **Attributes:**

    - `steps`: of the training.
    - `test_error`: of the states that the method's own solver comes to in a step, from
        states that were not trained on: sums of absolute values, in units of the state.
    - `field_error`: the same by an adaptive solve of the learned field.
    - `rollout_error`: the mean of ‖ŷ - y‖ / (‖ŷ‖ + ‖y‖) over trajectories that are
        predicted from their initial states.
    - `nfe`: evaluations that Dopri5 needs for a step of the learned field.
    - `training_seconds`: of all steps of the training, but the first ones.
    - `step_seconds`: their mean.
    - `first_seconds`: these, in which everything is compiled.
    - `times`, `exact`, `predicted`: trajectories.
    """

    method: str
    steps: int
    test_error: float
    field_error: float
    rollout_error: float
    nfe: float
    step_seconds: float
    training_seconds: float
    first_seconds: float
    error_by_epoch: list[float]
    loss_by_epoch: list[float]
    seconds_by_epoch: list[float]
    times: Float[np.ndarray, " times"]
    exact: Float[np.ndarray, "shown times state"]
    predicted: Float[np.ndarray, "shown times state"]


class Published(NamedTuple):
    """The paper's figures of a method, and how they are known."""

    training_seconds: float
    error: str
    status: str


def save(path: Path, options: argparse.Namespace, outcome: Result | str) -> None:
    """Keeps what came of one method: the result, or by which error it ended."""
    if isinstance(outcome, str):
        records.save_figures(path, options, outcome)
    else:
        figures = {name: _plain(value) for name, value in outcome._asdict().items()}
        records.save_figures(path, options, figures)


def _plain(value: Any) -> Any:
    """As JSON has it: arrays to six digits; `None` for what is not finite."""
    if isinstance(value, np.ndarray | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


def load(path: Path) -> Result | str:
    """What `save` has kept."""
    figures = records.load_figures(path)
    if isinstance(figures, str):
        return figures
    for name in ("times", "exact", "predicted"):
        figures[name] = np.array(figures[name], float)
    if figures["rollout_error"] is None:
        figures["rollout_error"] = np.nan
    return Result(**figures)


def file_name(task: str, method: str) -> str:
    return f"{command_line.file_name(f'{task} {method}')}.json"


def load_all(folder: Path, task: str, methods: Sequence[str]) -> dict[str, Any]:
    """The results in a folder, by method."""
    paths = {method: folder / file_name(task, method) for method in methods}
    return {method: load(path) for method, path in paths.items() if path.exists()}


def table(
    outcomes: Mapping[str, Result | str],
    commands: Mapping[str, str],
    published: Mapping[str, Published],
) -> str:
    """In Markdown, a row for each method."""
    header = "method, steps, training, a step, faster, error, than RK4, of the field"
    columns = [*header.split(", "), "predicted", "NFE", "paper: training", "error"]
    rows = [[*columns, "status", "command"]]
    for method, outcome in outcomes.items():
        command = f"`{commands[method]}`"
        paper = ["-", "-", "-"]
        if method in published:
            seconds, error, status = published[method]
            paper = [f"{seconds:g} s", error, status]
        if isinstance(outcome, str):
            rows.append([method, outcome, *[""] * 8, *paper, command])
        else:
            rows.append([method, *_figures(outcome, outcomes), *paper, command])
    return f"{report.table(rows)}\n\n{_EXPLANATION}"


_EXPLANATION = """\
Training: all steps but the first 50, in which everything is compiled; faster: than
by adaptive Dopri5. Error: of one step by the method's own solver, on trajectories that
were not trained on, the mean sum of the absolute errors of a state's entries; than RK4:
in parts of RK4's. Of the field: the same by Dopri5 at 1e-8, which tells how good the
learned field is without the solver that it was learned by. Predicted: the mean of
‖ŷ - y‖ / (‖ŷ‖ + ‖y‖) over trajectories predicted from their initial states alone. NFE:
evaluations that Dopri5 at 1e-8 needs for a step of the learned field, for all states
of a trajectory as one."""


def _figures(result: Result, outcomes: Mapping[str, Result | str]) -> list[str]:
    def ratio(method: str, name: str) -> float | None:
        other = outcomes.get(method)
        if not isinstance(other, Result):
            return None
        return getattr(other, name) / getattr(result, name)

    faster = ratio(BASELINE, "training_seconds")
    smaller = ratio(FIXED, "test_error")
    return [
        str(result.steps),
        f"{result.training_seconds:.1f} s",
        f"{1e3 * result.step_seconds:.2f} ms",
        "" if faster is None else f"{faster:.1f}x",
        f"{result.test_error:.2g}",
        "" if smaller is None else f"1 / {smaller:.2g}",
        f"{result.field_error:.2g}",
        f"{result.rollout_error:.2g}",
        f"{result.nfe:.0f}",
    ]


def draw(results: Sequence[Result], path: Path) -> None:
    """The error over steps and over time, and trajectories for each method."""
    # Imported late: it is slow to import, and `--help` does not need it.
    from matplotlib.figure import Figure

    count = 2 + len(results)
    figure = Figure(figsize=(2.9 * count, 3.4), layout="constrained")
    by_step, by_time, *others = figure.subplots(1, count)
    for result in results:
        steps = np.linspace(0, result.steps, len(result.error_by_epoch) + 1)[1:]
        by_step.plot(steps, result.error_by_epoch, ".-", label=result.method)
        by_time.plot(result.seconds_by_epoch, result.error_by_epoch, ".-")
    by_step.set(title="Error of a step", xlabel="training steps", yscale="log")
    by_time.set(title="Error of a step", xlabel="seconds of training", yscale="log")
    by_time.set_xscale("log")
    by_step.legend(fontsize=7)
    for axes, result in zip(others, results):
        for exact, predicted in zip(result.exact, result.predicted):
            for entry in range(exact.shape[1]):
                axes.plot(result.times, exact[:, entry], "k:", linewidth=1)
                axes.plot(result.times, predicted[:, entry], f"C{entry}", linewidth=1)
        low, high = np.min(result.exact), np.max(result.exact)
        margin = 0.1 * (high - low)
        axes.set(title=result.method, xlabel="time", ylim=(low - margin, high + margin))
    others[0].set_ylabel("states: predicted, and exact (dotted)")
    figure.savefig(path, dpi=120)
