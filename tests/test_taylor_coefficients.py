from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import hypothesis as hyp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from .helpers import (
    finite_difference,
    nested_coefficients,
    tolerance,
    tree_allclose,
)


class _TimeDependent(eqx.Module):
    mlp: eqx.nn.MLP

    def __init__(self, key, size=3, dtype=None):
        self.mlp = eqx.nn.MLP(
            size + 1, size, 16, 2, jax.nn.softplus, dtype=dtype, key=key
        )

    def __call__(self, t, y, args):
        return self.mlp(jnp.append(y, t.astype(y.dtype)))


@pytest.fixture
def field(key):
    return _TimeDependent(key)


@pytest.fixture
def y(key):
    return jr.normal(jr.fold_in(key, 1), (3,))


@pytest.mark.parametrize("order", (1, 2, 3, 4, 5))
def test_softplus_mlp(field, y, order):
    term = dfx.ODETerm(field)
    coefficients = dsr.taylor_coefficients(term, 0.5, y, order=order)
    expected = nested_coefficients(lambda t, y: field(t, y, None), 0.5, y, order)
    assert tree_allclose(coefficients, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrap", ("scan", "cond"))
def test_softplus_mlp_in_control_flow(field, y, wrap):
    def scanned(t, y):
        return jax.lax.scan(lambda c, _: (c + field(t, c, None), None), y, length=3)[0]

    def branched(t, y):
        return jax.lax.cond(t > 0.2, lambda y: field(t, y, None), jnp.sin, y)

    function = dict(scan=scanned, cond=branched)[wrap]
    term = dfx.ODETerm(lambda t, y, args: function(t, y))
    coefficients = dsr.taylor_coefficients(term, 0.5, y, order=5)
    expected = nested_coefficients(function, 0.5, y, 5)
    assert tree_allclose(coefficients, expected, rtol=1e-12, atol=1e-12)


def test_closed_form():
    term = dfx.ODETerm(lambda t, y, args: args * y)
    coefficients = dsr.taylor_coefficients(term, 0.0, jnp.array(2.0), 3.0, order=4)
    expected = 2 * jnp.array([1.0, 3.0, 9 / 2, 27 / 6, 81 / 24])
    assert tree_allclose(coefficients, expected, **tolerance(expected.dtype))


def test_total_derivative(field, y):
    term = dfx.ODETerm(field)
    coefficients = dsr.taylor_coefficients(term, 0.5, y, order=3)
    derivative = dsr.total_derivative(term, 0.5, y, order=3)
    assert tree_allclose(derivative, 6 * coefficients[3], **tolerance(y.dtype))


@pytest.mark.parametrize(
    "dtype, order",
    (
        *((jnp.float16, 9), (jnp.bfloat16, 9), (jnp.float32, 40)),
        pytest.param(jnp.float64, 171, marks=pytest.mark.thorough),
    ),
)
def test_order_whose_factorial_overflows(dtype, order):
    """The derivatives are in range, but the Taylor coefficient is not."""
    term = dfx.ODETerm(lambda t, y, args: -y)
    y = jnp.array([1.0, 2.0], dtype)
    derivative = dsr.total_derivative(term, 0.0, y, order=order)
    assert derivative.dtype == dtype
    rtol = 2 * order * float(jnp.finfo(dtype).eps)
    assert tree_allclose(derivative, (-1) ** order * y, rtol=rtol, atol=0.0)


def test_linear_call():
    """The residuals of y' = y^2, with y = 1 / (1 - t), vary. For constant residuals the
    transpose stays the user's own."""
    call = jax.custom_derivatives.linear_call
    square = dfx.ODETerm(lambda t, y, args: call(jnp.multiply, jnp.multiply, y, y))
    ones = jnp.ones(2)
    coefficients = dsr.taylor_coefficients(square, 0.0, ones, order=4)
    assert tree_allclose(coefficients, jnp.ones((5, 2)), rtol=1e-12, atol=0.0)

    def field(t, y, args):
        return call(jnp.multiply, lambda rate, ct: 3 * rate * ct, args, y)

    def second(y):
        term = dfx.ODETerm(field)
        return jnp.sum(dsr.total_derivative(term, 0.0, y, 2 * ones, order=2))

    assert second(ones) == 8
    assert jnp.array_equal(jax.grad(second)(ones), jnp.array([36.0, 36.0]))


def test_pytree():
    def field(t, y):
        a, b = y["a"], y["b"]
        return dict(a=jnp.sin(b) * t, b=jnp.sum(a) * b[0] + b**2)

    y = dict(a=jnp.array([[0.1], [0.2]]), b=jnp.array([0.3]))
    term = dfx.ODETerm(lambda t, y, args: jax.tree.map(_broadcast, field(t, y), y))
    coefficients = dsr.taylor_coefficients(term, 0.7, y, order=3)
    expected = nested_coefficients(
        lambda t, y: jax.tree.map(_broadcast, field(t, y), y), 0.7, y, 3
    )
    assert tree_allclose(coefficients, expected, **tolerance(jnp.float64))


def _broadcast(value, like):
    return jnp.broadcast_to(value, like.shape)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float16, jnp.bfloat16))
def test_lower_precision(key, y, dtype):
    field = _TimeDependent(key, dtype=dtype)
    y = y.astype(dtype)
    coefficients = dsr.taylor_coefficients(dfx.ODETerm(field), 0.5, y, order=3)
    precise = jax.tree.map(
        lambda x: x.astype(jnp.float64) if eqx.is_array(x) else x, field
    )
    expected = nested_coefficients(
        lambda t, y: precise(t, y, None), 0.5, y.astype(jnp.float64), 3
    )
    assert coefficients.dtype == dtype
    assert tree_allclose(
        coefficients.astype(jnp.float64), expected, **tolerance(dtype, 20)
    )


def test_multi_term(y):
    first = dfx.ODETerm(lambda t, y, args: jnp.sin(y) * t)
    second = dfx.ODETerm(lambda t, y, args: y**2)
    coefficients = dsr.taylor_coefficients(
        dfx.MultiTerm(first, second), 0.5, y, order=3
    )
    expected = nested_coefficients(lambda t, y: jnp.sin(y) * t + y**2, 0.5, y, 3)
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


def test_control_made_an_ode(y):
    ts = jnp.linspace(0.0, 1.0, 5)
    path = dfx.CubicInterpolation(ts, dfx.backward_hermite_coefficients(ts, ts**2))
    term = dfx.ControlTerm(lambda t, y, args: jnp.sin(y), path).to_ode()
    coefficients = dsr.taylor_coefficients(term, 0.3, y, order=2)
    expected = nested_coefficients(
        lambda t, y: jnp.sin(y) * path.derivative(t), 0.3, y, 2
    )
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


def test_vmap(field, key):
    ys = jr.normal(key, (5, 3))
    term = dfx.ODETerm(field)

    def coefficients(y):
        return dsr.taylor_coefficients(term, 0.5, y, order=3)

    expected = jnp.stack([coefficients(y) for y in ys])
    assert tree_allclose(jax.vmap(coefficients)(ys), expected, **tolerance(jnp.float64))


@pytest.mark.parametrize("mode", ("forward", "reverse"))
def test_gradient(field, y, key, mode):
    term = dfx.ODETerm(field)
    direction = jr.normal(key, y.shape)

    def function(y):
        return jnp.sum(dsr.total_derivative(term, 0.5, y, order=3) ** 2)

    expected = finite_difference(function, y, direction, step=1e-4)
    if mode == "forward":
        _, actual = jax.jvp(function, (y,), (direction,))
    else:
        actual = jnp.dot(jax.grad(function)(y), direction)
    assert tree_allclose(actual, expected, rtol=1e-7, atol=1e-7)


_elementary = st.sampled_from(
    [jnp.sin, jnp.tanh, jax.nn.softplus, jax.nn.sigmoid, jnp.square, jnp.negative]
)


@hyp.settings(deadline=None, max_examples=25, derandomize=True)
@hyp.given(
    functions=st.lists(_elementary, min_size=1, max_size=4),
    order=st.integers(1, 4),
    shape=st.sampled_from([(), (1,), (2,), (2, 3)]),
    seed=st.integers(0, 100),
)
def test_compositions(functions, order, shape, seed):
    def field(t, y):
        z = y + t
        for function in functions:
            z = z * function(0.5 * z) + 0.1
        return z

    y = 0.3 * jr.normal(jr.key(seed), shape)
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    coefficients = dsr.taylor_coefficients(term, 0.2, y, order=order)
    expected = nested_coefficients(field, 0.2, y, order)
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


@jax.jit
def _solution_by_expansions(rate, shift):
    """Computes a point of a solution, directly and by way of another point."""
    term = dfx.ODETerm(lambda t, y, args: rate * y + t)

    def advance(t, y, dt):
        coefficients = dsr.taylor_coefficients(term, t, y, order=12)
        return coefficients @ dt ** jnp.arange(13.0)

    direct = advance(0.0, 1.0, shift + 0.1)
    return direct, advance(shift, advance(0.0, 1.0, shift), 0.1)


@hyp.settings(deadline=None, max_examples=25, derandomize=True)
@hyp.given(shift=st.floats(-0.1, 0.1), rate=st.floats(-2.0, 2.0))
def test_time_shift(shift, rate):
    direct, by_way = _solution_by_expansions(rate, shift)
    assert np.allclose(direct, by_way, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", (0, -1, 2.0, True, "3", None))
def test_bad_order(order, without_type_checks):
    term = dfx.ODETerm(lambda t, y, args: y)
    with pytest.raises(ValueError, match="`order` must be a positive integer"):
        dsr.taylor_coefficients(term, 0.0, jnp.array(1.0), order=order)


def test_integer_state():
    term = dfx.ODETerm(lambda t, y, args: y)
    with pytest.raises(ValueError, match=r"`y\['n'\]` is i64\[2\].*args"):
        dsr.taylor_coefficients(term, 0.0, dict(n=jnp.array([1, 2])), order=2)


def test_stochastic_term():
    path = dfx.VirtualBrownianTree(0.0, 1.0, 1e-3, (), jr.key(0))
    drift = dfx.ODETerm(lambda t, y, args: y)
    noise = dfx.ControlTerm(lambda t, y, args: y, path)
    with pytest.raises(
        ValueError, match="driven by time.*MultiTerm.*ControlTerm.*to_ode"
    ):
        dsr.taylor_coefficients(
            dfx.MultiTerm(drift, noise), 0.0, jnp.array(1.0), order=2
        )


class _Driven(dfx.AbstractTerm):
    """User's own term with any `control`."""

    control: Callable

    def vf(self, t, y, args):
        return -y

    def contr(self, t0, t1, **kwargs):
        return self.control(t0, t1)

    def prod(self, vf, control):
        return vf * control


def test_own_term():
    y = jnp.array([1.0, 2.0])
    term = _Driven(lambda t0, t1: 3.0 * (t1 - t0))
    coefficients = dsr.taylor_coefficients(term, 0.5, y, order=3)
    expected = nested_coefficients(lambda t, y: -3 * y, 0.5, y, 3)
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


@pytest.mark.parametrize("jit", (True, False))
def test_own_term_driven_by_a_path(jit):
    ts = jnp.linspace(0.0, 1.0, 5)
    path = dfx.CubicInterpolation(ts, dfx.backward_hermite_coefficients(ts, ts**2))
    wrap = eqx.filter_jit if jit else lambda function: function

    class Driven(dfx.AbstractTerm):
        path: dfx.AbstractPath

        def vf(self, t, y, args):
            return -y

        def contr(self, t0, t1, **kwargs):
            return self.path.evaluate(t0, t1)

        def prod(self, vf, control):
            return vf * control

    with pytest.raises(ValueError, match="Driven is driven by CubicInterpolation"):
        wrap(dsr.taylor_coefficients)(Driven(path), 0.3, jnp.array(1.0), order=2)


def test_not_a_term(without_type_checks):
    field: Any = lambda t, y: y
    with pytest.raises(ValueError, match=r"Expected a Diffrax term.*ODETerm\(f\)"):
        dsr.taylor_coefficients(field, 0.0, jnp.array(1.0), order=2)


def test_field_of_another_dtype():
    class Complex(dfx.AbstractTerm):
        def vf(self, t, y, args):
            return y.astype(complex)

        def contr(self, t0, t1, **kwargs):
            return t1 - t0

        def prod(self, vf, control):
            return vf

    with pytest.raises(ValueError, match=r"shapes and dtypes.*c128\[2\].*f64\[2\]"):
        dsr.taylor_coefficients(Complex(), 0.0, jnp.ones(2), order=2)


@pytest.mark.parametrize("t", (1, 1.0))
def test_time_of_python_keeps_the_precision(t):
    term = dfx.ODETerm(lambda t, y, args: jnp.sin(t * y))
    y = jnp.array([0.3, -0.7], jnp.float32)
    actual = dsr.taylor_coefficients(term, t, y, order=3)
    expected = nested_coefficients(
        lambda t, y: jnp.sin(t * y), jnp.float32(1), y, order=3
    )
    assert tree_allclose(actual, expected, **tolerance(jnp.float32, 10))


def test_several_times(without_type_checks):
    term = dfx.ODETerm(lambda t, y, args: -y)
    with pytest.raises(ValueError, match=r"`t` must be a scalar.*\(2,\).*jax.vmap"):
        dsr.taylor_coefficients(term, jnp.ones(2), jnp.ones(2), order=2)
