"""Random numbers and layers of neural networks."""

import equinox as eqx
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.cluster
import jax.tree_util as jtu
import numpy as np

from .entry import (
    batch,
    group,
    images,
    like,
    normal,
    on,
    positive,
    real,
    system,
    variants,
)


def _draw(name, *arguments):
    return lambda x: x * getattr(jr, name)(jr.key(1), *arguments, (4,)).astype(x.dtype)


RANDOM = group(
    on(
        real,
        {
            "key(seed of the state)": lambda x: x * normal(jr.key(jnp.argmax(x)), x),
            "key(impl='rbg')": lambda x: x * normal(jr.key(1, impl="rbg"), x),
            "PRNGKey": lambda x: x * normal(jr.PRNGKey(1), x),
            "split, fold_in": lambda x: (
                x * normal(jr.fold_in(jr.split(jr.key(1))[1], 3), x)
            ),
            "vmap over keys": lambda x: jax.vmap(normal)(jr.split(jr.key(0), 4), x) * x,
            "choice": lambda x: jr.choice(jr.key(1), x * x, (3,)),
            "permutation": lambda x: jr.permutation(jr.key(1), x * x),
            "bernoulli": _draw("bernoulli", 0.4),
            "randint": lambda x: x * jr.randint(jr.key(1), (), 0, 9).astype(x.dtype),
        },
    ),
    on(
        real,
        {
            "exponential": _draw("exponential"),
            "gamma(constant)": _draw("gamma", 2.0),
            "laplace": _draw("laplace"),
            "normal": _draw("normal"),
            "rademacher": _draw("rademacher"),
            "uniform": _draw("uniform"),
            "categorical": lambda x: x[jr.categorical(jr.key(1), x)],
            "choice(p)": lambda x: jr.choice(jr.key(1), x, (3,), p=jax.nn.softmax(x)),
            "triangular": lambda x: jr.triangular(
                jr.key(1), -3.0, x, 3.0, (4,), x.dtype
            ),
            "truncated_normal": lambda x: jr.truncated_normal(
                jr.key(1), x, 3.0, (4,), x.dtype
            ),
        },
        order=4,
        single=False,
    ),
    on(
        positive,
        variants(
            "{}",
            lambda name: lambda x: getattr(jr, name)(jr.key(1), x, (4,), x.dtype),
            ("lognormal", "pareto", "rayleigh", "wald"),
        ),
        order=4,
        single=False,
    ),
    on(
        system,
        {
            "multivariate_normal": lambda a, b: jr.multivariate_normal(
                jr.key(1), b, a @ a.T
            )
        },
        order=3,
        single=False,
    ),
)


# Equinox.


def _layer(make, *args, call=lambda layer, x: layer(x), **options):
    """Makes a layer whose weights depend only on their shapes."""

    def fill(leaf, x):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            values = np.cos(np.arange(1, leaf.size + 1)) / 4 + 0.5
            return like(x, values.reshape(leaf.shape))
        return leaf

    def function(x):
        layer = eqx.filter_eval_shape(make, *args, key=jr.key(0), **options)
        return call(jtu.tree_map(lambda leaf: fill(leaf, x), layer), x)

    return function


def _on_first(layer, x):
    return layer(x[0])


def _stateful(layer_and_state, x):
    layer, state = layer_and_state
    return layer(x, state)[0]


def _linear(key):
    return eqx.nn.Linear(4, 4, key=key)


LAYERS = group(
    on(
        real,
        {
            "Dropout(inference)": lambda x: eqx.nn.Dropout(inference=True)(x * x),
            "Dropout(key)": lambda x: eqx.nn.Dropout()(x * x, key=jr.key(3)),
            "Embedding": _layer(
                eqx.nn.Embedding, 5, 4, call=lambda f, x: x * f(jnp.argmax(x))
            ),
            "GRUCell": _layer(eqx.nn.GRUCell, 4, 4, call=lambda f, x: f(x, jnp.sin(x))),
            "GroupNorm": _layer(lambda key: eqx.nn.GroupNorm(2, 4)),
            "Identity": lambda x: eqx.nn.Identity()(x * x),
            "Lambda": lambda x: eqx.nn.Lambda(jnp.sin)(x),
            "LSTMCell": _layer(
                eqx.nn.LSTMCell, 4, 4, call=lambda f, x: f(x, (x, jnp.sin(x)))
            ),
            "LayerNorm": _layer(lambda key: eqx.nn.LayerNorm(4)),
            "Linear": _layer(_linear),
            "MLP(gelu)": _layer(eqx.nn.MLP, 4, 4, 8, 2, jax.nn.gelu),
            "MLP(relu)": _layer(eqx.nn.MLP, 4, 4, 8, 2),
            "MLP(scalar)": _layer(eqx.nn.MLP, 4, "scalar", 8, 1, jax.nn.softplus),
            "PReLU": _layer(lambda key: eqx.nn.PReLU(0.2)),
            "RMSNorm": _layer(lambda key: eqx.nn.RMSNorm(4)),
            "Sequential": _layer(
                lambda key: eqx.nn.Sequential([_linear(key), eqx.nn.Lambda(jnp.tanh)])
            ),
            "SpectralNorm(inference)": _layer(
                lambda key: eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
                    _linear(key), "weight", inference=True, key=key
                ),
                call=_stateful,
            ),
            "WeightNorm": _layer(lambda key: eqx.nn.WeightNorm(_linear(key), "weight")),
        },
        order=4,
    ),
    on(
        real,
        {
            "BatchNorm(inference)": _layer(
                lambda key: eqx.nn.make_with_state(eqx.nn.BatchNorm)(
                    4, "batch", inference=True, mode="batch"
                ),
                call=_stateful,
            ),
        },
        order=4,
        since=(0, 10),
    ),
    on(
        batch,
        {
            "AdaptiveMaxPool1d": lambda x: eqx.nn.AdaptiveMaxPool1d(2)(x),
            "AvgPool1d": lambda x: eqx.nn.AvgPool1d(2, 1)(x),
            "Conv1d": _layer(eqx.nn.Conv1d, 3, 2, 2),
            "ConvTranspose1d": _layer(eqx.nn.ConvTranspose1d, 3, 2, 2, stride=2),
            "MaxPool1d": lambda x: eqx.nn.MaxPool1d(2, 1)(x),
            "MultiheadAttention": _layer(
                eqx.nn.MultiheadAttention, 2, 4, call=lambda f, x: f(x, x, x)
            ),
            "RotaryPositionalEmbedding": lambda x: eqx.nn.RotaryPositionalEmbedding(
                4, dtype=x.dtype
            )(x * x),
        },
        order=4,
    ),
    on(
        images,
        {
            "AdaptiveAvgPool2d": lambda x: eqx.nn.AdaptiveAvgPool2d(2)(x[0]),
            "AvgPool2d(use_ceil)": lambda x: eqx.nn.AvgPool2d(
                3, 2, padding=1, use_ceil=True
            )(x[0]),
            "Conv2d(groups, dilation)": _layer(
                eqx.nn.Conv2d, 2, 4, 2, dilation=2, groups=2, call=_on_first
            ),
            "Conv2d(padding_mode='REFLECT')": _layer(
                eqx.nn.Conv2d,
                2,
                1,
                3,
                padding=1,
                padding_mode="REFLECT",
                call=_on_first,
            ),
            "ConvTranspose2d": _layer(eqx.nn.ConvTranspose2d, 2, 1, 2, call=_on_first),
            "MaxPool2d": lambda x: eqx.nn.MaxPool2d(2, 2)(x[0]),
        },
        order=4,
    ),
)


# Transformations within a field.
