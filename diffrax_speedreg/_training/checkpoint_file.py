"""One checkpoint, as a file that is whole or not there at all.

Its first line says what it is, the second is the SHA-256 of all that follows: a line of
JSON, with hyperparameters and what the leaves are, and the leaves as Equinox writes
them, in NumPy's format. Nothing is pickled.
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
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


_T = TypeVar("_T")
_magic = b"diffrax-speedreg checkpoint 2\n"


class CheckpointError(RuntimeError):
    """Raised when a checkpoint can't be read or written; says which, and why.

    **Attributes:**

    - `state`: what could not be written, if [`diffrax_speedreg.fit`][] raised this.
    """

    state: PyTree[Any] = None


class _Content(NamedTuple):
    header: dict[str, Any]
    leaves: bytes


def save_checkpoint(
    path: str | Path,
    state: PyTree[Any],
    hyperparameters: Mapping[str, Any] | None = None,
) -> None:
    """Writes a pytree to a file, at once or not at all.

    It is written beside the file, forced onto the disk, and only then renamed: whatever
    happens meanwhile, `path` is the old file or the new one.

    **Arguments:**

    - `path`: the file, which is replaced if it is there.
    - `state`: any pytree: the arrays and numbers in it are saved. On a mesh of several
        processes, arrays must be the same in all of them; call this in one.
    - `hyperparameters`: what it takes to make a state of this structure again, as JSON
        knows it: beside the leaves, so that the file can be read without the script
        that wrote it.

    **Raises:**

    [`diffrax_speedreg.CheckpointError`][] if it can't be written, because the disk is
    full, say, or because of a dtype that NumPy's format does not know.
    """
    path = Path(path)
    header = dict(
        hyperparameters=as_json(hyperparameters or {}),
        leaves=_describe(state),
        others=_describe_others(state),
    )
    line = json.dumps(header).encode()
    _check_dtypes(state)
    leaves = io.BytesIO()
    eqx.tree_serialise_leaves(leaves, jtu.tree_map(_without_key, state))
    body = line + b"\n" + leaves.getvalue()
    digest = hashlib.sha256(body).hexdigest().encode()
    # Another process, by mistake in the same folder, should not write into it.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        _write_and_sync(unfinished, _magic + digest + b"\n" + body)
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except OSError as error:
        # It can't be removed either where all is read-only.
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise CheckpointError(
            f"The checkpoint {path} could not be written: "
            f"{error.strerror or error}. Those written before are as they were. Make "
            "room, or choose another folder."
        ) from error


def load_checkpoint(path: str | Path, like: _T) -> _T:
    """Reads a pytree from a file.

    **Arguments:**

    - `path`: a file from [`diffrax_speedreg.save_checkpoint`][].
    - `like`: a pytree of the same structure, whose arrays are replaced. They may be
        mere shapes, from `equinox.filter_eval_shape`.

    **Returns:**

    The pytree, with the file's arrays and numbers. All else, such as functions and the
    settings of a solver, is of `like`; a warning tells if it is described otherwise
    than what was saved.

    **Raises:**

    [`diffrax_speedreg.CheckpointError`][] if the file is torn, is not a checkpoint, or
    is one of another structure.
    """
    content = _read(Path(path))
    described = _describe(like)
    if content.header["leaves"] != described:
        theirs, ours = map(dict, (content.header["leaves"], described))
        names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
        name = names[0] if names else "the order"
        raise CheckpointError(
            f"The checkpoint {path} is of another model, solver or optimizer: "
            f"`state{name}` is {theirs.get(name, 'not there')} in the file, but "
            f"{ours.get(name, 'not there')} here, and {len(names)} leaves "
            "differ in all. `read_hyperparameters` tells what it was made with."
        )
    _compare_others(content.header["others"], _describe_others(like), path)
    try:
        loaded = eqx.tree_deserialise_leaves(
            io.BytesIO(content.leaves), jtu.tree_map(_without_key, like)
        )
    except (RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"The leaves in the checkpoint {path} are not plain arrays: {error}. It "
            "was not written by `save_checkpoint`."
        ) from error
    return jtu.tree_map(_with_key, like, loaded)


def read_hyperparameters(path: str | Path) -> dict[str, Any]:
    """Reads what was saved beside the leaves.

    **Arguments:**

    - `path`: a file from [`diffrax_speedreg.save_checkpoint`][].

    **Returns:**

    The hyperparameters.

    **Raises:**

    [`diffrax_speedreg.CheckpointError`][] if the file is torn, or not a checkpoint.
    """
    return _read(Path(path)).header["hyperparameters"]


def check_intact(path: Path) -> None:
    """Raises [`diffrax_speedreg.CheckpointError`][] if a file is torn or foreign."""
    _read(path)


def as_json(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as they will be read; an error if they can't be written."""
    try:
        return json.loads(json.dumps(dict(hyperparameters), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The hyperparameters can't be written as JSON: {error}. Pass numbers, "
            "strings, lists and dictionaries, and names in place of functions."
        ) from error


def _read(path: Path) -> _Content:
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
            f"The checkpoint {path} is torn: its {len(data)} bytes are not those that "
            "were written. Use an earlier one."
        )
    line, _, leaves = body.partition(b"\n")
    return _Content(json.loads(line), leaves)


def _write_and_sync(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """So that the new name, too, is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(state: PyTree[Any]) -> list[list[str]]:
    """Paths and types of what is saved."""

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
    """Lines that show what is not saved, without what differs from run to run."""
    _, others = eqx.partition(state, _is_saved)
    return re.sub(" at 0x[0-9a-f]+", "", eqx.tree_pformat(others)).splitlines()


def _compare_others(theirs: list[str], ours: list[str], path: str | Path) -> None:
    changed = [line for line in difflib.ndiff(theirs, ours) if line[0] in "-+"]
    if changed:
        shown = "\n".join(changed)
        warnings.warn(
            f"The checkpoint {path} is of a state with other settings or functions. "
            f"There (-) and here (+):\n{shown}\nTo go on with those of the file, make "
            "the state as it was made then."
        )


def _check_dtypes(state: PyTree[Any]) -> None:
    """Of what could be written, but not be read."""
    for path, leaf in jtu.tree_leaves_with_path(state):
        if not eqx.is_array(leaf) or _is_key(leaf):
            continue
        if isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16:
            continue  # Equinox knows what to do.
        descr = np.lib.format.dtype_to_descr(leaf.dtype)
        if np.lib.format.descr_to_dtype(descr) != leaf.dtype:
            raise CheckpointError(
                f"`state{jtu.keystr(path)}` can't be written: NumPy's format does not "
                f"know a {type(leaf).__name__} of {leaf.dtype}. Convert it, to "
                "float32 for example, or to a JAX array if it is of bfloat16."
            )


def _without_key(leaf: Any) -> Any:
    """The numbers of a key, which NumPy's format knows; also of a mere shape of one."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jr.key_data, leaf)
    return jr.key_data(leaf)


def _with_key(like: Any, leaf: Any) -> Any:
    if not _is_key(like):
        return leaf
    # Of a mere shape, JAX does not tell the implementation.
    return jr.wrap_key_data(leaf, impl=jr.key_impl(jnp.zeros((), like.dtype)))


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
