"""Powers, and other functions whose derivatives are difficult at a point."""

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.scipy.special as jsp
import numpy as np
import pytest

from .helpers.solves import diffeqsolve


def _coefficients(field, y, order=5):
    term = dfx.ODETerm(lambda t, y, args: field(y))
    return dsr.taylor_coefficients(term, 0.0, jnp.asarray(y), order=order)


def _hill(power):
    return lambda y: 1 / (1 + power(y)) - 0.5 * y


@pytest.mark.parametrize("natural", (1, 2, 3, 4))
@pytest.mark.parametrize("y", (0.0, 0.7))
def test_natural_exponent_of_any_type(natural, y):
    """All types of the exponent give the polynomial."""
    exponents = (float(natural), jnp.array(float(natural)), jnp.array(natural))
    right = _coefficients(_hill(lambda y: y**natural), y)
    for exponent in exponents:
        got = _coefficients(_hill(lambda y: jnp.power(y, exponent)), y)
        assert np.allclose(got, right, rtol=1e-12, atol=1e-12)
    got = _coefficients(_hill(lambda y: jnp.float_power(y, natural)), y)
    assert np.allclose(got, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", (-2.0, -0.5, 0.5, 1.5, 2.5))
def test_other_exponents(exponent):
    """y' = y**r has the solution (y0**(1 - r) + (1 - r) t)**(1 / (1 - r))."""
    got = _coefficients(lambda y: y**exponent, 1.3)
    base, power = 1 - exponent, 1 / (1 - exponent)
    right = [
        np.prod([(power - i) / (i + 1) for i in range(k)])
        * (1.3**base) ** (power - k)
        * base**k
        for k in range(6)
    ]
    assert np.allclose(got, right, rtol=1e-12)


def test_exponents_by_entry():
    """The exponents n = 0, 1, 2 of y' = 1 + y**n are right at y = 0 and elsewhere."""
    y = jnp.array([[0.0], [0.4]])
    n = jnp.array([0.0, 1.0, 2.0])
    got = _coefficients(lambda y: 1 + y ** n[None], jnp.broadcast_to(y, (2, 3)))
    separate = [
        [_coefficients(lambda y: 1 + y**k, start) for k in range(3)]
        for start in (0.0, 0.4)
    ]
    right = np.moveaxis(np.array(separate), -1, 0)
    assert np.allclose(got, right, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_regularizer_at_zero():
    def speed(y, exponent):
        term = dfx.ODETerm(lambda t, y, args: 1 / (1 + y**exponent) - 0.5 * y)
        return dsr.DerivativeNorm(3).evaluate(term, 0.0, y, None)[1]

    got, right = (jax.grad(speed)(jnp.array(0.0), n) for n in (2.0, 2))
    assert np.allclose(got, right, rtol=1e-12)


@pytest.mark.parametrize("exponent", (2.0, jnp.float32(2.0), jnp.int8(2), jnp.uint8(2)))
def test_tiny_bases(exponent):
    """The solution of y' = 1 + y**2 is tan. 1 / y**3 overflows, with the factor 0."""
    term = dfx.ODETerm(lambda t, y, args: 1 + jnp.power(y, exponent))
    got = dsr.taylor_coefficients(term, 0.0, jnp.float32(1e-20), order=5)
    assert np.allclose(got, [0, 1, 0, 1 / 3, 0, 2 / 15], atol=1e-6)


def test_gradient_by_the_exponent():
    """The exponent is a parameter: the third coefficient of y**n at n = 2."""

    def third(n):
        return _coefficients(lambda y: y**n, 0.8, order=3)[3]

    # y''' / 6 of y' = y**n is n (2 n - 1) y**(3 n - 2) / 6.
    y, n = 0.8, 2.0
    value = n * (2 * n - 1) * y ** (3 * n - 2) / 6
    right = value * (1 / n + 2 / (2 * n - 1) + 3 * np.log(y))
    assert np.allclose(third(2.0), value, rtol=1e-12)
    assert np.allclose(jax.grad(third)(2.0), right, rtol=1e-10)


@pytest.mark.parametrize("exponent", (2.0, 3.0))
def test_taylor_solver_from_zero(exponent):
    natural = int(exponent)
    solve = lambda n, solver: diffeqsolve(
        dfx.ODETerm(lambda t, y, args: 1 / (1 + y**n) - 0.5 * y),
        solver,
        *(0.0, 1.0, None, jnp.array(0.0)),
        stepsize_controller=dfx.PIDController(rtol=1e-8, atol=1e-8),
    ).ys[-1]
    got = solve(exponent, dsr.TaylorLagrangeSolver(4))
    assert np.allclose(got, solve(natural, dfx.Tsit5()), atol=1e-7)


def test_exponent_that_varies():
    """y' = 2**y has the solution -log2(2**-y0 - t log 2)."""
    got = _coefficients(lambda y: jnp.power(2.0, y), 0.3, order=3)
    a, log2 = 2**-0.3, np.log(2)
    right = [0.3, 1 / a, log2 / (2 * a**2), log2**2 / (3 * a**3)]
    assert np.allclose(got, right, rtol=1e-12)


# Functions whose first derivatives by JAX are finite at these points, and their first
# Taylor coefficients in closed form.
_limits = {
    "sinc": (jnp.sinc, 0.0, [1, 0, -(np.pi**2) / 6, 0, np.pi**4 / 120]),
    "xlogy(0, y)": (lambda y: jsp.xlogy(0.0, y), 0.5, [0, 0, 0, 0, 0]),
    "xlog1py(0, y)": (lambda y: jsp.xlog1py(0.0, y), 0.5, [0, 0, 0, 0, 0]),
    "logaddexp": (
        lambda y: jnp.logaddexp(y, 0.0),
        0.0,
        [np.log(2), 1 / 2, 1 / 8, 0, -1 / 192],
    ),
    "logaddexp of -inf": (lambda y: jnp.logaddexp(y, -jnp.inf), 0.5, [0.5, 1, 0, 0, 0]),
    "logsumexp of equals": (
        lambda y: jsp.logsumexp(jnp.stack([y, -y])),
        0.0,
        [np.log(2), 0, 1 / 2, 0, -1 / 12],
    ),
    "softplus": (jax.nn.softplus, 0.0, [np.log(2), 1 / 2, 1 / 8, 0, -1 / 192]),
    "hypot": (lambda y: jnp.hypot(y, 2.0), 0.0, [2, 0, 1 / 4, 0, -1 / 64]),
    "norm": (
        lambda y: jnp.linalg.norm(jnp.stack([y, y * 0 + 2.0])),
        0.0,
        [2, 0, 1 / 4, 0, -1 / 64],
    ),
    "sqrt(1 + y**2.0)": (
        lambda y: jnp.sqrt(1 + y**2.0),
        0.0,
        [1, 0, 1 / 2, 0, -1 / 8],
    ),
    "expm1(y) / y, guarded": (
        lambda y: jnp.where(y == 0, 1.0, jnp.expm1(y) / jnp.where(y == 0, 1.0, y)),
        1.0,
        None,
    ),
    "0**y": (lambda y: jnp.power(0.0, y), 0.5, [0, 0, 0, 0, 0]),
    "y**0.0": (lambda y: y**0.0, 0.0, [1, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", _limits)
def test_functions_at_delicate_points(name):
    """The function is integrated along the line y + s, on which the field is 1."""
    function, y, right = _limits[name]
    _, got = dsr.jet(function, (jnp.array(y),), ([1.0, None, None, None],), False)
    value = function(jnp.array(y))
    if right is None:  # (exp(y) - 1) / y around 1, by its power series.
        powers = np.arange(60)
        series = 1 / np.cumprod(np.r_[1.0, powers[1:] + 1])
        right = [
            np.sum(
                series[k:]
                * np.array(
                    [float(np.prod(range(n - k + 1, n + 1))) for n in powers[k:]]
                )
            )
            / np.prod(range(1, k + 1))
            for k in range(5)
        ]
    assert np.allclose([value, *got], right, rtol=1e-12, atol=1e-12)
