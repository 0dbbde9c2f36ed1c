"""Transformations of functions."""

import functools as ft

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.ad_checkpoint
import jax.experimental.pallas as pl
import jax.numpy as jnp
import jax.scipy.cluster
import numpy as np
import optax
from jax import lax

from .entry import (
    batch,
    chain,
    decay,
    doubled,
    EVERYWHERE,
    group,
    large,
    like,
    loss,
    MESH,
    mixed,
    NODES,
    on,
    positive,
    real,
    step,
    system,
    TWICE,
    WEIGHTS,
)


@jax.custom_jvp
def _cube(x, n):
    """Function with an integer among its arguments, and one among its outputs."""
    return x**3, n + 1


@_cube.defjvp
def _(primals, tangents):
    (x, n), (dx, dn) = primals, tangents
    return _cube(x, n), (3 * x**2 * dx, dn)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(function, x):
    return function(x)


@_apply.defjvp
def _(function, primals, tangents):
    return jax.jvp(function, primals, tangents)


@jax.custom_jvp
def _straight_through(x):
    return jnp.round(x)


_straight_through.defjvps(lambda dx, out, x: dx)


@eqx.filter_custom_jvp
def _filtered_jvp(x):
    return jnp.sin(x)


@_filtered_jvp.def_jvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _filtered_jvp(x), 2 * jnp.cos(x) * dx


@jax.custom_vjp
def _opaque(x):
    return jnp.sin(x)


_opaque.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (2 * g * jnp.cos(x),))


@ft.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _opaque_apply(function, x):
    return function(x)


_opaque_apply.defvjp(lambda f, x: (f(x), None), lambda f, residuals, g: (g,))


@eqx.filter_custom_vjp
def _filtered_vjp(x):
    return jnp.sin(x)


_filtered_vjp.def_fwd(lambda perturbed, x: (jnp.sin(x), None))
_filtered_vjp.def_bwd(lambda residuals, g, perturbed, x: g)


@jax.custom_batching.custom_vmap
def _batched(x):
    return jnp.sin(x)


@_batched.def_vmap
def _(size, is_batched, x):
    return jnp.sin(x), is_batched[0]


@jax.custom_jvp
def _called_back(x):
    return jax.pure_callback(
        np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims"
    )


@_called_back.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _called_back(x), _called_back(x + np.pi / 2) * dx


def _kernel(x_ref, out_ref):
    out_ref[...] = jnp.sin(x_ref[...]) * x_ref[...]


def _pallas(x):
    return pl.pallas_call(
        _kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True
    )(x)


def _adam(x):
    optimizer = optax.adam(0.1)
    state = optimizer.init(x)
    for _ in range(2):
        updates, state = optimizer.update(jax.grad(loss)(x), state)
        x = optax.apply_updates(x, updates)
    return x


def _converted(x):
    pure, consts = jax.closure_convert(lambda z: z * x, x)
    return pure(jnp.sin(x), *consts)


TRANSFORMATIONS = group(
    on(
        real,
        {
            "checkpoint": lambda x: jax.checkpoint(mixed)(x),
            "checkpoint(policy)": lambda x: jax.checkpoint(
                mixed, policy=jax.checkpoint_policies.dots_saveable
            )(x),
            "checkpoint in scan": lambda x: lax.scan(jax.checkpoint(step), x[0], x),
            "scan in checkpoint": lambda x: jax.checkpoint(chain)(x),
            "checkpoint_name": lambda x: jax.ad_checkpoint.checkpoint_name(
                mixed(x), "name"
            ),
            "closure_convert": _converted,
            "custom_jvp": doubled,
            "custom_jvp(integers)": lambda x: _cube(x, NODES),
            "custom_jvp(nondiff_argnums)": lambda x: _apply(jnp.sin, x),
            "custom_jvp by a callback": _called_back,
            "custom_jvp by a callback in scan": lambda x: lax.scan(
                lambda c, a: (_called_back(c * a), c), x[0], x
            ),
            "custom_vmap": _batched,
            "defjvps": lambda x: _straight_through(x) * x,
            "grad": jax.grad(loss),
            "grad of checkpoint": jax.grad(lambda x: jax.checkpoint(loss)(x)),
            "grad of cond": jax.grad(lambda x: lax.cond(x[0] > 0, loss, jnp.prod, x)),
            "grad of gather": jax.grad(lambda x: jnp.sum(x[TWICE] ** 3)),
            "grad of sort": jax.grad(lambda x: jnp.sum(jnp.sort(x) ** 2 * jnp.sin(x))),
            "jacfwd (trace)": lambda x: x * jnp.trace(jax.jacfwd(mixed)(x)),
            "jacrev (trace)": lambda x: x * jnp.trace(jax.jacrev(mixed)(x)),
            "jit": lambda x: jax.jit(mixed)(x),
            "jit(inline)": lambda x: jax.jit(mixed, inline=True)(x),
            "jit in jit": lambda x: jax.jit(lambda x: jax.jit(mixed)(x) * x)(x),
            "jvp": lambda x: jax.jvp(mixed, (x,), (jnp.sin(x),)),
            "linearize": lambda x: jax.linearize(mixed, x)[1](jnp.sin(x)),
            "linear_transpose": lambda x: jax.linear_transpose(
                lambda z: x * (like(x, WEIGHTS) @ z), x
            )(jnp.sin(x)),
            "named_call": lambda x: jax.named_call(mixed, name="name")(x),
            "named_scope": lambda x: jax.named_scope("name")(mixed)(x),
            "sequential_vmap": jax.vmap(jax.custom_batching.sequential_vmap(jnp.sin)),
            "tree.map": lambda x: jax.tree.map(jnp.sin, {"a": x, "b": (x[0], [x * x])}),
            "value_and_grad": jax.value_and_grad(loss),
            "vjp": lambda x: jax.vjp(mixed, x)[1](jnp.sin(x)),
            "vmap of custom_jvp": jax.vmap(doubled),
            "vmap of custom_vmap": jax.vmap(_batched),
            "vmap of dynamic_slice": lambda x: jax.vmap(
                lambda i: lax.dynamic_slice(x * x, (i,), (2,))
            )(jnp.argsort(x)),
            "device_put": lambda x: jax.device_put(x * x),
            "pallas_call(interpret)": _pallas,
            "pmap": lambda x: jax.pmap(mixed)(x[None]),
            "identity": lambda x: (x, x),
            "constant": lambda x: 1.0,
        },
    ),
    on(
        real,
        {
            "grad of scan": jax.grad(lambda x: chain(x)[0]),
            "grad of scan of checkpoint": jax.grad(
                lambda x: lax.scan(jax.checkpoint(step), x[0], x)[0]
            ),
            "hessian": lambda x: jax.hessian(loss)(x) @ x,
            "jacfwd of fori_loop": jax.jacfwd(
                lambda x: lax.fori_loop(0, 2, lambda i, c: jnp.sin(c * x), x)
            ),
            "jacrev of scan": jax.jacrev(lambda x: chain(x)[1]),
        },
        order=3,
    ),
    on(batch, {"vmap of grad": jax.vmap(jax.grad(loss))}, order=4),
    on(
        batch,
        {
            "vmap": jax.vmap(mixed),
            "vmap(axis_name)": jax.vmap(
                lambda x: jnp.where(
                    lax.axis_index("i") > 0, x * lax.psum(mixed(x), "i"), x
                ),
                axis_name="i",
            ),
            "vmap(in_axes)": lambda x: jax.vmap(jnp.dot, (0, None))(x, x[0]),
        },
    ),
    on(
        system,
        {
            "grad of linalg.solve": jax.grad(
                lambda a, b: jnp.sum(jnp.linalg.solve(a, b)), argnums=(0, 1)
            ),
            "vmap of linalg.solve": lambda a, b: jax.vmap(
                lambda s: jnp.linalg.solve(s * a, b)
            )(positive(b)),
        },
        order=3,
    ),
    on(
        real,
        {
            "custom_gradient": jax.custom_gradient(lambda x: (jnp.sin(x), lambda g: g)),
            "custom_vjp": _opaque,
            "custom_vjp(nondiff_argnums)": lambda x: _opaque_apply(jnp.sin, x),
            "checkpoint of custom_vjp": jax.checkpoint(_opaque),
            "jit of custom_vjp": jax.jit(_opaque),
            "vmap of custom_vjp": jax.vmap(_opaque),
            "filter_custom_vjp": lambda x: _filtered_vjp(x),
        },
        reference=jnp.sin,
    ),
    on(
        real,
        {"grad of custom_vjp": jax.grad(lambda x: jnp.sum(_opaque(x)))},
        reference=lambda x: 2 * jnp.cos(x),
    ),
    on(
        real,
        {
            "custom_vjp in cond": lambda x: lax.cond(x[0] > 0, _opaque, jnp.cos, x),
        },
        reference=lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    ),
    on(
        real,
        {
            "custom_vjp in scan": lambda x: lax.scan(
                lambda c, a: (_opaque(c * a), c + a), x[0], x
            )
        },
        reference=chain,
    ),
    on(
        real,
        {
            "custom_vjp in while_loop": lambda x: lax.while_loop(
                large, lambda c: 0.8 * _opaque(c), x
            )
        },
        reference=decay,
    ),
    on(
        real,
        {
            "shard_map": lambda x: jax.shard_map(
                mixed, mesh=MESH(), in_specs=EVERYWHERE, out_specs=EVERYWHERE
            )(x),
            "shard_map of psum": lambda x: jax.shard_map(
                lambda x: lax.psum(mixed(x), "i"),
                mesh=MESH(),
                in_specs=EVERYWHERE,
                out_specs=EVERYWHERE,
            )(x),
        },
        since=(0, 10),
    ),
    on(real, {"optax.adam": _adam}, order=3, strict=False),
    on(
        real,
        {
            "equinox.error_if": lambda x: eqx.error_if(x * x, x[0] > 99, "large"),
            "equinox.error_if in cond": lambda x: lax.cond(
                x[0] > 0, lambda x: eqx.error_if(x * x, x[0] > 99, "large"), jnp.sin, x
            ),
            "equinox.error_if in scan": lambda x: lax.scan(
                lambda c, a: (eqx.error_if(c * a, c > 99, "large"), c), x[0], x
            ),
            "equinox.filter_checkpoint": lambda x: eqx.filter_checkpoint(mixed)(x),
            "equinox.filter_closure_convert": lambda x: eqx.filter_closure_convert(
                lambda z: z * x, x
            )(jnp.sin(x)),
            "equinox.filter_custom_jvp": lambda x: _filtered_jvp(x),
            "equinox.filter_grad": lambda x: eqx.filter_grad(loss)(x),
            "equinox.filter_jit": lambda x: eqx.filter_jit(mixed)(x),
            "equinox.filter_jvp": lambda x: eqx.filter_jvp(mixed, (x,), (jnp.sin(x),)),
            "equinox.filter_vmap": lambda x: eqx.filter_vmap(jnp.sin)(x),
            "equinox.internal.noinline": lambda x: eqxi.noinline(mixed)(x),
            "equinox.internal.nondifferentiable_backward": lambda x: (
                eqxi.nondifferentiable_backward(x * x)
            ),
        },
    ),
)


# Solvers.
