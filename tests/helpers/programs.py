"""Random compositions of functions, as strategies for Hypothesis."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
from jax import lax


# All are smooth near almost every point, and map values of size 1 to such values.
_elementwise: dict[str, Callable[..., Any]] = dict(
    abs=jnp.abs,
    arccos=lambda x: jnp.arccos(0.9 * jnp.sin(x)),
    arcsinh=jnp.arcsinh,
    arctan=jnp.arctan,
    arctanh=lambda x: jnp.arctanh(0.9 * jnp.sin(x)),
    bessel=jsp.special.i0e,
    cbrt=lambda x: jnp.cbrt(2 + jnp.sin(x)),
    ceil=lambda x: jnp.ceil(x) - x,
    clip=lambda x: jnp.clip(x, -0.5, 0.5),
    complex=lambda x: (jnp.exp(lax.complex(0 * x, x)) / lax.complex(1 + x * x, x)).imag,
    cosh=lambda x: jnp.cosh(jnp.sin(x)),
    digamma=lambda x: jsp.special.digamma(3 + jnp.sin(x)),
    elu=jax.nn.elu,
    erf=jsp.special.erf,
    erf_inv=lambda x: jsp.special.erfinv(0.9 * jnp.sin(x)),
    exp=lambda x: jnp.exp(-x * x),
    exp2=lambda x: jnp.exp2(jnp.cos(x)),
    expm1=lambda x: jnp.expm1(jnp.sin(x)),
    gelu=jax.nn.gelu,
    integer_power=lambda x: 0.3 * x**3 - (2 + x * x) ** -2,
    lgamma=lambda x: jsp.special.gammaln(3 + jnp.sin(x)),
    log=lambda x: jnp.log(2 + jnp.sin(x)),
    log1p=lambda x: jnp.log1p(x * x),
    power=lambda x: (1 + x * x) ** 0.3,
    reciprocal=lambda x: 1 / (2 + jnp.cos(x)),
    relu=jax.nn.relu,
    rsqrt=lambda x: lax.rsqrt(1 + x * x),
    sigmoid=jax.nn.sigmoid,
    silu=jax.nn.silu,
    sinc=jnp.sinc,
    softplus=jax.nn.softplus,
    sqrt=lambda x: jnp.sqrt(1 + x * x),
    square=lambda x: 0.5 * jnp.square(x),
    tan=lambda x: jnp.tan(jnp.sin(x)),
    tanh=jnp.tanh,
    where=lambda x: jnp.where(x > 0.3, jnp.sin(x), x * x),
)

# Of arrays of rank 1 or more.
_of_vectors = dict(
    argmax=lambda x: jnp.sin(x).reshape(-1)[jnp.argmax(x)],
    associative_scan=lambda x: lax.associative_scan(jnp.multiply, jnp.cos(x), axis=-1),
    batched_while=lambda x: jax.vmap(
        lambda a: lax.while_loop(lambda c: c < 2, lambda c: c + jnp.exp(a - c), a)
    )(jnp.sin(x).reshape(-1)),
    broadcast=lambda x: jnp.broadcast_to(x.reshape(-1)[:2, None, None], (2, 1, 3))[:1],
    checkpoint=jax.checkpoint(lambda x: jnp.sin(x) * x),
    cond=lambda x: lax.cond(jnp.sum(x) > 0, jnp.sin, lambda x: x * jnp.cos(x), x),
    concatenate=lambda x: jnp.concatenate([x[:1], jnp.sin(x)[:1]]),
    cumlogsumexp=lambda x: lax.cumlogsumexp(x, axis=x.ndim - 1),
    cummax=lambda x: lax.cummax(x, axis=x.ndim - 1),
    cumprod=lambda x: jnp.cumprod(jnp.cos(x), axis=-1),
    cumsum=lambda x: jnp.cumsum(jnp.sin(x), axis=0),
    derivative=lambda x: jax.jvp(jnp.tanh, (x,), (jnp.sin(x),))[1],
    diagonal=lambda x: jnp.diag(x.reshape(-1)[:3]),
    dynamic_slice=lambda x: lax.dynamic_slice_in_dim(x, jnp.argmin(x), 1),
    fft=lambda x: jnp.fft.fft(jnp.sin(x)).imag + jnp.abs(jnp.fft.rfft(x).sum() + 9),
    flip=lambda x: x[..., ::-1],
    fori_loop=lambda x: lax.fori_loop(0, 2, lambda i, c: jnp.sin(c + i) * x, x),
    gather=lambda x: jnp.sin(x)[..., jnp.array([0, -1, 0])],
    gradient=jax.grad(lambda x: jnp.sum(jnp.sin(x) * jnp.cumsum(x, axis=0))),
    jacobian=lambda x: jax.jacfwd(lambda z: jnp.tanh(z * z[::-1]))(x.reshape(-1)[:2]),
    jit=jax.jit(lambda x: jnp.sin(x) + x),
    linspace=lambda x: jnp.linspace(x.min(), x.max(), 3),
    logsumexp=lambda x: jax.nn.logsumexp(x, axis=0),
    map=lambda x: lax.map(lambda z: jnp.sin(z) * z, x),
    max=lambda x: jnp.max(x, axis=-1),
    mean=lambda x: jnp.mean(jnp.exp(jnp.sin(x)), axis=0, keepdims=True),
    norm=lambda x: x / jnp.sqrt(1 + jnp.sum(x * x)),
    pad=lambda x: jnp.pad(x, (1, 0), constant_values=0.3)[:2],
    prod=lambda x: jnp.prod(jnp.cos(x), axis=-1),
    reverse_scan=lambda x: lax.scan(
        lambda c, z: (c * jnp.cos(z), c + z), x[0], x, reverse=True
    )[1],
    roll=lambda x: jnp.roll(x, 1, axis=0) * x,
    scan=lambda x: lax.scan(lambda c, z: (jnp.sin(c + z), None), 0 * x[0], x)[0],
    scatter_add=lambda x: x.at[jnp.array([0, 0, -1])].add(jnp.sin(x[:1])),
    scatter_max=lambda x: x.at[..., 0].max(jnp.cos(x[..., -1])),
    scatter_multiply=lambda x: x.at[0].multiply(jnp.cos(x[-1])),
    scatter_set=lambda x: x.at[..., -1].set(jnp.cos(x[..., 0])),
    segment_sum=lambda x: jax.ops.segment_sum(x, jnp.arange(len(x)) // 2, 2),
    softmax=lambda x: jax.nn.softmax(x, axis=-1),
    sort=lambda x: jnp.sort(jnp.cos(x), axis=-1),
    switch=lambda x: lax.switch(
        jnp.argmax(x), [jnp.sin, jnp.tanh, lambda x: x * x / 2], x
    ),
    top_k=lambda x: lax.top_k(jnp.sin(x), 1)[0],
    transpose=lambda x: jnp.sin(x).T,
    variance=lambda x: jnp.var(x, axis=-1),
    vmap=lambda x: jax.vmap(lambda z: z * jnp.sum(jnp.sin(z)))(x),
    while_loop=lambda x: lax.while_loop(
        lambda c: jnp.sum(c[0] ** 2) > 0.1,
        lambda c: (c[0] * x / 3 / c[1], c[1] + 1),
        (jnp.sin(x), 1.0),
    )[0],
    window=lambda x: lax.reduce_window(
        jnp.sin(x), -jnp.inf, lax.max, (1,) * (x.ndim - 1) + (2,), (1,) * x.ndim, "SAME"
    ),
)

# Of a well-conditioned symmetric matrix.
_of_matrices = dict(
    cholesky=lambda m: jnp.linalg.cholesky(m),
    determinant=lambda m: 0.1 * jnp.linalg.det(m),
    eigenvalues=lambda m: 0.3 * jnp.linalg.eigvalsh(m),
    eigenvectors=lambda m: jnp.linalg.eigh(m)[1] ** 2,
    inverse=jnp.linalg.inv,
    log_determinant=lambda m: jnp.linalg.slogdet(m)[1],
    orthogonal=lambda m: jnp.linalg.qr(m)[0],
    powers=lambda m: 0.1 * jnp.linalg.matrix_power(m, 3),
    singular_values=lambda m: 0.3 * jnp.linalg.svd(m, compute_uv=False),
    solve=lambda m: jnp.linalg.solve(m, jnp.sin(m[0])),
    solve_triangular=lambda m: jsp.linalg.solve_triangular(m, m[0], lower=True),
)

# Of two arrays of the same shape.
_binary: dict[str, Callable[..., Any]] = dict(
    add=jnp.add,
    arctan2=lambda a, b: jnp.arctan2(a, 2 + jnp.sin(b)),
    branch=lambda a, b: lax.cond(jnp.sum(b) > 0.3, jnp.sin, lambda a: a * b, a),
    carry=lambda a, b: lax.fori_loop(
        0, 2, lambda i, c: (c[1] * b, jnp.sin(c[0])), (a, b)
    )[1],
    divide=lambda a, b: a / (2 + jnp.cos(b)),
    dynamic_index=lambda a, b: jnp.sin(a).reshape(-1)[jnp.argmax(b)] * b,
    einsum=lambda a, b: jnp.einsum("...,...->", a, jnp.cos(b)),
    hypotenuse=lambda a, b: jnp.hypot(a, 1 + b * b),
    logaddexp=jnp.logaddexp,
    matmul=lambda a, b: jnp.resize(a, (2, 3)) @ jnp.resize(jnp.sin(b), (3, 2)),
    maximum=jnp.maximum,
    minimum=lambda a, b: jnp.minimum(a, jnp.sin(b)),
    multiply=lambda a, b: 0.5 * a * b,
    outer=lambda a, b: jnp.outer(a.reshape(-1)[:2], jnp.sin(b.reshape(-1)[:2])),
    power=lambda a, b: (1 + a * a) ** jnp.sin(b),
    remainder=lambda a, b: jnp.mod(a, 2 + jnp.sin(b)),
    select=lambda a, b: jnp.where(a > b, jnp.sin(a), a * b),
    stack=lambda a, b: jnp.stack([a.reshape(-1)[0], b.reshape(-1)[-1]]),
    subtract=jnp.subtract,
    vectorized_dot=lambda a, b: jax.vmap(jnp.dot)(
        jnp.resize(a, (3, 2)), jnp.resize(jnp.cos(b), (3, 2))
    ),
)


def matrix(a):
    root = 0.3 * jnp.sin(jnp.resize(a, (3, 3)))
    return root @ root.T + jnp.diag(jnp.array([1.0, 2.0, 3.0]))


operations = {
    **{f"{n}()": lambda a, b, f=f: f(a) for n, f in _elementwise.items()},
    **{
        f"{n}[]": lambda a, b, f=f: f(jnp.atleast_1d(a)) for n, f in _of_vectors.items()
    },
    **{f"{n}[[]]": lambda a, b, f=f: f(matrix(a)) for n, f in _of_matrices.items()},
    **{
        f"{n}(,)": lambda a, b, f=f: f(a, jnp.resize(b, a.shape))
        for n, f in _binary.items()
    },
}


programs = st.lists(
    st.tuples(
        st.sampled_from(sorted(operations)), st.integers(0, 3), st.integers(0, 3)
    ),
    min_size=1,
    max_size=3,
)
orders = st.integers(1, 5)
shapes = st.sampled_from([(), (3,), (2, 2), (2, 1, 3)])
times = st.floats(-1.0, 1.0).map(lambda t: round(t, 2) + 0.001)
_arrays = st.builds(
    lambda shape, seed: jr.uniform(jr.key(seed), shape, minval=-1.0),
    shapes,
    st.integers(0, 9),
)
_containers = (
    st.lists(_arrays, min_size=1, max_size=2)
    | st.tuples(_arrays, _arrays)
    | st.fixed_dictionaries(dict(a=_arrays, b=_arrays))
)
states = _arrays | _containers | st.tuples(_arrays, _containers)


def evaluate(program, values):
    """Returns the values of all operations, the last one first, and the initial values.

    Each operation is applied to two of the values before it, counted from the last.
    """
    values = list(values)
    for name, *positions in program:
        operands = [values[-1 - position % len(values)] for position in positions]
        values.append(operations[name](*operands))
    return values[::-1]
