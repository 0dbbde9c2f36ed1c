"""`jax.nn`, and functions at their kinks."""

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.scipy as jsp
import jax.scipy.cluster
from jax import lax

from .entry import batch, group, kink, MASK, named, on, pair, positive, real


_activations = """
    celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid log_softmax
    mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus
    sparse_sigmoid squareplus
"""
NN = group(
    named(jax.nn, _activations),
    named(jax.nn, "glu identity logsumexp standardize tanh"),
    named(jax.nn, "log1mexp", positive, since=(0, 10)),
    named(jax.nn, "logmeanexp", since=(0, 10)),
    on(
        real,
        {
            "gelu(approximate=False)": lambda x: jax.nn.gelu(x, approximate=False),
            "log_softmax(where)": lambda x: jax.nn.log_softmax(x, where=MASK)[1:],
            "logsumexp(where)": lambda x: jax.nn.logsumexp(x, where=MASK),
            "one_hot": lambda x: x * jax.nn.one_hot(jnp.argmax(x), 4, dtype=x.dtype),
            "softmax(where)": lambda x: jax.nn.softmax(x, where=MASK),
        },
    ),
    on(
        pair,
        {
            "logsumexp(b, return_sign)": lambda x, b: jax.nn.logsumexp(
                x, b=b, return_sign=True
            ),
        },
    ),
    on(
        batch,
        {
            "dot_product_attention": lambda x: jax.nn.dot_product_attention(
                *jnp.sin(x)[:, None, :, None, None]
            ),
            "dot_product_attention(bias, is_causal)": lambda x: (
                jax.nn.dot_product_attention(
                    *x[:, None, :, None, None],
                    bias=jnp.outer(x[0], x[1])[None, None],
                    is_causal=True,
                )
            ),
        },
        tolerance=1e6,  # Most releases of JAX compute it in float32 within.
        single=False,
        strict=False,
    ),
)

KINKS = group(
    # Nested `jax.jvp` does not know the sides of `abs`, `max`, `min` and `clip`.
    named(jax.nn, _activations.replace("celu", "").replace("soft_sign", ""), kink),
    named(jnp, "ceil floor rint round sign sinc", kink),
    named(jnp, "cumprod max median min prod sort unwrap", kink),
    named(jsp.special, "i0e i1e erf expit log_ndtr ndtr", kink),
    # In earlier releases their derivatives are wrong at 0.
    named(jsp.special, "i0 i1", kink, since=(0, 12)),
    named(lax, "cummax", kink),
    on(
        kink,
        {
            "arctan2(x, 1)": lambda x: jnp.arctan2(x, 1.0),
            "hypot(x, 1)": lambda x: jnp.hypot(x, jnp.ones_like(x)),
            "logaddexp(x, 0)": lambda x: jnp.logaddexp(x, 0.0),
            "logaddexp(x, -x)": lambda x: jnp.logaddexp(x, -x),
            "logaddexp2(x, 0)": lambda x: jnp.logaddexp2(x, 0.0),
            "mod(x, 1)": lambda x: jnp.mod(x, 1.0),
            "power(x, 0)": lambda x: x**0,
            "power(x, 2)": lambda x: x**2,
            "relu of a maximum": lambda x: jax.nn.relu(jnp.max(x) * x),
            "where(x > 0)": lambda x: jnp.where(x > 0, jnp.sin(x), x**2),
            "xlogy(x, 1 + x)": lambda x: jsp.special.xlogy(x, 1 + x),
            "xlog1py(x, x)": lambda x: jsp.special.xlog1py(x, x),
        },
    ),
)


# jax.numpy.
