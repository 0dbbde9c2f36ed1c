from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from .helpers import tolerance, tree_allclose
from .helpers.solves import final_state, solve_fixed


_forms = ("elementwise", "scalar", "matrix")


def _awake(correction, scale=0.3):
    """Replaces the weights that are zero before training by random ones."""
    if isinstance(correction, dsr.ConstantMidpoint):
        where = lambda c: c.factors
    else:
        where = lambda c: c.mlp.layers[-1].weight
    weights = scale * jr.normal(jr.key(5), where(correction).shape)
    return eqx.tree_at(where, correction, weights)


@pytest.fixture(params=[(cls, form) for cls in ("mlp", "constant") for form in _forms])
def make(request):
    cls, form = request.param

    def make(state):
        if cls == "constant":
            return dsr.ConstantMidpoint(state, form)
        return dsr.MidpointMLP(state, form, ("t", "dt", "y", "dy"), key=jr.key(0))

    return make


def _pytree(key):
    a, b = jr.split(key)
    return dict(a=jr.normal(a, (2, 2)), b=jr.normal(b, ()))


def test_starts_from_zero(make):
    y = _pytree(jr.key(1))
    correction = make(y)(0.1, 0.2, y, y, None)
    assert tree_allclose(correction, jax.tree.map(jnp.zeros_like, y), rtol=0, atol=0)


def test_batch_is_a_batch_of_samples(make):
    correction = _awake(make(_pytree(jr.key(1))))
    y, dy = (
        jax.vmap(jax.vmap(_pytree))(jr.split(k, (4, 3))) for k in jr.split(jr.key(2))
    )

    def single(y, dy):
        return correction(0.1, 0.5, y, dy, None)

    together, expected = single(y, dy), jax.vmap(jax.vmap(single))(y, dy)
    assert jnp.max(jnp.abs(together["a"])) > 1e-2
    assert tree_allclose(together, expected, **tolerance("float64"))


def test_is_a_multiple_of_the_slope(make):
    """The offset vanishes where the solution is at rest."""
    correction = _awake(make(3))
    y = jnp.arange(3.0)
    at_rest = correction(0.1, 0.5, y, jnp.zeros(3), None)
    assert tree_allclose(at_rest, jnp.zeros(3), rtol=0, atol=0)


def test_forms():
    dy = jnp.array([2.0, 3.0])
    cases: tuple[tuple[Any, list[float], list[float]], ...] = (
        ("elementwise", [1.0, 10.0], [2.0, 30.0]),
        ("scalar", [5.0], [10.0, 15.0]),
        ("matrix", [1.0, 2.0, 3.0, 4.0], [8.0, 18.0]),
    )
    for form, factors, expected in cases:
        correction = eqx.tree_at(
            lambda c: c.factors, dsr.ConstantMidpoint(2, form), jnp.array(factors)
        )
        actual = correction(0.0, 1.0, dy, dy, None)
        assert tree_allclose(actual, jnp.array(expected), rtol=0, atol=0)


@pytest.mark.parametrize("order", (1, 2, 3))
def test_matrix_makes_a_step_of_a_linear_equation_exact(order):
    """A step of the paper's stiff system is a hundred of its fast time scales long."""
    matrix = jnp.array([[-6001.0, -1998.0], [-2997.0, -1006.0]]) / 7
    h, identity = 0.1, jnp.eye(2)
    z = h * matrix
    series, power = identity, identity
    for k in range(1, order):
        power = power @ z / k
        series = series + power
    rest = jax.scipy.linalg.expm(z) - series
    factorial = jnp.prod(jnp.arange(1.0, order + 1))
    # Gamma = (1 + theta (1 + phi) z) y0 must be rest p! / z^p y0.
    gamma = jnp.linalg.solve(jnp.linalg.matrix_power(z, order), rest * factorial)
    phi = (gamma - identity) @ jnp.linalg.inv(z) * (order + 1) - identity
    correction = eqx.tree_at(
        lambda c: c.factors, dsr.ConstantMidpoint(2, "matrix"), phi.reshape(-1)
    )
    term = dfx.ODETerm(lambda t, y, args: matrix @ y)
    y0 = jnp.array([-0.9, -1.0])
    problem = dsr.training.InitialValueProblem(term, y0, 0.0, h)
    solver = dsr.TaylorLagrangeSolver(order, correction)
    y1 = final_state(solve_fixed(problem, solver, 1))
    expected = jax.scipy.linalg.expm(z) @ y0
    # This is round-off of numbers as large as z^p.
    assert jnp.allclose(y1, expected, rtol=0, atol=1e-13 * 100.0**order)


def test_arguments_of_the_field():
    class Given(dsr.AbstractMidpoint):
        def __call__(self, t, dt, y, dy, args):
            return args * dy

    term = dfx.ODETerm(lambda t, y, args: -y)
    problem = dsr.training.InitialValueProblem(term, jnp.ones(2), args=jnp.array(-1.0))
    solver = dsr.TaylorLagrangeSolver(2, Given())
    y1 = final_state(solve_fixed(problem, solver, 1))
    # Gamma = y0: 1 - 1 + 1 / 2.
    assert tree_allclose(y1, jnp.full(2, 0.5), rtol=1e-14, atol=0)


def test_float32_under_x64(make):
    correction = _awake(make(2))
    y = jnp.ones(2, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        assert correction(0.0, 0.1, y, y, None).dtype == jnp.float32


def test_state_of_another_shape(make):
    correction = make(3)
    with pytest.raises(ValueError, match=r"of shapes \(3,\), with.*got f64\[2\]"):
        correction(0.0, 0.1, jnp.ones(2), jnp.ones(2), None)
    with pytest.raises(ValueError, match=r"of shapes \(3,\), with"):
        correction(0.0, 0.1, dict(a=jnp.ones(3)), dict(a=jnp.ones(3)), None)


def test_bad_arguments(without_type_checks):
    form: Any = "diagonal"
    with pytest.raises(ValueError, match="`form` must be one of.*'diagonal'"):
        dsr.MidpointMLP(3, form, key=jr.key(0))
    inputs: Any = ("z",)
    with pytest.raises(ValueError, match="`inputs` must be some of"):
        dsr.MidpointMLP(3, inputs=inputs, key=jr.key(0))
    with pytest.raises(ValueError, match="floating-point"):
        dsr.ConstantMidpoint(jnp.arange(3))
    with pytest.raises(ValueError, match="`state` must be a positive integer"):
        dsr.MidpointMLP(-1, key=jr.key(0))
    activation: Any = "tanh"
    with pytest.raises(ValueError, match="`activation` must be a function.*'tanh'"):
        dsr.MidpointMLP(2, activation=activation, key=jr.key(0))
    keys: Any = (0, None, jr.split(jr.key(0)))
    for key in keys:
        with pytest.raises(ValueError, match="`key` must be one random key, such as"):
            dsr.MidpointMLP(2, key=key)


def test_sizes_and_inputs_of_other_kinds():
    """The size may be from NumPy, and a single input may be a name."""
    midpoint = dsr.MidpointMLP(np.prod((2, 3)), inputs="dt", key=jr.key(0))
    assert midpoint.inputs == ("dt",) and midpoint.mlp.in_size == 1
    assert dsr.ConstantMidpoint(np.int64(6)).factors.shape == (36,)


def test_form_of_small_and_of_large_states():
    midpoints = [dsr.MidpointMLP(n, key=jr.key(0)) for n in (8, 9)]
    assert [midpoint.form for midpoint in midpoints] == ["matrix", "elementwise"]
    assert [midpoint.mlp.out_size for midpoint in midpoints] == [64, 9]
    assert dsr.ConstantMidpoint(9).factors.shape == (9,)


@pytest.mark.parametrize("degree", (None, 1, 2))
@pytest.mark.parametrize("form", ("elementwise", "scalar", "matrix"))
def test_empty_batch(degree, form):
    """A solver, its penalties and all ways to integrate a regularizer take one."""
    midpoint = dsr.MidpointMLP(2, form, ("t", "dt", "y", "dy"), key=jr.key(0))
    if degree is None:
        solver, methods = dsr.HyperSolver(dfx.Heun(), midpoint), []
    else:
        solver, methods = dsr.TaylorLagrangeSolver(degree, midpoint), [dsr.in_solver()]
    methods += [dsr.gauss_legendre(2), dsr.random_nodes(jr.key(0))]
    y0, term = jnp.zeros((0, 2)), dfx.ODETerm(lambda t, y, args: -y)
    solution: Any = dsr.fixed_step_solve(term, solver, 0.0, 1.0, 2, y0)
    assert solution.ys.shape == (1, 0, 2)
    leaves = jax.tree.leaves(solution.solver_state)
    assert all(jnp.array_equal(leaf, jnp.zeros(leaf.shape)) for leaf in leaves)
    if form != "matrix":
        return
    pairs = [(solver, method) for method in methods]
    for solver, method in (*pairs, (dfx.Tsit5(), dsr.augmented())):
        _, integral = dsr.regularized_solve(
            *(term, solver, 0.0, 1.0, 0.5, y0),
            regularizer=dsr.DerivativeNorm(1),
            method=method,
        )
        assert integral == 0
