"""What is trained: classifiers of random images, by a few Taylor-Lagrange steps."""

from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from .training_records import Case


NUM_STEPS = 2
CLASSES = 10


class Size(NamedTuple):
    """Of a classifier: entries of the state, and width of the hidden layer."""

    pixels: int
    width: int


# The papers' network for MNIST, and one as small as that of this package's demo.
SIZES = {"mnist": Size(784, 100), "digits": Size(64, 100)}


class Batch(NamedTuple):
    images: Float[Array | np.ndarray, "batch pixels"]
    labels: Int[Array | np.ndarray, " batch"]


class Field(eqx.Module):
    """Both layers see the time, as in the papers."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __call__(
        self, t: Float[Array, ""], y: Float[Array, "batch pixels"], args: None
    ) -> Float[Array, "batch pixels"]:
        def with_time(x: Float[Array, "batch n"]) -> Float[Array, "batch m"]:
            return jnp.concatenate([x, jnp.full((len(x), 1), t, x.dtype)], axis=1)

        hidden = jax.vmap(self.inner)(with_time(jax.nn.sigmoid(y)))
        return jax.vmap(self.outer)(with_time(jax.nn.sigmoid(hidden)))


class Classifier(eqx.Module):
    field: Field
    readout: eqx.nn.Linear

    def __init__(self, size: Size, key: Key[Array, ""]):
        keys = jr.split(key, 3)
        self.field = Field(
            eqx.nn.Linear(size.pixels + 1, size.width, key=keys[0]),
            eqx.nn.Linear(size.width + 1, size.pixels, key=keys[1]),
        )
        self.readout = eqx.nn.Linear(size.pixels, CLASSES, key=keys[2])


class Training(NamedTuple):
    trainer: dsr.AlternatingTrainer
    state: dsr.AlternatingState
    batches: dsr.Batches


def training(case: Case, seed: int, mesh: Mesh | None = None) -> Training:
    """Everything that `dsr.fit` needs, for data that fill four batches."""
    size, batch = SIZES[case.field], case.batch
    trainer = dsr.AlternatingTrainer(
        problem=lambda model, batch: dsr.InitialValueProblem(
            dfx.ODETerm(model.field), batch.images
        ),
        loss=lambda model, y1, batch: dsr.cross_entropy(
            jax.vmap(model.readout)(y1), batch.labels
        ),
        num_steps=NUM_STEPS,
        model_optimizer=optax.adam(1e-3),
        solver_optimizer=optax.adam(1e-4),
        penalty=1.0,
        mesh=mesh,
    )
    model_key, remainder_key, data_key = jr.split(jr.key(seed), 3)
    solver = dsr.TaylorLagrangeSolver(
        case.order, dsr.CorrectionMLP(size.pixels, key=remainder_key)
    )
    state = trainer.init(Classifier(size, model_key), solver, key=data_key)
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(4 * batch, size.pixels)).astype(np.float32)
    labels = rng.integers(CLASSES, size=4 * batch)
    return Training(trainer, state, dsr.Batches(Batch(images, labels), batch))
