"""One call that solves and integrates a regularizer: the solution of `diffeqsolve`, and
the same integral by each method."""

import inspect
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optimistix as optx
import pytest

from .helpers import finite_difference, tree_allclose


_term = dfx.ODETerm(lambda t, y, args: jnp.tanh(args @ y) * (1 + 0.5 * jnp.sin(t)))
_matrix = jr.normal(jr.key(1), (3, 3))
_y0 = jr.normal(jr.key(0), (3,))
_controller = dfx.PIDController(rtol=1e-8, atol=1e-8)
_methods = dict(
    gauss=dsr.gauss_legendre(12),
    augmented=dsr.augmented(),
    trapezoidal=dsr.trapezoidal(),
    in_solver=dsr.in_solver(),
)
_newton = optx.Newton(1e-8, 1e-8, optx.rms_norm)
_adaptive: dict[str, Any] = dict(stepsize_controller=_controller)


def _solver(name):
    return dsr.TaylorLagrangeSolver(6) if name == "in_solver" else dfx.Tsit5()


def _both(
    name, t0=0.2, t1=1.4, y0=_y0, term: Any = _term, args=_matrix, **options: Any
) -> Any:
    """Returns the pair of `regularized_solve`, and the solution of `diffeqsolve`."""
    solver = options.pop("solver", _solver(name))
    method, options = _methods[name], _adaptive | options
    pair = dsr.regularized_solve(
        term, solver, t0, t1, None, y0, args, method=method, **options
    )
    plain = dfx.diffeqsolve(term, solver, t0, t1, None, y0, args, **options)
    return *pair, plain


def _exact(t0, t1):
    term = dsr.SpeedRegularizedTerm(_term)
    controller = dfx.PIDController(rtol=1e-11, atol=1e-11)
    solution: Any = dfx.diffeqsolve(
        *(term, dfx.Dopri8(), t0, t1, None, term.init(_y0), _matrix),
        stepsize_controller=controller,
    )
    return term.split(solution.ys)[1][0]


def _same(actual, expected, name):
    """Checks that results agree, to roundoff unless the method changes the program."""
    if name == "augmented":
        assert tree_allclose(actual, expected, rtol=1e-12, atol=1e-12)
    else:
        assert tree_allclose(actual, expected, rtol=1e-14, atol=1e-14)


def _arrays(solution):
    """Returns all of a solution except the functions of its interpolation."""
    return eqx.filter(solution, eqx.is_array)


@pytest.mark.parametrize("t0, t1", ((0.2, 1.4), (1.4, 0.2)))
@pytest.mark.parametrize("name", _methods)
def test_methods_agree(name, t0, t1):
    ts = jnp.linspace(t0, t1, 400) if name == "trapezoidal" else None
    saveat = dfx.SaveAt(t1=True, ts=ts)
    solution, integral, plain = _both(name, t0, t1, saveat=saveat)
    exact = _exact(t0, t1)
    assert exact > 0.1
    assert tree_allclose(integral, exact, rtol=1e-4, atol=0.0)
    _same(_arrays(solution), _arrays(plain), name)
    assert solution.stats["num_steps"] == plain.stats["num_steps"]


def test_signature_is_that_of_diffeqsolve():
    ours = inspect.signature(dsr.regularized_solve).parameters
    theirs = inspect.signature(dfx.diffeqsolve).parameters
    expected = [name for name in theirs if name != "discrete_terminating_event"]
    assert list(ours) == [*expected, "regularizer", "method"]
    for name in expected:
        assert ours[name].kind == theirs[name].kind
        assert eqx.tree_equal(ours[name].default, theirs[name].default) is True


_saveats = dict(
    t1=dfx.SaveAt(t1=True),
    t0=dfx.SaveAt(t0=True),
    ts=dfx.SaveAt(ts=jnp.linspace(0.2, 1.4, 5)),
    steps=dfx.SaveAt(steps=True),
    every_third_step=dfx.SaveAt(t0=True, t1=True, steps=3),
    fn=dfx.SaveAt(t1=True, fn=lambda t, y, args: t * y.sum()),
    subs=dfx.SaveAt(
        subs=[
            dfx.SubSaveAt(ts=jnp.array([0.3, 0.9]), fn=lambda t, y, args: y[0]),
            dfx.SubSaveAt(ts=jnp.array([0.2, 1.4])),
        ]
    ),
    dense=dfx.SaveAt(dense=True),
    states=dfx.SaveAt(t1=True, controller_state=True, solver_state=True),
    made_jump=dfx.SaveAt(t1=True, made_jump=True),
)


@pytest.mark.parametrize("saveat", _saveats)
@pytest.mark.parametrize("name", _methods)
def test_saveat(name, saveat):
    """Every kind of `SaveAt` gives the same tree, with the same values."""
    saves_times = saveat in ("ts", "steps", "every_third_step", "subs")
    if name == "trapezoidal" and not saves_times:
        pytest.skip("The rule needs times.")
    solution, integral, plain = _both(name, saveat=_saveats[saveat], max_steps=64)
    _same(_arrays(solution), _arrays(plain), name)
    assert integral > 0.1
    if saveat == "dense":
        for function in (solution.evaluate, solution.derivative):
            other = getattr(plain, function.__name__)
            assert tree_allclose(function(0.7), other(0.7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ("gauss", "in_solver"))
def test_continued_solve(name):
    """A solve continues from the states of the solver and its controller."""
    saveat = dfx.SaveAt(t1=True, solver_state=True, controller_state=True)
    first, integral, plain = _both(name, 0.2, 0.9, saveat=saveat)
    options: dict[str, Any] = dict(
        saveat=saveat,
        solver_state=first.solver_state,
        controller_state=first.controller_state,
    )
    second, rest, plain = _both(name, 0.9, 1.4, y0=plain.ys[-1], **options)
    _same(_arrays(second), _arrays(plain), name)
    assert tree_allclose(integral + rest, _exact(0.2, 1.4), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("t0, t1", ((0.0, 3.0), (0.0, -3.0)))
@pytest.mark.parametrize("root_finder", (None, _newton))
@pytest.mark.parametrize("name", _methods)
def test_event(name, root_finder, t0, t1):
    """The integral ends with the solve, where y = e^(ct) is 2."""
    rate = jnp.sign(t1 - t0) * jnp.array(0.5)
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] - 2.0, root_finder)
    if name == "in_solver" and root_finder is not None:
        pytest.skip("The method integrates over whole steps.")
    ts = jnp.linspace(t0, t1, 3001) if name == "trapezoidal" else None
    solution, integral, plain = _both(
        *(name, t0, t1, jnp.ones(1), dfx.ODETerm(lambda t, y, args: args * y), rate),
        saveat=dfx.SaveAt(t1=True, ts=ts),
        event=event,
        max_steps=256,
    )
    _same(_arrays(solution), _arrays(plain), name)
    end = jnp.max(jnp.abs(plain.ts[jnp.isfinite(plain.ts)]))
    # The square of the third derivative is 2^-6 e^t.
    expected = (jnp.exp(end) - 1) / 64
    rtol = 1e-4 if name == "in_solver" else 1e-6
    assert end < 3 and tree_allclose(integral, expected, rtol=rtol, atol=0.0)


def test_steady_state_event_sees_the_wrapped_term():
    event = dfx.Event(dfx.steady_state_event(rtol=1e-3, atol=1e-3))
    term = dfx.ODETerm(lambda t, y, args: -y)
    for name in ("gauss", "augmented"):
        solution, integral, plain = _both(name, 0.0, 50.0, term=term, event=event)
        _same(_arrays(solution), _arrays(plain), name)
        expected = jnp.mean(_y0**2) / 2
        assert tree_allclose(integral, expected, rtol=1e-3, atol=0.0)


_adjoints = dict(
    checkpoint=dfx.RecursiveCheckpointAdjoint(),
    direct=dfx.DirectAdjoint(),
    forward=dfx.ForwardMode(),
    backsolve=dfx.BacksolveAdjoint(),
)


@pytest.mark.parametrize("adjoint", (*_adjoints,))
@pytest.mark.parametrize("name", ("gauss", "augmented", "in_solver"))
def test_gradient(name, adjoint):
    """Each adjoint gives the gradient of the loss and the integral."""
    if adjoint == "backsolve" and name != "augmented":
        pytest.skip("The adjoint saves one sequence of states only.")

    @jax.jit
    def loss(matrix):
        solution: Any
        solution, integral = dsr.regularized_solve(
            *(_term, _solver(name), 0.2, 1.4, 0.05, _y0, matrix),
            adjoint=_adjoints[adjoint],
            max_steps=32,
            method=_methods[name],
        )
        return jnp.sum(solution.ys[-1] ** 2) + integral

    direction = jr.normal(jr.key(2), (3, 3))
    expected = finite_difference(loss, _matrix, direction)
    gradient = (jax.jacfwd if adjoint == "forward" else jax.grad)(loss)(_matrix)
    actual = jnp.sum(gradient * direction)
    # `BacksolveAdjoint` solves another equation, approximately.
    tolerance = 1e-4 if adjoint == "backsolve" else 1e-6
    assert tree_allclose(actual, expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("saveat", ("t1", "ts"))
def test_backsolve_takes_the_augmented_term_by_itself(saveat):
    solution, integral = dsr.regularized_solve(
        *(_term, dfx.Tsit5(), 0.2, 1.4, None, _y0, _matrix),
        saveat=_saveats[saveat],
        stepsize_controller=_controller,
        adjoint=dfx.BacksolveAdjoint(),
    )
    plain = _both("gauss", saveat=_saveats[saveat])[2]
    _same((solution.ts, solution.ys), (plain.ts, plain.ys), "augmented")
    assert tree_allclose(integral, _exact(0.2, 1.4), rtol=1e-4, atol=0.0)
    for method in (dsr.gauss_legendre(), dsr.in_solver()):
        with pytest.raises(ValueError, match=r"BacksolveAdjoint.*augmented\(\)"):
            dsr.regularized_solve(
                *(_term, dsr.TaylorLagrangeSolver(3), 0.2, 1.4, 0.1, _y0, _matrix),
                adjoint=dfx.BacksolveAdjoint(),
                method=method,
            )


@pytest.mark.parametrize("name", ("gauss", "augmented", "in_solver"))
def test_vmap(name):
    y0 = jr.normal(jr.key(3), (4, 3))

    def solve(y0):
        solution, integral, plain = _both(name, y0=y0)
        return solution.ys, solution.stats["num_steps"], integral

    batched = jax.vmap(solve)(y0)
    alone = jax.tree_util.tree_map(lambda *x: jnp.stack(x), *(solve(y) for y in y0))
    assert tree_allclose(batched, alone, rtol=1e-9, atol=1e-9)
    assert len(set(alone[1].tolist())) > 1


def test_random_nodes_are_unbiased():
    def integral(key):
        return dsr.regularized_solve(
            *(_term, dfx.Tsit5(), 0.2, 1.4, 0.1, _y0, _matrix),
            method=dsr.random_nodes(key, 2),
        )[1]

    samples = jax.vmap(integral)(jr.split(jr.key(0), 500))
    error = jnp.std(samples) / jnp.sqrt(500.0)
    assert jnp.abs(jnp.mean(samples) - _exact(0.2, 1.4)) < 4 * error


def test_default_method():
    """The default is inside a Taylor solver with the derivative, or else from nodes."""

    def solve(solver, regularizer: Any = dsr.DerivativeNorm(3), method=None):
        return dsr.regularized_solve(
            *(_term, solver, 0.2, 1.4, 0.1, _y0, _matrix),
            regularizer=regularizer,
            method=method,
        )[1]

    taylor = dsr.TaylorLagrangeSolver(4)
    assert solve(taylor) == solve(taylor, method=dsr.in_solver())
    noise = dsr.JacobianNorm.draw(jr.key(0), _y0)
    for solver, regularizer in (
        (dfx.Tsit5(), dsr.DerivativeNorm(3)),
        # The error of the highest derivative would be that of first-order steps.
        (taylor, dsr.DerivativeNorm(4)),
        (taylor, dsr.DerivativeNorm(5)),
        (taylor, noise),
        (dsr.TaylorLagrangeSolver(4, regularizer=dsr.DerivativeNorm(2)), None),
    ):
        regularizer = regularizer or dsr.DerivativeNorm(3)
        nodes = solve(solver, regularizer, dsr.gauss_legendre())
        assert solve(solver, regularizer) == nodes


def test_precision_of_python_times():
    """The nodes do not promote the state."""
    y0 = _y0.astype(jnp.float32)
    arguments = (_term, dfx.Tsit5(), 0.2, 1.4, jnp.float32(0.1), y0)
    matrix = _matrix.astype(jnp.float32)
    plain: Any = dfx.diffeqsolve(*arguments, matrix)
    for method in (dsr.gauss_legendre(), dsr.augmented()):
        solution: Any
        solution, integral = dsr.regularized_solve(*arguments, matrix, method=method)
        assert solution.ys.dtype == plain.ys.dtype == integral.dtype == jnp.float32


@pytest.mark.parametrize("name", ("gauss", "augmented", "in_solver"))
def test_failed_solve(name):
    solution, integral, _ = _both(name, max_steps=2, throw=False)
    assert solution.result == dfx.RESULTS.max_steps_reached
    assert jnp.isnan(integral)


@pytest.mark.parametrize("order", (1, 3))
def test_root_finders_do_not_see_the_regularizer(order):
    """In implicit solvers, the integrand is large if the equation is stiff."""

    def stiff(t, y, args):
        return jnp.stack([-50 * y[0] + y[1] ** 2, jnp.cos(3 * y[0] + t) - y[1]])

    arguments = (
        dfx.ODETerm(stiff),
        dfx.Kvaerno3(),
        0.0,
        1.0,
        None,
        jnp.array([1, 2.0]),
    )
    controller = dfx.PIDController(rtol=1e-4, atol=1e-4)
    plain = dfx.diffeqsolve(*arguments, stepsize_controller=controller)
    solution, _ = dsr.regularized_solve(
        *arguments,
        stepsize_controller=controller,
        regularizer=dsr.DerivativeNorm(order),
        method=dsr.augmented(),
    )
    assert solution.stats["num_steps"] == plain.stats["num_steps"]
    assert tree_allclose(solution.ys, plain.ys, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("t0, t1", ((0.2, 1.4), (1.4, 0.2)))
def test_negative_weights(t0, t1):
    """Each method integrates the weighted sum."""
    regularizer = 0.1 * dsr.DerivativeNorm(1) + -2.0 * dsr.DerivativeNorm(2)
    values = [
        dsr.regularized_solve(
            *(_term, dfx.Tsit5(), t0, t1, None, _y0, _matrix),
            stepsize_controller=_controller,
            regularizer=regularizer,
            method=method,
        )[1]
        for method in (dsr.gauss_legendre(12), dsr.augmented())
    ]
    assert values[0] < 0 and tree_allclose(*values, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("solver", (dfx.Kvaerno5(), dfx.Dopri8(), dfx.Euler()))
def test_other_solvers(solver):
    options: dict[str, Any] = dict(solver=solver)
    if isinstance(solver, dfx.Euler):
        ts = jnp.linspace(0.2, 1.4, 1001)
        options["stepsize_controller"] = dfx.StepTo(ts)
    for name in ("gauss", "augmented"):
        solution, integral, plain = _both(name, **options)
        rtol = 1e-6 if isinstance(solver, dfx.Kvaerno5) else 1e-12
        assert tree_allclose(solution.ys, plain.ys, rtol=rtol, atol=1e-12)
        assert tree_allclose(integral, _exact(0.2, 1.4), rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("t0, t1", ((0.0, 1.0), (1.0, 0.0)))
@pytest.mark.parametrize("name", _methods)
def test_nan_in_the_field(name, t0, t1):
    """The integral is NaN even for a constant, whose third derivative is zero."""
    term = dfx.ODETerm(
        lambda t, y, args: jnp.where(jnp.abs(t - t0) > 0.5, jnp.nan, jnp.ones_like(y))
    )
    solution, integral = dsr.regularized_solve(
        *(term, _solver(name), t0, t1, (t1 - t0) / 5, _y0),
        saveat=dfx.SaveAt(ts=jnp.array([t0, (t0 + t1) / 4])),
        throw=False,
        method=_methods[name],
    )
    assert jnp.isnan(integral)


def test_norms_in_wrapping_controllers():
    """The user's norm gets only the wrapped state, also within a controller."""
    norm = lambda y: jnp.max(jnp.abs(y))
    pid = dfx.PIDController(rtol=1e-6, atol=1e-6, norm=norm)
    clip = dfx.ClipStepSizeController(pid, step_ts=jnp.array([0.5]))
    for controller in (pid, clip):
        solution, _, plain = _both("augmented", stepsize_controller=controller)
        assert solution.stats["num_steps"] == plain.stats["num_steps"]
        _same(_arrays(solution), _arrays(plain), "augmented")


def _bad(match, **options):
    arguments: dict[str, Any] = dict(
        terms=_term, solver=dfx.Tsit5(), t0=0.0, t1=1.0, dt0=0.1, y0=_y0, args=_matrix
    )
    with pytest.raises(ValueError, match=match):
        dsr.regularized_solve(**arguments | options)


def test_bad_input(without_type_checks):
    """The message has the argument, the valid values, and the fix."""
    taylor = dsr.TaylorLagrangeSolver(2)
    _bad(
        r"degree 2 has no derivative of order 3. Use .*\(2\).*gauss_legendre",
        solver=taylor,
        method=dsr.in_solver(),
    )
    _bad(
        "dense output of Tsit5 allows derivatives of order 3 at most.*order=4.*gauss",
        regularizer=dsr.DerivativeNorm(4),
        method=dsr.in_solver(),
    )
    _bad(
        "integrates a `DerivativeNorm`, but got.*JacobianNorm.*gauss",
        regularizer=dsr.JacobianNorm.draw(jr.key(0), _y0),
        method=dsr.in_solver(),
    )
    _bad(
        "dense output of HyperSolver is no known function of its stages.*gauss",
        solver=dsr.HyperSolver(dfx.Heun(), dsr.ConstantMidpoint(0.0)),
        method=dsr.in_solver(),
    )
    _bad(
        "solver integrates a regularizer already.*order=2.*Make the solver",
        solver=dsr.TaylorLagrangeSolver(3, regularizer=dsr.DerivativeNorm(2)),
        method=dsr.in_solver(),
    )
    _bad(
        "must be a `DerivativeNorm`.*JacobianNorm",
        solver=taylor,
        regularizer=dsr.JacobianNorm.draw(jr.key(0), _y0),
        method=dsr.in_solver(),
    )
    _bad(
        r"an event with a root finder ends within one.*gauss_legendre",
        solver=dsr.TaylorLagrangeSolver(3),
        event=dfx.Event(lambda t, y, args, **kwargs: y[0] - 2.0, _newton),
        method=dsr.in_solver(),
    )
    _bad(r"(?s)over the times that a solve saves.*ts=\.\.\.", method=dsr.trapezoidal())
    _bad(
        r"must lie in the interval.*from 0 to 1, but got \[1\.5.*gauss_legendre",
        method=dsr.Quadrature(jnp.array([0.5, 1.5]), jnp.ones(2)),
    )
    event = dfx.Event(lambda t, y, args, **kwargs: y[0] > 2.0)
    _bad(
        r"nodes of a `Quadrature` are fixed.*gauss_legendre",
        event=event,
        method=dsr.gauss_legendre().quadrature(0.0, 1.0),
    )
    _bad(
        r"dense output, which needs a `max_steps`.*augmented",
        event=event,
        max_steps=None,
        method=dsr.gauss_legendre(),
    )
    _bad(r"ImplicitAdjoint\(\)` a solve saves no", adjoint=dfx.ImplicitAdjoint())
    _bad(
        r"(?s)saves one sequence of states, but got `saveat=.*Use another adjoint",
        saveat=dfx.SaveAt(dense=True),
        adjoint=dfx.BacksolveAdjoint(),
    )
    _bad("`method` must be.*gauss_legendre.*got 'nodes'", method="nodes")
    _bad("`regularizer` must be.*got 3", regularizer=3)
    _bad("class `Tsit5`.*Call it", solver=dfx.Tsit5)
    _bad("Expected a Diffrax term.*ODETerm", terms=lambda t, y, args: y)
    _bad(
        r"cannot continue from `solver_state=...`.*gauss_legendre",
        solver_state=(False, _y0),
        method=dsr.augmented(),
    )


def test_own_nodes():
    """The error of Simpson's rule is small enough here."""
    ts = jnp.linspace(0.2, 1.4, 41)
    weights = jnp.array([1.0, *[4.0, 2.0] * 19, 4.0, 1.0]) * 0.03 / 3
    _, integral = dsr.regularized_solve(
        *(_term, dfx.Tsit5(), 0.2, 1.4, 0.05, _y0, _matrix),
        method=dsr.Quadrature(ts, weights),
    )
    assert tree_allclose(integral, _exact(0.2, 1.4), rtol=1e-3, atol=0.0)


@pytest.mark.filterwarnings("ignore:Complex")
@pytest.mark.parametrize("root_finder", (None, dfx.VeryChord(rtol=1e-8, atol=1e-10)))
def test_complex_state_of_an_implicit_solver(root_finder):
    """The root finder ignores the integral, which is not holomorphic."""
    term = dfx.ODETerm(lambda t, y, args: -1j * y)
    solver = (
        dfx.Kvaerno3() if root_finder is None else dfx.Kvaerno3(root_finder=root_finder)
    )
    solution, integral = dsr.regularized_solve(
        *(term, solver, 0.0, 1.0, None, jnp.array([1.0 + 2.0j])),
        stepsize_controller=dfx.PIDController(rtol=1e-5, atol=1e-8),
        regularizer=dsr.DerivativeNorm(2),
        method=dsr.augmented(),
    )
    assert int(solution.stats["num_rejected_steps"]) == 0
    assert jnp.allclose(integral, 5.0, rtol=1e-4)
