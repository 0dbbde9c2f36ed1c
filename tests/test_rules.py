"""Rules that users register, in the same way as the library's own."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.interpreters import ad, mlir

from .helpers import nested_coefficients, tolerance, tree_allclose


def _primitive(name, function):
    """Makes an elementwise primitive with all rules except a JVP rule."""
    primitive = jex.Primitive(name)
    primitive.def_impl(function)
    primitive.def_abstract_eval(lambda *avals: avals[0])
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive


@pytest.fixture
def y():
    return jr.normal(jr.key(0), (4,))


def _check(field, function, y):
    """Compares a field with a primitive and the field with its function."""
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    coefficients = dsr.taylor_coefficients(term, 0.3, y, order=5)
    expected = nested_coefficients(function, 0.3, y, 5)
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


def test_linear(y):
    primitive = _primitive("halve", lambda x: x / 2)
    dsr.rules.register(primitive, dsr.rules.linear)
    _check(
        lambda t, y: primitive.bind(jnp.sin(y) * t), lambda t, y: jnp.sin(y) * t / 2, y
    )


def test_bilinear(y):
    primitive = _primitive("product", lambda a, b: a * b)
    dsr.rules.register(primitive, dsr.rules.bilinear)
    _check(
        lambda t, y: primitive.bind(jnp.sin(y) + t, jnp.exp(y)),
        lambda t, y: (jnp.sin(y) + t) * jnp.exp(y),
        y,
    )


def _exponential(operation, inputs, outputs):
    (u,), (v,) = inputs, outputs

    def coefficients(order) -> list[Any]:
        terms = [
            j * u.array(j) * v.array(order - j) / order for j in range(1, order + 1)
        ]
        return [sum(terms)]

    return coefficients


def test_own_recurrence_by_name(y):
    primitive = _primitive("own_exponential", jnp.exp)
    dsr.rules.register("own_exponential", dsr.rules.Rule(_exponential))
    _check(
        lambda t, y: jnp.cos(primitive.bind(y * t)),
        lambda t, y: jnp.cos(jnp.exp(y * t)),
        y,
    )


def test_recurrence_is_asked_from_order_one_on(y):
    """This holds for a zero of a JVP rule, too."""
    primitive = _primitive("zeroth_exponential", jnp.exp)
    dsr.rules.register(primitive, dsr.rules.Rule(_exponential))

    @jax.custom_jvp
    def squared(x):
        return x**2

    @squared.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        return squared(x), 2 * x * jax.jit(primitive.bind)(0.0) * dx

    _check(lambda t, y: squared(y), lambda t, y: y**2, y)


def test_no_recurrence_for_these_parameters(y):
    """The expansion then follows from the JVP rule, as without a rule."""
    primitive = _primitive("shifted_sine", jnp.sin)
    ad.defjvp(primitive, lambda g, x: g * jnp.cos(x))
    dsr.rules.register(primitive, dsr.rules.Rule(lambda *args: None))
    _check(lambda t, y: primitive.bind(y + t), lambda t, y: jnp.sin(y + t), y)


def test_products_with_zeros_are_left_out(y):
    """A rule says when its output is zero. The derivative is then zero, too."""
    primitive = _primitive("guarded_product", lambda a, b: a * b)
    asked = []

    def recurrence(operation, inputs, outputs):
        a, b = inputs
        asked.append((a.zero, b.zero))
        return lambda order: [dsr.rules.cauchy_product(jnp.multiply, a, b, order)]

    dsr.rules.register(primitive, dsr.rules.Rule(recurrence, is_zero=any))

    @jax.custom_jvp
    def shifted(x, shift):
        return x + shift

    @shifted.defjvp
    def _(primals, tangents):
        x, shift = primals
        dx, dshift = tangents
        return x + shift, primitive.bind(dx, jnp.ones(4)) + primitive.bind(dshift, x)

    _check(
        lambda t, y: shifted(jnp.sin(y), jnp.ones(4)), lambda t, y: jnp.sin(y) + 1, y
    )
    assert asked == [(False, False)]


def test_equal_parameters_of_different_types(y):
    """The parameters 1 and True are equal, but a primitive may distinguish them."""

    def function(x, flag):
        return jnp.sin(x) if flag is True else jnp.exp(x)

    primitive = jex.Primitive("flagged")
    primitive.def_impl(function)
    primitive.def_abstract_eval(lambda aval, flag: aval)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.primitive_jvps[primitive] = lambda primals, tangents, flag: (
        primitive.bind(*primals, flag=flag),
        jax.jvp(lambda x: function(x, flag), primals, tangents)[1],
    )
    with jax.disable_jit():  # JAX's own caches do not.
        _check(
            lambda t, y: primitive.bind(y, flag=1) + t * primitive.bind(y, flag=True),
            lambda t, y: jnp.exp(y) + t * jnp.sin(y),
            y,
        )


def test_unknown_primitive(y):
    primitive = _primitive("opaque", jnp.sin)
    term = dfx.ODETerm(lambda t, y, args: primitive.bind(y))
    with pytest.raises(NotImplementedError, match=r"`opaque`, at .*test_rules\.py"):
        dsr.total_derivative(term, 0.0, y, order=2)


def test_bad_registration(without_type_checks):
    function: Any = jnp.sin
    with pytest.raises(TypeError, match="Expected a `diffrax_speedreg.rules.Rule`"):
        dsr.rules.register("sin", function)
    with pytest.raises(TypeError, match="jax.custom_jvp"):
        dsr.rules.register(function, dsr.rules.linear)
