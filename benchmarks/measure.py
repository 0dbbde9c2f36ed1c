"""Measures all contestants on one problem, at one order after the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .contestants import Contestant, ONLY_AT, OURS, VectorField
from .problem import mean_square, Problem
from .records import Measurement, YARDSTICK
from .runs import build_seconds, describe, Run
from .timing import compile_repeatedly, Executable, interleaved_seconds, Rounds


class Limits(NamedTuple):
    """What a contestant may take.

    **Attributes:**

    - `rounds`: how run times are taken.
    - `build_seconds`: one that takes longer than this to trace and compile is not
        measured at higher orders.
    - `build_repeats`: how often what compiles quickly is compiled.
    """

    rounds: Rounds
    build_seconds: float
    build_repeats: int


class _Entry(NamedTuple):
    executable: Executable
    call: Callable[[], PyTree[Array]]
    numbers: Float[np.ndarray, " numbers"]


def measure(
    name: str,
    batch: int,
    problem: Problem,
    orders: Sequence[int],
    contestants: Mapping[str, Contestant],
    limits: Limits,
) -> Iterator[list[Measurement]]:
    """The measurements at each order, the field's own among them each time.

    A contestant that fails, or takes too long to compile, is left out from then on.
    """
    stopped: dict[str, str] = {}
    for order in sorted(orders):
        left_out = {**_unsuited(order), **stopped}
        running = {k: c for k, c in contestants.items() if k not in left_out}
        found = _measure_order(problem, order, {YARDSTICK: _once, **running}, limits)
        found.update({k: dict(failure=why) for k, why in left_out.items()})
        measurements = [
            Measurement(name, batch, order, contestant, **found[contestant])
            for contestant in (YARDSTICK, *contestants)
        ]
        yield measurements
        for measurement in measurements:
            reason = _why_stop(measurement, limits)
            if reason is not None and measurement.contestant in running:
                stopped[measurement.contestant] = reason


def _once(
    field: VectorField, t: Float[Array, ""], y: PyTree[Array], order: int
) -> PyTree[Array]:
    del order
    return field(t, y)


def _unsuited(order: int) -> dict[str, str]:
    return {
        name: f"not tried: only at orders {', '.join(map(str, orders))}"
        for name, orders in ONLY_AT.items()
        if order not in orders
    }


def _why_stop(measurement: Measurement, limits: Limits) -> str | None:
    if measurement.failure is not None:
        return f"not tried: failed at order {measurement.order}"
    built = build_seconds(measurement.gradient or measurement.forward)
    if built is not None and built > limits.build_seconds:
        return (
            f"not tried: order {measurement.order} took more than "
            f"{limits.build_seconds:g} s to compile"
        )
    return None


def _measure_order(
    problem: Problem,
    order: int,
    contestants: Mapping[str, Contestant],
    limits: Limits,
) -> dict[str, dict[str, Any]]:
    """What there is to say of each contestant, by the names of its attributes."""
    found: dict[str, dict[str, Any]] = {}
    forward: dict[str, _Entry] = {}
    gradient: dict[str, _Entry] = {}
    for name, contestant in contestants.items():
        derivative = _derivative(problem, contestant, order)
        try:
            forward[name] = _entry(derivative, problem, limits)
            if problem.reverse:
                loss = _mean_square(derivative)
                gradient[name] = _entry(
                    jax.value_and_grad(loss, (0, 2)), problem, limits
                )
        except Exception as error:  # Whatever it is: that it fails is a result.
            forward.pop(name, None)
            found[name] = dict(failure=describe(error))
    for kind, entries in dict(forward=forward, gradient=gradient).items():
        times = interleaved_seconds(
            {k: e.call for k, e in entries.items()}, limits.rounds
        )
        for name, entry in entries.items():
            found.setdefault(name, {})[kind] = Run(times[name], *entry.executable[1:])
    for key, entries in dict(error=forward, gradient_error=gradient).items():
        for name in entries.keys() - {OURS, YARDSTICK}:
            found[name][key] = _difference(entries, name)
    return found


def _derivative(
    problem: Problem, contestant: Contestant, order: int
) -> Callable[..., PyTree[Array]]:
    def derivative(
        params: PyTree[Array], t: Float[Array, ""], y: PyTree[Array]
    ) -> PyTree[Array]:
        field = VectorField(
            lambda t, y: problem.field(params, t, y), problem.autonomous
        )
        return contestant(field, t, y, order)

    return derivative


def _mean_square(
    derivative: Callable[..., PyTree[Array]],
) -> Callable[..., Float[Array, ""]]:
    return lambda *args: mean_square(derivative(*args))


def _entry(
    function: Callable[..., PyTree[Array]], problem: Problem, limits: Limits
) -> _Entry:
    args = problem.params, problem.t, problem.y
    executable = compile_repeatedly(function, *args, repeats=limits.build_repeats)

    def call() -> PyTree[Array]:
        return executable.call(*args)

    leaves = map(np.ravel, jtu.tree_leaves(jax.device_get(call())))
    return _Entry(executable, call, np.concatenate(list(leaves)))


def _difference(entries: Mapping[str, _Entry], name: str) -> float | None:
    if OURS not in entries:
        return None
    ours, theirs = entries[OURS].numbers, entries[name].numbers
    return float(np.max(np.abs(theirs - ours)) / np.max(np.abs(ours)))
