"""The engine, beyond the table of functions: its costs, and distinct equations."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax import lax

from .helpers import count_primitive, nested_coefficients, tolerance, tree_allclose


_matrix = 0.5 * jr.normal(jr.key(1), (4, 4))


def _check(field, y, order=5, t=0.3):
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    coefficients = jax.jit(lambda y: dsr.taylor_coefficients(term, t, y, order=order))(
        y
    )
    expected = nested_coefficients(field, t, y, order)
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


def test_float32_under_x64():
    mlp = eqx.nn.MLP(4, 4, 8, 2, jax.nn.softplus, dtype=jnp.float32, key=jr.key(0))
    y = jr.normal(jr.key(1), (4,), jnp.float32)
    term = dfx.ODETerm(lambda t, y, args: mlp(y))
    coefficients = dsr.taylor_coefficients(term, 0.0, y, order=3)
    expected = nested_coefficients(lambda t, y: mlp(y), 0.0, y, 3)
    assert tree_allclose(coefficients, expected, **tolerance(jnp.float32, 1e2))


def test_complex():
    def field(t, y):
        return jnp.exp(1j * y) * y + jnp.conj(y)

    _check(field, jnp.array([0.3 + 0.1j, -0.2 + 0.5j]))


@pytest.mark.parametrize("activation", (jnp.tanh, jax.nn.sigmoid, jax.nn.softplus))
def test_one_matrix_product_per_layer_and_order(activation):
    depth, order = 3, 4
    mlp = eqx.nn.MLP(5, 5, 7, depth, activation, key=jr.key(0))
    term = dfx.ODETerm(lambda t, y, args: mlp(y))
    jaxpr = jax.make_jaxpr(lambda y: dsr.total_derivative(term, 0.0, y, order=order))
    count = count_primitive(jaxpr(jnp.ones(5)).jaxpr, "dot_general")
    assert count == order * (depth + 1)


@pytest.mark.parametrize("order", (2, 4, 6))
@pytest.mark.parametrize(
    "loop", ("scan", "while_loop", "batched_while_loop", "cond", "checkpoint")
)
def test_quadratic_cost_of_control_flow(loop, order):
    def field(t, y, args):
        if loop == "scan":
            return lax.scan(lambda c, _: (jnp.tanh(_matrix @ c), None), y, length=9)[0]
        elif loop == "checkpoint":
            return jax.checkpoint(lambda c: jnp.sin(_matrix @ c))(y)
        elif loop == "while_loop":
            return lax.while_loop(lambda c: c[0] > 1, lambda c: jnp.sin(_matrix @ c), y)
        elif loop == "batched_while_loop":
            return jax.vmap(
                lambda a: lax.while_loop(
                    lambda c: c[0] > a, lambda c: jnp.sin(_matrix @ c), y
                )
            )(y)[0]
        else:
            return lax.cond(y[0] > 1, jnp.sin, lambda c: jnp.cos(_matrix @ c), y)

    term = dfx.ODETerm(field)
    jaxpr = jax.make_jaxpr(lambda y: dsr.total_derivative(term, 0.0, y, order=order))
    count = count_primitive(jaxpr(jnp.ones(4)).jaxpr, "dot_general")
    assert count == order * (order + 1) / 2


@pytest.mark.parametrize("order", (2, 4, 6))
def test_linear_cost_of_triangular_solves(order):
    def field(t, y, args):
        return jax.scipy.linalg.solve_triangular(jnp.outer(y, y) + jnp.eye(3), y)

    term = dfx.ODETerm(field)
    jaxpr = jax.make_jaxpr(lambda y: dsr.total_derivative(term, 0.0, y, order=order))
    assert count_primitive(jaxpr(jnp.ones(3)).jaxpr, "triangular_solve") == order


def test_batched_triangular_solve_from_the_right():
    def field(t, y):
        identity = jnp.eye(2, dtype=y.dtype)[None]
        matrix = lax.complex(t, t) * y * jnp.swapaxes(y, -1, -2) + 3 * identity
        return lax.linalg.triangular_solve(
            matrix, y, left_side=False, lower=True, transpose_a=True, conjugate_a=True
        )

    real, imaginary = jr.normal(jr.key(0), (2, 3, 2, 2))
    y = lax.complex(real, imaginary)
    _check(field, y, order=3)


@pytest.mark.parametrize("wrap", (jax.jit, jax.checkpoint, jax.vmap))
def test_wrapped_function_with_constants(wrap):
    a, b = jnp.arange(4.0), np.array([0.1, 0.2, 0.3, 0.4])
    scalar = jnp.array(0.3)
    wrapped = wrap(lambda x: jnp.sin(x) * scalar + scalar)
    closing = jax.jit(lambda x: wrapped(x * a + b) + a[::-1])
    _check(lambda t, y: closing(y) * t, jr.normal(jr.key(0), (4,)), order=3)


def test_linear_solve_of_lineax():
    def field(t, y):
        operator = lx.MatrixLinearOperator(_matrix + jnp.diag(y) + 3 * jnp.eye(4))
        return lx.linear_solve(operator, jnp.cos(y)).value

    _check(field, jr.normal(jr.key(0), (4,)), order=3)


def test_adaptive_solve_inside_the_field():
    def field(t, y):
        inner = dfx.ODETerm(lambda s, z, args: -z * jnp.sin(y))
        solution: Any = dfx.diffeqsolve(
            inner,
            dfx.Tsit5(),
            0.0,
            1.0,
            None,
            y,
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-3),
            adjoint=dfx.ForwardMode(),
            max_steps=16,
        )
        return solution.ys[0]

    _check(field, jnp.array([0.3, -0.7, 1.1]), order=2)


def test_effects_are_kept(capfd):
    def field(t, y, args):
        jax.debug.print("state {}", y)
        return -y

    dsr.taylor_coefficients(dfx.ODETerm(field), 0.0, jnp.array(0.125), order=2)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("state 0.125") == 1


def test_equal_functions_with_different_rules():
    """`custom_jvp` functions may have the same value, but different derivatives."""

    def make(slope):
        function = jax.custom_jvp(lambda x: x)
        function.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
        return function

    first, second = make(2.0), make(5.0)
    _check(lambda t, y: first(y) + second(y), jnp.array([1.0, 2.0]), order=3)


def test_rule_that_closes_over_its_function():
    """The rules of `custom_jvp` functions may differ only in another such function."""

    def make(slope):
        inner = jax.custom_jvp(jnp.sin)
        inner.defjvp(lambda primals, tangents: (jnp.sin(*primals), slope * tangents[0]))
        outer = jax.custom_jvp(jnp.cos)
        outer.defjvp(
            lambda primals, tangents: (jnp.cos(*primals), inner(*primals) * tangents[0])
        )
        return outer

    first, second = make(2.0), make(5.0)
    _check(lambda t, y: first(y) + second(y), jnp.array([1.0, 2.0]), order=3)


def test_function_within_its_own_rule():
    """The function is recognized, and not expanded again for each order."""

    @jax.custom_jvp
    def exponential(x):
        return jnp.exp(x)

    @exponential.defjvp
    def _(primals, tangents):
        value = exponential(*primals)
        return value, value * tangents[0]

    term = dfx.ODETerm(lambda t, y, args: exponential(y))
    jaxpr = jax.make_jaxpr(lambda y: dsr.total_derivative(term, 0.0, y, order=5))
    assert count_primitive(jaxpr(jnp.ones(3)).jaxpr, "exp") == 1


def test_deep_field():
    """A field may be deeper than Python's stack."""

    def field(t, y, args):
        for _ in range(500):
            y = jnp.exp(jnp.log(y))
        return y

    y = jnp.array([0.5])
    coefficients = dsr.taylor_coefficients(dfx.ODETerm(field), 0.0, y, order=2)
    expected = jnp.array([[0.5], [0.5], [0.25]])
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype, 1e6))


def test_random_numbers_are_constants():
    def field(t, y):
        return y * jr.normal(jr.key(3), y.shape)

    _check(field, jnp.array([1.0, 2.0]))


# Functions of x, made from constants that come from zero.
_slopes = dict(
    checkpoint=lambda x: x * jax.checkpoint(lambda zero: (zero + 1, 2.0))(0.0)[1],
    cond=lambda x: lax.cond(x > 0, lambda z: (x + z, 2), lambda z: (z, 3), 0.0)[1] * x,
    logistic=lambda x: 4 * jax.nn.sigmoid(0.0) * x,
    scan=lambda x: x * lax.fori_loop(0, 2, lambda i, c: c + 1.0, 0.0),
    tanh=lambda x: 2 * x + lax.tanh(0.0),
    while_loop=lambda x: (
        x * lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1]), (0, 0.0))[0]
    ),
)


@pytest.mark.parametrize("name", _slopes)
def test_rule_that_starts_from_zero(name):
    """The result of a rule for a literal zero need not be zero."""

    @jax.custom_jvp
    def function(x):
        return x**2

    @function.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        return function(x), _slopes[name](x) * dx

    _check(lambda t, y: function(y), jnp.array(0.6), order=3)
