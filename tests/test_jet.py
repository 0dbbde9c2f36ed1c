"""Derivatives along curves, by this package and by JAX's own `jet`."""

import inspect
import math
from functools import partial

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from jax import lax
from jax.experimental.jet import jet

from .helpers import tolerance, tree_allclose


_matrix = jnp.array([[1.2, 0.3, -0.4], [0.1, 0.9, 0.5], [-0.7, 0.2, 1.1]])
_x = jnp.array([0.3, -0.5, 0.7])
_series = [jnp.array(d) for d in ([1.0, 0.4, -0.6], [0.5, -1.0, 0.2], [-0.3, 0.8, 1.0])]


def _close(actual, expected, dtype=jnp.float64):
    return tree_allclose(actual, expected, **tolerance(dtype))


def _nested(function, primals, series):
    """Computes derivatives the slow way, by nested `jax.jvp` along the polynomial."""

    def curve(s):
        def point(x, *derivatives):
            powers = (s**k / math.factorial(k) for k in range(1, 1 + len(derivatives)))
            return sum((d * p for d, p in zip(derivatives, powers)), x)

        return function(
            *(jtu.tree_map(point, x, *ds) for x, ds in zip(primals, series))
        )

    def differentiate(function):
        return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]

    values, s = [], jnp.zeros(())
    for _ in range(1 + len(series[0])):
        values.append(curve(s))
        curve = differentiate(curve)
    return values[0], jtu.tree_map(lambda *ds: list(ds), *values[1:])


def _sin_of_cube(z):
    """Computes the derivatives of sin(z^3), by the formula of Faà di Bruno."""
    s, c = math.sin(z**3), math.cos(z**3)
    return s, [
        3 * z**2 * c,
        6 * z * c - 9 * z**4 * s,
        (6 - 27 * z**6) * c - 54 * z**3 * s,
    ]


def test_sin_of_a_cube():
    z = 0.5
    derivatives = [3 * z**2, 6 * z, 6.0]
    value, found = dsr.jet(jnp.sin, (z**3,), (derivatives,))
    expected, terms = _sin_of_cube(z)
    assert np.allclose([value, *found], [expected, *terms], rtol=1e-14)
    # Along a line, the cube is a part of the function.
    value, found = dsr.jet(lambda z: jnp.sin(z**3), (z,), ([1.0, 0.0, None],))
    assert np.allclose([value, *found], [expected, *terms], rtol=1e-14)


@pytest.mark.parametrize(
    "function, x, coefficients",
    (
        (jnp.exp, 0.0, [1 / math.factorial(k) for k in range(8)]),
        (jnp.log1p, 0.0, [0.0] + [-((-1) ** k) / k for k in range(1, 8)]),
        (jnp.log, 2.0, [math.log(2)] + [-((-0.5) ** k) / k for k in range(1, 8)]),
        (jnp.tanh, 0.0, [0, 1, 0, -1 / 3, 0, 2 / 15, 0, -17 / 315]),
        (jnp.arctan, 0.0, [0, 1, 0, -1 / 3, 0, 1 / 5, 0, -1 / 7]),
        (jnp.reciprocal, 1.0, [(-1.0) ** k for k in range(8)]),
        (jnp.sqrt, 1.0, [1, 1 / 2, -1 / 8, 1 / 16, -5 / 128, 7 / 256, -21 / 1024]),
        (lambda x: x**5 - 2 * x, 1.0, [-1, 3, 10, 10, 5, 1, 0, 0]),
        (lambda x: x**2 * x, 0.0, [0, 0, 0, 1, 0]),
    ),
)
def test_known_series(function, x, coefficients):
    zeros = [0.0] * (len(coefficients) - 2)
    line = (x,), ([1.0, *zeros],)
    value, found = dsr.jet(function, *line, factorial_scaled=False)
    assert np.allclose([value, *found], coefficients, rtol=1e-13, atol=1e-15)
    value, found = dsr.jet(function, *line)
    derivatives = [math.factorial(k) * c for k, c in enumerate(coefficients)]
    assert np.allclose([value, *found], derivatives, rtol=1e-13, atol=1e-13)


def test_product_of_polynomials():
    """The coefficients of a product of three arguments are those of `numpy`."""
    factors = [[1.0, 2.0, 3.0, 0.0], [2.0, -1.0, 0.5, 1.0], [0.0, 1.0, 1.0, 1.0]]
    expected = np.polynomial.polynomial.polymul(*factors[:2])
    expected = np.polynomial.polynomial.polymul(expected, factors[2])[:4]
    primals, series = [f[0] for f in factors], [f[1:] for f in factors]
    product = lambda x, y, z: x * y * z
    value, found = dsr.jet(product, primals, series, factorial_scaled=False)
    assert np.allclose([value, *found], expected, rtol=1e-14)


def _scan(x):
    return lax.scan(lambda c, w: (jnp.tanh(w @ c), c), x, jnp.stack([_matrix] * 2))


def _while(x):
    return lax.while_loop(lambda c: jnp.sum(c**2) < 4, lambda c: c + jnp.sin(c) + c, x)


def _orthogonal(x):
    """Computes the projection on an eigenvector, whose sign is arbitrary."""
    vectors = jnp.linalg.eigh(_matrix + _matrix.T + jnp.outer(x, x))[1]
    return jnp.outer(vectors[:, 0], vectors[:, 0])


def _with_matrix(function):
    return lambda x: function(jnp.outer(x, x) + 2 * _matrix, x)


# Functions for which `jet` has no rules, or loses track of its tracers: issues 2431,
# 26801, 27699 and 30352 of JAX.
_crash = {
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "scan": _scan,
    "while_loop": _while,
    "cond": lambda x: lax.cond(jnp.sum(x) > 0, jnp.sin, jnp.cos, x),
    "switch": lambda x: lax.switch(1, [jnp.cos, jnp.sin], x),
    "solve": _with_matrix(jnp.linalg.solve),
    "inv": _with_matrix(lambda a, x: jnp.linalg.inv(a)),
    "cholesky": lambda x: jnp.linalg.cholesky(2 * jnp.eye(3) + jnp.outer(x, x)),
    "eigh": _orthogonal,
    "sort": jnp.sort,
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.sin(_matrix @ x))(x),
    "eqx.nn.MLP": eqx.nn.MLP(3, 2, 5, 2, jax.nn.softplus, key=jr.key(0)),
    "argmax": lambda x: x[jnp.argmax(x)] * x,
}
_work = {
    "layers": lambda x: jnp.tanh(_matrix @ jax.nn.sigmoid(_matrix @ x)),
    "elementwise": lambda x: jnp.exp(jnp.sin(x)) / (1 + x**2),
    "gelu": jax.nn.gelu,
    "log_softmax": jax.nn.logsumexp,
    "jit": jax.jit(lambda x: x * jnp.cos(x[0])),
    "two outputs": lambda x: (x[1:] * x[0], {"sum": jnp.sum(x**3)}),
    "constant": lambda x: (2.0 * jnp.ones(2), x),
}


@pytest.mark.parametrize("name", [*_crash, *_work])
def test_nested_jvp(name):
    function = {**_crash, **_work}[name]
    actual = jax.jit(lambda *args: dsr.jet(function, *args))((_x,), (_series,))
    expected = jax.jit(lambda *args: _nested(function, *args))((_x,), (_series,))
    assert _close(actual, expected)


@pytest.mark.parametrize("factorial_scaled", (True, False))
@pytest.mark.parametrize("name", _work)
def test_agrees_with_jet(name, factorial_scaled):
    if "factorial_scaled" not in inspect.signature(jet).parameters:
        if not factorial_scaled:
            pytest.skip("this release of JAX has no such option")
    scaled = dict(factorial_scaled=factorial_scaled)

    @partial(jax.jit, static_argnums=0)
    def both(jet, series):
        line = [series[0], 0.0 * _x, 0.0 * _x]
        return [jet(_work[name], (_x,), (s,), **scaled) for s in (series, line)]

    with jax.numpy_dtype_promotion("standard"):  # `jet` fails without it.
        expected = both(jet, _series)
    assert _close(both(dsr.jet, _series), expected)
    line = [_series[0], None, 0]
    assert _close(dsr.jet(_work[name], (_x,), (line,), **scaled), expected[1])


@pytest.mark.skipif(
    jax.__version_info__ > (0, 10, 2), reason="JAX may have learned it meanwhile"
)
@pytest.mark.parametrize("name", _crash)
def test_jet_fails(name):
    """JAX's `jet` fails for these functions, as stated in the docs."""
    with jax.numpy_dtype_promotion("standard"):
        names = "scan|while|cond|custom_linear_solve|cholesky|eigh|sort|remat|argmax"
        with pytest.raises(Exception, match=f"unexpected tracer|{names}"):
            jet(_crash[name], (_x,), (_series,))


def _of_pytrees(p, q):
    a, (b, c) = p
    return {"y": jnp.sin(a) @ b, "rest": [jnp.exp(c) * q["d"], None]}


def test_pytrees():
    def curve(key):
        draw = lambda i, *shape: jr.normal(jr.fold_in(key, i), shape)
        return (draw(0, 2, 3), [draw(1, 3), draw(2)]), {"d": draw(3, 2)}

    primals, *terms = (curve(key) for key in jr.split(jr.key(0), 4))
    series = tuple(map(list, zip(*terms)))
    jitted = jax.jit(lambda *args: dsr.jet(_of_pytrees, *args))
    value, derivatives = jitted(primals, series)
    nested = jax.jit(lambda *args: _nested(lambda *x: _flat(_of_pytrees(*x)), *args))
    expected = nested(primals, series)
    assert _close((_flat(value), _flat(derivatives)), expected)
    assert derivatives["rest"][1] is None and len(derivatives["y"]) == 3


def _flat(output):
    return output["y"], output["rest"][0]


def test_zeros_in_pytrees():
    primal = {"a": _x, "b": [jnp.array(0.5), 2.0]}
    function = lambda p: jnp.exp(p["a"] * p["b"][0]) ** p["b"][1]
    full = [{"a": d, "b": [jnp.zeros(()), jnp.zeros(())]} for d in _series]
    short = [{"a": d, "b": zero} for d, zero in zip(_series, ([None, 0], [0.0, 0]))]
    expected = dsr.jet(function, (primal,), ([*full[:2], 0],))
    assert _close(dsr.jet(function, (primal,), ([*short, None],)), expected)


def test_zero_series_cost_nothing():
    function = lambda x, y: jnp.sin(x) * jnp.cos(y)
    none, number = (
        jax.make_jaxpr(lambda x: dsr.jet(function, (x, x), ([x, z, z], z)))(_x)
        for z in (None, 0)
    )
    arrays = jax.make_jaxpr(
        lambda x: dsr.jet(function, (x, x), ([x, 0 * x, 0 * x], [0 * x] * 3))
    )(_x)
    assert str(none) == str(number)
    assert len(none.eqns) < len(arrays.eqns) / 2
    value, (first, second, third) = dsr.jet(function, (_x, _x), (None, [_x, 0, 0]))
    expected = jnp.sin(_x) * jnp.sin(_x) * _x**3
    assert _close(third, expected)


def test_integers_and_booleans():
    """They have no derivative, whether they are arguments or outputs."""

    def function(x, i, flag, key):
        noise = jr.normal(key)
        return (
            jnp.where(flag, x[i] * noise, 0.0),
            x > 0,
            i + jnp.argmax(x),
            jnp.round(x),
        )

    args = _x, jnp.array(2), jnp.array(True), jr.key(0)
    value, derivatives = dsr.jet(function, args, (_series, None, 0, None))
    assert _close(value, function(*args))
    assert _close(derivatives[0], [d[2] * jr.normal(jr.key(0)) for d in _series])
    for output, terms in zip(value[1:], derivatives[1:]):
        assert _close(terms, [jnp.zeros_like(output)] * 3)
    # The results are valid arguments.
    multiply = lambda x, i: x * i.astype(float)
    _, terms = dsr.jet(multiply, value[::2], derivatives[::2])
    assert _close(terms, [multiply(d, value[2]) for d in derivatives[0]])


def test_stop_gradient_has_no_derivative():
    function = lambda x: x**2 * lax.stop_gradient(x**3)
    _, derivatives = dsr.jet(function, (2.0,), ([1.0, 0.0, 0.0],))
    assert np.allclose(derivatives, [4.0 * 8.0, 2.0 * 8.0, 0.0], rtol=1e-14)
    looped = lambda x: lax.fori_loop(0, 1, lambda _, x: function(x), x)
    assert _close(dsr.jet(looped, (2.0,), ([1.0, 0.0, 0.0],))[1], derivatives)


@pytest.mark.parametrize("direction", (1.0, -1.0))
def test_kinks_are_one_sided(direction):
    def function(x):
        return jnp.abs(x), jnp.maximum(x, 0), jnp.minimum(x, 0), jnp.clip(x, 0, 1)

    _, derivatives = dsr.jet(function, (0.0,), ([direction, 0.0],))
    slopes = [1.0, 1.0, 0.0, 1.0] if direction > 0 else [1.0, 0.0, -1.0, 0.0]
    assert np.allclose(derivatives, [[slope, 0.0] for slope in slopes])


@pytest.mark.parametrize("order", (0, 1))
def test_low_orders(order):
    value, derivatives = dsr.jet(jnp.sin, (_x,), (_series[:order],))
    expected = jax.jvp(jnp.sin, (_x,), (_series[0],))
    assert _close((value, derivatives), (expected[0], list(expected[1:])[:order]))


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "complex128", "complex64"))
@pytest.mark.parametrize("factorial_scaled", (True, False))
def test_dtypes(dtype, factorial_scaled):
    """Derivatives get the precision of their arguments, and keep it."""
    function = lambda x: (jnp.sin(x) * x, jnp.real(x) ** 2)
    wide = jnp.complex128 if "complex" in dtype else jnp.float64

    def derivatives(x, series):
        return dsr.jet(function, (x,), (series,), factorial_scaled)

    x, series = _x.astype(dtype), [d.astype(dtype) for d in _series]
    actual = derivatives(x, series)
    assert jtu.tree_all(jtu.tree_map(jnp.array_equal, derivatives(x, _series), actual))
    exact = derivatives(x.astype(wide), [d.astype(wide) for d in series])
    expected = jtu.tree_map(lambda d, like: d.astype(like.dtype), exact, actual)
    assert {d.dtype for d in jtu.tree_leaves(actual)} <= {x.dtype, jnp.real(x).dtype}
    assert tree_allclose(actual, expected, **tolerance(x.dtype, 10))


def test_complex_derivative_of_an_entire_function():
    z = 0.3 + 0.4j
    _, derivatives = dsr.jet(jnp.exp, (z,), ([1j, 0.0, 0.0],))
    expected = [np.exp(z) * 1j**k for k in (1, 2, 3)]
    assert np.allclose(derivatives, expected, rtol=1e-14)


def test_transformations():
    def third(x, v):
        return dsr.jet(_crash["eqx.nn.MLP"], (x,), ([v, None, None],))[1][2]

    xs, vs = jr.normal(jr.key(0), (2, 2, 3))
    rows = jnp.stack([third(x, v) for x, v in zip(xs, vs)])
    assert _close(jax.jit(jax.vmap(third))(xs, vs), rows)
    scalar = lambda x: jnp.sum(third(x, vs[0]))
    # Derivatives commute: that of the gradient is the gradient of the derivative.
    gradient = jax.grad(lambda x: jnp.sum(_crash["eqx.nn.MLP"](x)))
    expected = dsr.jet(gradient, (xs[0],), ([vs[0], 0, 0],))[1][2]
    assert _close(jax.jit(jax.grad(scalar))(xs[0]), expected)
    forward = jax.jvp(scalar, (xs[0],), (vs[1],))[1]
    assert _close(forward, expected @ vs[1])
    # The first derivative of the third, along the line, is the fourth.
    fourth = jax.jvp(lambda x: third(x, vs[0]), (xs[0],), (vs[0],))[1]
    derivatives = dsr.jet(_crash["eqx.nn.MLP"], (xs[0],), ([vs[0], 0, 0, 0],))[1]
    assert _close(fourth, derivatives[3])


def test_nested_jets():
    inner = lambda x: dsr.jet(jnp.tanh, (x,), ([1.0, 0.0],))[1][1]
    _, (third, fourth) = dsr.jet(inner, (0.3,), ([1.0, 0.0],))
    _, derivatives = dsr.jet(jnp.tanh, (0.3,), ([1.0, 0.0, 0.0, 0.0],))
    assert np.allclose([third, fourth], derivatives[2:], rtol=1e-13)


@partial(jax.jit, static_argnums=0)
def _biharmonic(function, x):
    """Computes the bilaplacian from fourth derivatives along lines."""

    def fourth(direction):
        return dsr.jet(function, (x,), ([direction, None, None, None],))[1][3]

    n, basis = x.size, jnp.eye(x.size)
    i, j = np.triu_indices(n, 1)
    pairs = jnp.concatenate([basis[i] + basis[j], basis[i] - basis[j]])
    axes, diagonals = jax.vmap(fourth)(basis), jax.vmap(fourth)(pairs)
    return (jnp.sum(diagonals) + (8 - 2 * n) * jnp.sum(axes)) / 6


def test_biharmonic_of_polynomials():
    assert np.allclose(_biharmonic(lambda x: jnp.sum(x**2) ** 2, _x), 8 * 3 * 5)
    assert np.allclose(_biharmonic(lambda x: x[0] ** 4 + x[1] ** 3, _x), 24)
    wave = lambda x: jnp.sin(x @ jnp.array([1.0, 2.0, 0.5]))
    assert np.allclose(_biharmonic(wave, _x), 5.25**2 * wave(_x))


@pytest.mark.parametrize(
    "primals, series, match",
    (
        ((_x, _x), ([_x], [_x, _x]), "for each of the 2 `primals`, all of the same"),
        ((_x, _x), ([_x],), "for each of the 2 `primals`"),
        ((_x,), ([_x], [_x]), "for each of the 1 `primals`"),
        ((_x,), (None,), "must have a list of derivatives"),
        ((_x,), ([_x[:2]],), r"float64 of shape \(3,\), but got float64 of .*\(2,\)"),
        ((_x,), ([1.0],), r"of shape \(3,\), but got float64 of shape \(\)"),
        ((_x,), ([1j * np.array(_x)],), "be like its argument, float64"),
        ((1,), ([1.0],), r"be like its argument, int64 of shape \(\)"),
        (({"a": _x},), ([_x],), "pytree|[Ee]xpected"),
        (({"a": _x},), ([{"b": _x}],), "pytree|[Kk]ey"),
    ),
)
def test_errors(primals, series, match):
    with pytest.raises(ValueError, match=match):
        dsr.jet(lambda *args: args, primals, series)


def test_error_names_what_has_no_derivative():
    def callback(x):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((3,), x.dtype), x)

    with pytest.raises(NotImplementedError, match="pure_callback.*test_jet.py"):
        dsr.jet(callback, (_x,), (_series,))
