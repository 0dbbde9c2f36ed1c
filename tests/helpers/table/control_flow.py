"""Loops, branches and implicit functions."""

import equinox.internal as eqxi
import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import jax.random as jr
import jax.scipy.cluster
from jax import lax

from .entry import (
    chain,
    decay,
    definite_system,
    doubled,
    group,
    large,
    like,
    mixed,
    NODES,
    normal,
    on,
    real,
    residual,
    shrink,
    step,
    system,
    TWICE,
)


LOOPS = group(
    on(
        real,
        {
            "fori_loop": lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c * x), x),
            "fori_loop(state-dependent length)": lambda x: lax.fori_loop(
                0, jnp.argmax(x) + 1, lambda i, c: jnp.sin(c * x), x
            ),
            "fori_loop(index)": lambda x: lax.fori_loop(
                0, 4, lambda i, c: c.at[i].set(jnp.sin(c[i - 1]) + c[i]), x
            ),
            "fori_loop(0)": lambda x: lax.fori_loop(0, 0, lambda i, c: jnp.sin(c), x),
            "map": lambda x: lax.map(lambda a: jnp.sin(a) * a, x),
            "map(batch_size)": lambda x: lax.map(jnp.sin, x, batch_size=3),
            "scan": chain,
            "scan(closing over constants)": lambda x: lax.scan(
                lambda c, a: (mixed(c + a), None), x, like(x, [1, 2])
            )[0],
            "scan(closing over the state)": lambda x: lax.scan(
                lambda c, a: (c * jnp.sin(x * a), None), x, like(x, [1, 2])
            )[0],
            "scan(length, unroll)": lambda x: lax.scan(
                lambda c, _: (jnp.sin(c), c), x, length=3, unroll=2
            ),
            "scan(pytrees)": lambda x: lax.scan(
                lambda c, a: ((c[0] * a["x"], c[0], c[2] + a["i"]), c),
                (x[0], x[1], 0),
                {"x": x, "i": jnp.arange(4)},
            ),
            "scan(reverse, unroll)": lambda x: lax.scan(
                step, x[0], x, reverse=True, unroll=3
            ),
            "scan(constant at first)": lambda x: lax.scan(
                lambda c, a: ((c[1], c[0] * a), c[0]),
                (jnp.ones_like(x[0]), jnp.ones_like(x[0])),
                x,
            ),
            "scan(constant carry)": lambda x: lax.scan(
                lambda c, _: ((c[0] + 1, jnp.sin(c[1]) * jnp.sqrt(c[0])), None),
                (jnp.zeros_like(x), x),
                length=3,
            )[0],
            "scan(constant output)": lambda x: jnp.sqrt(
                lax.scan(lambda c, a: (jnp.sin(c * a), 0 * a), x, like(x, [1, 2]))[1]
            ),
            "scan(integers)": lambda x: lax.scan(
                lambda c, a: ((c[0] + 1, c[1] * a), c), (0, x[0]), x
            ),
            "scan(booleans)": lambda x: lax.scan(
                lambda c, a: (jnp.where(a, jnp.sin(c), c * c), None), x, x > 0
            )[0],
            "scan(keys)": lambda x: lax.scan(
                lambda c, k: (c * normal(k, c), None), x, jr.split(jr.key(0), 3)
            )[0],
            "scan(complex)": lambda x: lax.scan(
                lambda c, a: (c * lax.complex(a, a), None), lax.complex(x[0], x[1]), x
            )[0],
            "scan(unused output)": lambda x: lax.scan(
                lambda c, a: (c, (a, jnp.log(a - 9))), x, x
            )[0],
            "scan(nothing)": lambda x: lax.scan(lambda c, a: (c * a, c), x, x[:0])[0],
            "while_loop": decay,
            "while_loop(closing over the state)": lambda x: lax.while_loop(
                lambda c: jnp.sum(c**2) > 0.1 * jnp.sum(x**2),
                lambda c: 0.5 * c * jnp.cos(x),
                x,
            ),
            "while_loop(keys)": lambda x: lax.while_loop(
                lambda c: c[1] < 3,
                lambda c: (jr.split(c[0])[0], c[1] + 1, c[2] * normal(c[0], x)),
                (jr.key(0), 0, x),
            )[2],
            "while_loop(never)": lambda x: lax.while_loop(
                lambda c: c[0] > 99, jnp.sin, x * x
            ),
            "custom_jvp in scan": lambda x: lax.scan(
                lambda c, a: (doubled(c * a), None), x[0], x
            )[0],
            "softplus in while_loop": lambda x: lax.while_loop(
                large, lambda c: 0.8 * jax.nn.softplus(c) - 0.6, x
            ),
            "while_loop in scan": lambda x: lax.scan(
                lambda c, a: (decay(c + a), c), x[0], x
            ),
            "while_loop in while_loop": lambda x: lax.while_loop(
                lambda c: c[0] < 2, lambda c: (c[0] + 1, decay(2 * c[1])), (0, x)
            )[1],
            "vmap of fori_loop": lambda x: jax.vmap(
                lambda a, n: lax.fori_loop(0, n, lambda i, c: jnp.sin(c + a), a)
            )(x, NODES),
            "vmap of scan": lambda x: jax.vmap(lambda a: lax.scan(step, a, x))(x),
            "equinox.internal.scan": lambda x: eqxi.scan(step, x[0], x, kind="lax"),
            "equinox.internal.while_loop(kind='lax')": lambda x: eqxi.while_loop(
                large, shrink, x, kind="lax"
            ),
        },
    ),
    on(
        real,
        {
            "scan in scan": lambda x: lax.scan(
                lambda c, a: (lax.scan(step, c, a * x)[0], None), x[0], x[:2]
            )[0],
            "vmap of vmap of scan": lambda x: jax.vmap(
                jax.vmap(lambda a, b: lax.scan(step, a, b * x[:2])[0], (None, 0)),
                (0, None),
            )(x, x),
            "vmap of while_loop": jax.vmap(decay),
            "vmap of while_loop(closing over the state)": lambda x: jax.vmap(
                lambda a: lax.while_loop(
                    lambda c: c[1] < 3,
                    lambda c: (jnp.sin(c[0] * x[0]) + a, c[1] + 1),
                    (a, 0),
                )[0]
            )(x),
            "equinox.internal.while_loop(kind='bounded')": lambda x: eqxi.while_loop(
                large, shrink, x, max_steps=8, kind="bounded"
            ),
        },
        order=4,
    ),
    on(
        real,
        {
            "equinox.internal.while_loop(kind='checkpointed')": lambda x: (
                eqxi.while_loop(large, shrink, x, max_steps=8, kind="checkpointed")
            )
        },
        reference=decay,
    ),
)

BRANCHES = group(
    on(
        real,
        {
            "cond": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.exp, x),
            "cond(constant branch)": lambda x: (
                x * lax.cond(x[0] > 9, lambda x: x, jnp.ones_like, x)
            ),
            "cond(constant output)": lambda x: lax.cond(
                x[0] > 0,
                lambda x: (x, jnp.sqrt(jnp.zeros_like(x))),
                lambda x: (x * x, jnp.ones_like(x)),
                x,
            ),
            "cond(output that one branch varies)": lambda x: lax.cond(
                x[0] > 9, lambda x: jnp.ones_like(x), lambda x: x * x, x
            ),
            "cond(constant predicate)": lambda x: lax.cond(True, jnp.sin, jnp.exp, x),
            "cond(closing over the state)": lambda x: lax.cond(
                x[0] > 0, lambda: x * x, lambda: jnp.sin(x)
            ),
            "cond(integers)": lambda x: lax.cond(
                x[0] > 0, lambda x: (x * x, 1), lambda x: (x, 2), x
            ),
            "cond(keys)": lambda x: (
                x * normal(lax.cond(x[0] > 0, lambda k: k, jr.clone, jr.key(0)), x)
            ),
            "custom_jvp in cond": lambda x: lax.cond(x[0] > 0, doubled, jnp.sin, x),
            "platform_dependent": lambda x: lax.platform_dependent(
                x, default=jnp.sin, cpu=jnp.cos
            ),
            "switch": lambda x: lax.switch(
                jnp.argmax(x), [jnp.sin, jnp.cos, jnp.tanh, jnp.exp], x
            ),
            "cond in scan": lambda x: lax.scan(
                lambda c, a: (lax.cond(a > 0, jnp.sin, jnp.cos, c * a), c), x[0], x
            ),
            "cond in while_loop": lambda x: lax.while_loop(
                lambda c: c[1] < 3,
                lambda c: (lax.cond(c[1] == 1, jnp.sin, jnp.cos, c[0]), c[1] + 1),
                (x, 0),
            )[0],
            "scan in cond": lambda x: lax.cond(
                x[0] > 0, lambda x: chain(x)[1], lambda x: x, x
            ),
            "vmap of cond": jax.vmap(lambda a: lax.cond(a > 0, jnp.sin, jnp.exp, a)),
            "vmap of scan in cond": jax.vmap(
                lambda a: lax.cond(
                    a > 0, lambda a: lax.map(jnp.sin, a[None])[0], jnp.cos, a
                )
            ),
            "vmap of platform_dependent": jax.vmap(
                lambda a: lax.platform_dependent(a, default=jnp.sin, cpu=jnp.cos)
            ),
            "vmap of switch": lambda x: jax.vmap(
                lambda a, n: lax.switch(n, [jnp.sin, jnp.cos, jnp.tanh], a)
            )(x[:3], TWICE),
        },
    ),
)


IMPLICIT = group(
    on(
        system,
        {
            "custom_linear_solve": lambda a, b: lax.custom_linear_solve(
                lambda v: a @ v,
                b,
                lambda _, b: jnp.linalg.solve(a, b),
                lambda _, b: jnp.linalg.solve(a.T, b),
            )
        },
        order=4,
    ),
    on(
        definite_system,
        {
            "custom_linear_solve(symmetric)": lambda a, b: lax.custom_linear_solve(
                lambda v: a @ v, b, lambda _, b: jnp.linalg.solve(a, b), symmetric=True
            )
        },
        order=4,
    ),
    on(
        real,
        {
            "custom_root": lambda x: lax.custom_root(
                lambda z: residual(z, x),
                x,
                lambda f, z: lax.fori_loop(0, 50, lambda i, z: z - f(z) / 3, z),
                lambda g, b: b / g(jnp.ones_like(b)),
            )
        },
    ),
)


# Random numbers: draws are constants, or depend on parameters.
