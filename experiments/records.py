"""What is measured in an experiment, and the file that it is kept in."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float


class Trajectory(NamedTuple):
    times: Float[Array | np.ndarray, " times"]
    states: Float[Array | np.ndarray, "times state"]
    steps: Float[Array | np.ndarray, " steps"]


class Result(NamedTuple):
    """What was measured of one method."""

    method: str
    accuracy: float
    nfe: float
    solve_seconds: float
    step_seconds: float
    training_seconds: float
    nfe_by_epoch: list[float]
    loss_by_epoch: list[float]
    trajectory: Trajectory


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """Under which settings, and on what, an experiment was run."""
    return dict(
        options={k: str(v) for k, v in vars(options).items() if k != "output"},
        versions=_versions(),
        hardware=dict(
            cores=os.cpu_count(),
            backend=jax.default_backend(),
            device=jax.devices()[0].device_kind,
        ),
    )


def figures(result: Result) -> dict[str, Any]:
    """All of a result but its trajectory, which makes a picture."""
    return {k: v for k, v in result._asdict().items() if k != "trajectory"}


def save(path: Path, options: argparse.Namespace, outcome: Result | str) -> None:
    """Keeps what came of one method.

    **Arguments:**

    - `outcome`: the result, or by which error the training ended.
    """
    if isinstance(outcome, str):
        save_figures(path, options, outcome)
    else:
        trajectory = {
            name: np.round(np.asarray(array, float), 4).tolist()
            for name, array in brief(outcome.trajectory)._asdict().items()
        }
        save_figures(path, options, {**figures(outcome), "trajectory": trajectory})


def save_figures(
    path: Path, options: argparse.Namespace, outcome: dict[str, Any] | str
) -> None:
    """As `save`, of an experiment whose results are of another kind."""
    record = circumstances(options)
    record["failure" if isinstance(outcome, str) else "result"] = outcome
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def load(path: Path) -> Result | str:
    """What `save` has kept."""
    result = load_figures(path)
    if isinstance(result, str):
        return result
    arrays = {name: np.array(x) for name, x in result["trajectory"].items()}
    return Result(**{**result, "trajectory": Trajectory(**arrays)})


def options(path: Path) -> dict[str, str]:
    """Under which options something was recorded."""
    return json.loads(path.read_text())["options"]


def load_figures(path: Path) -> dict[str, Any] | str:
    """What `save_figures` has kept."""
    record = json.loads(path.read_text())
    return record["failure"] if "failure" in record else record["result"]


def brief(trajectory: Trajectory, entries: int = 8) -> Trajectory:
    """With the entries of the state that move most alone, and the steps made alone."""
    times, states, steps = map(np.asarray, trajectory)
    moved = np.argsort(np.ptp(states, axis=0))[-entries:]
    return Trajectory(times, states[:, moved], steps[np.isfinite(steps)])


def _versions() -> dict[str, str]:
    packages = ["diffrax-speedreg", "jax", "diffrax", "equinox", "optax"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **versions}
