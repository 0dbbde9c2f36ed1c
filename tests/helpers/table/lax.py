"""`jax.lax`."""

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.scipy.cluster
import numpy as np
from jax import lax

from .entry import (
    above_one,
    batch,
    batches,
    FILTER,
    group,
    images,
    like,
    named,
    NODES,
    on,
    ONCE,
    pair,
    positive,
    power,
    ratio,
    real,
    signal,
    signed_unit,
    TWICE,
    unit,
    variants,
    WEIGHTS,
)


_scattered = lax.ScatterDimensionNumbers((), (0,), (0,))
_gathered = lax.GatherDimensionNumbers((1,), (0,), (0, 1))
LAX = group(
    named(
        lax,
        """
        abs asinh atan bessel_i0e bessel_i1e ceil cos cosh cumlogsumexp cummax cummin
        cumprod cumsum erf erfc exp exp2 expm1 floor logistic neg optimization_barrier
        round sign sin sinh square tanh
        """,
    ),
    named(lax, "acos asin atanh erf_inv tan", signed_unit),
    named(lax, "acosh", above_one),
    named(lax, "cbrt digamma lgamma log log1p reciprocal rsqrt sqrt", positive),
    named(lax, "log2", positive, since=(0, 12)),
    named(lax, "one_minus_square", since=(0, 12)),
    named(lax, "add atan2 complex dot max min mul sub sort_key_val", pair),
    named(lax, "div rem", ratio),
    named(lax, "pow", power),
    on(
        real,
        {
            **variants(
                "{}(reverse)",
                lambda name: lambda x: getattr(lax, name)(x, reverse=True),
                ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"),
            ),
            "approx_max_k": lambda x: lax.approx_max_k(x, 2)[0],
            "argmax": lambda x: x[lax.argmax(x, 0, jnp.int32)],
            "associative_scan": lambda x: lax.associative_scan(jnp.multiply, x),
            "associative_scan(affine, reverse)": lambda x: lax.associative_scan(
                lambda f, g: (f[0] * g[0], g[0] * f[1] + g[1]), (x, x * x), reverse=True
            ),
            "betainc(constant, constant, x)": lambda x: lax.betainc(
                like(x, 2 + NODES), like(x, 1 + NODES), unit(x)
            ),
            "broadcast": lambda x: lax.broadcast(x * x, (2,)),
            "broadcast_in_dim": lambda x: lax.broadcast_in_dim(x * x, (4, 2), (0,)),
            "clamp": lambda x: lax.clamp(like(x, -0.2), x, like(x, 0.6)) * x,
            "clamp(state-dependent)": lambda x: lax.clamp(-(x[::-1] ** 2), x, x * x),
            "collapse": lambda x: lax.collapse(jnp.outer(x, x), 0),
            "concatenate": lambda x: lax.concatenate([x, x * x], 0),
            "convert_element_type(complex)": lambda x: (
                lax.convert_element_type(x * x, complex).real
            ),
            "convert_element_type(integer)": lambda x: (
                x * lax.convert_element_type(x, int).astype(x.dtype)
            ),
            "dynamic_index_in_dim": lambda x: lax.dynamic_index_in_dim(
                x * x, jnp.argmax(x)
            ),
            "dynamic_slice": lambda x: lax.dynamic_slice(
                signal(x) ** 2, (jnp.argmax(x),), (3,)
            ),
            "dynamic_update_slice": lambda x: lax.dynamic_update_slice(
                x, x[:2] ** 2, (jnp.argmin(x),)
            ),
            "dynamic_update_slice(constant)": lambda x: lax.dynamic_update_slice(
                like(x, WEIGHTS), x[None] ** 2, (1, 0)
            ),
            "expand_dims": lambda x: lax.expand_dims(x * x, (0, 2)),
            "gather": lambda x: lax.gather(
                jnp.outer(x, x),
                jnp.array([[0, 1], [2, 9]]),
                _gathered,
                (1, 2),
                mode="clip",
            ),
            "igamma(constant, x)": lambda x: lax.igamma(
                like(x, 1 + NODES), positive(x)
            ),
            "index_take": lambda x: lax.index_take(
                x * x,
                (jnp.array([1, 3]),),  # pyright: ignore[reportArgumentType]
                (0,),
            ),
            "iota": lambda x: x * lax.iota(x.dtype, 4),
            "nextafter(constant, constant)": lambda x: (
                x * lax.nextafter(like(x, 1.0), like(x, 2.0))
            ),
            "pad(negative, interior)": lambda x: lax.pad(
                x * x, like(x, 0.3), [(-1, 2, 1)]
            ),
            "pad(state-dependent)": lambda x: lax.pad(x * x, x[0], [(1, 2, 1)]),
            "polygamma(constant, x)": lambda x: lax.polygamma(
                like(x, 1 + NODES), 2 + positive(x)
            ),
            "ragged_dot": lambda x: lax.ragged_dot(
                jnp.outer(x, x), jnp.stack([jnp.outer(x, x)] * 2), jnp.array([1, 3])
            ),
            "reduce(add)": lambda x: lax.reduce(x * x, like(x, 0.0), lax.add, (0,)),
            "reduce(several)": lambda x: lax.reduce(
                (x, x * x),
                (like(x, 1.0), like(x, 0.0)),
                lambda a, b: (a[0] * b[0], a[1] + b[1]),
                (0,),
            ),
            "reduce_max": lambda x: lax.reduce_max(x, (0,)) * x,
            "reduce_precision": lambda x: lax.reduce_precision(jnp.sin(x), 11, 52),
            "reshape(dimensions)": lambda x: lax.reshape(
                jnp.outer(x, x), (16,), (1, 0)
            ),
            "rev": lambda x: lax.rev(x * x, (0,)),
            "scatter": lambda x: lax.scatter(
                x, TWICE[:2, None], x[:2] ** 2, _scattered
            ),
            "scatter_mul": lambda x: lax.scatter_mul(
                x, ONCE[:, None], jnp.cos(x[:3]), _scattered, unique_indices=True
            ),
            "select": lambda x: lax.select(x > 0, x * x, jnp.sin(x)),
            "select_n": lambda x: lax.select_n(jnp.array([0, 1, 2, 1]), *batch(x)),
            "slice(strides)": lambda x: lax.slice(x * x, (0,), (4,), (2,)),
            "slice_in_dim": lambda x: lax.slice_in_dim(x * x, 1, 3),
            "sort(several)": lambda x: lax.sort((x, jnp.cos(x), x * x), num_keys=2),
            "split": lambda x: lax.split(x * x, (1, 3)),
            "squeeze": lambda x: lax.squeeze(x[None] ** 2, (0,)),
            "top_k": lambda x: lax.top_k(x, 2),
            "with_sharding_constraint": lambda x: lax.with_sharding_constraint(
                x * x, jax.sharding.SingleDeviceSharding(jax.devices()[0])
            ),
        },
    ),
    on(
        batches,
        {
            "batch_matmul": lambda x, y: lax.batch_matmul(x[:, None], y[..., None]),
            "dot_general(batched)": lambda x, y: lax.dot_general(
                x, y, (((1,), (1,)), ((0,), (0,)))
            ),
            "transpose": lambda x, y: lax.transpose(x * y, (1, 0)),
        },
    ),
    on(real, {"pow(x, integers)": lambda x: lax.pow(x, NODES)}, strict=False),
    on(real, {"tile": lambda x: lax.tile(x * x, (2,))}, since=(0, 10)),
)


WINDOWS = group(
    on(
        images,
        {
            "reduce_window(add)": lambda x: _pool(x, lax.add, 0.0),
            "reduce_window(max)": lambda x: _pool(x, lax.max, -jnp.inf),
            "reduce_window(min)": lambda x: _pool(x, lax.min, jnp.inf),
            "reduce_window(dilations)": lambda x: lax.reduce_window(
                x,
                0.0,
                lax.add,
                (1, 1, 2, 2),
                (1, 1, 1, 1),
                "SAME",
                base_dilation=(1, 1, 2, 2),
                window_dilation=(1, 1, 2, 1),
            ),
            "reduce_window(max), gradient": jax.grad(
                lambda x: jnp.sum(_pool(x, lax.max, -jnp.inf) ** 2)
            ),
            "reduce_window(add), gradient": jax.grad(
                lambda x: jnp.sum(_pool(x, lax.add, 0.0) ** 2)
            ),
            "conv": lambda x: lax.conv(x, like(x, FILTER), (1, 1), "SAME"),
            "conv_with_general_padding": lambda x: lax.conv_with_general_padding(
                x, like(x, FILTER), (2, 1), ((1, 0), (0, 2)), (2, 1), (1, 2)
            ),
            "conv_general_dilated(state-dependent)": lambda x: lax.conv_general_dilated(
                x, jnp.sin(x), (1, 1), "SAME"
            ),
            "conv_general_dilated(batch_group_count)": lambda x: (
                lax.conv_general_dilated(
                    jnp.concatenate([x, x**2]),
                    like(x, FILTER),
                    (1, 1),
                    "VALID",
                    batch_group_count=2,
                )
            ),
            "conv_general_dilated(feature_group_count)": lambda x: (
                lax.conv_general_dilated(
                    x, like(x, FILTER[:, :1]), (1, 1), "VALID", feature_group_count=2
                )
            ),
            "conv_general_dilated(dimension_numbers)": lambda x: (
                lax.conv_general_dilated(
                    x,
                    like(x, FILTER.reshape(3, 3, 2, 2)),
                    (1, 1),
                    "VALID",
                    dimension_numbers=("NCHW", "HWIO", "NHWC"),
                )
            ),
            "conv_general_dilated_local": lambda x: lax.conv_general_dilated_local(
                x,
                like(x, np.cos(np.arange(72)).reshape(1, 8, 3, 3)),
                (1, 1),
                "VALID",
                (2, 2),
            ),
            "conv_general_dilated_patches": lambda x: lax.conv_general_dilated_patches(
                x, (2, 2), (1, 1), "VALID"
            ),
            "conv_transpose": lambda x: lax.conv_transpose(
                x,
                like(x, FILTER),
                (2, 2),
                "SAME",
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            ),
        },
        order=4,
    ),
    on(
        real,
        {
            "reduce_window(multiply)": lambda x: lax.reduce_window(
                x, like(x, 1.0), lax.mul, (2,), (1,), "VALID"
            )
        },
    ),
)


def _pool(x, operation, initial):
    strides = (1, 1, 2, 2)
    return lax.reduce_window(x, initial, operation, (1, 1, 3, 3), strides, "SAME")


# Control flow.
