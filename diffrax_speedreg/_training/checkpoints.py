import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .._checks import check_positive_integer
from .checkpoint_file import (
    as_json,
    check_intact,
    CheckpointError,
    load_checkpoint,
    read_hyperparameters,
    save_checkpoint,
)
from .sharding import is_writer


_T = TypeVar("_T")
_name = re.compile(r"step-(\d{10,})(?:-(\d+))?\.ckpt")


class Checkpoints(eqx.Module):
    """A folder with the latest checkpoints of a training.

    !!! example

        ```python
        checkpoints = dsr.Checkpoints("run-1", hyperparameters=dict(width=32, seed=0))
        state = checkpoints.restore(state)
        state = dsr.fit(trainer, state, batches, until=10_000, checkpoints=checkpoints)
        ```

    A script of these lines can be killed at any time, and started again: it ends with
    the same bits.
    """

    folder: Path
    hyperparameters: Mapping[str, Any]
    seconds: float
    keep: int

    def __init__(
        self,
        folder: str | Path,
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        seconds: float = 60.0,
        keep: int = 3,
    ):
        """**Arguments:**

        - `folder`: where to keep them; it is made if it is not there. Of several
            processes, the first one writes, and all of them read: a folder that all
            can see.
        - `hyperparameters`: as for [`diffrax_speedreg.save_checkpoint`][].
        - `seconds`: how long [`diffrax_speedreg.fit`][] waits from one to the next.
        - `keep`: how many of them to keep; those that are torn do not count.

        [`diffrax_speedreg.CheckpointError`][] is raised if there can't be that folder,
        or if JSON does not know the hyperparameters.
        """
        self.folder = Path(folder)
        self.hyperparameters = as_json(hyperparameters or {})
        self.seconds = seconds
        self.keep = check_positive_integer(keep, "keep")
        if not seconds >= 0:
            raise ValueError(f"`seconds` must not be negative, but got {seconds!r}.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"The folder {folder} for checkpoints could not be made: "
                f"{error.strerror}. Choose another."
            ) from error

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint that is intact; `None` if there is none."""
        path = self._latest()
        return None if path is None else _step(path)

    def save(self, state: PyTree[Any], step: int) -> None:
        """Writes a checkpoint, and removes old ones.

        **Arguments:**

        - `state`: a pytree.
        - `step`: the number that orders checkpoints. One of the same step that is torn
            is left as it is, beside the new one.

        **Raises:**

        [`diffrax_speedreg.CheckpointError`][] if it can't be written.
        """
        if not is_writer():
            return
        new = self._free_path(step)
        save_checkpoint(new, state, self.hyperparameters)
        for leftover in self.folder.glob(".step-*.unfinished"):
            leftover.unlink(missing_ok=True)  # Of a process killed while it wrote.
        # What is torn or foreign may be of use to somebody; and is no reason to remove
        # one that is not.
        others = [path for path in self._paths() if path != new and _is_intact(path)]
        for path in others[self.keep - 1 :]:
            path.unlink(missing_ok=True)

    def restore(self, state: _T) -> _T:
        """Reads the latest checkpoint that is intact; warns of any later one, and of
        hyperparameters that are others than these.

        **Arguments:**

        - `state`: the state at the start of the training.

        **Returns:**

        The state of that checkpoint; the one passed, if there are no checkpoints.

        **Raises:**

        [`diffrax_speedreg.CheckpointError`][] if there are checkpoints, but none of
        them is intact, or the latest one is of another model; or if the processes of a
        training do not all see the same.
        """
        path = self._latest(warn=True)
        # Before any of them raises: the others would wait for it.
        if jax.process_count() > 1:
            found = -1 if path is None else _step(path)
            multihost_utils.assert_equal(
                found, f"The processes must all see the folder {self.folder}."
            )
        if path is None and self._paths():
            raise CheckpointError(
                f"None of the checkpoints in {self.folder} is intact. To start anew, "
                "choose another folder."
            )
        if path is None:
            return state
        self._compare_hyperparameters(path)
        return load_checkpoint(path, state)

    def _compare_hyperparameters(self, path: Path) -> None:
        theirs, ours = read_hyperparameters(path), self.hyperparameters
        changed = [f"{n}={v!r}" for n, v in theirs.items() if ours.get(n, v) != v]
        if changed:
            warnings.warn(
                f"The checkpoint {path} is of a training with {', '.join(changed)}, "
                "which is not what was passed now. To start anew, choose another "
                "folder."
            )

    def _paths(self) -> list[Path]:
        """Those of all checkpoints, the latest first."""
        found = [path for path in self.folder.iterdir() if _name.fullmatch(path.name)]
        return sorted(found, key=_order, reverse=True)

    def _latest(self, *, warn: bool = False) -> Path | None:
        for path in self._paths():
            try:
                check_intact(path)
            except CheckpointError as error:
                if warn:
                    warnings.warn(f"{error} An earlier checkpoint is looked for.")
            else:
                return path
        return None

    def _free_path(self, step: int) -> Path:
        path, count = self.folder / f"step-{step:010d}.ckpt", 1
        while path.exists() and not _is_intact(path):
            path = self.folder / f"step-{step:010d}-{count}.ckpt"
            count += 1
        return path


def _order(path: Path) -> tuple[int, int]:
    match = _name.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _step(path: Path) -> int:
    return _order(path)[0]


def _is_intact(path: Path) -> bool:
    try:
        check_intact(path)
    except CheckpointError:
        return False
    return True
