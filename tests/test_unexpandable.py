"""Fields without a Taylor expansion: errors with the place and the remedy."""

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback


_y = jnp.array([0.3, -0.7])


def _pure(y):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(y.shape, y.dtype), y)


@jax.custom_vjp
def _opaque(y):
    return _pure(y)


_opaque.defvjp(lambda y: (_pure(y), y), lambda y, g: (g * jnp.cos(y),))


@jax.custom_jvp
def _once(y):
    return jnp.sin(y)


@_once.defjvp
def _(primals, tangents):
    """Rule by a callback, which has no derivative itself."""
    return _once(*primals), _pure(*primals) * tangents[0]


_fields = dict(
    pure_callback=_pure,
    io_callback=lambda y: io_callback(np.sin, y, y),
    pure_callback_in_custom_vjp=_opaque,
    pure_callback_in_scan=lambda y: lax.scan(
        lambda c, _: (_pure(c), None), y, length=2
    )[0],
    pure_callback_in_cond=lambda y: lax.cond(y[0] > 0, _pure, jnp.sin, y),
    igamma_grad_a=lambda y: jax.scipy.special.gammainc(1 + y**2, 2.0 * jnp.ones(2)),
)


@pytest.mark.parametrize("jit", (True, False))
@pytest.mark.parametrize("name", _fields)
def test_error_names_primitive_and_line(name, jit):
    term = dfx.ODETerm(lambda t, y, args: _fields[name](y))

    def derivative(y):
        return dsr.total_derivative(term, 0.0, y, order=3)

    primitive = name.split("_in_")[0]
    match = rf"`{primitive}`, at .*test_unexpandable\.py:\d+.*jax.custom_jvp"
    with pytest.raises(NotImplementedError, match=match):
        (jax.jit(derivative) if jit else derivative)(_y)


def test_derivative_of_a_rule_is_missing():
    """The second derivative needs the rule, and the third one the rule's derivative."""
    term = dfx.ODETerm(lambda t, y, args: _once(y))
    second = dsr.total_derivative(term, 0.0, _y, order=2)
    assert jnp.allclose(second, jnp.sin(_y) ** 2)
    with pytest.raises(NotImplementedError, match=r"`pure_callback`, at .*test_unexp"):
        dsr.total_derivative(term, 0.0, _y, order=3)


def test_callbacks_of_constants_are_constants():
    def field(t, y, args):
        return y * _pure(args)

    derivative = dsr.total_derivative(dfx.ODETerm(field), 0.0, _y, _y, order=3)
    expected = _y * jnp.sin(_y) ** 3
    assert jnp.allclose(derivative, expected)


def test_stopped_callbacks_are_not_constants():
    """The solution depends on the results of the callbacks."""

    def field(t, y, args):
        return y * lax.stop_gradient(_pure(y))

    with pytest.raises(NotImplementedError, match="no Taylor expansion.*callback"):
        dsr.total_derivative(dfx.ODETerm(field), 0.0, _y, order=2)


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="JAX has none, or is too old")
def test_mutable_arrays():
    def field(t, y, args):
        reference = jax.new_ref(y)
        reference[0] = jnp.sin(y[0])
        return reference[...]

    match = r"mutable arrays, such as at .*test_unexpandable\.py"
    with pytest.raises(NotImplementedError, match=match):
        dsr.total_derivative(dfx.ODETerm(field), 0.0, _y, order=2)
