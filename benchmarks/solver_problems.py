"""Small smooth problems, of which Taylor's method is known to be good.

Their right-hand sides are functions `(m, y) -> list` in the functions of a module `m`,
such that both JAX and heyoka can use them.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class SmoothProblem(NamedTuple):
    """An autonomous equation, from time 0 to `t1`."""

    field: Callable[[Any, Sequence[Any]], list[Any]]
    y0: list[float]
    t1: float


def _arenstorf(m: Any, y: Sequence[Any]) -> list[Any]:
    """A satellite between earth and moon."""
    moon = 0.012277471
    earth = 1 - moon
    x0, x1, v0, v1 = y
    to_earth, to_moon = x0 + moon, x0 - earth
    near_earth = to_earth * to_earth + x1 * x1
    near_moon = to_moon * to_moon + x1 * x1
    a = earth / (near_earth * m.sqrt(near_earth))
    b = moon / (near_moon * m.sqrt(near_moon))
    return [
        v0,
        v1,
        x0 + 2.0 * v1 - a * to_earth - b * to_moon,
        x1 - 2.0 * v0 - a * x1 - b * x1,
    ]


def _lorenz(m: Any, y: Sequence[Any]) -> list[Any]:
    del m
    return [
        10.0 * (y[1] - y[0]),
        y[0] * (28.0 - y[2]) - y[1],
        y[0] * y[1] - 8 / 3 * y[2],
    ]


def _van_der_pol(m: Any, y: Sequence[Any]) -> list[Any]:
    del m
    return [y[1], (1.0 - y[0] * y[0]) * y[1] - y[0]]


def _pendulum(m: Any, y: Sequence[Any]) -> list[Any]:
    return [y[1], -m.sin(y[0])]


PROBLEMS = {
    # Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.0.
    "arenstorf": SmoothProblem(
        _arenstorf, [0.994, 0.0, 0.0, -2.00158510637908252], 17.0652165601579625
    ),
    "lorenz": SmoothProblem(_lorenz, [1.0, -0.5, 20.0], 5.0),
    "van der pol": SmoothProblem(_van_der_pol, [2.0, 0.0], 20.0),
    "pendulum": SmoothProblem(_pendulum, [3.0, 0.0], 20.0),
}


def heyoka_is_installed() -> bool:
    return importlib.util.find_spec("heyoka") is not None


def heyoka_integrator(
    problem: SmoothProblem, tolerance: float, dtype: type = float
) -> Any:
    """Its adaptive Taylor method, compiled."""
    import heyoka as hy

    y = [hy.make_vars(f"y{i}") for i in range(len(problem.y0))]
    equations = list(zip(y, problem.field(hy, y)))
    y0 = np.array(problem.y0, dtype)
    return hy.taylor_adaptive(equations, y0, tol=dtype(tolerance), fp_type=dtype)


def reference(problem: SmoothProblem) -> np.ndarray:
    """The final state: with heyoka in extended precision, where there is one."""
    if heyoka_is_installed():
        integrator = heyoka_integrator(problem, 1e-18, np.longdouble)
        integrator.propagate_until(np.longdouble(problem.t1))
        return np.array(integrator.state, float)
    from scipy.integrate import solve_ivp

    def field(t: float, y: np.ndarray) -> list[float]:
        return problem.field(math, list(y))

    span, rtol, atol = (0.0, problem.t1), 2.5e-14, 1e-15
    solution = solve_ivp(field, span, problem.y0, "DOP853", rtol=rtol, atol=atol)
    return solution.y[:, -1]
