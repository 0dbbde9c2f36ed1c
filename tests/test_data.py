"""The experiments' data, from small files of the same formats."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
from experiments.data import (
    DataUnavailable,
    load_miniboone,
    load_mnist,
    load_physionet,
    miniboone,
    mnist,
    physionet,
    sources,
)
from sklearn.utils import Bunch


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path))
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))
    for name in (mnist.NAME, miniboone.NAME, physionet.NAME):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def fetch(**_):
        raise OSError("no network")

    monkeypatch.setattr(sources, "fetch_openml", fetch)


def _found(data, target):
    return Bunch(data=data, target=target)


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def digits(folder, monkeypatch):
    """The four files of MNIST, with 6 and 4 images of 2 x 3 pixels."""
    rng = np.random.default_rng(0)
    arrays = [
        array
        for n in (6, 4)
        for array in (
            rng.integers(0, 256, (n, 2, 3), dtype=np.uint8),
            rng.integers(0, 10, n, dtype=np.uint8),
        )
    ]
    for name, array in zip(list(mnist.FILES), arrays):
        (folder / "mnist" / name).write_bytes(gzip.compress(_idx(array)))
        digest = hashlib.sha256(_idx(array)).hexdigest()
        monkeypatch.setitem(mnist.FILES, name, digest)
    return arrays


def test_mnist(digits):
    data = load_mnist()
    assert data.train_images.shape == (6, 6) and data.test_images.shape == (4, 6)
    assert data.train_images.dtype == np.float32
    np.testing.assert_array_equal(
        np.round(data.train_images * 255), digits[0].reshape(6, 6)
    )
    np.testing.assert_array_equal(data.train_labels, digits[1])
    np.testing.assert_array_equal(data.test_labels, digits[3])


def test_mnist_other_content(digits, folder):
    path = folder / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(digits[3] + 1)))
    with pytest.raises(DataUnavailable, match="t10k-labels.*checksum.*fetch it again"):
        load_mnist()


def test_mnist_truncated(digits, folder):
    path = folder / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataUnavailable, match="train-images.*can't be decompressed"):
        load_mnist()


def test_some_files_missing(digits, folder):
    (folder / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataUnavailable, match="missing.*train-labels-idx1"):
        load_mnist()


def test_mnist_of_openml(folder, monkeypatch):
    images = np.arange(70_000 * 2).reshape(-1, 2) % 256
    labels = np.array([str(i % 10) for i in range(70_000)], object)
    monkeypatch.setattr(sources, "fetch_openml", lambda **_: _found(images, labels))
    data = load_mnist()
    assert (len(data.train_labels), len(data.test_labels)) == (60_000, 10_000)
    np.testing.assert_array_equal(data.test_labels[:3], [0, 1, 2])


@pytest.mark.parametrize("load", [load_mnist, load_miniboone])
def test_neither_files_nor_network(load, folder, no_network):
    with pytest.raises(DataUnavailable, match=f"Put .* into .*{sources.VARIABLE}"):
        load()


def test_no_folder(monkeypatch):
    monkeypatch.setenv(sources.VARIABLE, "/nowhere")
    with pytest.raises(DataUnavailable, match="'/nowhere', which is no folder"):
        load_mnist()


def _save(folder, name, rows, columns=miniboone.COLUMNS):
    array = np.random.default_rng(rows).normal(size=(rows, columns))
    np.save(folder / "miniboone" / name, array)
    return array.astype(np.float32)


def test_miniboone_whole(folder):
    validation = _save(folder, miniboone.VALIDATION, 5)
    test = _save(folder, miniboone.TEST, 6)
    train = _save(folder, miniboone.WHOLE, 40)
    data = load_miniboone()
    assert not data.partial
    for part, expected in zip(data, (train, validation, test)):
        np.testing.assert_array_equal(part, expected)


def test_miniboone_partial(folder):
    validation = _save(folder, miniboone.VALIDATION, 8)
    test = _save(folder, miniboone.TEST, 6)
    head = _save(folder, miniboone.HEAD, 12)
    data = load_miniboone()
    assert data.partial
    both = np.concatenate([data.train, data.validation])
    np.testing.assert_array_equal(both, np.concatenate([head, validation]))
    assert len(data.train) == 18
    np.testing.assert_array_equal(data.test, test)


@pytest.mark.parametrize("damage", ["columns", "truncated", "pickled"])
def test_miniboone_damaged(damage, folder):
    _save(folder, miniboone.VALIDATION, 8)
    _save(folder, miniboone.WHOLE, 12)
    _save(folder, miniboone.TEST, 6, columns=42 if damage == "columns" else 43)
    path = folder / "miniboone" / miniboone.TEST
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    if damage == "pickled":
        np.save(path, np.array([[{}] * miniboone.COLUMNS]), allow_pickle=True)
    with pytest.raises(DataUnavailable, match="maf_test_normalised.*fetch it again"):
        load_miniboone()


def test_miniboone_of_openml(folder, monkeypatch):
    """Background, an event that was not measured, and a column that repeats itself."""
    rng = np.random.default_rng(0)
    columns = rng.normal(3, 2, size=(300, miniboone.COLUMNS + 1))
    columns[:, 5] = np.round(columns[:, 5] / 4)
    columns[0, 0] = -999
    signal = np.array(["True"] * 201 + ["False"] * 99, object)
    monkeypatch.setattr(sources, "fetch_openml", lambda **_: _found(columns, signal))
    data = load_miniboone()
    assert [len(data.train), len(data.validation), len(data.test)] == [162, 18, 20]
    rest = np.concatenate([data.train, data.validation])
    assert rest.shape[1] == miniboone.COLUMNS
    np.testing.assert_allclose(rest.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(rest.std(axis=0), 1, atol=1e-5)


def test_miniboone_unexpected_columns():
    signal = np.random.default_rng(0).normal(size=(100, 50))
    with pytest.raises(DataUnavailable, match="50 columns after cleaning"):
        miniboone.prepare(signal)


RECORD = """Time,Parameter,Value
00:00,RecordID,{patient}
00:00,Age,54
00:00,Weight,-1
00:07,HR,{rate}
00:20,HR,80
01:40,HR,90
01:40,Temp,36.5
02:10,,7
"""


def _archive(path, records):
    with tarfile.open(path, "w:gz") as archive:
        for patient, text in records.items():
            member = tarfile.TarInfo(f"{path.name[:5]}/{patient}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def patients(folder):
    """Nine with observations, and one without."""
    for i, name in enumerate(physionet.FILES):
        numbers = range(100 + 5 * i, 105 + 5 * i)
        records = {n: RECORD.format(patient=n, rate=n - 40) for n in numbers}
        if i:
            records[109] = "\n".join(RECORD.splitlines()[:4])
        _archive(folder / "physionet2012" / name, records)


def test_physionet(patients):
    data = load_physionet()
    assert [len(part.times) for part in data] == [7, 2]
    rate, temperature, weight = map(physionet.FEATURES.index, ("HR", "Temp", "Weight"))
    for part in data:
        np.testing.assert_array_equal(part.times, len(part.times) * [[0, 2]])
        assert part.mask[:, :, rate].all() and part.mask[:, 1, temperature].all()
        assert part.mask.sum() == 3 * len(part.times)
        assert not part.mask[:, :, weight].any()
        assert np.isfinite(part.values).all() and (part.values[~part.mask] == 0).all()
    rates = data.train.values[:, :, rate]
    assert (rates.min(), rates.max()) == (0, 1)
    # Two observations within half an hour are averaged: at most (68 + 80) / 2.
    assert (rates[:, 1] == 1).all() and (rates[:, 0] < 0.35).all()


def test_physionet_again(patients, folder, monkeypatch):
    """It is the same from what was kept, for which no archive is read."""
    first = load_physionet()
    monkeypatch.setattr(physionet, "read_records", None)
    for part, again in zip(first, load_physionet()):
        for array, other in zip(part, again):
            np.testing.assert_array_equal(array, other)


def test_physionet_resolution(patients):
    data = load_physionet(resolution=0.25)
    np.testing.assert_allclose(data.train.times[0], [0, 0.25, 1.75])


def test_physionet_missing(folder):
    with pytest.raises(DataUnavailable, match="physionet.org.*Put set-a.tar.gz"):
        load_physionet()


def test_physionet_truncated(patients, folder):
    path = folder / "physionet2012" / "set-b.tar.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataUnavailable, match="set-b.tar.gz can't be read"):
        load_physionet()


def test_physionet_on_grid(patients):
    train = load_physionet().train
    grid = physionet.on_grid(train, np.arange(4, dtype=np.float32))
    assert grid.values.shape == (7, 4, len(physionet.FEATURES))
    np.testing.assert_array_equal(grid.times, 7 * [[0, 1, 2, 3]])
    np.testing.assert_array_equal(grid.values[:, [0, 2]], train.values)
    np.testing.assert_array_equal(grid.mask[:, [0, 2]], train.mask)
    assert not grid.mask[:, [1, 3]].any()


def test_physionet_on_grid_with_padding():
    times = np.array([[0, 3], [2, 2]], np.float32)
    mask = np.array([[[True], [True]], [[True], [False]]])
    series = physionet.TimeSeries(times, np.where(mask, 0.5, 0), mask)
    grid = physionet.on_grid(series, np.arange(4))
    np.testing.assert_array_equal(grid.mask[:, :, 0], [[1, 0, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(grid.values, np.where(grid.mask, 0.5, 0))
    with pytest.raises(ValueError, match="not among the 3"):
        physionet.on_grid(series, np.arange(3))
