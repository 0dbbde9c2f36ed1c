"""Where data comes from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import fetch_openml, get_data_home
from sklearn.utils import Bunch


VARIABLE = "DIFFRAX_SPEEDREG_DATA"


class DataUnavailable(Exception):
    """Data is missing or damaged; the message says which, and what to do."""


def find(name: str, files: Sequence[str]) -> list[Path] | None:
    """The files of a data set, in the folder that the environment variable names.

    **Arguments:**

    - `name`: the data set's own folder within that one.
    - `files`: what has to be there.

    **Returns:**

    Their paths, or `None` if the variable is not set, or nothing is there.

    **Raises:**

    `DataUnavailable` if some of them are there, and others are not.
    """
    root = os.environ.get(VARIABLE)
    if not root:
        return None
    if not Path(root).is_dir():
        raise DataUnavailable(f"${VARIABLE} names {root!r}, which is no folder.")
    paths = [Path(root) / name / file for file in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing and len(missing) < len(paths):
        raise DataUnavailable(f"These files of {name} are missing: {missing}.")
    return None if missing else paths


def openml(name: str, files: Sequence[str], number: int) -> tuple[Any, Any]:
    """A data set of OpenML's, which scikit-learn keeps once it has fetched it.

    **Arguments:**

    - `name`, `files`: as for `find`, for the message.
    - `number`: the data set's, at OpenML.

    **Returns:**

    The data and the target, as arrays.

    **Raises:**

    `DataUnavailable` if it can't be fetched.
    """
    try:
        found = fetch_openml(data_id=number, as_frame=False, parser="liac-arff")
    # Without a network these are `OSError`s; of a damaged answer, `ValueError`s.
    except (OSError, ValueError) as error:
        raise DataUnavailable(
            f"OpenML can't be reached for {name} ({error}). {remedy(name, files)}"
        ) from error
    assert isinstance(found, Bunch)
    return found.data, found.target


def remedy(name: str, files: Sequence[str]) -> str:
    return (
        f"Put {', '.join(files)} into a folder {name!r}, and the path of the folder "
        f"around it into the environment variable {VARIABLE}."
    )


def damaged(path: Path, what: str) -> DataUnavailable:
    return DataUnavailable(f"{path} {what}: fetch it again.")


def read_array(path: Path, columns: int) -> np.ndarray:
    """A matrix of NumPy's format with so many columns, in single precision."""
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    if array.ndim != 2 or array.shape[1] != columns or not np.isfinite(array).all():
        raise damaged(path, f"must hold {columns} columns of finite numbers")
    return array.astype(np.float32)


def cache(name: str) -> Path:
    """Where to keep a file, in the folder in which scikit-learn keeps its data."""
    folder = Path(get_data_home()) / "diffrax_speedreg"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
