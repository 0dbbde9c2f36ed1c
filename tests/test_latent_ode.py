"""The latent ODE of PhysioNet's time series: its parts against closed forms."""

import io
import tarfile
from argparse import Namespace

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from experiments import latent, latent_ode, records
from experiments.latent import Adaptive, Gaussian, LatentODE, Memory, Series

from .helpers.scripts import run


# Of scripts, not of the package.
pytestmark = pytest.mark.thorough

FEATURES = 3


def _series(patients=2, times=5):
    rng = np.random.default_rng(0)
    shape = patients, times, FEATURES
    return Series(rng.uniform(size=shape), rng.uniform(size=shape) < 0.5)


def test_memory_without_observations(key):
    """Nothing changes, so that the time since the last observation is right later."""
    mean, deviation = jnp.full(latent.RECURRENT, 0.3), jnp.ones(latent.RECURRENT)
    memory = Memory(mean, deviation, jnp.asarray(1.0))
    unit = latent.RecurrentUnit(FEATURES, key=key)
    time, values = jnp.asarray(0.5), jnp.ones(FEATURES)
    same = unit(memory, time, values, jnp.zeros(FEATURES, bool))
    for left, right in zip(same, memory):
        np.testing.assert_array_equal(left, right)
    new = unit(memory, time, values, jnp.array([False, True, False]))
    assert new.time == 0.5
    assert not np.allclose(new.mean, memory.mean)
    assert (new.deviation >= 0).all()


def test_encoder_ignores_what_was_not_observed(key):
    encoder = latent.Encoder(FEATURES, key=key)
    ts = jnp.linspace(0.0, 1.0, 5)
    values, mask = (jnp.asarray(x[0]) for x in _series())
    mask = mask.at[2].set(False)
    expected = encoder(ts, values, mask)
    garbage = jnp.where(mask, values, jnp.nan)
    np.testing.assert_array_equal(encoder(ts, garbage, mask).mean, expected.mean)
    # A time at which nothing was observed may be left out.
    rest = jnp.array([0, 1, 3, 4])
    without = encoder(ts[rest], values[rest], mask[rest])
    np.testing.assert_allclose(without.mean, expected.mean, rtol=1e-12)
    observed = jnp.argwhere(mask)[0]
    changed = values.at[tuple(observed)].add(0.1)
    assert not np.allclose(encoder(ts, changed, mask).mean, expected.mean, rtol=1e-6)


def test_divergence():
    standard = Gaussian(jnp.zeros((4, 2)), jnp.ones((4, 2)))
    assert standard.divergence() == 0
    other = Gaussian(jnp.full((4, 2), 1.5), jnp.full((4, 2), 0.5))
    # By integration of q log(q / p).
    x = np.linspace(-20, 20, 100_001)
    density = np.exp(-(((x - 1.5) / 0.5) ** 2) / 2) / (0.5 * np.sqrt(2 * np.pi))
    log_ratio = x**2 / 2 - ((x - 1.5) / 0.5) ** 2 / 2 - np.log(0.5)
    expected = np.sum(density * log_ratio) * (x[1] - x[0])
    np.testing.assert_allclose(other.divergence(), expected, rtol=1e-9)


def test_samples(key):
    gaussian = Gaussian(jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]))
    samples = gaussian.sample(key, 20_000)
    np.testing.assert_allclose(samples.mean(axis=0), gaussian.mean, atol=0.1)
    np.testing.assert_allclose(samples.std(axis=0), gaussian.deviation, rtol=0.02)


def test_likelihood_of_what_was_observed():
    series = _series()
    errors = np.array([0.0, 0.02])[:, None, None, None]
    # What is predicted of the rest does not matter.
    predicted = jnp.asarray(np.where(series.mask, series.values + errors, 1e3))
    constant = -np.log(latent.DEVIATION * np.sqrt(2 * np.pi))
    expected = np.array([constant, constant - 2.0])
    actual = latent.log_likelihood(predicted, series)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    squares = latent.squared_errors(predicted, series)
    np.testing.assert_allclose(squares, 0.02**2 / 2 * series.mask.sum(), rtol=1e-9)


def test_bound():
    series = _series()
    start = Gaussian(jnp.ones((2, latent.LATENT)), jnp.ones((2, latent.LATENT)))
    divergence = 0.5
    errors = np.array([0.0, 0.02, 0.03])[:, None, None, None]
    predicted = jnp.asarray(series.values + errors)
    likelihoods = np.exp(latent.log_likelihood(predicted, series))
    for weight in (0.0, 0.3):
        expected = weight * divergence - np.log(likelihoods.mean())
        actual = latent.bound(predicted, series, start, weight)
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_divergence_weight():
    assert latent_ode.divergence_weight(0.0) == latent_ode.divergence_weight(0.1) == 0
    np.testing.assert_allclose(latent_ode.divergence_weight(0.5), 1 - 0.99**40)
    np.testing.assert_allclose(latent_ode.divergence_weight(1.0), 1 - 0.99**90)


def test_redrawn(key):
    """Each layer anew, with the deviation that is asked for."""
    mlp = latent.redrawn(eqx.nn.MLP(400, 400, 100, 1, key=key), key)
    for layer, size in zip(mlp.layers, (400, 100)):
        np.testing.assert_allclose(layer.weight.std(), size**-0.5, rtol=0.02)
        assert layer.bias is not None and not layer.bias.any()
    layer = latent.redrawn(eqx.nn.Linear(300, 100, key=key), key, 0.1)
    np.testing.assert_allclose(layer.weight.std(), 0.1, rtol=0.02)


@pytest.fixture
def small(key):
    """A model, and few times."""
    return LatentODE(FEATURES, key=key), Adaptive(
        jnp.linspace(0.0, 1.0, 5), 1e-6, 64, num_samples=2
    )


def test_losses_with_the_speed(small, key):
    """By augmentation and by quadrature the same, and more than the plain one."""
    model, adaptive = small
    batch = latent_ode.Batch(_series(), np.asarray(0.5))
    plain, quadrature, augmented = (
        latent_ode.loss_of(method, adaptive, 2, 1e3)(model, batch, key)
        for method in latent_ode.METHODS
    )
    assert augmented > plain + 1e-3 * abs(plain)
    np.testing.assert_allclose(quadrature - plain, augmented - plain, rtol=1e-3)


def test_measure(small, key):
    """One trajectory is solved alone as in its batch of one."""
    model, adaptive = small
    adaptive = adaptive._replace(num_samples=1)
    series = _series(patients=1)
    measured = latent_ode.measure(adaptive, model, series, key)
    assert measured.nfe == measured.patient_nfe > 6
    assert measured.observations == series.mask.sum()
    _, z0 = adaptive.start(model, series, key)
    zs = latent.states(adaptive.solve(dfx.ODETerm(model.field), z0))[:, 0]
    predicted = jax.vmap(model.decoder)(zs)
    expected = np.sum((predicted - series.values[0]) ** 2, where=series.mask[0])
    np.testing.assert_allclose(measured.squared_errors, expected, rtol=1e-9)


def test_decode_keeps_patients_and_samples_apart(small, key):
    model, adaptive = small
    z = jr.normal(key, (2, 3, latent.LATENT))
    values = model.decode(z.reshape(1, 6, latent.LATENT), num_samples=2)
    assert values.shape == (2, 3, 1, FEATURES)
    np.testing.assert_allclose(values[1, 2, 0], model.decoder(z[1, 2]), rtol=1e-9)


def _outcome(method, regularization, nfe):
    curve = dict(nfe_by_epoch=[31, int(nfe)], loss_by_epoch=[3.0, 2.0])
    shown = dict(times=[0.0, 48.0], predicted=[0.1, 0.2], steps=[24.0, 48.0])
    observed = dict(observed_times=[1.0], observed=[0.15])
    figures = dict(error=0.00234, loss=5.0, nfe=nfe, patient_nfe=nfe - 1)
    seconds = dict(solve_seconds=1e-3, step_seconds=0.2, training_seconds=9.0)
    head = dict(method=method, order=3, regularization=regularization, epochs=2)
    return head | figures | seconds | curve | shown | observed


def _options(**given):
    default = dict(seed=0, epochs=2, quick=False, full=False, order=3)
    return Namespace(**default, **given)


def test_table(tmp_path):
    assert latent_ode.table(tmp_path) is None
    for method, weight, nfe in (("quadrature R_K", 0.5, 43.0), ("plain", 0.0, 85.0)):
        path = tmp_path / latent_ode.file_name(method, weight)
        options = _options(regularization=weight or 0.01)
        records.save_figures(path, options, _outcome(method, weight, nfe))
    failed = tmp_path / latent_ode.file_name("augmented R_K", 7.0)
    records.save_figures(failed, _options(regularization=7.0), "Training diverged")
    text = latent_ode.table(tmp_path)
    assert text is not None
    _, _, plain, speed, failure = text.splitlines()[:5]
    for cell in ("| plain", "85.0", "84.0", "| 281 ", "unverified"):
        assert cell in plain
    for cell in ("| quadrature R_3, λ = 0.5 ", "0.00234", "43.0", "90, loss + 8 %"):
        assert cell in speed
    command = "latent_ode 'quadrature R_K' --epochs 2 --lambda 0.5`"
    assert command in speed
    assert "latent_ode-augmented-r_k-7" in failure and "Training diverged" in failure
    latent_ode.show(tmp_path)
    assert (tmp_path / "latent_ode.png").stat().st_size > 10_000


def _run(*options, folder):
    environment = dict(DIFFRAX_SPEEDREG_DATA=str(folder), SCIKIT_LEARN_DATA=str(folder))
    return run("experiments.latent_ode", *options, environment=environment)


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["plane"], 2, "the methods are plain, quadrature R_K, augmented R_K, but got"),
        (["--order", "0", "plain"], 2, "--order: must be a positive int"),
        (["plain"], 1, "error: physionet2012 can't be fetched: get it from https:"),
    ],
)
def test_what_is_wrong(options, code, message, tmp_path):
    result = _run(*options, "--output", tmp_path / "out", folder=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_quick_run(tmp_path):
    """On made-up patients."""
    rng = np.random.default_rng(0)
    (tmp_path / "physionet2012").mkdir()
    for i, name in enumerate(("set-a.tar.gz", "set-b.tar.gz")):
        with tarfile.open(tmp_path / "physionet2012" / name, "w:gz") as archive:
            for number in range(40 * i, 40 * i + 40):
                rows = [f"{h:02d}:00,DiasABP,{rng.uniform(50, 90)}" for h in (0, 9, 48)]
                text = "\n".join(["Time,Parameter,Value", *rows]).encode()
                member = tarfile.TarInfo(f"{number}.txt")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
    output = tmp_path / "out"
    methods = "plain", "quadrature R_K"
    result = _run(*methods, "--quick", "--output", output, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    outcomes = latent_ode.successes(output)
    assert [o.method for o in outcomes] == list(methods)
    for outcome in outcomes:
        assert outcome.epochs == len(outcome.nfe_by_epoch) == 1
        assert outcome.nfe > 6 and 0 < outcome.error < 1
        assert len(outcome.observed) == 3
    assert (output / "latent_ode.png").stat().st_size > 10_000
    assert "| quadrature R_3" in result.stdout
