"""MINIBOONE: measurements of particles, with the preparation of Papamakarios et al.,
"Masked Autoregressive Flow for Density Estimation", NeurIPS 2017.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from . import sources


NAME, COLUMNS = "miniboone", 43
VALIDATION, TEST = "maf_val_normalised.npy", "maf_test_normalised.npy"
WHOLE, HEAD = "maf_train_normalised.npy", "maf_train_first1523_normalised.npy"
Rows = Float[np.ndarray, "rows columns"]


class TabularData(NamedTuple):
    """Normalized samples, in disjoint parts.

    If a part of the official training split is missing (`partial`), the other part and
    the official validation split are divided again, at the official proportion.
    Likelihoods can't be compared with papers then.
    """

    train: Rows
    validation: Rows
    test: Rows
    partial: bool


def load_miniboone() -> TabularData:
    """Loads the signal events.

    They are normalized by the mean and deviation of the samples outside of `test`.

    **Raises:**

    `DataUnavailable` if there is neither a folder with the files nor a network, and for
    damaged files.
    """
    for first, partial in ((WHOLE, False), (HEAD, True)):
        files = (VALIDATION, TEST, first)
        # One of the two training files is sufficient.
        paths = sources.find(NAME, [first]) and sources.find(NAME, files)
        if paths:
            rows = [sources.read_array(path, COLUMNS) for path in paths]
            validation, test, train = rows
            if partial:
                both = np.concatenate([train, validation])
                train, validation = np.split(both, [len(both) - len(both) // 10])
            return TabularData(train, validation, test, partial)
    columns, signal = sources.openml(NAME, (WHOLE, VALIDATION, TEST), 41150)
    return prepare(columns[np.char.lower(signal.astype(str)) == "true"])


def prepare(signal: Rows) -> TabularData:
    """Cleans, splits and normalizes the signal events, in their original order.

    Leaves out the events that were not measured, and the columns in which a value
    occurs more than five times.
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
    rest, test = (((x - mean) / deviation).astype(np.float32) for x in (rest, test))
    train, validation = np.split(rest, [len(rest) - len(rest) // 10])
    return TabularData(train, validation, test, partial=False)
