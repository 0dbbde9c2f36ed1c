"""The solvers of this package work wherever Diffrax's `Tsit5` does."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import optimistix as optx
import pytest

from .helpers import finite_difference, tree_allclose
from .helpers.marks import thorough
from .helpers.solves import final_state, solve_fixed


_solvers: dict[str, dfx.AbstractAdaptiveSolver] = dict(
    truncated=dsr.TaylorLagrangeSolver(5),
    corrected=dsr.TaylorLagrangeSolver(4, dsr.MidpointMLP(2, key=jr.key(0))),
    exponential=dsr.ExponentialTaylorSolver(),
)
_y0 = jnp.array([1.0, 0.2])


def _pendulum(t, y, args):
    return jnp.stack([y[1], -jnp.sin(y[0])]) * (1 + 0.5 * jnp.sin(t))


_term = dfx.ODETerm(_pendulum)


@pytest.fixture(params=("corrected", thorough("truncated"), thorough("exponential")))
def solver(request):
    return _solvers[request.param]


def _solve(
    solver, term: Any = _term, y0: Any = _y0, t0=0.0, t1=2.0, tol=1e-9, **kwargs: Any
) -> Any:
    """Solves adaptively, with a first step that Diffrax chooses."""
    kwargs.setdefault("stepsize_controller", dfx.PIDController(rtol=tol, atol=tol))
    return dfx.diffeqsolve(term, solver, t0, t1, None, y0, **kwargs)


def _agree(actual, expected, tol=1e-6):
    return tree_allclose(actual, expected, rtol=tol, atol=tol)


_saveats = dict(
    t0_t1=dfx.SaveAt(t0=True, t1=True),
    ts=dfx.SaveAt(ts=jnp.linspace(0.0, 2.0, 7)),
    fn=dfx.SaveAt(t1=True, fn=lambda t, y, args: y.sum()),
    subs=dfx.SaveAt(subs=[dfx.SubSaveAt(t0=True), dfx.SubSaveAt(ts=[0.5, 1.0])]),
)


@pytest.mark.parametrize("name", _saveats)
def test_saved_times(solver, name):
    actual = _solve(solver, saveat=_saveats[name])
    expected = _solve(dfx.Tsit5(), saveat=_saveats[name])
    assert _agree((actual.ts, actual.ys), (expected.ts, expected.ys))


def test_saved_steps(solver):
    solution = _solve(solver, saveat=dfx.SaveAt(steps=True), max_steps=256)
    num_steps = int(solution.stats["num_accepted_steps"])
    exact = _solve(dfx.Tsit5(), saveat=dfx.SaveAt(ts=solution.ts[:num_steps]))
    assert _agree(solution.ys[:num_steps], exact.ys)


@pytest.mark.parametrize("t0, t1", ((0.0, 2.0), (2.0, 0.0)))
def test_dense_output_and_its_derivative(solver, t0, t1):
    solution = _solve(solver, t0=t0, t1=t1, saveat=dfx.SaveAt(dense=True))
    exact = _solve(dfx.Dopri8(), t0=t0, t1=t1, saveat=dfx.SaveAt(ts=[t0, 1.3, t1]))
    for t, y in zip(exact.ts, exact.ys):
        assert _agree(solution.evaluate(t), y)
    change = solution.evaluate(1.3, 0.7)
    assert _agree(change, solution.evaluate(0.7) - exact.ys[1])
    slope = jax.jacfwd(solution.evaluate)(jnp.array(1.3))
    assert _agree(slope, _pendulum(1.3, exact.ys[1], None), 1e-4)


def test_event_with_a_root_finder(solver):
    event = dfx.Event(lambda t, y, args, **kwargs: y[0], optx.Newton(1e-9, 1e-9))
    actual = _solve(solver, t1=9.0, event=event)
    expected = _solve(dfx.Tsit5(), t1=9.0, event=event)
    assert _agree((actual.ts, actual.ys), (expected.ts, expected.ys))
    assert jnp.abs(actual.ys[0, 0]) < 1e-6


def test_jump(solver):
    """The vector field may jump at a time that is passed to the controller."""
    term = dfx.ODETerm(lambda t, y, args: jnp.where(t < 1.0, y, -2 * y))
    controller = dfx.ClipStepSizeController(
        dfx.PIDController(rtol=1e-9, atol=1e-9), jump_ts=jnp.array([1.0])
    )
    solution = _solve(solver, term, stepsize_controller=controller)
    assert _agree(solution.ys[0], _y0 * jnp.exp(-1.0))


def _interpolation(solver, t0, t1):
    """Makes an interpolation from 1 to 4 and from 2 to 6, on straight lines."""
    coefficients = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    return solver.interpolation_cls(t0=t0, t1=t1, coefficients=coefficients)


def test_increment_of_dense_output():
    increment = _interpolation(_solvers["corrected"], 0.0, 2.0).evaluate(
        jnp.array(0.5), 1.5
    )
    assert _agree(increment, jnp.array([1.5, 2.0]), 1e-15)


def test_dense_output_of_a_step_of_size_zero():
    """A sample that has finished makes such steps under `jax.vmap`."""
    solver = _solvers["corrected"]
    value, slope = jax.jvp(
        lambda t: _interpolation(solver, t, t).evaluate(t), (0.5,), (1.0,)
    )
    assert _agree(value, jnp.array([1.0, 2.0]), 0)
    assert jnp.all(jnp.isfinite(slope))


@pytest.mark.parametrize("t0, t1", ((0.0, 2.0), (2.0, 0.0)))
def test_controlled_equation(solver, t0, t1):
    ts = jnp.linspace(0.0, 2.0, 5)
    path = dfx.CubicInterpolation(ts, dfx.backward_hermite_coefficients(ts, ts**2))
    term = dfx.ControlTerm(lambda t, y, args: jnp.sin(y), path).to_ode()
    actual = _solve(solver, term, t0=t0, t1=t1, tol=1e-8)
    assert _agree(actual.ys, _solve(dfx.Tsit5(), term, t0=t0, t1=t1).ys)


def test_multi_term(solver):
    term = dfx.MultiTerm(_term, dfx.ODETerm(lambda t, y, args: -0.1 * y))
    assert _agree(_solve(solver, term).ys, _solve(dfx.Tsit5(), term).ys)


@pytest.mark.parametrize("shape", ((), thorough((1,)), (2, 1, 2)))
def test_shapes(shape):
    term = dfx.ODETerm(lambda t, y, args: jnp.sin(y) * args)
    y0 = jnp.full(shape, 0.3)
    correction = dsr.MidpointMLP(y0, key=jr.key(0))
    for solver in (
        dsr.TaylorLagrangeSolver(4),
        dsr.TaylorLagrangeSolver(3, correction),
    ):
        actual = _solve(solver, term, y0, args=0.7)
        assert _agree(actual.ys, _solve(dfx.Tsit5(), term, y0, args=0.7).ys)


def test_pytree_state():
    def field(t, y, args):
        return dict(a=-y["b"].sum() * y["a"], b=jnp.sin(y["b"]))

    y0 = dict(a=jnp.array(1.0), b=jnp.array([[0.1, 0.2]]))
    term = dfx.ODETerm(field)
    correction = dsr.MidpointMLP(y0, "matrix", key=jr.key(0))
    actual = _solve(dsr.TaylorLagrangeSolver(3, correction), term, y0)
    assert _agree(actual.ys, _solve(dfx.Tsit5(), term, y0).ys)


@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
def test_complex():
    term = dfx.ODETerm(lambda t, y, args: 2j * y)
    problem = dsr.training.InitialValueProblem(term, jnp.array([1.0 + 0j]))
    y1 = final_state(solve_fixed(problem, dsr.TaylorLagrangeSolver(6), 20))
    assert _agree(y1, jnp.exp(jnp.array([2j])), 1e-9)


def test_control_flow_in_the_field(solver):
    def field(t, y, args):
        y = jax.lax.fori_loop(0, 2, lambda i, y: jnp.tanh(y) + t, y)
        return jax.lax.cond(t > 9, jnp.sin, lambda y: -y, y)

    term = dfx.ODETerm(field)
    assert _agree(_solve(solver, term).ys, _solve(dfx.Tsit5(), term).ys)


def test_vmap_and_jit(solver):
    y0 = jr.normal(jr.key(1), (4, 2))
    solve = lambda y0: _solve(solver, y0=y0).ys
    expected = jnp.stack([solve(y) for y in y0])
    assert _agree(jax.jit(jax.vmap(solve))(y0), expected, 1e-9)


def test_no_time(solver):
    solution = _solve(solver, t0=0.5, t1=0.5)
    assert _agree(solution.ys[0], _y0, 0)


_adjoints = (
    dfx.RecursiveCheckpointAdjoint(),
    dfx.DirectAdjoint(),
    dfx.ForwardMode(),
    dfx.BacksolveAdjoint(),
)


@pytest.mark.parametrize("t0, t1", (thorough(0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("adjoint", _adjoints, ids=lambda a: type(a).__name__)
def test_gradient(adjoint, t0, t1):
    def loss(y0):
        solution: Any = dfx.diffeqsolve(
            _term,
            dsr.TaylorLagrangeSolver(8),
            t0,
            t1,
            (t1 - t0) / 8,
            y0,
            adjoint=adjoint,
            max_steps=16,
        )
        return jnp.sum(solution.ys**2)

    direction = jr.normal(jr.key(0), (2,))
    differentiate = jax.jacfwd if isinstance(adjoint, dfx.ForwardMode) else jax.grad
    actual = jnp.dot(differentiate(loss)(_y0), direction)
    assert _agree(actual, finite_difference(loss, _y0, direction, 1e-3), 1e-8)


def test_gradient_of_an_adaptive_solve(solver):
    """The gradient is that of the computed steps, and not of their sizes."""

    def loss(y0):
        return jnp.sum(_solve(solver, y0=y0, tol=1e-9).ys ** 2)

    direction = jr.normal(jr.key(0), (2,))
    actual = jnp.dot(jax.grad(loss)(_y0), direction)
    assert _agree(actual, finite_difference(loss, _y0, direction, 1e-2), 1e-6)


class _OwnCorrection(dsr.AbstractMidpoint):
    def __call__(self, t, dt, y, dy, args):
        return 0.1 * dy


@pytest.mark.parametrize(
    "solver",
    (
        _solvers["corrected"],
        dsr.TaylorLagrangeSolver(2, _OwnCorrection()),
        dsr.HyperSolver(dfx.Heun(), _OwnCorrection()),
    ),
)
def test_backsolve_with_a_correction(solver):
    def loss(y0):
        solution: Any = dfx.diffeqsolve(
            _term, solver, 0.0, 1.0, 0.25, y0, adjoint=dfx.BacksolveAdjoint()
        )
        return jnp.sum(solution.ys)

    with pytest.raises(ValueError, match="Use another adjoint, such as"):
        jax.grad(loss)(_y0)


def test_implicit_adjoint():
    """The solve comes to rest at y = args."""

    def loss(args):
        term = dfx.ODETerm(lambda t, y, args: args - y)
        solver = dsr.TaylorLagrangeSolver(3)
        solution = _solve(
            solver,
            term,
            jnp.zeros(2),
            t1=50.0,
            args=args,
            adjoint=dfx.ImplicitAdjoint(),
            event=dfx.Event(dfx.steady_state_event()),
            tol=1e-6,
        )
        return jnp.sum(solution.ys**2)

    with jax.numpy_dtype_promotion("standard"):  # Diffrax's adjoint mixes dtypes.
        gradient = jax.grad(loss)(jnp.array([1.0, 2.0]))
    assert _agree(gradient, jnp.array([2.0, 4.0]), 1e-4)


@pytest.mark.parametrize("field", (0.0, 1.0, "time"))
def test_error_estimate_of_polynomials(field, solver):
    """Solves are exact, with growing steps. No estimate is zero by accident."""
    rate = (lambda t: t) if field == "time" else (lambda t: field)
    term = dfx.ODETerm(lambda t, y, args: rate(t) * jnp.ones_like(y))
    solution = _solve(solver, term)
    expected = _y0 + (2.0 if field == "time" else 2 * field)
    assert _agree(solution.ys[0], expected, 1e-9)
    assert solution.stats["num_steps"] < 20


@pytest.mark.parametrize("order", (8, 16))
def test_high_order(order):
    kepler = dfx.ODETerm(
        lambda t, y, args: jnp.concatenate([y[2:], -y[:2] / jnp.sum(y[:2] ** 2) ** 1.5])
    )
    y0 = jnp.array([0.5, 0.0, 0.0, jnp.sqrt(3.0)])
    solver = dsr.TaylorLagrangeSolver(order)
    ours = _solve(solver, kepler, y0, t1=2 * jnp.pi, tol=1e-12)
    dopri8 = _solve(dfx.Dopri8(), kepler, y0, t1=2 * jnp.pi, tol=1e-12)
    assert _agree(ours.ys[0], y0, 1e-9)
    # At this tolerance, the step grows with the order.
    assert order < 16 or ours.stats["num_steps"] < dopri8.stats["num_steps"]
