"""Compares ways to regularize neural ODEs during training.

Measures the time of a gradient step for the papers' vector fields, relative to the same
step without R_K, and the accuracy of R_K. It is integrated with the state, by this
package and by `jax.experimental.jet`, by quadrature after the solve, and inside the
solver.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optimistix as optx
import pandas as pd
from jaxtyping import Array, Float, Int, Key, PyTree

from . import harness, problems
from .derivatives import jet_first_and_last, Point
from .harness import Contestant, measure, Record, Row
from .problems import mean_square, Problem, VectorField
from .report import Benchmark, labels, relative, wide


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """Options of the benchmark of regularization."""

    tolerance: float = 1e-6
    """Relative and absolute tolerance of adaptive solves."""
    max_steps: int = 64
    """Largest number of steps of adaptive solves."""
    weight: float = 1e-4
    """Weight of the regularizer in the loss."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Equation from time 0 to 1, with the order K of its regularizer, and the settings
    of adaptive solves. The key is for random nodes."""

    field: VectorField
    y0: PyTree[Array]
    order: int
    solver: dfx.AbstractSolver
    tolerance: float
    max_steps: int | None = None
    key: Key[Array, ""] = dataclasses.field(default_factory=lambda: jr.key(0))

    @property
    def term(self) -> dfx.ODETerm:
        return dfx.ODETerm(lambda t, y, args: self.field(t, y))


class Solved(NamedTuple):
    """Final state, number of steps, and integral of the regularizer if there is one."""

    y1: PyTree[Array]
    num_steps: Int[Array, ""]
    integral: Float[Array, ""] | None = None


Way: TypeAlias = Callable[[Setting], Solved]


def _solve(
    setting: Setting,
    term: dfx.AbstractTerm,
    y0: PyTree[Array],
    norm: Callable[[Any], Array] = optx.rms_norm,
) -> Solved:
    tolerance = setting.tolerance
    solution = dfx.diffeqsolve(
        *(term, setting.solver, 0.0, 1.0, None, y0),
        stepsize_controller=dfx.PIDController(tolerance, tolerance, norm=norm),
        max_steps=setting.max_steps,
    )
    return Solved(_final(solution), solution.stats["num_steps"])


def _final(solution: dfx.Solution) -> PyTree[Array]:
    return jtu.tree_map(lambda leaf: leaf[-1], solution.ys)


def plain(setting: Setting) -> Solved:
    """Solves without a regularizer."""
    return _solve(setting, setting.term, setting.y0)


def regularized(method: Callable[[Key[Array, ""]], Any], setting: Setting) -> Solved:
    """Solves by `regularized_solve`, with the method that is made from the key."""
    solution, integral = dsr.regularized_solve(
        *(setting.term, setting.solver, 0.0, 1.0, None, setting.y0),
        stepsize_controller=dfx.PIDController(setting.tolerance, setting.tolerance),
        max_steps=setting.max_steps,
        regularizer=dsr.DerivativeNorm(setting.order),
        method=method(setting.key),
    )
    return Solved(_final(solution), solution.stats["num_steps"], integral)


def augmented_with_default_norm(setting: Setting) -> Solved:
    """Integrates the regularizer with the state, in steps for both."""
    term = dsr.SpeedRegularizedTerm(setting.term, setting.order)
    solved = _solve(setting, term, term.init(setting.y0))
    y1, integral = term.split(solved.y1)
    return Solved(y1, solved.num_steps, integral)


def augmented_by_jet(setting: Setting) -> Solved:
    """Integrates with the state, by `jax.experimental.jet` as in easy-neural-ode.

    Its solver chooses steps for the state alone, too.
    """

    def field(t: Any, state: tuple[PyTree[Array], Array], args: None) -> tuple:
        at = Point(setting.field, jnp.asarray(t), state[0], setting.order)
        dy, derivative = jet_first_and_last(at)
        return dy, mean_square(derivative)

    y0 = setting.y0, jnp.zeros(())
    norm = lambda state: optx.rms_norm(state[0])
    (y1, integral), num_steps, _ = _solve(setting, dfx.ODETerm(field), y0, norm)
    return Solved(y1, num_steps, integral)


def taylor(integrate: bool, setting: Setting) -> Solved:
    """Solves by a Taylor method of order 4 in 20 steps, which may integrate R_K."""
    regularizer = dsr.DerivativeNorm(setting.order) if integrate else None
    solver = dsr.TaylorLagrangeSolver(4, regularizer=regularizer)
    solution = dsr.fixed_step_solve(setting.term, solver, 0.0, 1.0, 20, setting.y0)
    assert solution.solver_state is not None
    integral = solution.solver_state.regularizer
    return Solved(_final(solution), solution.stats["num_steps"], integral)


def gauss_legendre(num_nodes: int) -> Way:
    return functools.partial(regularized, lambda key: dsr.gauss_legendre(num_nodes))


PLAIN, FREE, AUGMENTED = "plain", "inside the solver", "augmented"
ADAPTIVE: dict[str, Way] = {
    PLAIN: plain,
    FREE: functools.partial(regularized, lambda key: dsr.in_solver()),
    "augmented by jet": augmented_by_jet,
    AUGMENTED: functools.partial(regularized, lambda key: dsr.augmented()),
    "8 nodes": gauss_legendre(8),
    "4 nodes": gauss_legendre(4),
    "1 random node": functools.partial(regularized, dsr.random_nodes),
}
TAYLOR: dict[str, Way] = {
    PLAIN: functools.partial(taylor, False),
    FREE: functools.partial(taylor, True),
}
# Solvers with the orders K, by field. Dopri5 makes as many evaluations in a step as
# Tsit5, so that one order is enough. The largest K are those of the dense outputs.
ORDERS = {
    "mnist": {"Tsit5": (2, 3, 4), "Dopri5": (3,), "Taylor4": (2, 3, 4)},
    "ffjord": {"Tsit5": (2, 3), "Taylor4": (3,)},
}
SOLVERS = {"Bosh3": dfx.Bosh3(), "Tsit5": dfx.Tsit5(), "Dopri5": dfx.Dopri5()}
SOLVERS |= {"Dopri8": dfx.Dopri8(), "Kvaerno5": dfx.Kvaerno5()}
DENSE = {"Bosh3": 2, "Tsit5": 3, "Dopri5": 3, "Dopri8": 5, "Kvaerno5": 2}
# Factors of the weights and biases: solves then take about ten steps, and small ones
# bend a few times.
SCALES, SMALL_SCALE = {"mnist": 8.0, "ffjord": 1.5}, 1.5
DENSE_SCALES = {"smooth": 1.0, "hard": 2.0}
BATCHES = {"mnist": (100, 500), "ffjord": (100,)}
NODES, NORM_TOLERANCES = (1, 2, 4, 8, 16, 32), (1e-4, 1e-6)
DENSE_TOLERANCES, PRECISE = (1e-3, 1e-5, 1e-7), 1e-9


def rows(options: Options) -> Iterator[tuple[str, list[Row]]]:
    for name, orders in options.choose(ORDERS).items():
        for batch in options.batches(*BATCHES[name]):
            key, _ = jr.split(jr.key(options.seed))
            problem = getattr(problems, name)(batch, key).rescale(SCALES[name])
            exact = functools.cache(functools.partial(precise, problem))
            for solver in options.few(orders):
                for order in options.few(orders[solver]):
                    case = dict(field=name, batch=batch, solver=solver, order=order)
                    yield "steps", _steps(case, problem, exact(order), options)
    yield "quadrature", [*_quadrature(options)]
    yield "norms", [*_norms(options)]
    yield "dense", [*_dense(options)]


def _steps(case: Row, problem: Problem, exact: float, options: Options) -> list[Row]:
    """Measures gradient steps, each with another way to integrate the regularizer."""
    _, key = jr.split(jr.key(options.seed))
    solver = SOLVERS.get(case["solver"], SOLVERS["Tsit5"])
    settings = case["order"], solver, options.tolerance, options.max_steps

    def step(way: Way, params: PyTree, y0: PyTree, key: Key[Array, ""]) -> Any:
        def loss(params: PyTree[Array], y0: PyTree[Array]) -> tuple[Array, Solved]:
            solved = way(Setting(problem.bind(params), y0, *settings, key))
            value = mean_square(solved.y1)
            if solved.integral is not None:
                value += options.weight * solved.integral
            return value, solved._replace(y1=None)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, y0)

    def describe(output: Any) -> Row:
        (_, (_, num_steps, integral)), _ = output
        row: Row = dict(num_steps=int(num_steps))
        if integral is not None:
            row |= dict(
                integral=float(integral), error=abs(float(integral) / exact - 1)
            )
        return row

    args = problem.params, problem.y, key
    contestants = [
        Contestant(case | dict(way=name), functools.partial(step, way), args, describe)
        for name, way in (TAYLOR if case["solver"] == "Taylor4" else ADAPTIVE).items()
    ]
    return measure(contestants, options)


def _in_double(
    problem: Problem, order: int, tolerance: float, solver: str, way: Way
) -> tuple[int, float]:
    """Computes the number of steps and the integral."""
    with jax.enable_x64(True):
        double = problem.in_double()
        field = double.bind(double.params)
        setting = Setting(field, double.y, order, SOLVERS[solver], tolerance)
        solved: Any = jax.jit(lambda: way(setting))()
        return int(solved.num_steps), float(solved.integral or 0.0)


def precise(problem: Problem, order: int) -> float:
    """Integrates R_K with the state, in steps that are short enough for it too."""
    way = augmented_with_default_norm
    return _in_double(problem, order, PRECISE, "Dopri8", way)[1]


def _small(scale: float, options: Options, activation: Callable = jnp.tanh) -> Problem:
    """Makes a problem with a single sample.

    A mean over a batch would smooth the kinks, and outweigh the regularizer in a norm
    of both.
    """
    return problems.blocks(activation, 1, jr.key(options.seed)).rescale(scale)


def _quadrature(options: Options) -> Iterator[Row]:
    """Measures the errors for a smooth field and one with kinks."""
    for name, activation in {"tanh": jnp.tanh, "relu": jax.nn.relu}.items():
        problem = _small(SMALL_SCALE, options, activation)
        exact = precise(problem, 3)
        for nodes in options.few(NODES):
            way = gauss_legendre(nodes)
            _, integral = _in_double(problem, 3, PRECISE, "Dopri8", way)
            error = abs(integral / exact - 1)
            yield dict(activation=name, order=3, num_nodes=nodes, error=error)


def _norms(options: Options) -> Iterator[Row]:
    """Counts steps without R_K, and with it in the state with either norm."""
    problem = _small(SMALL_SCALE, options)
    ways = dict(plain=plain, with_norm=ADAPTIVE[AUGMENTED])
    ways["without_norm"] = augmented_with_default_norm
    for tolerance in options.few(NORM_TOLERANCES):
        yield dict(order=3, tolerance=tolerance) | {
            name: _in_double(problem, 3, tolerance, "Tsit5", way)[0]
            for name, way in ways.items()
        }


def _dense(options: Options) -> Iterator[Row]:
    """Measures the errors of R_K inside each solver."""
    for field, scale in options.few(DENSE_SCALES.items()):
        problem = _small(scale, options)
        exact = functools.cache(functools.partial(precise, problem))
        for solver, largest in options.few(DENSE.items()):
            for order in range(1, largest + 1):
                for tol in options.few(DENSE_TOLERANCES):
                    found = _in_double(problem, order, tol, solver, ADAPTIVE[FREE])
                    case = dict(field=field, solver=solver, order=order, tolerance=tol)
                    error = found[1] / exact(order) - 1
                    yield case | dict(error=error, num_steps=found[0])


def frames(record: Record) -> dict[str, pd.DataFrame]:
    """Makes frames of gradient steps with their ratios, and of all accuracies."""
    steps, dense = record.frame("steps"), record.frame("dense")
    dense["column"] = labels(dense, "tol {tolerance:g}")
    cells = labels(dense, "{error:+.1e} ({num_steps})")
    nodes = record.frame("quadrature")
    nodes["column"] = labels(nodes, "n = {num_nodes}")
    same = "field batch solver order"
    return dict(
        steps=steps.assign(ratio=relative(steps, "seconds", same, way=PLAIN)),
        quadrature=nodes,
        nodes=wide(nodes, "activation", "column", labels(nodes, "{error:.1e}")),
        norms=record.frame("norms"),
        dense=wide(dense, "field solver order", "column", cells),
    )


BENCHMARK = Benchmark("regularization", __doc__, rows, frames, Options)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
