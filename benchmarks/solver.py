"""Compares Taylor-Lagrange solvers with others.

On the papers' MNIST network: with the same arithmetic in a hand-written loop, with the
adaptive solvers of the papers, and with Runge-Kutta methods in constant steps. On small
smooth problems in double precision: truncated Taylor methods with Runge-Kutta methods,
and with heyoka, where it is installed.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pandas as pd
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from . import harness, problems
from .harness import Contestant, measure, Record, Row
from .problems import mean_square, Problem
from .report import Benchmark, relative
from .systems import SMOOTH, solves, System


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """Options of the benchmark of solvers."""

    updates: int = 300
    """Updates to fit a midpoint network by."""
    max_steps: int = 32
    """Largest number of steps of adaptive solves of networks."""


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """Equation from time 0 to 1, and a midpoint for Taylor-Lagrange methods."""

    problem: Problem
    midpoint: dsr.AbstractMidpoint


class Solved(NamedTuple):
    """Final state, and the number of evaluations of the field."""

    y1: PyTree[Array]
    evaluations: Int[Array, ""]


Way: TypeAlias = Callable[[Setting], Solved]


@dataclasses.dataclass(frozen=True)
class Entry:
    """Way to solve, with the columns that name it, and a midpoint if it has its own."""

    columns: Row
    way: Way
    midpoint: dsr.AbstractMidpoint | None = None


def taylor(degree: int, num_steps: int, setting: Setting) -> Solved:
    """Solves by the Taylor-Lagrange method of this package."""
    solver = dsr.TaylorLagrangeSolver(degree, setting.midpoint)
    return fixed(solver, num_steps, setting)


def scan(degree: int, num_steps: int, setting: Setting) -> Solved:
    """Makes the same steps without a solver, in a `lax.scan`.

    The gradient computes each step again: its intermediate values would take longer to
    store and to load.
    """
    step = functools.partial(_step, degree, 1 / num_steps, setting)
    starts = jnp.arange(num_steps) / num_steps
    body = jax.checkpoint(lambda y, t0: (step(y, t0), None))
    return _counted(lax.scan(body, setting.problem.y, starts)[0], degree, num_steps)


def loop(degree: int, num_steps: int, setting: Setting) -> Solved:
    """Makes the same steps without a solver, one after the other in the program.

    The gradient keeps all intermediate values.
    """
    y = setting.problem.y
    for i in range(num_steps):
        y = _step(degree, 1 / num_steps, setting, y, i / num_steps)
    return _counted(y, degree, num_steps)


def _step(degree: int, h: float, setting: Setting, y0: Array, t0: Any) -> Array:
    problem = setting.problem

    def expand(t: Any, y: Array, order: int) -> list[Array]:
        terms = dsr.taylor_coefficients(problem.term, t, y, problem.params, order=order)
        return [h**k * c for k, c in enumerate(terms)]

    lower = expand(t0, y0, max(degree - 1, 1))
    offset = setting.midpoint(t0, h, y0, lower[1], None)
    midpoint = y0 + (lower[1] + offset) / (degree + 1)
    remainder = expand(t0 + h / (degree + 1), midpoint, degree)[degree]
    return sum(lower[:degree], remainder)


def _counted(y1: Array, degree: int, num_steps: int) -> Solved:
    solver = dsr.TaylorLagrangeSolver(degree)
    _, evaluations = solver.evaluations(adaptive=False)
    return Solved(y1, jnp.array(num_steps * evaluations))


def fixed(solver: dfx.AbstractSolver, num_steps: int, setting: Setting) -> Solved:
    """Solves in equal steps."""
    problem = setting.problem
    solution = dsr.fixed_step_solve(
        *(problem.term, solver, 0.0, 1.0, num_steps, problem.y, problem.params)
    )
    assert solution.ys is not None
    return Solved(solution.ys[-1], dsr.nfe(solver, solution, adaptive=False))


def adaptive(
    solver: dfx.AbstractSolver, tolerance: float, max_steps: int, setting: Setting
) -> Solved:
    """Solves adaptively, with that relative and absolute tolerance.

    If `max_steps` is not far above the number of steps, the gradient is fastest with a
    checkpoint before each step: faster than with the default of fewer checkpoints, and
    than `diffrax.BacksolveAdjoint`.
    """
    problem = setting.problem
    solution = dfx.diffeqsolve(
        *(problem.term, solver, 0.0, 1.0, None, problem.y, problem.params),
        stepsize_controller=dfx.PIDController(tolerance, tolerance),
        adjoint=dfx.RecursiveCheckpointAdjoint(checkpoints=max_steps),
        max_steps=max_steps,
    )
    assert solution.ys is not None
    return Solved(solution.ys[-1], dsr.nfe(solver, solution, adaptive=True))


# The factors of weights and biases. The scaled network is like the papers' trained
# ones, for which Dopri5 needs about 110 evaluations at a tolerance of 1.4e-8.
SCALES = {"untrained": 1.0, "scaled": 8.0}
BATCH, FIT_BATCH = 500, 100
DEGREES, NUMS_STEPS, FLOOR_STEPS = (1, 2, 3), (1, 2, 4, 8, 16), (2, 4, 8)
KINDS = ("evaluation", "gradient")
FLOORS = dict(solver=taylor, scan=scan, loop=loop)
RUNGE_KUTTA: dict[str, dfx.AbstractSolver] = {"Heun": dfx.Heun(), "Bosh3": dfx.Bosh3()}
RUNGE_KUTTA["Dopri5, constant steps"] = dfx.Dopri5()
LEARNED = "learned Runge-Kutta"
# Adaptive solvers with their tolerances. The papers' are measured with gradients, too.
PAPERS = (("Dopri5", 1.4e-8), ("Tsit5", 1e-5))
ADAPTIVE = {
    "Dopri5": (dfx.Dopri5(), (1e-4, 1e-6, 1.4e-8)),
    "Tsit5": (dfx.Tsit5(), (1e-3, 1e-5, 1e-7)),
}
# Solvers of the smooth systems, their tolerances, and that of the goal.
SOLVERS: dict[str, dfx.AbstractSolver] = {"Dopri8": dfx.Dopri8(), "Tsit5": dfx.Tsit5()}
SOLVERS |= {f"Taylor, p = {p}": dsr.TaylorLagrangeSolver(p) for p in (8, 12, 16)}
TOLERANCES, GOAL_TOLERANCE = tuple(10.0**-k for k in range(4, 13)), 1e-10


def rows(options: Options) -> Iterator[tuple[str, list[Row]]]:
    plans: dict[str, System | None] = {"mnist": None, **SMOOTH}
    tolerances = options.few(TOLERANCES)
    degrees, steps = options.few(DEGREES), options.few(FLOOR_STEPS)
    for name, system in options.choose(plans).items():
        if system is not None:
            with jax.enable_x64(True):
                yield "smooth", solves(name, system, SOLVERS, tolerances, options)
            continue
        for batch in options.batches(BATCH):
            for degree, n in itertools.product(degrees, steps):
                entries = [
                    Entry(dict(way=name), functools.partial(way, degree, n))
                    for name, way in FLOORS.items()
                ]
                for kind in KINDS:
                    case = dict(batch=batch, degree=degree, num_steps=n, kind=kind)
                    setting = _setting("untrained", batch, options)
                    yield "floors", _compare(case, setting, entries, options)
            for network in options.few(SCALES):
                fitted = {p: _fit(network, p, options) for p in degrees}
                for kind in KINDS:
                    case = dict(network=network, batch=batch, kind=kind)
                    setting = _setting(network, batch, options)
                    entries = _entries(kind == "evaluation", fitted, options)
                    yield "networks", _compare(case, setting, [*entries], options)


@functools.cache
def _setting(network: str, batch: int, options: Options) -> Setting:
    """Makes the network, with an elementwise, untrained midpoint as in the papers."""
    problem_key, midpoint_key = jr.split(jr.key(options.seed))
    problem = problems.mnist(batch, problem_key).rescale(SCALES[network])
    return Setting(problem, dsr.MidpointMLP(problem.y.shape[-1], key=midpoint_key))


def _compare(
    case: Row, setting: Setting, entries: Sequence[Entry], options: Options
) -> list[Row]:
    """Measures all ways in turn, and compares them with the exact state.

    These are solves, or gradients of a loss in all arrays.
    """
    exact, gradient = _exact_state(setting), case["kind"] == "gradient"

    def describe(output: Any) -> Row:
        y1, evaluations = output[0][1] if gradient else output[1]
        errors = np.asarray(y1, np.float64) - exact
        error = float(np.sqrt(np.mean(errors**2)))
        return dict(evaluations=int(evaluations), error=error)

    def loss(way: Way, static: Any, arrays: PyTree[Array]) -> tuple[Array, Solved]:
        params, y0, midpoint = eqx.combine(arrays, static)
        problem = dataclasses.replace(setting.problem, params=params, y=y0)
        solved = way(Setting(problem, midpoint))
        return mean_square(solved.y1), solved

    contestants = []
    for entry in entries:
        midpoint = entry.midpoint or setting.midpoint
        tree = setting.problem.params, setting.problem.y, midpoint
        arrays, static = eqx.partition(tree, eqx.is_array)
        function: Any = functools.partial(loss, entry.way, static)
        if gradient:
            function = jax.value_and_grad(function, has_aux=True)
        columns = case | entry.columns
        contestants.append(Contestant(columns, function, (arrays,), describe))
    return measure(contestants, options)


def _entries(
    whole: bool, fitted: Mapping[int, dsr.AbstractMidpoint], options: Options
) -> Iterator[Entry]:
    """Lists the ways to solve a network, or only the main ones."""
    for p, midpoint in fitted.items() if whole else ():
        columns = dict(method=f"{_name(p)}, fitted", setting=2)
        yield Entry(columns, functools.partial(taylor, p, 2), midpoint)
    for n in options.few(NUMS_STEPS) if whole else (2,):
        for p in fitted:
            way = functools.partial(taylor, p, n)
            yield Entry(dict(method=_name(p), setting=n), way)
        for name, solver in RUNGE_KUTTA.items() if whole else ():
            way = functools.partial(fixed, solver, n)
            yield Entry(dict(method=name, setting=n), way)
        if whole:  # A single step with all stages.
            solver = dsr.LearnedRungeKutta(dfx.Midpoint(), n)
            yield Entry(
                dict(method=LEARNED, setting=n), functools.partial(fixed, solver, 1)
            )
    for name, (solver, tolerances) in ADAPTIVE.items():
        for tol in options.few(tolerances):
            if whole or (name, tol) in PAPERS:
                way = functools.partial(adaptive, solver, tol, options.max_steps)
                yield Entry(dict(method=name, setting=tol), way)


def _fit(network: str, degree: int, options: Options) -> dsr.AbstractMidpoint:
    """Fits a midpoint such that two steps end where an adaptive solve ends.

    The states are distributed as the initial ones, but are not the same.
    """
    setting = _setting(network, FIT_BATCH, options)
    problem, (_, tolerance) = setting.problem, PAPERS[1]

    def equation(y0: Float[Array, "batch state"]) -> dsr.training.InitialValueProblem:
        return dsr.training.InitialValueProblem(problem.term, y0, args=problem.params)

    def batches(key: Key[Array, ""], step: int) -> Float[Array, "batch state"]:
        return jr.uniform(jr.fold_in(key, step), problem.y.shape)

    updates = 3 if options.quick else options.updates
    fitted = dsr.training.fit_solver(
        *(dsr.TaylorLagrangeSolver(degree, setting.midpoint), equation, batches),
        num_steps=updates,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, updates)),
        reference=dsr.training.Reference(2, dfx.Tsit5(), tolerance, tolerance),
        solver_steps=1,
        key=jr.fold_in(jr.key(options.seed), 1),
    ).solver
    assert isinstance(fitted, dsr.TaylorLagrangeSolver) and fitted.midpoint is not None
    return fitted.midpoint


@functools.cache
def _exact_state(setting: Setting) -> np.ndarray:
    with jax.enable_x64(True):
        double = setting.problem.in_double()
        solution = dfx.diffeqsolve(
            *(double.term, dfx.Dopri8(), 0.0, 1.0, None, double.y, double.params),
            stepsize_controller=dfx.PIDController(rtol=1e-11, atol=1e-11),
            max_steps=None,
        )
        assert solution.ys is not None
        return np.asarray(solution.ys[-1])


def _name(degree: int) -> str:
    return f"Taylor-Lagrange, p = {degree}"


def frames(record: Record) -> dict[str, pd.DataFrame]:
    """Makes frames of all tables, with the ratios of the goals.

    `fastest` has the fastest truncated Taylor method, of any order and tolerance, that
    is at least as precise as Dopri8 at `GOAL_TOLERANCE`.
    """
    floors, networks = record.frame("floors"), record.frame("networks")
    smooth, fastest = record.frame("smooth"), []
    same, (method, tolerance) = "batch degree num_steps kind", PAPERS[0]
    to = {f"to_{way}": relative(floors, "seconds", same, way=way) for way in FLOORS}
    base = dict(method=method, setting=tolerance)
    to_dopri5 = relative(networks, "seconds", "network batch kind", **base)
    to_heun = relative(networks, "seconds", "network batch kind setting", method="Heun")
    for problem, group in smooth.groupby("problem") if len(smooth) else ():
        best = group[(group.method == "Dopri8") & (group.tolerance == GOAL_TOLERANCE)]
        if len(best):
            precise = group[group.error <= best.error.item()]
            ours = precise[precise.method.str.startswith("Taylor")].seconds.min()
            fastest.append(dict(problem=problem, ratio=ours / best.seconds.item()))
    return dict(
        floors=floors.assign(**to),
        networks=networks.assign(to_dopri5=to_dopri5, to_heun=to_heun),
        smooth=smooth.assign(per_evaluation=smooth["seconds"] / smooth["evaluations"]),
        fastest=pd.DataFrame(fastest),
    )


BENCHMARK = Benchmark("solver", __doc__, rows, frames, Options)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
