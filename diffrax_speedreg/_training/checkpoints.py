"""Checkpoints: files that are written completely or not at all.

The first line of a file names its format, and the second is the SHA-256 of the rest.
The rest is a line of JSON, with metadata and a description of the leaves, and the
leaves as Equinox writes them, in NumPy's format. Nothing is pickled.
"""

import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .._checks import (
    check_integer,
    check_positive_integer,
    check_real_scalar,
    check_that,
)


_T = TypeVar("_T")
_magic = b"diffrax-speedreg checkpoint 3\n"
_name = re.compile(r"step-(\d{10,})(?:-(\d+))?\.ckpt")


class CheckpointError(RuntimeError):
    """Exception for a checkpoint that can't be read or written.

    The message says which checkpoint, and why.

    **Attributes:**

    - `state`: the state that was not written, if [`diffrax_speedreg.training.fit`][]
        raised this; otherwise `None`.
    """

    state: PyTree[Any] = None


def save_checkpoint(
    path: str | Path, state: PyTree[Any], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a pytree to a file, completely or not at all.

    The pytree is written to another file, which is renamed after it has reached the
    disk. So at any time, `path` is the old file or the new one.

    **Arguments:**

    - `path`: the file, which is replaced if it exists.
    - `state`: a pytree, whose arrays and numbers are saved. On a mesh of several
        processes, its arrays must be replicated: call this in one process.
    - `metadata`: any JSON, such as hyperparameters, which is saved in the same file.

    **Raises:**

    [`diffrax_speedreg.training.CheckpointError`][] if the file can't be written, for
    example on a full disk; or if a leaf can't be read back, such as an array of Python
    objects, or of a dtype that NumPy's format does not support.
    """
    path = Path(path)
    header = dict(
        metadata=_as_json(metadata or {}),
        leaves=_describe(state),
        others=_describe_others(state),
    )
    plain = jtu.tree_map_with_path(_as_plain, state)
    leaves = io.BytesIO()
    eqx.tree_serialise_leaves(leaves, plain)
    body = json.dumps(header).encode() + b"\n" + leaves.getvalue()
    digest = hashlib.sha256(body).hexdigest().encode()
    # Another process, by mistake in the same folder, should not write into it.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            file.write(_magic + digest + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        # On a read-only disk it can't be removed either.
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise CheckpointError(
            f"The checkpoint {path} could not be written: {error.strerror or error}. "
            "Earlier checkpoints are unchanged. Make room, or choose another folder."
        ) from error


def load_checkpoint(path: str | Path, like: _T) -> _T:
    """Reads a pytree from a file.

    **Arguments:**

    - `path`: a file from [`diffrax_speedreg.training.save_checkpoint`][].
    - `like`: a pytree of the same structure. Its arrays may be `jax.ShapeDtypeStruct`s,
        from `equinox.filter_eval_shape`.

    **Returns:**

    A pytree like `like`, with the arrays and numbers of the file. The rest, such as
    functions and the settings of a solver, is that of `like`. A warning says if its
    description differs from that in the file.

    **Raises:**

    [`diffrax_speedreg.training.CheckpointError`][] if the file is corrupt, is not a
    checkpoint, or has another structure.
    """
    header, leaves = _read(Path(path))
    saved, wanted = map(dict, (header["leaves"], _describe(like)))
    names = [n for n in {**wanted, **saved} if wanted.get(n) != saved.get(n)]
    if names:
        raise CheckpointError(
            f"The checkpoint {path} is of another model, solver or optimizer: "
            f"`state{names[0]}` is {saved.get(names[0], 'not there')} in the file, but "
            f"{wanted.get(names[0], 'not there')} here, and {len(names)} leaves differ "
            f"in all. Its metadata are {header['metadata']}."
        )
    lines = difflib.ndiff(header["others"], _describe_others(like))
    changed = "\n".join(line for line in lines if line[0] in "-+")
    if changed:
        warnings.warn(
            f"The checkpoint {path} is of a state with other settings or functions. "
            f"There (-) and here (+):\n{changed}\nTo go on with those of the file, "
            "make the state as it was made then."
        )
    try:
        loaded = eqx.tree_deserialise_leaves(
            io.BytesIO(leaves), jtu.tree_map(_like_plain, like)
        )
    except (RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"The leaves in the checkpoint {path} are not plain arrays: {error}. It "
            "was not written by `save_checkpoint`."
        ) from error
    return jtu.tree_map(_from_plain, like, loaded)


class Checkpoints(eqx.Module):
    """Folder with the latest checkpoints of a training run.

    !!! example

        ```python
        checkpoints = dsr.training.Checkpoints("run-1", dict(width=32, seed=0))
        state = checkpoints.restore(state)
        state = dsr.training.fit(
            trainer, state, batches, num_steps=10_000, checkpoints=checkpoints
        )
        ```

    You can kill this script at any time, and start it again. Its final state has the
    same bits as that of an uninterrupted run.
    """

    folder: Path
    metadata: Mapping[str, Any]
    seconds: float
    keep: int

    def __init__(
        self,
        folder: str | Path,
        metadata: Mapping[str, Any] | None = None,
        *,
        seconds: float = 60.0,
        keep: int = 3,
    ):
        """**Arguments:**

        - `folder`: the folder, which is made if it does not exist. With several
            processes, all need access to it: the first one writes, and all of them
            read.
        - `metadata`: any JSON, such as hyperparameters. A warning says how they differ
            from those of a restored checkpoint. Without metadata, nothing is compared.
        - `seconds`: the time between checkpoints in
            [`diffrax_speedreg.training.fit`][].
        - `keep`: the number of intact checkpoints to keep.

        **Raises:**

        [`diffrax_speedreg.training.CheckpointError`][] if the folder can't be made, or
        the metadata are not JSON. A `ValueError` if `seconds` or `keep` is out of
        range.
        """
        check_that(isinstance(folder, str | Path), "folder", "a path", folder)
        self.folder = Path(folder)
        self.metadata = _as_json(metadata or {})
        self.seconds = seconds
        self.keep = check_positive_integer(keep, "keep")
        check_real_scalar(seconds, "seconds")
        check_that(seconds >= 0, "seconds", "zero or positive", seconds)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"The folder {folder} for checkpoints could not be made: "
                f"{error.strerror}. Choose another."
            ) from error

    def latest_step(self) -> int | None:
        """Returns the step of the latest intact checkpoint, or `None`."""
        path = self._latest()
        return None if path is None else _order(path)[0]

    def save(self, state: PyTree[Any], step: int) -> None:
        """Writes a checkpoint, and removes old ones.

        **Arguments:**

        - `state`: a pytree.
        - `step`: the step, a nonnegative integer that orders the checkpoints. A corrupt
            checkpoint of the same step is left as it is.

        **Raises:**

        [`diffrax_speedreg.training.CheckpointError`][] if the checkpoint can't be
        written. A `ValueError` if `step` is not a nonnegative integer.
        """
        step = check_integer(step, "step", 0)
        if jax.process_index() > 0:
            return
        path, count = self.folder / f"step-{step:010d}.ckpt", 1
        while path.exists() and not _is_intact(path):
            path = self.folder / f"step-{step:010d}-{count}.ckpt"
            count += 1
        save_checkpoint(path, state, self.metadata)
        for leftover in self.folder.glob(".step-*.unfinished"):
            leftover.unlink(missing_ok=True)  # From a killed process.
        # A corrupt file may still be useful, and is no reason to remove another one.
        others = [other for other in self._paths() if other != path]
        for old in [other for other in others if _is_intact(other)][self.keep - 1 :]:
            old.unlink(missing_ok=True)

    def restore(self, state: _T) -> _T:
        """Reads the latest intact checkpoint.

        A warning names later checkpoints, which are corrupt, and metadata that differ.

        **Arguments:**

        - `state`: the state at the start of the training run.

        **Returns:**

        The state of the checkpoint, or `state` if there are no checkpoints.

        **Raises:**

        [`diffrax_speedreg.training.CheckpointError`][] if there are checkpoints but
        none is intact, or if the latest one is of another model. An error if the
        processes of a training run find different checkpoints.
        """
        path = self._latest(warn=True)
        # Compared before any process raises an error: the others would wait for it.
        if jax.process_count() > 1:
            step = -1 if path is None else _order(path)[0]
            multihost_utils.assert_equal(
                step, f"The processes must all see the folder {self.folder}."
            )
        if path is None and self._paths():
            raise CheckpointError(
                f"None of the checkpoints in {self.folder} is intact. To start again, "
                "choose another folder."
            )
        if path is None:
            return state
        saved, now = _read(path)[0]["metadata"], self.metadata
        if now and saved != now:
            changes = [
                f"`{name}` was {_describe_entry(saved, name)}, and is "
                f"{_describe_entry(now, name)}"
                for name in saved | now
                if name not in saved or name not in now or saved[name] != now[name]
            ]
            warnings.warn(
                f"The checkpoint {path} is of a training run with other metadata: "
                f"{'; '.join(changes)}. To start again, choose another folder."
            )
        return load_checkpoint(path, state)

    def _paths(self) -> list[Path]:
        """Returns the paths of all checkpoints, the latest first."""
        paths = [path for path in self.folder.iterdir() if _name.fullmatch(path.name)]
        return sorted(paths, key=_order, reverse=True)

    def _latest(self, *, warn: bool = False) -> Path | None:
        for path in self._paths():
            try:
                _read(path)
            except CheckpointError as error:
                if warn:
                    warnings.warn(f"{error} An earlier checkpoint is used instead.")
            else:
                return path
        return None


def _describe_entry(metadata: Mapping[str, Any], name: str) -> str:
    return repr(metadata[name]) if name in metadata else "not there"


def _order(path: Path) -> tuple[int, int]:
    match = _name.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _is_intact(path: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        return bool(_read(path))
    return False


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} could not be read: {error.strerror}."
        ) from error
    if not data.startswith(_magic):
        raise CheckpointError(
            f"{path} is not a checkpoint of diffrax_speedreg, or of another version: "
            f"it begins with {data[: len(_magic)]!r}."
        )
    digest, _, body = data[len(_magic) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CheckpointError(
            f"The checkpoint {path} is corrupt: its {len(data)} bytes are not those "
            "that were written. Use an earlier one."
        )
    line, _, leaves = body.partition(b"\n")
    return json.loads(line), leaves


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The metadata can't be written as JSON: {error}. Pass numbers, strings, "
            "lists and dictionaries, and names in place of functions."
        ) from error


def _describe(state: PyTree[Any]) -> list[list[str]]:
    """Lists the paths and types of the saved leaves."""

    def kind(leaf: Any) -> str:
        if isinstance(leaf, bool | int | float | complex):
            return type(leaf).__name__
        return f"{leaf.dtype}{list(leaf.shape)}"

    return [
        [jtu.keystr(path), kind(leaf)]
        for path, leaf in jtu.tree_leaves_with_path(state)
        if _is_saved(leaf)
    ]


def _is_saved(leaf: Any) -> bool:
    arrays = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, (*arrays, bool, int, float, complex))


def _describe_others(state: PyTree[Any]) -> list[str]:
    """Describes the leaves that are not saved, in lines of text."""
    others = eqx.tree_pformat(eqx.filter(state, _is_saved, inverse=True))
    # Addresses differ from run to run.
    return re.sub(" at 0x[0-9a-f]+", "", others).splitlines()


def _as_plain(path: Any, leaf: Any) -> Any:
    """Converts a leaf for the file.

    Raises an error for a leaf that could be written, but not read back.
    """
    plain = _like_plain(leaf)
    if isinstance(leaf, int) and np.asarray(plain).dtype.hasobject:
        with contextlib.suppress(ValueError):  # Python limits the number of digits.
            return np.asarray(str(leaf))
    if isinstance(plain, bool | int | float | complex | np.ndarray | jax.Array):
        problem = _why_unreadable(plain)
        if problem is not None:
            raise CheckpointError(
                f"`state{jtu.keystr(path)}` can't be written, because it could not be "
                f"read back: it is {problem}."
            )
    return plain


def _why_unreadable(leaf: Any) -> str | None:
    """Describes why NumPy's format does not support a leaf, and what to do about it.

    Returns `None` if it does.
    """
    if isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16:
        return None  # Equinox can write it.
    if isinstance(leaf, np.ndarray) and type(leaf) is not np.ndarray:
        return f"a {type(leaf).__name__}. Convert it by `numpy.array`"
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    dtype = array.dtype
    if dtype.hasobject:
        return (
            "made of Python objects. Convert it to an array of numbers or of strings, "
            "such as `names.astype(str)`"
        )
    descr = np.lib.format.dtype_to_descr(dtype)
    if np.lib.format.descr_to_dtype(descr) != dtype:
        return (
            f"of a dtype that NumPy's format does not know, {dtype}. Convert it, to "
            "float32 for example, or to a JAX array if it is of bfloat16"
        )
    return None


def _like_plain(leaf: Any) -> Any:
    """Converts a leaf to a type of NumPy's format.

    A key becomes its data, and a scalar an array. This works for the shape of a key
    as well.
    """
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jr.key_data, leaf)
    return jr.key_data(leaf)


def _from_plain(like: Any, leaf: Any) -> Any:
    if isinstance(like, np.generic):
        return leaf[()]
    if not _is_key(like):
        return leaf
    # The shape of a key does not have its implementation.
    return jr.wrap_key_data(leaf, impl=jr.key_impl(jnp.zeros((), like.dtype)))


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
