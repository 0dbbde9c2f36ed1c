"""Laws of power series, and nested `jax.jvp`, on random compositions of functions."""

import itertools
import math

import diffrax as dfx
import diffrax_speedreg as dsr
import hypothesis as hyp
import hypothesis.strategies as st
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import jax.tree_util as jtu
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from .helpers import nested_coefficients, tree_allclose
from .helpers.programs import evaluate, matrix, orders, programs, shapes, states, times


def _examples(number, **strategies):
    settings = hyp.settings(
        deadline=None,
        derandomize=True,
        max_examples=number,
        phases=(hyp.Phase.generate,),  # Programs are small as they are drawn.
    )
    return lambda test: settings(hyp.given(**strategies)(test))


def _interpret(function, *args):
    """Traces a function and evaluates it operation by operation.

    An example is evaluated once, so that its compilation would take most of the time.
    But many examples share operations.
    """
    closed, structure = jax.make_jaxpr(function, return_shape=True)(*args)
    with jax.disable_jit():
        leaves = jex.jaxpr_as_fun(closed)(*map(jnp.asarray, jtu.tree_leaves(args)))
    return jtu.tree_unflatten(jtu.tree_structure(structure), leaves)


def _field(program, *, autonomous=False):
    def field(t, y):
        leaves, structure = jtu.tree_flatten(y)
        values = evaluate(program, leaves if autonomous else [t, *leaves])
        return structure.unflatten(
            jnp.resize(value, leaf.shape)
            for value, leaf in zip(itertools.cycle(values), leaves)
        )

    return field


def _function(program, shape):
    """Makes a function of time from a program."""
    return lambda t: jnp.resize(evaluate(program, [t])[0], shape)


def _expand(field, t, y, order):
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    return dsr.taylor_coefficients(term, t, y, order=order)


def _coefficients(field, t, y, order):
    return _interpret(lambda t, y: _expand(field, t, y, order), t, y)


def _series(function, t, order):
    """Computes coefficients of f, which are those of y' = f(t) up to a factor."""
    y = jtu.tree_map(jnp.zeros_like, function(jnp.asarray(t)))
    coefficients = _coefficients(lambda t, y: function(t), t, y, order + 1)
    rates = jtu.tree_map(lambda c: c[1:], coefficients)
    return _weighted(rates, jnp.arange(1.0, order + 2))


def _weighted(coefficients, weights):
    return jtu.tree_map(lambda c: jax.vmap(jnp.multiply)(c, weights), coefficients)


def _cauchy_product(product, left, right):
    return jnp.stack(
        [
            sum(product(left[j], right[k - j]) for j in range(k + 1))
            for k in range(len(left))
        ]
    )


def _agree(actual, expected):
    size = 1 + max(float(jnp.max(jnp.abs(x))) for x in jtu.tree_leaves(expected))
    return tree_allclose(actual, expected, rtol=0.0, atol=1e-11 * size)


@_examples(14, program=programs, t=times, y=states, order=orders)
def test_nested_jvps(program, t, y, order):
    field = _field(program)
    with jax.disable_jit():  # Takes longer to compile than to interpret.
        expected = nested_coefficients(field, t, y, order)
    assert _agree(_coefficients(field, t, y, order), expected)


@_examples(3, f=programs, g=programs, shape=shapes, t=times, order=orders)
def test_linearity(f, g, shape, t, order):
    f, g = _function(f, shape), _function(g, shape)
    actual = _series(lambda t: 2 * f(t) - 0.3 * g(t), t, order)
    assert _agree(actual, 2 * _series(f, t, order) - 0.3 * _series(g, t, order))


@pytest.mark.parametrize(
    "product, left, right",
    (
        (jnp.matmul, (2, 3), (3, 2)),
        (jnp.outer, (2,), (3,)),
        (jnp.convolve, (3,), (2,)),
    ),
)
@_examples(2, f=programs, g=programs, t=times, order=orders)
def test_product(product, left, right, f, g, t, order):
    f, g = _function(f, left), _function(g, right)
    expected = _cauchy_product(product, _series(f, t, order), _series(g, t, order))
    assert _agree(_series(lambda t: product(f(t), g(t)), t, order), expected)


@_examples(3, f=programs, g=programs, shape=shapes, t=times, order=orders)
def test_quotient(f, g, shape, t, order):
    f, g = _function(f, shape), _function([*g, ("cosh()", 0, 0)], shape)
    quotient = _series(lambda t: f(t) / g(t), t, order)
    product = _cauchy_product(jnp.multiply, quotient, _series(g, t, order))
    assert _agree(product, _series(f, t, order))


@_examples(3, f=programs, g=programs, t=times, order=orders)
def test_chain_rule(f, g, t, order):
    """The result is the outer series, with the inner series as its argument."""
    f, g = _function(f, ()), _function(g, ())
    inner = _series(g, t, order)
    outer = _series(f, inner[0], order)
    shift, power, expected = inner.at[0].set(0.0), jnp.eye(order + 1)[0], 0.0
    for coefficient in outer:
        expected += coefficient * power
        power = _cauchy_product(jnp.multiply, power, shift)
    assert _agree(_series(lambda t: f(g(t)), t, order), expected)


# Pairs of functions that are equal for all u between 0.2 and 0.8.
_identities = dict(
    angle=lambda u: (jnp.arctan2(jnp.sin(u), jnp.cos(u)), u),
    arccos=lambda u: (jnp.arccos(jnp.cos(u)), u),
    arccosh=lambda u: (jnp.arccosh(jnp.cosh(u)), u),
    arcsin=lambda u: (jnp.sin(jnp.arcsin(u)), u),
    arcsinh=lambda u: (jnp.arcsinh(jnp.sinh(u)), u),
    arctan=lambda u: (jnp.tan(jnp.arctan(u)), u),
    arctanh=lambda u: (jnp.arctanh(jnp.tanh(u)), u),
    cbrt=lambda u: (jnp.cbrt(u) ** 3, u),
    cholesky=lambda u: (_gram(jnp.linalg.cholesky(matrix(u))), matrix(u)),
    complex_modulus=lambda u: (jnp.abs(jnp.exp(lax.complex(u, u))), jnp.exp(u)),
    cumulative_sum=lambda u: (jnp.diff(jnp.cumsum(u)), u[1:]),
    digamma=lambda u: (
        jsp.special.digamma(1 + u),
        jsp.special.digamma(u) + 1 / u,
    ),
    entropy=lambda u: (jsp.special.entr(u), -u * jnp.log(u)),
    erf_inv=lambda u: (jsp.special.erfinv(jsp.special.erf(u)), u),
    erfc=lambda u: (jsp.special.erfc(u), 1 - jsp.special.erf(u)),
    exp=lambda u: (jnp.exp(jnp.log(u)), u),
    exp2=lambda u: (jnp.log2(jnp.exp2(u)), u),
    expm1=lambda u: (jnp.log1p(jnp.expm1(u)), u),
    fourier=lambda u: (jnp.fft.irfft(jnp.fft.rfft(u), len(u)), u),
    gradient=lambda u: (jax.grad(lambda u: jnp.sum(jnp.log(u)))(u), 1 / u),
    hyperbola=lambda u: (jnp.cosh(u) ** 2 - jnp.sinh(u) ** 2, jnp.ones_like(u)),
    hypotenuse=lambda u: (jnp.hypot(u, 2 * u), jnp.sqrt(5 * u * u)),
    inverse=lambda u: (jnp.linalg.inv(jnp.linalg.inv(matrix(u))), matrix(u)),
    lgamma=lambda u: (
        jnp.exp(jsp.special.gammaln(1 + u) - jsp.special.gammaln(u)),
        u,
    ),
    logaddexp=lambda u: (jnp.logaddexp(u, 2 * u), u + jax.nn.softplus(u)),
    log_determinant=lambda u: (
        jnp.linalg.slogdet(matrix(u))[1],
        jnp.sum(jnp.log(jnp.linalg.eigvalsh(matrix(u)))),
    ),
    logit=lambda u: (jsp.special.logit(jax.nn.sigmoid(u)), u),
    logsumexp=lambda u: (jnp.exp(jax.nn.logsumexp(u)), jnp.sum(jnp.exp(u))),
    norm=lambda u: (jnp.linalg.norm(u) ** 2, jnp.dot(u, u)),
    orthogonal=lambda u: (_gram(jnp.linalg.qr(matrix(u))[0]), jnp.eye(3)),
    power=lambda u: ((u**0.3) ** (1 / 0.3), u),
    power_of_powers=lambda u: (u**u, jnp.exp(u * jnp.log(u))),
    product=lambda u: (jnp.prod(u), jnp.exp(jnp.sum(jnp.log(u)))),
    reciprocal=lambda u: (1 / (1 / u), u),
    rsqrt=lambda u: (lax.rsqrt(u) ** -2, u),
    sigmoid=lambda u: (2 * jax.nn.sigmoid(2 * u) - 1, jnp.tanh(u)),
    sinc=lambda u: (jnp.pi * u * jnp.sinc(u), jnp.sin(jnp.pi * u)),
    softmax=lambda u: (jnp.sum(jax.nn.softmax(u)), jnp.array(1.0)),
    softplus=lambda u: (jnp.expm1(jax.nn.softplus(u)), jnp.exp(u)),
    solve=lambda u: (jnp.linalg.solve(matrix(u), matrix(u) @ u), u),
    sorted=lambda u: (jnp.sum(jnp.sort(u)), jnp.sum(u)),
    sqrt=lambda u: (jnp.sqrt(u) ** 2, u),
    tan=lambda u: (jnp.tan(u), jnp.sin(u) / jnp.cos(u)),
    trace=lambda u: (
        jnp.sum(jnp.linalg.svd(matrix(u), compute_uv=False)),
        jnp.trace(matrix(u)),
    ),
    unit_circle=lambda u: (jnp.sin(u) ** 2 + jnp.cos(u) ** 2, jnp.ones_like(u)),
)


def _gram(m):
    return m @ m.T


@pytest.mark.parametrize("name", _identities)
def test_identity(name):
    def inner(t):
        return 0.5 + 0.3 * jnp.sin(t * jnp.array([1.0, -0.7, 0.4]))

    left, right = _series(lambda t: _identities[name](inner(t)), 0.2, 6)
    assert _agree(left, right)


@_examples(3, program=programs, degree=st.integers(0, 3), t=times, shift=times)
def test_time_shift(program, degree, t, shift):
    """A polynomial solves a field made for it. Its expansions at two times agree."""
    polynomial = jr.normal(jr.key(0), (degree + 1, 3))
    order = degree + 2

    def solution(t):
        return sum(c * t**k for k, c in enumerate(polynomial))

    def field(t, y):
        defect = (y - solution(t)) * _field(program)(t, y)
        return defect + jax.jvp(solution, (t,), (jnp.ones_like(t),))[1]

    def expand(t):
        return _coefficients(field, t, solution(jnp.asarray(t)), order)

    powers = np.array(
        [
            [math.comb(k, j) * shift ** max(k - j, 0) for k in range(order + 1)]
            for j in range(order + 1)
        ]
    )
    here = expand(t)
    assert _agree(here[: degree + 1], _series(solution, t, degree))
    assert _agree(expand(t + shift), powers @ here)


@_examples(3, program=programs, t=times, shift=times, y=states, order=orders)
def test_autonomous(program, t, shift, y, order):
    field = _field(program, autonomous=True)
    here = _coefficients(field, t, y, order)
    assert _agree(here, _coefficients(field, t + shift, y, order))


@_examples(3, program=programs, t=times, y=states, order=orders)
def test_time_as_a_state(program, t, y, order):
    field = _field(program)

    def autonomous(_, state):
        t, y = state
        return jnp.ones_like(t), field(t, y)

    _, actual = _coefficients(autonomous, 0.0, (jnp.asarray(t), y), order)
    assert _agree(actual, _coefficients(field, t, y, order))


@pytest.mark.parametrize("factor", (-1.0, 3.0))
@_examples(3, program=programs, t=times, y=states, order=orders)
def test_time_scale(factor, program, t, y, order):
    field = _field(program)

    def scaled(t, y):
        return jtu.tree_map(lambda dy: factor * dy, field(factor * t, y))

    expected = _weighted(
        _coefficients(field, t, y, order), factor ** jnp.arange(order + 1.0)
    )
    assert _agree(_coefficients(scaled, t / factor, y, order), expected)


@pytest.mark.parametrize("mix", (0.0, 0.3))
@_examples(3, program=programs, t=times, y=states, order=orders)
def test_linear_change_of_variables(mix, program, t, y, order):
    """The change of variables mixes the entries, or only flattens the state."""
    field = _field(program)
    flat, unravel = ravel_pytree(y)
    size = range(flat.size)
    change = jnp.array(
        [[(i == j) + mix * math.sin(i + 2 * j) for j in size] for i in size]
    )
    inverse = jnp.linalg.inv(change)

    def changed(t, z):
        return change @ ravel_pytree(field(t, unravel(inverse @ z)))[0]

    coefficients = _coefficients(field, t, y, order)
    expected = jax.vmap(lambda y: change @ ravel_pytree(y)[0])(coefficients)
    assert _agree(_coefficients(changed, t, change @ flat, order), expected)


@_examples(3, f=programs, g=programs, t=times, y=states, z=states, order=orders)
def test_systems_side_by_side(f, g, t, y, z, order):
    f, g = _field(f), _field(g)
    both = _coefficients(lambda t, y: (f(t, y[0]), g(t, y[1])), t, (y, z), order)
    separately = _coefficients(f, t, y, order), _coefficients(g, t, z, order)
    assert _agree(both, separately)


@_examples(3, program=programs, t=times, y=states, order=orders)
def test_rate_of_change(program, t, y, order):
    """The rate v = y' has the coefficients of the equation that v solves."""
    field = _field(program)

    def with_rate(t, state):
        y, v = state
        return v, jax.jvp(field, (t, y), (jnp.ones_like(t), v))[1]

    state = y, field(jnp.asarray(t), y)
    actual = _coefficients(with_rate, t, state, order)
    higher = _coefficients(field, t, y, order + 1)
    rates = jtu.tree_map(lambda c: c[1:], higher)
    expected = (
        jtu.tree_map(lambda c: c[:-1], higher),
        _weighted(rates, jnp.arange(1.0, order + 2)),
    )
    assert _agree(actual, expected)


@_examples(3, program=programs, t=times, y=states, order=orders)
def test_perturbation(program, t, y, order):
    """A perturbation solves the linearized equation."""
    field = _field(program)
    w = jtu.tree_map(jnp.cos, y)

    def linearized(t, state):
        return jax.jvp(lambda y: field(t, y), state[:1], state[1:])

    def perturbed(y, w):
        return jax.jvp(lambda y: _expand(field, t, y, order), (y,), (w,))

    expected = _coefficients(linearized, t, (y, w), order)
    assert _agree(_interpret(perturbed, y, w), expected)


@_examples(2, program=programs, t=times, y=states, order=orders)
def test_fewer_orders(program, t, y, order):
    term = dfx.ODETerm(lambda t, y, args: _field(program)(t, y))
    more = _coefficients(_field(program), t, y, order + 1)
    fewer = _coefficients(_field(program), t, y, order)
    last = _interpret(lambda y: dsr.total_derivative(term, t, y, order=order), y)
    assert _agree(fewer, jtu.tree_map(lambda c: c[:-1], more))
    assert _agree(last, jtu.tree_map(lambda c: math.factorial(order) * c[-1], fewer))


def _of_multiples(program, t, y, order):
    """Makes the coefficients a function of a factor of the state."""
    field = _field(program)
    return lambda scale: _expand(field, t, jtu.tree_map(lambda x: scale * x, y), order)


@_examples(2, program=programs, t=times, y=states, order=orders)
def test_vmap(program, t, y, order):
    coefficients = _of_multiples(program, t, y, order)
    scales = jnp.array([1.0, -0.5, 0.3])
    one_by_one = [_interpret(coefficients, scale) for scale in scales]
    expected = jtu.tree_map(lambda *cs: jnp.stack(cs), *one_by_one)
    assert _agree(_interpret(jax.vmap(coefficients), scales), expected)


@_examples(3, program=programs, t=times, y=states, order=orders)
def test_jit(program, t, y, order):
    coefficients = _of_multiples(program, t, y, order)
    assert _agree(jax.jit(coefficients)(0.7), _interpret(coefficients, 0.7))
