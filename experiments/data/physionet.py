"""PhysioNet/CinC Challenge 2012: 48 hours of patients in intensive care."""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.datasets import get_data_home

from . import sources


NAME, HOURS = "physionet2012", 48
FILES = ("set-a.tar.gz", "set-b.tar.gz")
# The time series. The other parameters describe the patient, and occur once.
FEATURES = (
    *("Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol"),
    *("Creatinine", "DiasABP", "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K"),
    *("Lactate", "MAP", "MechVent", "Mg", "Na", "NIDiasABP", "NIMAP", "NISysABP"),
    *("PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp"),
    *("TroponinI", "TroponinT", "Urine", "WBC", "Weight"),
)


Values = Float[np.ndarray, "patients hours features"]


class TimeSeries(NamedTuple):
    """Time series of patients, at all full hours.

    **Attributes:**

    - `values`: scaled so that those of the training part run from 0 to 1, and 0 where
        nothing was observed.
    - `mask`: the entries that were observed.
    """

    values: Values
    mask: Bool[np.ndarray, "patients hours features"]


def load_physionet() -> tuple[TimeSeries, TimeSeries]:
    """Loads all patients with observations, a fixed 80 % of them for training.

    Times are rounded to hours, and a feature's observations at the same time averaged.
    The time series are kept in scikit-learn's data folder, for the next time.

    **Raises:**

    `DataUnavailable` if there is no folder with the files, and for damaged files.
    """
    paths = sources.find(NAME, FILES)
    if paths is None:
        raise sources.DataUnavailable(
            f"{NAME} can't be fetched: get it from "
            "https://physionet.org/content/challenge-2012/1.0.0/. "
            f"{sources.remedy(NAME, FILES)}"
        )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    folder = Path(get_data_home()) / "diffrax_speedreg"
    kept = folder / f"{NAME}-{digest[:16]}-hours.npz"
    if not kept.exists():
        texts = {k: text for path in paths for k, text in read_records(path)}
        patients, values = gather(texts)
        folder.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(part, patients=patients, values=values)
        part.replace(kept)
    with np.load(kept, allow_pickle=False) as arrays:
        return split(arrays["patients"], arrays["values"])


def read_records(path: Path) -> Iterator[tuple[str, str]]:
    """Reads the patients in an archive: the number of each, and its text."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".txt"):
                    yield Path(member.name).stem, file.read().decode()
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise sources.damaged(path, f"can't be read ({error})") from error


def gather(texts: Mapping[str, str]) -> tuple[np.ndarray, Values]:
    """Computes the means of the values observed at each hour, NaN where there are none.

    Patients without observations are left out.
    """
    lines = []
    for patient, text in texts.items():
        heading, *rest = text.splitlines()
        if heading != "Time,Parameter,Value":
            raise sources.DataUnavailable(
                f"A record of {NAME} starts with {heading!r}, not "
                "'Time,Parameter,Value'."
            )
        lines += [f"{patient},{line}" for line in rest]
    names = ["patient", "time", "parameter", "value"]
    frame: Any = pd.read_csv(io.StringIO("\n".join(lines)), names=names)
    # Nothing measured is negative: -1 is "unknown".
    frame = frame[frame.parameter.isin(FEATURES) & (frame.value >= 0)]
    clock = frame.time.str.split(":", expand=True).astype(float)
    hours = (clock[0] + clock[1] / 60).round().astype(int)
    means = frame.value.groupby([frame.patient, hours, frame.parameter]).mean()
    patients, rows = np.unique(means.index.get_level_values(0), return_inverse=True)
    columns = pd.Index(FEATURES).get_indexer(means.index.get_level_values(2))
    values = np.full((len(patients), HOURS + 1, len(FEATURES)), np.nan, np.float32)
    values[rows, means.index.get_level_values(1), columns] = means
    return patients, values


def split(patients: np.ndarray, values: Values) -> tuple[TimeSeries, TimeSeries]:
    """Divides the patients, by their numbers, and scales the values."""
    # By digests, so that the order does not depend on any random number generator.
    digests = [hashlib.sha256(str(patient).encode()).digest() for patient in patients]
    order = np.array(sorted(range(len(patients)), key=lambda i: digests[i]))
    train, test = (values[i] for i in np.split(order, [len(order) * 4 // 5]))
    observed = np.isfinite(train)
    low = np.min(train, axis=(0, 1), where=observed, initial=np.inf)
    high = np.max(train, axis=(0, 1), where=observed, initial=-np.inf)
    # Features that are constant, or that nobody has, become 0.
    varies = high > low
    low, scale = np.where(varies, low, 0), np.where(varies, high - low, np.inf)

    def scaled(part: np.ndarray) -> TimeSeries:
        mask = np.isfinite(part)
        filled = np.where(mask, (part - low) / scale, 0)
        return TimeSeries(filled.astype(np.float32), mask)

    return scaled(train), scaled(test)
