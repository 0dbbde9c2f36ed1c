"""MINIBOONE: measurements of particles, with the preparation of Papamakarios et al.,
"Masked Autoregressive Flow for Density Estimation", NeurIPS 2017.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from . import sources


NAME = "miniboone"
COLUMNS = 43
VALIDATION, TEST = "maf_val_normalised.npy", "maf_test_normalised.npy"
WHOLE, HEAD = "maf_train_normalised.npy", "maf_train_first1523_normalised.npy"


class TabularData(NamedTuple):
    """Normalized samples.

    **Attributes:**

    - `train`, `validation`, `test`: disjoint samples. Without the whole of the official
        training split, what there is of it and the official validation split are
        divided anew, at the official proportion.
    - `partial`: whether that is so. Likelihoods can't be compared with papers then.
    """

    train: Float[np.ndarray, "train columns"]
    validation: Float[np.ndarray, "validation columns"]
    test: Float[np.ndarray, "test columns"]
    partial: bool


def load_miniboone() -> TabularData:
    """The signal events, normalized by the mean and the deviation of what is not test.

    **Raises:**

    `DataUnavailable` if there is neither a folder with the files nor a network, and for
    damaged files.
    """
    for first, partial in ((WHOLE, False), (HEAD, True)):
        files = (VALIDATION, TEST, first)
        # Either training file will do: neither is missing if the other one is there.
        paths = sources.find(NAME, [first]) and sources.find(NAME, files)
        if paths:
            validation, test, train = (
                sources.read_array(path, COLUMNS) for path in paths
            )
            if partial:
                both = np.concatenate([train, validation])
                train, validation = np.split(both, [len(both) - len(both) // 10])
            return TabularData(train, validation, test, partial)
    columns, signal = sources.openml(NAME, (WHOLE, VALIDATION, TEST), 41150)
    return prepare(columns[np.char.lower(signal.astype(str)) == "true"])


def prepare(signal: Float[np.ndarray, "events all_columns"]) -> TabularData:
    """Cleans, splits and normalizes the signal events, in their original order.

    Without the events that were not measured, and the columns in which a value occurs
    more than five times.

    **Raises:**

    `DataUnavailable` if the number of columns left is not the official one.
    """
    signal = signal[signal[:, 0] > -100]
    repeats = [np.unique(column, return_counts=True)[1].max() for column in signal.T]
    signal = signal[:, np.array(repeats) <= 5]
    if signal.shape[1] != COLUMNS:
        raise sources.DataUnavailable(
            f"OpenML's MINIBOONE has {signal.shape[1]} columns after cleaning, where "
            f"{COLUMNS} are expected. "
            f"{sources.remedy(NAME, (WHOLE, VALIDATION, TEST))}"
        )
    rest, test = np.split(signal, [len(signal) - len(signal) // 10])
    mean, deviation = rest.mean(axis=0), rest.std(axis=0)
    rest, test = (
        ((part - mean) / deviation).astype(np.float32) for part in (rest, test)
    )
    train, validation = np.split(rest, [len(rest) - len(rest) // 10])
    return TabularData(train, validation, test, partial=False)
