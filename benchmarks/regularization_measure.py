"""Measures gradient steps, each with another way to get the speed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key, PyTree

from .contestants import VectorField
from .problem import mean_square, Problem
from .regularization_records import Case, GradientStep
from .regularization_ways import Setting, Way, WAYS
from .runs import describe, Run
from .timing import compile_fresh, Executable, interleaved_seconds, Rounds


class Conditions(NamedTuple):
    """Of solves and of measurements.

    **Attributes:**

    - `tolerance`, `max_steps`: of adaptive solves.
    - `weight`: of the speed in the loss.
    - `key`: for random nodes.
    - `rounds`: how run times are taken.
    """

    tolerance: float
    max_steps: int
    weight: float
    key: Key[Array, ""]
    rounds: Rounds


class _Entry(NamedTuple):
    executable: Executable
    call: Callable[[], PyTree[Array]]
    speed: float | None
    num_steps: int


def measure(
    case: Case, problem: Problem, exact: float, conditions: Conditions
) -> list[GradientStep]:
    """All ways in turn, compared with the exact speed. One that fails is left out."""
    entries: dict[str, _Entry] = {}
    failures: dict[str, str] = {}
    for name, way in WAYS[case.solver].items():
        step = _gradient_step(problem, way, case.order, conditions)
        try:
            entries[name] = _entry(step, problem.params, problem.y, conditions.key)
        except Exception as error:  # Whatever it is: that it fails is a result.
            failures[name] = describe(error)
    times = interleaved_seconds(
        {name: entry.call for name, entry in entries.items()}, conditions.rounds
    )

    def record(name: str) -> GradientStep:
        if name in failures:
            return GradientStep(*case, name, failure=failures[name])
        executable, _, speed, num_steps = entries[name]
        error = None if speed is None else abs(speed / exact - 1)
        run = Run(times[name], *executable[1:])
        return GradientStep(*case, name, run, num_steps, speed, error)

    return [record(name) for name in WAYS[case.solver]]


def _gradient_step(
    problem: Problem, way: Way, order: int, conditions: Conditions
) -> Callable[..., PyTree[Array]]:
    """What a training step computes: loss, gradient, and what to tell about them."""

    def step(
        params: PyTree[Array], y0: PyTree[Array], key: Key[Array, ""]
    ) -> PyTree[Array]:
        def loss(params: PyTree[Array], y0: PyTree[Array]) -> tuple[Array, Any]:
            field = VectorField(
                lambda t, y: problem.field(params, t, y), problem.autonomous
            )
            tolerance, max_steps = conditions.tolerance, conditions.max_steps
            solved = way(Setting(field, y0, order, key, tolerance, max_steps))
            value = mean_square(solved.y1)
            if solved.speed is not None:
                value += conditions.weight * solved.speed
            return value, (solved.speed, solved.num_steps)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, y0)

    return step


def _entry(step: Callable[..., PyTree[Array]], *args: Any) -> _Entry:
    executable = compile_fresh(step, *args)

    def call() -> PyTree[Array]:
        return executable.call(*args)

    (_, (speed, num_steps)), _ = call()
    return _Entry(
        executable, call, None if speed is None else float(speed), int(num_steps)
    )
