from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from .helpers import tolerance, tree_allclose


_matrix = jr.normal(jr.key(0), (3, 3))
_linear = dfx.ODETerm(lambda t, y, args: _matrix @ y * jnp.cos(t))


@pytest.fixture
def y():
    return jr.normal(jr.key(1), (3,))


def _value(regularizer, y, t=0.4, term=_linear):
    return regularizer.evaluate(term, t, y, None)[1]


def test_kinetic_energy(y):
    vf, value = dsr.DerivativeNorm(1).evaluate(_linear, 0.4, y, None)
    assert tree_allclose(vf, _linear.vf(0.4, y, None), **tolerance(y.dtype))
    assert tree_allclose(value, jnp.mean(vf**2), **tolerance(y.dtype))


def test_jacobian_norm_is_unbiased(y):
    samples = jax.vmap(lambda k: _value(dsr.JacobianNorm.draw(k, y), y))(
        jr.split(jr.key(2), 4000)
    )
    expected = jnp.sum((_matrix * jnp.cos(0.4)) ** 2) / 3
    error = jnp.std(samples) / jnp.sqrt(4000)
    assert jnp.abs(jnp.mean(samples) - expected) < 4 * error


def test_jacobian_norm_of_a_pytree():
    """Signs give the exact norm of a diagonal Jacobian."""
    y = dict(a=jnp.ones((2, 2)), b=jnp.array(3.0))
    term = dfx.ODETerm(lambda t, y, args: dict(a=2 * y["a"], b=5 * y["b"]))
    vf, value = dsr.JacobianNorm.draw(jr.key(0), y).evaluate(term, 0.0, y, None)
    expected = jnp.array((4 * 2.0**2 + 5.0**2) / 5)
    assert tree_allclose(vf, dict(a=2 * y["a"], b=5 * y["b"]), rtol=0.0, atol=0.0)
    assert tree_allclose(value, expected, **tolerance(expected.dtype))


@pytest.mark.parametrize(
    "function", (jnp.square, jnp.conj, lambda y: y + y.conj(), lambda y: y - y.conj())
)
def test_jacobian_norm_of_complex_states(function):
    """The norm is half of that of the real field, also if that is not holomorphic."""
    y = jnp.array([0.7 + 0.2j, 1.1 - 0.4j])
    term = dfx.ODETerm(lambda t, y, args: function(y))

    def value(key):
        return dsr.JacobianNorm.draw(key, y).evaluate(term, 0.0, y, None)[1]

    def by_parts(parts):
        dy = function(jax.lax.complex(*parts))
        return jnp.stack([jnp.real(dy), jnp.imag(dy)])

    jacobian = jax.jacfwd(by_parts)(jnp.stack([jnp.real(y), jnp.imag(y)]))
    samples = jax.vmap(value)(jr.split(jr.key(2), 1000))
    expected = jnp.sum(jacobian**2) / 2 / y.size
    assert tree_allclose(jnp.mean(samples), expected, rtol=0.0, atol=1e-6)


def test_half_precision_does_not_overflow():
    """Sums and squares do not overflow if the mean does not."""
    y = jnp.full((300,), 30.0, jnp.float16).at[0].set(300.0)
    term = dfx.ODETerm(lambda t, y, args: -y)
    _, value = dsr.DerivativeNorm(1).evaluate(term, jnp.zeros((), y.dtype), y, None)
    expected = jnp.mean(y.astype(jnp.float32) ** 2).astype(y.dtype)
    assert tree_allclose(value, expected, rtol=2e-3, atol=0.0)


def test_weighted_sum(y):
    noise = dsr.JacobianNorm.draw(jr.key(0), y)
    regularizer = 2 * dsr.DerivativeNorm(1) + noise * 0.5 + dsr.DerivativeNorm(3)
    expected = 2 * _value(dsr.DerivativeNorm(1), y) + 0.5 * _value(noise, y)
    expected += _value(dsr.DerivativeNorm(3), y)
    assert tree_allclose(_value(regularizer, y), expected, **tolerance(y.dtype))
    gradient = jax.grad(lambda w: _value(w * dsr.DerivativeNorm(2), y))(3.0)
    assert tree_allclose(
        gradient, _value(dsr.DerivativeNorm(2), y), **tolerance(y.dtype)
    )


@pytest.mark.parametrize("leaf", ((0, 2), (0,)))
def test_no_entries(leaf):
    """Value and gradient are zero, and not NaN, as for the norms of Optimistix."""
    y = dict(a=jnp.zeros(leaf), b=jnp.zeros((0, 3)))
    term = dfx.ODETerm(lambda t, y, args: jax.tree.map(lambda x: -args * x, y))
    draw = dsr.JacobianNorm.draw(jr.key(0), y)
    for regularizer in (dsr.DerivativeNorm(2), draw):

        def value(rate):
            return regularizer.evaluate(term, 0.0, y, rate)[1]

        assert value(1.0) == 0 and jax.grad(value)(1.0) == 0


def test_leaf_without_entries():
    """The mean is over the entries of the other leaves."""
    y = dict(a=jnp.array([1.0, 2.0]), b=jnp.zeros((0, 3)))
    term = dfx.ODETerm(lambda t, y, args: jax.tree.map(jnp.negative, y))
    assert _value(dsr.DerivativeNorm(2), y, term=term) == 2.5


@pytest.mark.parametrize("dtype, order", ((jnp.float16, 9), (jnp.float32, 40)))
def test_order_whose_factorial_overflows(dtype, order):
    y = jnp.array([1.0, 2.0], dtype)
    term = dfx.ODETerm(lambda t, y, args: -y)
    _, value = dsr.DerivativeNorm(order).evaluate(term, jnp.zeros((), dtype), y, None)
    assert value.dtype == dtype
    rtol = 10 * order * float(jnp.finfo(dtype).eps)
    assert tree_allclose(value, jnp.array(2.5, dtype), rtol=rtol, atol=0.0)


@pytest.mark.parametrize(
    "weights, message",
    (
        ((1.0,), "2 regularizers and 1 weights"),
        ((1.0, 2.0, 3.0), "2 regularizers and 3 weights"),
        ((1.0, jnp.ones(2)), r"`weight` must be a real scalar, but got f64\[2\]"),
        ((1.0, 1j), "`weight` must be a real scalar, but got 1j"),
        ((1.0, "a"), "`weight` must be a real scalar, but got 'a'"),
    ),
)
def test_weights_that_do_not_fit(weights, message, without_type_checks):
    parts = (dsr.DerivativeNorm(1), dsr.DerivativeNorm(2))
    make = type(parts[0] + parts[1])
    with pytest.raises(ValueError, match=message):
        make(parts, weights)
    with pytest.raises(ValueError, match="0 regularizers and 0 weights"):
        make((), ())


def test_sum_of_something_else(without_type_checks):
    speed: Any = dsr.DerivativeNorm(1)
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = speed + 1.0
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = speed * dsr.DerivativeNorm(2)


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
def test_rnode_beside_and_after_the_solve(t0, t1, y):
    regularizer = dsr.DerivativeNorm(1) + 0.1 * dsr.JacobianNorm.draw(jr.key(3), y)
    wrapped = dsr.SpeedRegularizedTerm(_linear, regularizer=regularizer)
    dt0 = (t1 - t0) / 20
    beside: Any = dfx.diffeqsolve(wrapped, dfx.Dopri8(), t0, t1, dt0, wrapped.init(y))
    quadrature = dsr.gauss_legendre(12).quadrature(t0, t1)
    after = dfx.diffeqsolve(
        _linear, dfx.Dopri8(), t0, t1, dt0, y, saveat=quadrature.saveat()
    )
    after, nodes = quadrature.split(after)
    ys, value = wrapped.split(beside.ys)
    expected = quadrature.integrate(regularizer, _linear, nodes)
    assert tree_allclose(ys, after.ys, **tolerance(y.dtype))
    assert tree_allclose(value[0], expected, rtol=1e-9, atol=0.0)


def test_own_regularizer(y):
    class Size(dsr.AbstractRegularizer):
        def evaluate(self, term, t, y, args):
            return term.vf(t, y, args), jnp.sum(y**2)

    term = dfx.ODETerm(lambda t, y, args: -y)
    wrapped = dsr.SpeedRegularizedTerm(term, regularizer=Size())
    solution: Any = dfx.diffeqsolve(
        wrapped, dfx.Dopri8(), 0.0, 1.0, 0.05, wrapped.init(y)
    )
    expected = jnp.sum(y**2) * (1 - jnp.exp(-2.0)) / 2
    assert tree_allclose(wrapped.split(solution.ys)[1][0], expected, rtol=1e-9, atol=0)


def test_noise_of_another_shape(y):
    noise = dsr.JacobianNorm(jnp.ones(4))
    with pytest.raises(ValueError, match="The noise of `JacobianNorm`"):
        _value(noise, y)


@pytest.mark.parametrize("order", (0, 1.5, None))
def test_bad_order(order, without_type_checks):
    with pytest.raises(ValueError, match="`order` must be a positive integer"):
        dsr.DerivativeNorm(order)
