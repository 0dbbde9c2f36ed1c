"""Measures solves of a neural ODE, and their gradients."""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from .problem import mean_square, Problem
from .runs import describe, Run
from .solver_records import Floor, Kind, NetworkSolve
from .solver_ways import (
    initial_value_problem,
    Label,
    scan,
    Setting,
    Solved,
    taylor,
    Way,
)
from .timing import compile_fresh, interleaved_seconds, Rounds


_Name = TypeVar("_Name", bound=Hashable)


class _Entry(NamedTuple):
    run: Run
    solved: Solved


def measure(
    network: str,
    kind: Kind,
    setting: Setting,
    ways: Mapping[Label, Way],
    exact: np.ndarray,
    rounds: Rounds,
) -> Iterator[NetworkSolve]:
    """All ways in turn, compared with the exact state. One that fails is left out."""
    entries, failures = _entries(kind, setting, ways, rounds)
    batch = len(exact)
    for label in ways:
        if label in failures:
            yield NetworkSolve(network, batch, kind, *label, failure=failures[label])
            continue
        run, (y1, evaluations) = entries[label]
        error = float(np.sqrt(np.mean((np.asarray(y1, np.float64) - exact) ** 2)))
        yield NetworkSolve(network, batch, kind, *label, run, int(evaluations), error)


def floor(
    order: int, num_steps: int, kind: Kind, setting: Setting, rounds: Rounds
) -> Floor:
    """The solver against the scan."""
    ways = dict(
        solver=functools.partial(taylor, order, num_steps),
        scan=functools.partial(scan, order, num_steps),
    )
    entries, failures = _entries(kind, setting, ways, rounds)
    if failures:
        raise RuntimeError(f"The solver can't be compared with the scan: {failures}")
    solver, by_hand = entries["solver"], entries["scan"]
    difference = float(jnp.max(jnp.abs(solver.solved.y1 - by_hand.solved.y1)))
    batch = len(by_hand.solved.y1)
    return Floor(batch, order, num_steps, kind, solver.run, by_hand.run, difference)


def exact_state(problem: Problem) -> np.ndarray:
    """In double precision."""
    with jax.enable_x64(True):
        arrays = jtu.tree_map(
            lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64),
            (problem.params, problem.y),
        )

        @jax.jit
        def solve(params: PyTree[Array], y0: Array) -> Array:
            ivp = initial_value_problem(problem._replace(params=params, y=y0))
            solution = dsr.solve_adaptive(ivp, dfx.Dopri8(), 1e-11, max_steps=None)
            return dsr.final_state(solution)

        return np.asarray(solve(*arrays))


def _entries(
    kind: Kind, setting: Setting, ways: Mapping[_Name, Way], rounds: Rounds
) -> tuple[dict[_Name, _Entry], dict[_Name, str]]:
    arrays, static = eqx.partition(
        (setting.problem.params, setting.problem.y, setting.correction), eqx.is_array
    )
    calls: dict[_Name, Callable[[], PyTree[Array]]] = {}
    made: dict[_Name, tuple[Any, Solved]] = {}
    failures: dict[_Name, str] = {}
    for name, way in ways.items():
        try:
            executable = compile_fresh(_function(kind, setting, way, static), arrays)
            call = functools.partial(executable.call, arrays)
            _, solved = call()
        except Exception as error:  # Whatever it is: that it fails is a result.
            failures[name] = describe(error)
        else:
            calls[name], made[name] = call, (executable, solved)
    times = interleaved_seconds(calls, rounds)
    entries = {
        name: _Entry(Run(times[name], *executable[1:]), solved)
        for name, (executable, solved) in made.items()
    }
    return entries, failures


def _function(
    kind: Kind, setting: Setting, way: Way, static: PyTree[Any]
) -> Callable[[PyTree[Array]], tuple[PyTree[Array] | None, Solved]]:
    """The solve; for the gradient also that of the loss, in parameters of both networks
    and in the initial state."""

    def loss(arrays: PyTree[Array]) -> tuple[Array, Solved]:
        params, y0, correction = eqx.combine(arrays, static)
        problem = setting.problem._replace(params=params, y=y0)
        solved = way(Setting(problem, correction))
        return mean_square(solved.y1), solved

    def gradient(arrays: PyTree[Array]) -> tuple[PyTree[Array], Solved]:
        return jax.grad(loss, has_aux=True)(arrays)

    def evaluation(arrays: PyTree[Array]) -> tuple[None, Solved]:
        return None, loss(arrays)[1]

    return gradient if kind == "gradient" else evaluation
