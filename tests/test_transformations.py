"""The expansion under JAX's transformations, and theirs inside of it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .helpers import count_primitive, nested_coefficients, tolerance, tree_allclose


_matrix = 0.5 * jr.normal(jr.key(1), (4, 4))


def _scan(y):
    return lax.scan(lambda c, _: (jnp.tanh(c @ _matrix), None), y, length=3)[0]


def _while(y):
    return lax.while_loop(
        lambda c: jnp.sum(c[0]) < 3, lambda c: jnp.exp(jnp.sin(c)) + c, jnp.abs(y)
    )


_fields = dict(
    elementwise=lambda y: jax.nn.softplus(y) * jnp.tanh(y) / (1 + y**2),
    layers=lambda y: jnp.tanh(jax.nn.sigmoid(y @ _matrix) @ _matrix),
    mask=lambda y: jnp.where(y > 0, jnp.sin(y), 0.0) + jax.nn.relu(y),
    scan=_scan,
    while_loop=_while,
    cond=lambda y: lax.cond(jnp.sum(y) > 0, jnp.sin, jnp.cos, y),
    custom_vjp=lambda y: _sine(y) * y,
    checkpoint=lambda y: jax.checkpoint(jnp.sin)(y @ _matrix),
)


@jax.custom_vjp
def _sine(x):
    return jnp.sin(x)


# This rule is wrong on purpose, to show where it is used.
_sine.defvjp(lambda x: (_sine(x), x), lambda x, g: (100 * g * jnp.cos(x),))


def _coefficients(field, order=3):
    term = dfx.ODETerm(lambda t, y, args: field(y) * jnp.cos(t))
    return lambda y: dsr.taylor_coefficients(term, 0.3, y, order=order)


# On JAX 0.6, `zeros_like` forgets how values vary over a mesh, and nested `jax.jvp`
# fails in the same places.
_recent = pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="needs a newer JAX")


@pytest.fixture
def y():
    return jr.normal(jr.key(0), (8, 4))


@pytest.fixture(scope="module")
def process():
    """Starts a new process: a search for leaks is slow with many objects."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


def _checking_leaks(name, y):
    with jax.checking_leaks():
        coefficients = jax.jit(_coefficients(_fields[name]))(y)
        _, tangents = jax.jvp(
            jax.jit(_coefficients(_fields[name] if name != "custom_vjp" else jnp.sin)),
            (y,),
            (y,),
        )
    return coefficients, tangents


@pytest.mark.parametrize("name", _fields)
def test_no_leaked_tracers(name, y, process):
    found = process.submit(_checking_leaks, name, np.asarray(y, np.float32)).result()
    assert all(jnp.all(jnp.isfinite(x)) for x in found)


@pytest.mark.parametrize("jit", (True, False))
@pytest.mark.parametrize("name", _fields)
def test_second_call_does_not_retrace(name, jit, y):
    traces = 0

    def counted(y):
        nonlocal traces
        traces += 1
        return _fields[name](y)

    function = _coefficients(counted)
    function = jax.jit(function) if jit else function
    function(y)
    first = traces
    function(y + 1)
    assert traces == first > 0


@pytest.mark.parametrize("name", _fields)
def test_sharded_batch(name, y):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    function = jax.jit(_coefficients(_fields[name]))
    expected = function(y)
    actual = function(jax.device_put(y, sharding))
    assert actual.sharding.spec[1] == "batch" or name == "while_loop"
    assert tree_allclose(np.asarray(actual), np.asarray(expected), **tolerance(y.dtype))


@_recent
@pytest.mark.parametrize(
    "name", ("elementwise", "layers", "mask", "scan", "checkpoint")
)
def test_inside_shard_map(name, y):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    function = _coefficients(_fields[name])
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=PartitionSpec("batch"),
        out_specs=PartitionSpec(None, "batch"),
    )
    assert tree_allclose(jax.jit(mapped)(y), function(y), **tolerance(y.dtype))


@_recent
@pytest.mark.parametrize(
    "name", ("elementwise", "layers", "mask", "scan", "checkpoint")
)
def test_sharding_in_types(name, y):
    expected = _coefficients(_fields[name])(y)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(y, NamedSharding(mesh, PartitionSpec("batch")))
        actual = jax.jit(_coefficients(_fields[name]))(sharded)
    assert jax.typeof(actual).sharding.spec[1] == "batch"
    assert tree_allclose(np.asarray(actual), np.asarray(expected), **tolerance(y.dtype))


def test_custom_vjp_is_expanded(y):
    expected = nested_coefficients(lambda t, y: jnp.sin(y) * jnp.cos(t), 0.3, y, 4)
    actual = _coefficients(_sine, order=4)(y)
    assert tree_allclose(actual, expected, **tolerance(y.dtype))


def test_value_of_custom_vjp_keeps_its_rule(y):
    """The gradient is that of the same field in an ordinary solve."""
    gradient = jax.grad(lambda y: jnp.sum(_coefficients(_sine)(y)[1]))(y)
    expected = 100 * jnp.cos(y) * np.cos(0.3)
    assert tree_allclose(gradient, expected, **tolerance(y.dtype))


def test_checkpoint_stays_one(y):
    """The backward pass computes each order again."""
    layers, order = 2, 3

    def gradient(wrap):
        field = wrap(lambda y: jnp.tanh(jnp.tanh(y @ _matrix) @ _matrix))
        return jax.grad(lambda y: jnp.sum(_coefficients(field, order)(y)[-1]))

    def evaluations(wrap):
        return count_primitive(jax.make_jaxpr(gradient(wrap))(y).jaxpr, "tanh")

    assert evaluations(lambda f: f) == layers
    assert evaluations(jax.checkpoint) == 2 * layers * order
    actual, expected = (gradient(wrap)(y) for wrap in (jax.checkpoint, lambda f: f))
    assert tree_allclose(actual, expected, **tolerance(y.dtype))


def test_inside_checkpoint(y):
    function = _coefficients(_fields["layers"])

    def gradient(function):
        return jax.grad(lambda y: jnp.sum(function(y) ** 2))(y)

    actual, expected = gradient(jax.checkpoint(function)), gradient(function)
    assert tree_allclose(actual, expected, **tolerance(y.dtype))


@pytest.mark.parametrize("name", [n for n in _fields if n != "custom_vjp"])
def test_forward_over_forward(name, y):
    """Hessian-vector products by JVPs of JVPs agree with the nested expansion."""

    def twice(function):
        def once(y):
            return jax.jvp(function, (y,), (jnp.cos(y),))[1]

        return jax.jvp(once, (y,), (jnp.ones_like(y),))[1]

    def expected(y):
        return nested_coefficients(
            lambda t, y: _fields[name](y) * jnp.cos(t), 0.3, y, 2
        )

    actual = twice(_coefficients(_fields[name], order=2))
    assert tree_allclose(actual, twice(expected), **tolerance(y.dtype, 1e5))
