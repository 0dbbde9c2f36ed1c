"""PhysioNet/CinC Challenge 2012: 48 hours of patients in intensive care."""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from . import sources


NAME = "physionet2012"
FILES = ("set-a.tar.gz", "set-b.tar.gz")
# Every time series; the other parameters describe the patient, once.
FEATURES = (
    *("Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol"),
    *("Creatinine", "DiasABP", "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K"),
    *("Lactate", "MAP", "MechVent", "Mg", "Na", "NIDiasABP", "NIMAP", "NISysABP"),
    *("PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp"),
    *("TroponinI", "TroponinT", "Urine", "WBC", "Weight"),
)
DESCRIPTORS = ("RecordID", "Age", "Gender", "Height", "ICUType")
_columns = {name: i for i, name in enumerate(FEATURES)}


class TimeSeries(NamedTuple):
    """Time series of patients, padded to the same length.

    **Attributes:**

    - `times`: in hours, increasing; the last one is repeated as padding.
    - `values`: scaled so that those of the training part run from 0 to 1, and 0 where
        nothing was observed.
    - `mask`: what was observed.
    """

    times: Float[np.ndarray, "patients length"]
    values: Float[np.ndarray, "patients length features"]
    mask: Bool[np.ndarray, "patients length features"]


class TimeSeriesData(NamedTuple):
    train: TimeSeries
    test: TimeSeries


def load_physionet(resolution: float = 1.0) -> TimeSeriesData:
    """All patients with observations, a fixed 80 % of them for training.

    What is read is kept in scikit-learn's data folder, for the next time.

    **Arguments:**

    - `resolution`: in hours. Times are rounded to it, and a feature's observations at
        the same time averaged.

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
    kept = sources.cache(f"{NAME}-{digest[:16]}-{resolution:g}h.npz")
    if not kept.exists():
        records = [record for path in paths for record in read_records(path)]
        patients, series = gather(records, resolution)
        part = kept.with_suffix(".part.npz")
        np.savez_compressed(part, patients=patients, **series._asdict())
        part.replace(kept)
    with np.load(kept, allow_pickle=False) as arrays:
        series = TimeSeries(*(arrays[name] for name in TimeSeries._fields))
        return split(arrays["patients"], series)


def read_records(path: Path) -> Iterator[tuple[str, str]]:
    """The patients in an archive: the number of each, and the text about it."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".txt"):
                    yield Path(member.name).stem, file.read().decode()
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise sources.damaged(path, f"can't be read ({error})") from error


def gather(
    records: Sequence[tuple[str, str]], resolution: float
) -> tuple[np.ndarray, TimeSeries]:
    """Reads the texts, and pads what they tell; without patients who have no
    observations. Values are as they were observed."""
    read = [(patient, *_observations(text, resolution)) for patient, text in records]
    read = [patient for patient in read if len(patient[1])]
    length = max(len(times) for _, times, _ in read)
    shape = len(read), length, len(FEATURES)
    times = np.zeros(shape[:2], np.float32)
    values = np.full(shape, np.nan, np.float32)
    for i, (_, patient_times, patient_values) in enumerate(read):
        times[i] = np.pad(patient_times, (0, length - len(patient_times)), "edge")
        values[i, : len(patient_times)] = patient_values
    mask = np.isfinite(values)
    patients = np.array([patient for patient, _, _ in read])
    return patients, TimeSeries(times, np.where(mask, values, 0), mask)


def on_grid(series: TimeSeries, times: Float[np.ndarray, " times"]) -> TimeSeries:
    """The same time series at times that are the same for all patients.

    **Raises:**

    `ValueError` if a patient was observed at another time.
    """
    index = np.searchsorted(times, series.times).clip(max=len(times) - 1)
    if not np.array_equal(times[index], series.times):
        raise ValueError(
            f"Patients were observed at times that are not among the {len(times)}."
        )
    shape = len(index), len(times), series.mask.shape[2]
    values, mask = np.zeros(shape, series.values.dtype), np.zeros(shape, bool)
    patients = np.arange(len(index))[:, None]
    # By addition, since the padding repeats the last time, and observes nothing.
    np.add.at(values, (patients, index), series.values)
    np.logical_or.at(mask, (patients, index), series.mask)
    return TimeSeries(np.broadcast_to(times, shape[:2]), values, mask)


def split(patients: np.ndarray, series: TimeSeries) -> TimeSeriesData:
    """Divides the patients, by their numbers, and scales the values."""
    # By digests, so that the order does not depend on any random number generator.
    digests = [hashlib.sha256(str(patient).encode()).digest() for patient in patients]
    order = np.array(sorted(range(len(patients)), key=lambda i: digests[i]))
    parts = np.split(order, [len(order) * 4 // 5])
    train, test = (TimeSeries(*(array[part] for array in series)) for part in parts)
    low = np.min(train.values, axis=(0, 1), where=train.mask, initial=np.inf)
    high = np.max(train.values, axis=(0, 1), where=train.mask, initial=-np.inf)
    # Features that are constant, or that nobody has, become 0.
    varies = high > low
    low, scale = np.where(varies, low, 0), np.where(varies, high - low, np.inf)

    def scaled(part: TimeSeries) -> TimeSeries:
        values = np.where(part.mask, (part.values - low) / scale, 0)
        return part._replace(values=values.astype(np.float32))

    return TimeSeriesData(scaled(train), scaled(test))


def _observations(text: str, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """The times, and the means of the values observed at each, NaN where none were."""
    observed: dict[float, dict[int, list[float]]] = {}
    heading, *lines = text.splitlines()
    if heading != "Time,Parameter,Value":
        raise sources.DataUnavailable(
            f"A record of {NAME} starts with {heading!r}, not 'Time,Parameter,Value'."
        )
    for line in lines:
        time, parameter, value = line.split(",")
        # Some lines name no parameter; nothing measured is negative, -1 is 'unknown'.
        if parameter in DESCRIPTORS or not parameter or float(value) < 0:
            continue
        hours, minutes = map(int, time.split(":"))
        rounded = round((hours + minutes / 60) / resolution) * resolution
        at_time = observed.setdefault(rounded, {})
        at_time.setdefault(_columns[parameter], []).append(float(value))
    times = np.array(sorted(observed), np.float32)
    values = np.full((len(times), len(FEATURES)), np.nan, np.float32)
    for row, time in zip(values, sorted(observed)):
        for column, several in observed[time].items():
            row[column] = np.mean(several)
    return times, values
