"""The engine against nested `jax.jvp`, on functions of all kinds."""

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
_filter = 0.3 * jr.normal(jr.key(2), (1, 1, 3))


def _mix(t, y):
    """Something that depends on time and mixes the state."""
    return _matrix @ y + t


def _convolve(x):
    return lax.conv_general_dilated(x[None, None], _filter, (1,), "SAME")[0, 0]


_activations = """
    celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid log_softmax
    mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus
    sparse_sigmoid squareplus standardize tanh
""".split()

_functions = dict(
    abs=jnp.abs,
    acos=lambda x: jnp.arccos(0.3 * jnp.sin(x)),
    asinh=jnp.arcsinh,
    atan2=lambda x: jnp.arctan2(x, 1 + x**2),
    cbrt=lambda x: jnp.cbrt(1 + x**2),
    cholesky=lambda x: jnp.linalg.cholesky(jnp.diag(x**2 + 2) + 0.1).sum(axis=0),
    clip=lambda x: jnp.clip(x, -0.5, 0.5),
    concatenate=lambda x: jnp.concatenate([jnp.sin(x[:2]), x[2:] ** 2]),
    constant_denominator=lambda x: x / 3.0,
    convolution=_convolve,
    convolution_by_state=lambda x: jnp.convolve(jnp.sin(x), x, mode="same"),
    cumprod=lambda x: jnp.cumprod(jnp.sin(x)),
    cumsum=lambda x: jnp.cumsum(x * x),
    determinant=lambda x: x * jnp.linalg.det(jnp.diag(x) + 0.2),
    divergence=lambda x: x * jnp.trace(jax.jacfwd(lambda z: jnp.tanh(_matrix @ z))(x)),
    dynamic_slice=lambda x: lax.dynamic_slice(
        jnp.concatenate([x, jnp.sin(x)]), (jnp.argmax(x),), (4,)
    ),
    eigh=lambda x: jnp.linalg.eigh(jnp.diag(x) + _matrix + _matrix.T)[0],
    erf=jax.scipy.special.erf,
    exp2=jnp.exp2,
    expm1=jnp.expm1,
    fft=lambda x: jnp.fft.irfft(jnp.fft.rfft(jnp.sin(x)) ** 2, 4),
    floor=lambda x: jnp.floor(x) + jnp.sin(x),
    gather=lambda x: jnp.sin(x)[jnp.array([3, 1, 0, 0])],
    gather_fill=lambda x: (
        jnp.sin(x).at[jnp.array([3, 9, 0, 7])].get(mode="fill", fill_value=2.0)
    ),
    gradient=jax.grad(lambda x: jnp.sum(jnp.cos(_matrix @ x) ** 2)),
    integer_power=lambda x: x**3 + (x + 9) ** -2,
    layer_norm=eqx.nn.LayerNorm(4),
    lgamma=lambda x: jax.scipy.special.gammaln(x + 9),
    log=lambda x: jnp.log(1 + x**2),
    log1p=lambda x: jnp.log1p(x**2),
    logsumexp=lambda x: x * jax.nn.logsumexp(x),
    matrix_of_state=lambda x: jnp.outer(x, jnp.sin(x)) @ x,
    maximum=lambda x: jnp.maximum(x, jnp.cos(x)),
    norm=lambda x: x / jnp.linalg.norm(x),
    pad=lambda x: jnp.pad(jnp.sin(x), 2, constant_values=3.0)[1:5],
    power=lambda x: (1 + x**2) ** 0.7,
    reduce_max=lambda x: x * jnp.max(x),
    reduce_prod=lambda x: x * jnp.prod(x),
    remainder=lambda x: jnp.mod(x, 0.7),
    rsqrt=lambda x: lax.rsqrt(1 + x**2),
    scatter_add=lambda x: x.at[jnp.array([0, 0])].add(jnp.sin(x[:2])),
    scatter_set=lambda x: x.at[jnp.array([2, 0])].set(jnp.sin(x[:2])),
    sin_cos=lambda x: jnp.sin(x) * jnp.cos(x),
    solve=lambda x: jnp.linalg.solve(
        _matrix + jnp.diag(jnp.sin(x)) + 3 * jnp.eye(4), x
    ),
    sort=lambda x: jnp.sort(jnp.sin(x)),
    sqrt=lambda x: jnp.sqrt(1 + x**2),
    stop_gradient=lambda x: x * lax.stop_gradient(jnp.sin(x)),
    tan=lambda x: jnp.tan(0.5 * x),
    vmap=lambda x: jax.vmap(lambda z: jnp.tanh(z) * z)(x),
    where=lambda x: jnp.where(x > 0, jnp.exp(x), x**3),
)

_control_flow = dict(
    batched_while=lambda t, y: jax.vmap(
        lambda a: lax.while_loop(
            lambda c: (jnp.abs(c[0]) > 0.1) & (c[1] < 9),
            lambda c: (c[0] * jnp.cos(c[0] + a) * 0.8, c[1] + 1),
            (a, 0),
        )[0]
    )(y),
    constant_carry=lambda t, y: lax.fori_loop(
        0, 3, lambda i, c: (c[0] + 1, jnp.sin(c[1]) * jnp.sqrt(c[0])), (0.0, y)
    )[1],
    constant_branches=lambda t, y: (
        y
        * jnp.sqrt(
            lax.cond(t > 0, lambda y: (y, jnp.zeros(4)), lambda y: (y, jnp.ones(4)), y)[
                1
            ]
        )
    ),
    constant_output=lambda t, y: (
        y
        + jnp.sqrt(
            lax.scan(lambda c, x: (jnp.sin(c * x), x * 0), y, jnp.ones((2, 4)))[1]
        ).sum(axis=0)
    ),
    carried_constant=lambda t, y: lax.scan(
        lambda c, x: ((c[1] * x, c[0] + c[1]), c[0]), (jnp.ones(4), y), jnp.arange(3.0)
    )[1][2],
    checkpoint=lambda t, y: jax.checkpoint(jnp.sin)(_mix(t, y)),
    cond=lambda t, y: lax.cond(y[0] > 0, jnp.sin, jnp.exp, _mix(t, y)),
    fori_loop=lambda t, y: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(_mix(t, c)), y),
    jit=lambda t, y: jax.jit(lambda x: jnp.sin(x))(_mix(t, y)),
    map=lambda t, y: lax.map(lambda x: jnp.sin(x) * t, y),
    nested=lambda t, y: lax.fori_loop(
        0, 2, lambda i, c: lax.cond(i > 0, jnp.sin, lambda c: lax.map(jnp.exp, c), c), y
    ),
    platform_dependent=lambda t, y: lax.platform_dependent(
        _mix(t, y), default=jnp.sin, cpu=jnp.cos
    ),
    random_walk=lambda t, y: lax.fori_loop(
        0,
        3,
        lambda i, c: (jr.split(c[0])[0], c[1] * jr.normal(c[0], (4,)) + t),
        (jr.key(0), y),
    )[1],
    reverse_scan=lambda t, y: lax.scan(
        lambda c, x: (c * x + t, c), t, jnp.sin(y), reverse=True
    )[1],
    scan=lambda t, y: lax.scan(
        lambda c, x: (jnp.tanh(_mix(t, c) * x), None), y, jnp.sin(y[:3])
    )[0],
    switch=lambda t, y: lax.switch(
        jnp.argmax(y), [jnp.sin, jnp.cos, jnp.tanh, jnp.exp], _mix(t, y)
    ),
    while_loop=lambda t, y: lax.while_loop(
        lambda c: jnp.sum(c) < 4, lambda c: c + jnp.exp(jnp.sin(_mix(t, c))), y
    ),
)


def _check(field, y, order=5, t=0.3):
    term = dfx.ODETerm(lambda t, y, args: field(t, y))
    coefficients = jax.jit(lambda y: dsr.taylor_coefficients(term, t, y, order=order))(
        y
    )
    expected = nested_coefficients(field, t, y, order)
    assert tree_allclose(coefficients, expected, **tolerance(y.dtype))


@pytest.mark.parametrize("name", _activations)
def test_activation(name):
    function = getattr(jax.nn, name)
    _check(lambda t, y: function(_mix(t, y)), jr.normal(jr.key(0), (4,)))


@pytest.mark.parametrize("name", _functions)
def test_function(name):
    function = _functions[name]
    _check(lambda t, y: function(_mix(t, y)), jr.normal(jr.key(0), (4,)), order=4)


@pytest.mark.parametrize("name", _control_flow)
def test_control_flow(name):
    _check(_control_flow[name], jr.normal(jr.key(0), (4,)))


@pytest.mark.parametrize("name", ("softplus", "log_sigmoid", "mish", "relu", "silu"))
def test_at_zero(name):
    """Where the derivative is only right by the function's own JVP rule."""
    function = getattr(jax.nn, name)
    _check(lambda t, y: function(y) + jnp.array([1.0, -1.0]), jnp.zeros(2))


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


@pytest.mark.parametrize("unit_diagonal", (True, False))
@pytest.mark.parametrize("lower", (True, False))
@pytest.mark.parametrize("trans", ("N", "T"))
def test_triangular_solve(trans, lower, unit_diagonal):
    def field(t, y):
        matrix = jnp.sin(jnp.outer(y, y) + t) + 2 * jnp.eye(4)
        return jax.scipy.linalg.solve_triangular(
            matrix, jnp.cos(y), trans=trans, lower=lower, unit_diagonal=unit_diagonal
        )

    _check(field, jr.normal(jr.key(0), (4,)), order=4)


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


def test_stopped_gradient_at_a_singularity():
    def field(t, y):
        return y + jnp.sqrt(lax.stop_gradient(y * 0))

    _check(field, jnp.array([0.3, -0.7]), order=3)


def test_linear_solve_of_lineax():
    def field(t, y):
        operator = lx.MatrixLinearOperator(_matrix + jnp.diag(y) + 3 * jnp.eye(4))
        return lx.linear_solve(operator, jnp.cos(y)).value

    _check(field, jr.normal(jr.key(0), (4,)), order=3)


def test_adaptive_solve_inside_the_field():
    def field(t, y):
        inner = dfx.ODETerm(lambda s, z, args: -z * jnp.sin(y))
        return dfx.diffeqsolve(
            inner,
            dfx.Tsit5(),
            0.0,
            1.0,
            None,
            y,
            stepsize_controller=dfx.PIDController(rtol=1e-3, atol=1e-3),
            adjoint=dfx.ForwardMode(),
            max_steps=16,
        ).ys[0]

    _check(field, jnp.array([0.3, -0.7, 1.1]), order=2)


def test_effects_are_kept(capfd):
    def field(t, y, args):
        jax.debug.print("state {}", y)
        return -y

    dsr.taylor_coefficients(dfx.ODETerm(field), 0.0, jnp.array(0.125), order=2)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("state 0.125") == 1


def test_equal_functions_with_different_rules():
    """`custom_jvp` functions that compute the same, but have other derivatives."""

    def make(slope):
        function = jax.custom_jvp(lambda x: x)
        function.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
        return function

    first, second = make(2.0), make(5.0)
    _check(lambda t, y: first(y) + second(y), jnp.array([1.0, 2.0]), order=3)


def test_rule_that_closes_over_its_function():
    """`custom_jvp` functions whose rules differ only in another such function."""

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


def test_deep_field():
    """Deeper than Python's stack."""

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
    """What a rule computes from a literal zero need not be zero itself."""

    @jax.custom_jvp
    def function(x):
        return x**2

    @function.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        return function(x), _slopes[name](x) * dx

    _check(lambda t, y: function(y), jnp.array(0.6), order=3)
