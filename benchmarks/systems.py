"""Measures adaptive solves of small systems over tolerances, in double precision."""

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .harness import Contestant, Executable, measure, Options, Row


MAX_STEPS = 20_000
HEYOKA = importlib.util.find_spec("heyoka") is not None


@dataclasses.dataclass(frozen=True)
class System:
    """Equation from time 0 to `t1`.

    The right-hand side is a function `(m, y) -> list` in the functions of a module `m`,
    such that both JAX and heyoka can use it. If the system is stiff, errors are
    relative to each entry of the state, and solves of more than 20,000 steps fail.
    `scale` is the absolute tolerance, divided by the relative one.
    """

    field: Callable[[Any, Sequence[Any]], list[Any]]
    y0: tuple[float, ...]
    t1: float
    stiff: bool = False
    scale: float = 1.0


def _arenstorf(m: Any, y: Sequence[Any]) -> list[Any]:
    """Computes the motion of a satellite between earth and moon."""
    moon = 0.012277471
    earth = 1 - moon
    x0, x1, v0, v1 = y
    to_earth, to_moon = x0 + moon, x0 - earth
    near_earth = to_earth * to_earth + x1 * x1
    near_moon = to_moon * to_moon + x1 * x1
    a = earth / (near_earth * m.sqrt(near_earth))
    b = moon / (near_moon * m.sqrt(near_moon))
    dv0 = x0 + 2.0 * v1 - a * to_earth - b * to_moon
    return [v0, v1, dv0, x1 - 2.0 * v0 - a * x1 - b * x1]


def _lorenz(m: Any, y: Sequence[Any]) -> list[Any]:
    dy = y[0] * (28.0 - y[2]) - y[1]
    return [10.0 * (y[1] - y[0]), dy, y[0] * y[1] - 8 / 3 * y[2]]


def _pendulum(m: Any, y: Sequence[Any]) -> list[Any]:
    return [y[1], -m.sin(y[0])]


def _robertson(m: Any, y: Sequence[Any]) -> list[Any]:
    slow, back, fast = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] * y[1]
    return [back - slow, slow - back - fast, fast]


def _van_der_pol(mu: float, t1: float, stiff: bool) -> System:
    def field(m: Any, y: Sequence[Any]) -> list[Any]:
        return [y[1], mu * (1.0 - y[0] * y[0]) * y[1] - y[0]]

    return System(field, (2.0, 0.0), t1, stiff)


SMOOTH = {
    # Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.0.
    "arenstorf": System(
        _arenstorf, (0.994, 0.0, 0.0, -2.00158510637908252), 17.0652165601579625
    ),
    "lorenz": System(_lorenz, (1.0, -0.5, 20.0), 5.0),
    "van der pol": _van_der_pol(1.0, 20.0, stiff=False),
    "pendulum": System(_pendulum, (3.0, 0.0), 20.0),
}
STIFF = {
    "robertson": System(_robertson, (1.0, 0.0, 0.0), 100.0, stiff=True, scale=1e-2),
    "vanderpol-100": _van_der_pol(100.0, 200.0, stiff=True),
    "vanderpol-1000": _van_der_pol(1000.0, 2000.0, stiff=True),
}


class _Solved(NamedTuple):
    y1: Any
    steps: Any
    evaluations: Any = None
    successful: Any = True


def _solve(
    system: System,
    solver: Any,
    max_steps: int | None,
    tolerance: Float[Array, ""],
    y0: Float[Array, " n"],
) -> _Solved:
    def field(t: Any, y: Float[Array, " n"], args: None) -> Float[Array, " n"]:
        return jnp.stack(system.field(jnp, list(y)))

    solution = dfx.diffeqsolve(
        *(dfx.ODETerm(field), solver, 0.0, system.t1, 1e-4 if system.stiff else None),
        y0,
        stepsize_controller=dfx.PIDController(tolerance, tolerance * system.scale),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None
    steps = solution.stats["num_steps"]
    successful = solution.result == dfx.RESULTS.successful
    if system.stiff:  # `nfe` is not defined for implicit and exponential solvers.
        return _Solved(solution.ys[-1], steps, successful=successful)
    evaluations = dsr.nfe(solver, solution, adaptive=True)
    return _Solved(solution.ys[-1], steps, evaluations, successful)


def solves(
    name: str,
    system: System,
    solvers: Mapping[str, Any],
    tolerances: Sequence[float],
    options: Options,
) -> list[Row]:
    """Measures all solvers and tolerances in turn, and heyoka for smooth systems."""
    exact, y0 = _reference(system), jnp.array(system.y0)
    scale = np.abs(exact) if system.stiff else np.max(np.abs(exact))

    def describe(solved: _Solved) -> Row:
        if not solved.successful:
            raise RuntimeError(f"more than {MAX_STEPS} steps")
        error = float(np.max(np.abs(np.asarray(solved.y1) - exact) / scale))
        row: Row = dict(steps=int(solved.steps), error=error)
        if solved.evaluations is not None:
            row["evaluations"] = int(solved.evaluations)
        return row

    contestants, limit = [], MAX_STEPS if system.stiff else None
    for method, solver in solvers.items():
        function = functools.partial(_solve, system, solver, limit)
        for tolerance in tolerances:
            columns = dict(problem=name, method=method, tolerance=tolerance)
            args = jnp.array(tolerance), y0
            contestants.append(Contestant(columns, function, args, describe))
    for tolerance in tolerances if HEYOKA and not system.stiff else ():
        columns = dict(problem=name, method="heyoka", tolerance=tolerance)
        function = _heyoka(system, tolerance)
        contestants.append(Contestant(columns, function, (), describe))
    return measure(contestants, options)


def _integrator(system: System, tolerance: float, dtype: type = float) -> Any:
    """Makes heyoka's adaptive Taylor method, compiled."""
    import heyoka as hy

    y = [hy.make_vars(f"y{i}") for i in range(len(system.y0))]
    equations = list(zip(y, system.field(hy, y)))
    y0 = np.array(system.y0, dtype)
    return hy.taylor_adaptive(equations, y0, tol=dtype(tolerance), fp_type=dtype)


def _heyoka(system: System, tolerance: float) -> Executable:
    start = time.perf_counter()
    integrator = _integrator(system, tolerance)
    seconds = time.perf_counter() - start

    def call() -> _Solved:
        integrator.time = 0.0
        integrator.state[:] = system.y0
        steps = integrator.propagate_until(system.t1)[3]
        return _Solved(np.array(integrator.state), steps, steps * integrator.order)

    return Executable(call, 0.0, seconds)


def _reference(system: System) -> np.ndarray:
    """Computes the final state, by heyoka in extended precision if possible."""
    if HEYOKA and not system.stiff:
        integrator = _integrator(system, 1e-18, np.longdouble)
        integrator.propagate_until(np.longdouble(system.t1))
        return np.array(integrator.state, float)
    precise = dfx.Kvaerno5(root_finder=dfx.VeryChord(rtol=1e-12, atol=1e-12))
    solver, tolerance = (precise, 1e-10) if system.stiff else (dfx.Dopri8(), 1e-14)
    solve = jax.jit(functools.partial(_solve, system, solver, 10 * MAX_STEPS))
    solved = solve(jnp.array(tolerance), jnp.array(system.y0))
    assert solved.successful
    return np.asarray(solved.y1)
