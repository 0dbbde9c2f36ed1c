"""Places that data come from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import fetch_openml


VARIABLE = "DIFFRAX_SPEEDREG_DATA"


class DataUnavailable(Exception):
    """Data is missing or damaged; the message says which, and what to do."""


def find(name: str, files: Sequence[str]) -> list[Path] | None:
    """Finds files of a data set, in the folder that the environment variable names.

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
    """Fetches the data and the target of a data set from OpenML, by its number there.

    Scikit-learn keeps a copy.

    **Raises:**

    `DataUnavailable` if it can't be fetched.
    """
    try:
        found: Any = fetch_openml(data_id=number, as_frame=False, parser="liac-arff")
    # An `OSError` means no network, and a `ValueError` a damaged answer.
    except (OSError, ValueError) as error:
        raise DataUnavailable(
            f"OpenML can't be reached for {name} ({error}). {remedy(name, files)}"
        ) from error
    return found.data, found.target


def remedy(name: str, files: Sequence[str]) -> str:
    return (
        f"Put {', '.join(files)} into a folder {name!r}, and the path of the folder "
        f"around it into the environment variable {VARIABLE}."
    )


def damaged(path: Path, what: str) -> DataUnavailable:
    return DataUnavailable(f"{path} {what}: fetch it again.")


def read_array(path: Path, columns: int) -> np.ndarray:
    """Reads a matrix with so many columns in NumPy's format, in single precision."""
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise damaged(path, f"can't be read ({error})") from error
    if array.ndim != 2 or array.shape[1] != columns or not np.isfinite(array).all():
        raise damaged(path, f"must hold {columns} columns of finite numbers")
    return array.astype(np.float32)
