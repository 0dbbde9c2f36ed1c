"""The experiments on the papers' tasks, by their command lines."""

import json
from argparse import Namespace
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from experiments import classification, digits, records, toy
from experiments.classification import Batch

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough


def _run(name, *options, **environment):
    return run(f"experiments.{name}", *options, environment=environment)


@pytest.mark.parametrize("name", ["toy", "mnist"])
def test_help(name):
    result = _run(name, "--help")
    assert result.returncode == 0
    for option in ("seed", "epochs", "quick", "order", "lambda", "output"):
        assert f"--{option}" in result.stdout


def test_toy(tmp_path):
    result = _run("toy", "--quick", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "toy.json").read_text())
    plain, speed = record["results"]
    assert [plain["method"], speed["method"]] == ["plain", "speed R_3"]
    for outcome in (plain, speed):
        # The map is not the identity, whose error this is.
        identity = np.sqrt(np.mean(np.linspace(-2, 2, 1001) ** 6))
        assert outcome["error"] < identity / 2
        assert len(outcome["states"]) == len(outcome["evaluations"])
        for states in outcome["states"]:
            assert len(states) == len(outcome["times"])
        for times in outcome["evaluations"]:
            assert times[0] == 0 and times[-1] == 1
        assert outcome["nfe"].keys() == {"Dopri5", "Bosh3"}
    assert (tmp_path / "toy.png").stat().st_size > 10_000


def test_toy_table(tmp_path):
    outcome = dict(method="plain", error=0.012, nfe=dict(Dopri5=50.6, Bosh3=125.94))
    outcome |= dict(speed=117.2, training_seconds=12.3)
    failure = dict(method="speed R_3", failure="Training diverged at step 3.")
    record = dict(options=dict(epochs="20"), results=[outcome, failure])
    (tmp_path / "toy.json").write_text(json.dumps(record))
    table = toy.table(tmp_path)
    assert table is not None
    _, _, plain, speed, *rest = table.splitlines()
    cells = [cell.strip() for cell in plain.strip("|").split("|")]
    assert cells == ["plain", "0.012", "50.6", "125.9", "117", "12 s"]
    assert "Training diverged at step 3." in speed
    assert "`python -m experiments.toy --epochs 20`" in "\n".join(rest)


def test_toy_records_a_divergence(tmp_path):
    result = _run("toy", "--quick", "--learning-rate", "1e300", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "toy.json").read_text())
    assert all("Training" in outcome["failure"] for outcome in record["results"])
    assert not (tmp_path / "toy.png").exists()


def test_mnist_unknown_method(tmp_path):
    result = _run("mnist", "plane", "--output", tmp_path)
    assert result.returncode == 2
    assert "the methods are plain, augmented R_K" in result.stderr
    assert "but got 'plane'" in result.stderr


def test_mnist_damaged_data(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"")
    result = _run(
        "mnist", "plain", "--output", tmp_path, DIFFRAX_SPEEDREG_DATA=str(tmp_path)
    )
    assert result.returncode == 1
    assert "error: These files of mnist are missing" in result.stderr
    assert "Traceback" not in result.stderr


def _result():
    steps = np.array([0.5, 1, np.inf])
    states = np.arange(30.0).reshape(3, 10) ** 2
    trajectory = records.Trajectory(np.linspace(0, 1, 3), states, steps)
    return records.Result(
        "plain", 0.5, 31, 1e-3, 2e-3, 3.0, [25, 31], [2.0, 1.0], trajectory
    )


def test_records(tmp_path):
    options = Namespace(seed=0, output=tmp_path)
    records.save(tmp_path / "a.json", options, _result())
    loaded = records.load(tmp_path / "a.json")
    assert isinstance(loaded, records.Result)
    assert records.figures(loaded) == records.figures(_result())
    np.testing.assert_array_equal(loaded.trajectory.steps, [0.5, 1])
    # Later columns move more.
    expected = _result().trajectory.states[:, 2:]
    np.testing.assert_array_equal(np.sort(loaded.trajectory.states), expected)
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["versions"].keys() >= {"jax", "diffrax"}
    assert record["options"] == {"seed": "0"}


def test_record_of_failure(tmp_path):
    options = Namespace(seed=0)
    records.save(tmp_path / "a.json", options, "Training diverged")
    assert records.load(tmp_path / "a.json") == "Training diverged"


def test_batches():
    images: Any = np.arange(10, dtype=np.float32)[:, None]
    labels: Any = np.arange(10)
    data = Batch(images, labels)
    batches, again = (classification.Batches(data, 3, seed=0) for _ in range(2))
    assert batches.per_epoch == 3
    seen = [
        np.concatenate([batches(3 * e + i).labels for i in range(3)]) for e in (0, 1)
    ]
    assert all(len(set(labels.tolist())) == 9 for labels in seen)
    assert (seen[0] != seen[1]).any()
    np.testing.assert_array_equal(again(4).labels, batches(4).labels)
    np.testing.assert_array_equal(batches(4).images[:, 0], batches(4).labels)


def test_batches_larger_than_data():
    images: Any = np.zeros((4, 1))
    labels: Any = np.zeros(4)
    data = Batch(images, labels)
    with pytest.raises(ValueError, match="4 images do not fill a batch of 5"):
        classification.Batches(data, 5, seed=0)


def test_both_losses_with_the_speed(key):
    """By augmentation and by quadrature the same, and more than the plain one."""
    digits_key, image_key = jr.split(key)
    model = digits.classifier(digits_key)
    images = jr.uniform(image_key, (5, digits.PIXELS), jnp.float64)
    batch = Batch(images, jnp.arange(5))
    adaptive = classification.Adaptive(dfx.Dopri5(), tolerance=1e-8, max_steps=256)
    weight = 300
    speed = lambda key, batch: dsr.Speed(2)
    plain = adaptive.plain_loss(model, batch, key)
    augmented = adaptive.augmented_loss(speed, weight)(model, batch, key)
    quadrature = adaptive.quadrature_loss(speed, weight, 8)(model, batch, key)
    assert augmented > 1.01 * plain
    np.testing.assert_allclose(quadrature - plain, augmented - plain, rtol=1e-4)
