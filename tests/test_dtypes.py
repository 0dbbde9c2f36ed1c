"""Types of states and times, which are those of Diffrax's own solvers."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from .helpers.solves import diffeqsolve, fixed_step_solve


# The flag says whether times are Python's numbers, with double precision under x64.
_cases = pytest.mark.parametrize(
    "dtype, python_times",
    (
        (jnp.bfloat16, False),
        (jnp.float32, False),
        (jnp.float32, True),
        (jnp.float64, True),
        (jnp.complex64, False),
        (jnp.complex128, True),
    ),
    ids=str,
)


@pytest.fixture(params=("standard", "strict"), autouse=True)
def promotion(request):
    with jax.numpy_dtype_promotion(request.param):
        yield request.param


def _times(dtype, python):
    real = jnp.finfo(dtype).dtype
    return (0.0, 1.0) if python else (jnp.asarray(0, real), jnp.asarray(1, real))


def _state(dtype):
    return {"a": jnp.ones(2, dtype), "b": jnp.asarray(0.5, dtype)}


def _field(t, y, args):
    return jax.tree.map(lambda x: -x, y)


def _solvers(y):
    midpoint = dsr.MidpointMLP(y, key=jax.random.key(0))
    return (
        dsr.TaylorLagrangeSolver(2),
        dsr.TaylorLagrangeSolver(2, midpoint, regularizer=dsr.DerivativeNorm(2)),
        dsr.TaylorLagrangeSolver(2, dsr.ConstantMidpoint(y)),
        dsr.HyperSolver(dfx.Heun(), midpoint),
        dsr.ErrorRegularizedSolver(dfx.Heun(), stiffness=True),
    )


@pytest.mark.filterwarnings("ignore:Complex dtype support")
@_cases
def test_solvers(dtype, python_times):
    y0 = _state(dtype)
    t0, t1 = _times(dtype, python_times)
    saveat = dfx.SaveAt(t1=True, steps=True, dense=True, solver_state=True)

    def solve(solver):
        solution = diffeqsolve(
            dfx.ODETerm(_field),
            *(solver, t0, t1, (t1 - t0) / 4, y0),
            saveat=saveat,
            max_steps=8,
        )
        return solution.ys, solution.evaluate((t0 + t1) / 2)

    right = jax.eval_shape(lambda: solve(dfx.Heun()))
    for solver in _solvers(y0):
        assert eqx.tree_equal(jax.eval_shape(lambda: solve(solver)), right)


@pytest.mark.filterwarnings("ignore:Complex dtype support")
@_cases
def test_regularized_solves(dtype, python_times):
    y0 = _state(dtype)
    t0, t1 = _times(dtype, python_times)
    term = dfx.ODETerm(_field)
    dt0 = (t1 - t0) / 4
    right = jax.eval_shape(lambda: diffeqsolve(term, dfx.Heun(), t0, t1, dt0, y0))
    methods = (
        None,
        dsr.gauss_legendre(2),
        dsr.random_nodes(jax.random.key(0), 2),
        dsr.augmented(),
    )
    for method in methods:
        solution, integral = jax.eval_shape(
            lambda: dsr.regularized_solve(
                term, dfx.Heun(), t0, t1, dt0, y0, method=method
            )
        )
        assert eqx.tree_equal(solution.ys, right.ys)
        assert integral.dtype == jnp.finfo(right.ys["a"].dtype).dtype


@pytest.mark.parametrize("rule", (dsr.gauss_legendre(3), "random"))
@pytest.mark.parametrize("times", ((0.0, 1.0), (0, 1)))
def test_nodes_do_not_promote_a_solve(rule, times):
    """Nodes of Python's numbers have no precision of their own."""
    if rule == "random":
        rule = dsr.random_nodes(jax.random.key(0), 3)
    quadrature = rule.quadrature(*times)
    y0, t = jnp.ones(2, jnp.float32), jnp.array([0, 1], jnp.float32)
    term = dfx.ODETerm(_field)
    parts: Any = quadrature.split(
        diffeqsolve(
            *(term, dfx.Tsit5(), *t, None, y0),
            saveat=quadrature.saveat(),
            stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-5),
        )
    )
    solution, nodes = parts
    assert solution.ys.dtype == nodes.dtype == jnp.float32
    integral = quadrature.integrate(dsr.DerivativeNorm(1), term, nodes)
    assert integral.dtype == jnp.float32


def test_times_of_float32_nodes():
    quadrature = dsr.gauss_legendre(4).quadrature(jnp.float32(0), jnp.float32(2))
    assert quadrature.ts.dtype == quadrature.weights.dtype == jnp.float32
    assert np.allclose(quadrature.weights.sum(), 2, rtol=1e-6)


def test_single_precision_data_and_a_double_precision_model(promotion):
    """Diffrax gives the state the precision of time, which Python's numbers double."""
    if promotion == "strict":
        pytest.skip("Equinox's layers do not promote")
    mlp = eqx.nn.MLP(2, 2, 8, 1, jnp.tanh, dtype=jnp.float64, key=jax.random.key(0))
    term = dfx.ODETerm(lambda t, y, args: mlp(y))
    y0 = jnp.ones(2, jnp.float32)
    problem = dsr.training.InitialValueProblem(term, y0, 0.0, 1.0)
    right = diffeqsolve(
        *(term, dfx.Dopri8(), 0.0, 1.0, None, y0),
        stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
    ).ys[-1]
    for solver in (dsr.TaylorLagrangeSolver(4), dfx.Tsit5()):
        got = fixed_step_solve(term, solver, 0.0, 1.0, 8, y0).ys[-1]
        assert got.dtype == right.dtype == jnp.float64
        assert np.allclose(got, right, rtol=1e-5)
    reference = dsr.training.Reference(2).solve(problem)
    assert np.allclose(reference.y1[-1], right, rtol=1e-6)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64, jnp.complex128))
def test_midpoints_have_the_dtype_of_the_state(dtype):
    y = jnp.ones(2, dtype)
    for midpoint in (
        dsr.MidpointMLP(y, key=jax.random.key(0)),
        dsr.ConstantMidpoint(y),
    ):
        weights = jax.tree.leaves(eqx.filter(midpoint, eqx.is_inexact_array))
        assert {w.dtype for w in weights} == {jnp.dtype(dtype)}
    sized = dsr.MidpointMLP(2, key=jax.random.key(0))
    assert sized.mlp.layers[0].weight.dtype == jnp.float64
    offset = sized(0.0, 0.1, y, y, None)
    assert offset.dtype == dtype


def test_training_keeps_single_precision(promotion):
    """A round of model and solver steps keeps the precision."""
    if promotion == "standard":
        pytest.skip("strict promotion is the harder case")
    dtype = jnp.float32
    y = jnp.ones((4, 2), dtype)
    times = _times(dtype, False)

    def equation(model, batch):
        term = dfx.ODETerm(lambda t, y, args: jnp.tanh(y * model))
        return dsr.training.InitialValueProblem(term, batch, *times)

    def loss(model, solver, batch):
        p = equation(model, batch)
        solution = fixed_step_solve(p.term, solver, p.t0, p.t1, 2, p.y0)
        return jnp.mean(solution.ys**2)

    trainer = dsr.training.Trainer(
        loss,
        optax.adam(1e-2),
        equation=equation,
        solver_optimizer=optax.adam(1e-2),
        reference=dsr.training.Reference(2),
    )
    midpoint = dsr.MidpointMLP(y[0], key=jax.random.key(0))
    model = jnp.ones(2, dtype)[None]
    state = trainer.init(
        model, dsr.TaylorLagrangeSolver(2, midpoint), key=jax.random.key(1)
    )
    before = jax.tree.map(lambda x: x.dtype, eqx.filter(state, eqx.is_inexact_array))
    state, _ = trainer.model_step(state, y)
    reference = trainer.solve_reference(state, y)
    state, _ = trainer.solver_step(state, y, reference)
    after = jax.tree.map(lambda x: x.dtype, eqx.filter(state, eqx.is_inexact_array))
    assert before == after


@pytest.fixture
def single_precision():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.usefixtures("single_precision")
def test_without_double_precision(promotion):
    """The package works in JAX's default configuration."""
    if promotion == "standard":
        pytest.skip("strict promotion is the harder case")
    y0 = jnp.ones(2)
    parts: Any = dsr.regularized_solve(
        dfx.ODETerm(_field), dfx.Tsit5(), 0.0, 1.0, 0.1, y0
    )
    solution, integral = parts
    got = fixed_step_solve(
        dfx.ODETerm(_field), dsr.TaylorLagrangeSolver(3), 0.0, 1.0, 4, y0
    )
    assert solution.ys.dtype == integral.dtype == got.ys.dtype == jnp.float32
    assert np.allclose(got.ys[-1], np.exp(-1), rtol=1e-3)
    assert np.allclose(integral, (1 - np.exp(-2)) / 2, rtol=1e-4)


@pytest.mark.parametrize("y0", (2, jnp.array([1, 2]), (1.0, 2)))
@pytest.mark.parametrize("method", (dsr.augmented(), dsr.gauss_legendre(4)))
def test_integer_initial_states(method, y0):
    """Diffrax makes them real numbers. For y' = -y, R_1 is y0**2 (1 - exp(-2)) / 2."""
    term = dfx.ODETerm(lambda t, y, args: jax.tree.map(lambda x: -x, y))
    controller = dfx.PIDController(rtol=1e-8, atol=1e-8)
    solution, integral = dsr.regularized_solve(
        *(term, dfx.Tsit5(), 0, 1, None, y0),
        stepsize_controller=controller,
        regularizer=dsr.DerivativeNorm(1),
        method=method,
    )
    right: Any = diffeqsolve(
        term, dfx.Tsit5(), 0, 1, None, y0, stepsize_controller=controller
    )
    assert eqx.tree_equal(solution.ys, right.ys, typematch=True)
    squares = jnp.concatenate([jnp.ravel(jnp.asarray(y)) for y in jax.tree.leaves(y0)])
    expected = jnp.mean(jnp.asarray(squares, float) ** 2) * (1 - jnp.exp(-2.0)) / 2
    assert jnp.allclose(integral, expected, rtol=1e-6)


def test_state_without_arrays():
    """The solution is that of Diffrax, and there is nothing to regularize."""
    solve = lambda solver: diffeqsolve(
        dfx.ODETerm(lambda t, y, args: None), solver, 0.0, 1.0, 0.1, None
    )
    solver = dsr.TaylorLagrangeSolver(3, regularizer=dsr.DerivativeNorm(2))
    assert solve(solver).ys is None and solve(dfx.Heun()).ys is None
