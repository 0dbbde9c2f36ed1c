"""Gradients of Taylor coefficients: with respect to time, state and arguments."""

import functools as ft
import math

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from .helpers import (
    finite_difference,
    nested_coefficients,
    tolerance,
    tree_allclose,
)
from .helpers.marks import thorough


_order = 4
_y = jnp.array([0.6, -0.4, 0.9])
_weights = jnp.array([0.7, -1.1, 0.4])


def _normal(seed, *shape):
    return 0.6 * jr.normal(jr.key(seed), shape)


_layers = [
    dict(weight=_normal(0, 4, 3), bias=_normal(1, 4)),
    dict(weight=_normal(2, 3, 4), bias=_normal(3, 3)),
]
_matrix = _normal(4, 3, 3)


def _mlp(activation):
    def field(t, y, layers):
        hidden = activation(layers[0]["weight"] @ y + t * layers[0]["bias"])
        return layers[1]["weight"] @ hidden + layers[1]["bias"]

    return field, _layers


@jax.custom_jvp
def _sine(x, rate):
    return jnp.sin(rate * x)


@_sine.defjvp
def _sine_jvp(primals, tangents):
    x, rate = primals
    phase, dphase = jax.jvp(jnp.multiply, primals, tangents)
    return _sine(x, rate), jnp.cos(phase) * dphase


@jax.custom_vjp
def _cosine(x):
    return jnp.cos(x)


_cosine.defvjp(lambda x: (_cosine(x), x), lambda x, g: (-g * jnp.sin(x),))


def _newton(x):
    """Computes the square root by Newton's method."""
    return lax.while_loop(
        lambda r: jnp.any(jnp.abs(r * r - x) > 1e-14), lambda r: (r + x / r) / 2, x
    )


# Vector fields `(t, y, args)`, and args.
_fields = dict(
    tanh_mlp=_mlp(jnp.tanh),
    softplus_mlp=_mlp(jax.nn.softplus),
    relu_mlp=_mlp(jax.nn.relu),
    checkpoint=(
        lambda t, y, args: jax.checkpoint(_mlp(jnp.tanh)[0])(t, y, args),
        _layers,
    ),
    cond=(
        lambda t, y, args: lax.cond(
            args[0] > t, lambda y: jnp.sin(args[0] * y), lambda y: args[1] * y, y
        ),
        (jnp.array(0.8), jnp.array(0.3)),
    ),
    custom_jvp=(lambda t, y, args: _sine(y, args) + t, _matrix[0]),
    division=(lambda t, y, args: (args * y + t) / (2 + args[::-1] * y**2), _matrix[0]),
    fori_loop=(
        lambda t, y, args: lax.fori_loop(0, 3, lambda i, c: jnp.sin(args @ c) + t, y),
        _matrix,
    ),
    gradient=(
        lambda t, y, args: jax.grad(lambda y: jnp.sum(jnp.tanh(args @ y)) ** 2)(y) * t,
        _matrix,
    ),
    inactive_singularity=(
        lambda t, y, args: (
            args * jnp.where(y > 0, jnp.sqrt(jnp.where(y > 0, y, 1.0)), y)
        ),
        _matrix[0],
    ),
    norm=(
        lambda t, y, args: args @ y / jnp.linalg.norm(y) + jnp.linalg.norm(args),
        _matrix,
    ),
    scan=(
        lambda t, y, args: lax.scan(lambda c, w: (jnp.tanh(w * c + t), c), y, args)[0],
        _matrix,
    ),
    scan_outputs=(
        lambda t, y, args: jnp.sum(
            lax.scan(lambda c, w: (c + t, jnp.sin(w * c)), y, args, reverse=True)[1],
            axis=0,
        ),
        _matrix,
    ),
    solve=(
        lambda t, y, args: jnp.linalg.solve(args + jnp.diag(3 + y), jnp.cos(y + t)),
        _matrix,
    ),
    sort=(lambda t, y, args: jnp.sort(args @ y) * jnp.max(y) * t, _matrix),
)
_forward_only = dict(
    while_loop=(lambda t, y, args: jnp.sin(_newton(args**2 + y**2 + t)), _matrix[0]),
)
_all_fields = _fields | _forward_only


def _coefficients(field, t, y, args, order):
    return dsr.taylor_coefficients(dfx.ODETerm(field), t, y, args, order=order)


def _nested(field, t, y, args, order):
    return nested_coefficients(lambda t, y: field(t, y, args), t, y, order)


def _flattened(name, coefficients=_coefficients, order=_order):
    """Makes a function of all inputs in one vector, with one number for each order."""
    field, args = _all_fields[name]
    inputs, unravel = ravel_pytree((jnp.array(0.5), _y, args))

    def function(inputs):
        t, y, args = unravel(inputs)
        return coefficients(field, t, y, args, order) @ _weights

    return function, inputs


@ft.cache
def _expected(transform, name, order=_order):
    function, inputs = _flattened(name, _nested, order)
    with jax.disable_jit():  # Takes longer to compile than to interpret.
        return transform(function)(inputs)


def _agree(actual, expected, precision=1e-10):
    size = 1 + jnp.max(jnp.abs(expected))
    return tree_allclose(actual / size, expected / size, rtol=0.0, atol=precision)


@pytest.mark.parametrize("name", _all_fields)
def test_forward_mode(name):
    function, inputs = _flattened(name)
    assert _agree(jax.jacfwd(function)(inputs), _expected(jax.jacfwd, name))


@pytest.mark.parametrize("name", _fields)
def test_reverse_mode(name):
    function, inputs = _flattened(name)
    assert _agree(jax.jacrev(function)(inputs), _expected(jax.jacfwd, name))


@pytest.mark.parametrize("name", _forward_only)
def test_no_reverse_mode(name):
    function, inputs = _flattened(name)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.jacrev(function)(inputs)


@pytest.mark.thorough
@pytest.mark.parametrize("name", _all_fields)
def test_finite_differences(name):
    function, inputs = _flattened(name)
    function = jax.jit(function)
    direction = jr.normal(jr.key(5), inputs.shape)
    expected = finite_difference(function, inputs, direction, step=1e-3)
    _, actual = jax.jvp(function, (inputs,), (direction,))
    assert _agree(actual, expected, 1e-7)


@pytest.mark.parametrize("name", ("softplus_mlp", thorough("scan"), thorough("solve")))
def test_check_grads(name):
    function, inputs = _flattened(name, order=2)
    modes = ("fwd", "rev")
    check_grads(jax.jit(function), (inputs,), 2, modes, atol=1e-4, rtol=1e-4)


_hessians = dict(
    forward_over_forward=lambda f: jax.jacfwd(jax.jacfwd(f)),
    forward_over_reverse=jax.hessian,
    reverse_over_forward=lambda f: jax.jacrev(jax.jacfwd(f)),
    reverse_over_reverse=lambda f: jax.jacrev(jax.jacrev(f)),
)


@pytest.mark.parametrize("name", (thorough("custom_jvp"), thorough("division"), "scan"))
@pytest.mark.parametrize("mode", _hessians)
def test_hessian(mode, name):
    function, inputs = _flattened(name, order=3)
    expected = _expected(jax.hessian, name, order=3)
    assert _agree(_hessians[mode](function)(inputs), expected)


@pytest.mark.parametrize("order", (1, thorough(2), 3, thorough(4)))
@pytest.mark.parametrize("name", ("softplus_mlp", "fori_loop", "norm"))
def test_gradient_of_total_derivative(name, order):
    """Each order has the right gradient with respect to pytrees."""
    field, args = _fields[name]

    def loss(coefficient, t, y, args):
        return jnp.sum(coefficient(t, y, args) ** 2)

    def derivative(t, y, args):
        return dsr.total_derivative(dfx.ODETerm(field), t, y, args, order=order)

    def nested(t, y, args):
        return math.factorial(order) * _nested(field, t, y, args, order)[-1]

    inputs = jnp.array(0.5), _y, args
    actual = jax.grad(ft.partial(loss, derivative), (0, 1, 2))(*inputs)
    with jax.disable_jit():
        expected = jax.grad(ft.partial(loss, nested), (0, 1, 2))(*inputs)
    assert tree_allclose(actual, expected, **tolerance(_y.dtype, 1e5))


_transformations = dict(
    checkpoint=lambda gradient_of, f: gradient_of(jax.checkpoint(f)),
    checkpoint_of_products=lambda gradient_of, f: gradient_of(
        jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable)
    ),
    jit=lambda gradient_of, f: jax.jit(gradient_of(f)),
    jit_inside=lambda gradient_of, f: gradient_of(jax.jit(f)),
    map=lambda gradient_of, f: lambda x: lax.map(gradient_of(f), x[None])[0],
    scan=lambda gradient_of, f: gradient_of(
        lambda x: lax.scan(lambda c, x: (c + f(x), None), 0.0, x[None])[0]
    ),
    vmap=lambda gradient_of, f: lambda x: jax.vmap(gradient_of(f))(x[None])[0],
    vmap_inside=lambda gradient_of, f: gradient_of(
        lambda x: jnp.sum(jax.vmap(f)(x[None]))
    ),
)


@pytest.mark.parametrize("transformation", _transformations)
@pytest.mark.parametrize("name", (thorough("softplus_mlp"), "scan"))
def test_transformed(name, transformation):
    function, inputs = _flattened(name, order=3)

    def loss(inputs):
        return jnp.sum(function(inputs) ** 2)

    actual = _transformations[transformation](jax.grad, loss)(inputs)
    assert _agree(actual, jax.grad(loss)(inputs))


@pytest.mark.parametrize("name", _fields)
def test_float32(name):
    field, args = _fields[name]

    def loss(inputs):
        coefficients = _coefficients(field, *inputs, order=3)
        return jnp.sum(coefficients @ _weights.astype(coefficients.dtype))

    def gradient(dtype):
        inputs = jnp.array(0.5), _y, args
        return jax.grad(loss)(jtu.tree_map(lambda x: x.astype(dtype), inputs))

    actual, _ = ravel_pytree(gradient(jnp.float32))
    expected, _ = ravel_pytree(gradient(jnp.float64))
    assert actual.dtype == jnp.float32
    assert _agree(actual.astype(jnp.float64), expected, 1e-4)


def test_field_as_a_module(key):
    """The gradient with respect to the network inside the term is right."""
    mlp = eqx.nn.MLP(3, 3, 4, 1, jax.nn.softplus, key=key)

    def loss(coefficients, mlp):
        return jnp.sum(coefficients(lambda t, y, args: mlp(y), 0.0, _y, None, 3) ** 2)

    actual = eqx.filter_grad(ft.partial(loss, _coefficients))(mlp)
    expected = eqx.filter_grad(ft.partial(loss, _nested))(mlp)
    assert tree_allclose(actual, expected, **tolerance(_y.dtype, 1e5))


def test_custom_vjp():
    """Its rule is used where JAX uses it, and its expansion has its own gradient."""

    def coefficients(function, y):
        return _coefficients(lambda t, y, args: function(t * y), 0.5, y, None, 3)

    actual = jax.jacrev(ft.partial(coefficients, _cosine))(_y)
    expected = jax.jacrev(ft.partial(coefficients, jnp.cos))(_y)
    assert _agree(actual, expected)
