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
    entropy_of_moons,
    entropy_of_pinwheel,
    load_miniboone,
    load_mnist,
    load_physionet,
    miniboone,
    mnist,
    moons,
    physionet,
    pinwheel,
    sources,
)
from scipy.spatial import KDTree
from scipy.special import digamma
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


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def digits(folder, monkeypatch):
    """Writes the four files of MNIST, with 6 and 4 images of 2 x 3 pixels."""
    rng = np.random.default_rng(0)
    shapes = ((6, 2, 3), 6, (4, 2, 3), 4)
    arrays = [rng.integers(0, 10, shape, dtype=np.uint8) for shape in shapes]
    for name, array in zip(list(mnist.FILES), arrays):
        (folder / "mnist" / name).write_bytes(gzip.compress(_idx(array)))
        digest = hashlib.sha256(_idx(array)).hexdigest()
        monkeypatch.setitem(mnist.FILES, name, digest)
    return arrays


def test_mnist(digits):
    data = load_mnist()
    images = np.round(data.train_images * 255)
    np.testing.assert_array_equal(images, digits[0].reshape(6, 6))
    assert data.train_images.dtype == np.float32
    np.testing.assert_array_equal(data.train_labels, digits[1])
    np.testing.assert_array_equal(data.test_labels, digits[3])


def test_damaged_mnist(digits, folder):
    labels, images = (
        folder / "mnist" / f"{name}-ubyte.gz"
        for name in ("t10k-labels-idx1", "train-images-idx3")
    )
    labels.write_bytes(gzip.compress(_idx(digits[3] + 1)))
    with pytest.raises(DataUnavailable, match="t10k-labels.*checksum.*fetch it again"):
        load_mnist()
    images.write_bytes(images.read_bytes()[:-20])
    with pytest.raises(DataUnavailable, match="train-images.*can't be decompressed"):
        load_mnist()
    labels.unlink()
    with pytest.raises(DataUnavailable, match="missing.*t10k-labels-idx1"):
        load_mnist()


def test_mnist_of_openml(folder, monkeypatch):
    images = np.arange(70_000 * 2).reshape(-1, 2) % 256
    labels = np.array([str(i % 10) for i in range(70_000)], object)
    found = Bunch(data=images, target=labels)
    monkeypatch.setattr(sources, "fetch_openml", lambda **_: found)
    data = load_mnist()
    assert (len(data.train_labels), len(data.test_labels)) == (60_000, 10_000)
    np.testing.assert_array_equal(data.test_labels[:3], [0, 1, 2])


@pytest.mark.parametrize("load", [load_mnist, load_miniboone, load_physionet])
def test_neither_files_nor_network(load, folder, monkeypatch):
    def fetch(**_):
        raise OSError("no network")

    monkeypatch.setattr(sources, "fetch_openml", fetch)
    with pytest.raises(DataUnavailable, match=f"Put .* into .*{sources.VARIABLE}"):
        load()
    monkeypatch.setenv(sources.VARIABLE, "/nowhere")
    with pytest.raises(DataUnavailable, match="'/nowhere', which is no folder"):
        load()


def _save(folder, name, rows, columns=miniboone.COLUMNS):
    array = np.random.default_rng(rows).normal(size=(rows, columns))
    np.save(folder / "miniboone" / name, array)
    return array.astype(np.float32)


@pytest.mark.parametrize("partial", (False, True))
def test_miniboone(partial, folder):
    validation = _save(folder, miniboone.VALIDATION, 8)
    test = _save(folder, miniboone.TEST, 6)
    head = _save(folder, miniboone.HEAD if partial else miniboone.WHOLE, 12)
    data = load_miniboone()
    assert data.partial == partial and len(data.train) == (18 if partial else 12)
    both = np.concatenate([data.train, data.validation])
    np.testing.assert_array_equal(both, np.concatenate([head, validation]))
    np.testing.assert_array_equal(data.test, test)


def test_damaged_miniboone(folder):
    for name in (miniboone.VALIDATION, miniboone.WHOLE):
        _save(folder, name, 8)
    _save(folder, miniboone.TEST, 6, columns=42)
    with pytest.raises(DataUnavailable, match="maf_test_normalised.*must hold 43"):
        load_miniboone()
    path = folder / "miniboone" / miniboone.TEST
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataUnavailable, match="maf_test_normalised.*fetch it again"):
        load_miniboone()


def test_miniboone_of_openml(folder, monkeypatch):
    """The data have background, an unmeasured event, and a column that repeats."""
    rng = np.random.default_rng(0)
    columns = rng.normal(3, 2, size=(300, miniboone.COLUMNS + 1))
    columns[:, 5] = np.round(columns[:, 5] / 4)
    columns[0, 0] = -999
    signal = np.array(["True"] * 201 + ["False"] * 99, object)
    found = Bunch(data=columns, target=signal)
    monkeypatch.setattr(sources, "fetch_openml", lambda **_: found)
    data = load_miniboone()
    assert [len(data.train), len(data.validation), len(data.test)] == [162, 18, 20]
    rest = np.concatenate([data.train, data.validation])
    np.testing.assert_allclose(rest.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(rest.std(axis=0), 1, atol=1e-5)
    with pytest.raises(DataUnavailable, match="50 columns after cleaning"):
        miniboone.prepare(rng.normal(size=(100, 50)))


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


def write_patients(folder, record=RECORD):
    """Writes nine patients with observations, and one without."""
    for i, name in enumerate(physionet.FILES):
        with tarfile.open(folder / name, "w:gz") as archive:
            for n in range(100 + 5 * i, 105 + 5 * i):
                text = record.format(patient=n, rate=n - 40)
                if n == 109:
                    text = "\n".join(text.splitlines()[:4])
                member = tarfile.TarInfo(f"{name[:5]}/{n}.txt")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))


def test_physionet(folder, monkeypatch):
    write_patients(folder / "physionet2012")
    parts = load_physionet()
    assert [len(part.values) for part in parts] == [7, 2]
    rate, temperature, weight = map(physionet.FEATURES.index, ("HR", "Temp", "Weight"))
    for part in parts:
        assert part.mask[:, [0, 2], rate].all() and part.mask[:, 2, temperature].all()
        assert part.mask.sum() == 3 * len(part.mask)
        assert not part.mask[:, :, weight].any() and not part.mask[:, [1, 3]].any()
        assert np.isfinite(part.values).all() and (part.values[~part.mask] == 0).all()
    rates = parts[0].values[:, [0, 2], rate]
    assert (rates.min(), rates.max()) == (0, 1)
    # Two observations within half an hour are averaged: at most (68 + 80) / 2.
    assert (rates[:, 1] == 1).all() and (rates[:, 0] < 0.35).all()
    # The kept data are the same, and no archive is read.
    monkeypatch.setattr(physionet, "read_records", None)
    for part, again in zip(parts, load_physionet()):
        np.testing.assert_array_equal(part.values, again.values)
        np.testing.assert_array_equal(part.mask, again.mask)


def test_physionet_damaged(folder):
    write_patients(folder / "physionet2012", "Time,Value\n")
    with pytest.raises(DataUnavailable, match="starts with 'Time,Value', not"):
        load_physionet()
    path = folder / "physionet2012" / "set-a.tar.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataUnavailable, match="set-a.tar.gz can't be read"):
        load_physionet()


@pytest.mark.parametrize("sampler", (moons, pinwheel))
def test_planar_samples(sampler):
    """The density is around the origin, and almost all of it is within the picture."""
    many = sampler(np.random.default_rng(0), 10_000)
    assert many.shape == (10_000, 2) and many.dtype == np.float32
    assert np.abs(many.mean(axis=0)).max() < 0.1
    assert (np.abs(many) < 4).mean() > 0.99


@pytest.mark.parametrize(
    "sampler, entropy", ((moons, entropy_of_moons), (pinwheel, entropy_of_pinwheel))
)
def test_entropies(sampler, entropy):
    """They are near the estimates from distances to nearest neighbors (Kozachenko and
    Leonenko)."""
    samples = sampler(np.random.default_rng(1), 20_000)
    distances = KDTree(samples).query(samples, 2)[0][:, 1]
    disks = np.log(np.pi * distances**2)
    expected = digamma(len(samples)) - digamma(1) + np.mean(disks)
    assert entropy() == pytest.approx(expected, abs=0.04)
