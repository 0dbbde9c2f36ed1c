"""heyoka, an independent implementation of Taylor's method, as an oracle."""

from types import SimpleNamespace

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from jax import lax

from .helpers import tree_allclose
from .helpers.solves import final_state


hy = pytest.importorskip("heyoka")

_order = 12
_rng = np.random.default_rng(0)
_in, _out = 0.6 * _rng.normal(size=(2, 8, 3))
_bias = _rng.normal(size=8)

# Functions of jax.numpy, here for arrays of symbolic expressions.
_symbolic = SimpleNamespace(
    **{
        name: np.vectorize(getattr(hy, name), otypes=[object])
        for name in ("cos", "exp", "sin", "sqrt", "tanh")
    }
)


def _kepler(m, t, y):
    cube = m.sqrt(y[0] ** 2 + y[1] ** 2) ** 3
    return [y[2], y[3], -y[0] / cube, -y[1] / cube]


# Right-hand sides `(m, t, y)`, in the functions of a module `m`, and a state.
_systems = dict(
    kepler=(_kepler, [1.0, 0.1, -0.2, 1.1]),
    lorenz=(
        lambda m, t, y: [
            10 * (y[1] - y[0]),
            y[0] * (28 - y[2]) - y[1],
            y[0] * y[1] - 8 / 3 * y[2],
        ],
        [1.0, -0.5, 20.0],
    ),
    neural_ode=(
        lambda m, t, y: _out.T @ m.tanh(_in @ y + m.cos(t) * _bias),
        [0.3, -0.7, 0.2],
    ),
    pendulum=(
        lambda m, t, y: [
            y[1],
            -m.sin(y[0]) * (1 + m.exp(-t)) + m.cos(2 * t) - 0.1 * y[1],
        ],
        [1.0, 0.4],
    ),
    van_der_pol=(
        lambda m, t, y: [y[1], 1.5 * (1 - y[0] ** 2) * y[1] - y[0]],
        [2.0, 0.3],
    ),
)


def _eccentric_anomaly(eccentricity, mean_anomaly):
    """Solves Kepler's equation by Newton's method."""

    def step(x, _):
        defect = x - eccentricity * jnp.sin(x) - mean_anomaly
        return x - defect / (1 - eccentricity * jnp.cos(x)), None

    return lax.scan(step, mean_anomaly, length=9)[0]


# Functions of a value between 0.2 and 0.8, in JAX and in heyoka.
_functions = dict(
    arccos=(jnp.arccos, hy.acos),
    arccosh=(lambda x: jnp.arccosh(1 + x), lambda x: hy.acosh(1.0 + x)),
    arcsin=(jnp.arcsin, hy.asin),
    arcsinh=(jnp.arcsinh, hy.asinh),
    arctan=(jnp.arctan, hy.atan),
    arctan2=(lambda x: jnp.arctan2(x, 1 - x), lambda x: hy.atan2(x, 1.0 - x)),
    arctanh=(jnp.arctanh, hy.atanh),
    cosh=(jnp.cosh, hy.cosh),
    erf=(jsp.special.erf, hy.erf),
    exp=(jnp.exp, hy.exp),
    kepler=(lambda x: _eccentric_anomaly(0.5 * x, x), lambda x: hy.kepE(0.5 * x, x)),
    leaky_relu=(jax.nn.leaky_relu, hy.leaky_relu(0.01)),
    log=(jnp.log, hy.log),
    power=(lambda x: x**0.3, lambda x: x**0.3),
    power_of_powers=(lambda x: x**x, lambda x: x**x),
    quotient=(lambda x: (1 - x) / (2 + x * x), lambda x: (1.0 - x) / (2.0 + x * x)),
    relu=(jax.nn.relu, hy.relu),
    sigmoid=(jax.nn.sigmoid, hy.sigmoid),
    sinh=(jnp.sinh, hy.sinh),
    softplus=(jax.nn.softplus, lambda x: hy.log(1.0 + hy.exp(x))),
    sqrt=(jnp.sqrt, hy.sqrt),
    tan=(jnp.tan, hy.tan),
    tanh=(jnp.tanh, hy.tanh),
)


def _in_jax(field):
    return dfx.ODETerm(lambda t, y, args: jnp.stack(field(jnp, t, y)))


def _in_heyoka(field, t, y, tol):
    variables = [hy.make_vars(f"y{i}") for i in range(len(y))]
    values = field(_symbolic, hy.time, np.array(variables, dtype=object))
    equations = list(zip(variables, np.array(values).tolist()))
    return hy.taylor_adaptive(equations, y, time=t, tol=tol)


def _check_coefficients(field, t, y):
    # With this tolerance, heyoka chooses this order.
    integrator = _in_heyoka(field, t, y, np.exp(-2 * (_order - 1)))
    integrator.step(write_tc=True)
    expected = jnp.asarray(integrator.tc[:, : _order + 1].T)
    with jax.disable_jit():  # Takes longer to compile than to interpret.
        actual = dsr.taylor_coefficients(_in_jax(field), t, jnp.array(y), order=_order)
    # Coefficients grow with their order: use units of time in which none is large.
    orders = jnp.arange(1.0, _order + 1)
    rate = jnp.max(jnp.max(jnp.abs(expected[1:]), axis=1) ** (1 / orders))
    units = rate ** jnp.arange(_order + 1.0)[:, None]
    assert tree_allclose(actual / units, expected / units, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", _systems)
def test_system(name):
    field, y = _systems[name]
    _check_coefficients(field, 0.3, y)


@pytest.mark.parametrize("name", _functions)
def test_function(name):
    in_jax, in_heyoka = _functions[name]

    def field(m, t, y):
        function = in_jax if m is jnp else in_heyoka
        return [m.cos(t) * function(y[0])]

    _check_coefficients(field, 0.2, [0.6])


@pytest.mark.parametrize("t1", (2.0, -1.0))
def test_solution(t1):
    field, y = _systems["kepler"]
    integrator = _in_heyoka(field, 0.0, y, 1e-16)
    integrator.propagate_until(t1)
    solution = dfx.diffeqsolve(
        _in_jax(field),
        dsr.TaylorLagrangeSolver(_order),
        0.0,
        t1,
        None,
        jnp.array(y),
        stepsize_controller=dfx.PIDController(rtol=1e-12, atol=1e-12),
    )
    expected = jnp.asarray(integrator.state)
    assert tree_allclose(final_state(solution), expected, rtol=1e-9, atol=1e-9)
