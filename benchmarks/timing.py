"""What all benchmarks share: compile time, memory, run time, versions, hardware."""

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree


_Name = TypeVar("_Name", bound=Hashable)


class Executable(NamedTuple):
    """A compiled function, and what it took to get it.

    **Attributes:**

    - `call`: the function, which takes arguments of the shapes it was compiled for.
    - `trace_seconds`: what Python and JAX took to trace and lower it.
    - `compile_seconds`: what XLA took to compile it.
    - `memory_bytes`: what it allocates: temporaries and outputs, by XLA's own account.
    """

    call: Callable[..., PyTree[Array]]
    trace_seconds: float
    compile_seconds: float
    memory_bytes: int | None


def compile_fresh(function: Callable[..., PyTree[Array]], *args: Any) -> Executable:
    """Compiles as if for the first time in this process.

    Traces of inner functions (those that `jax.nn` jits, say) are cached too, and would
    be a present to whoever comes second: all of JAX's caches are cleared before.
    """
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    return Executable(compiled, traced - start, end - traced, _memory_bytes(compiled))


def compile_repeatedly(
    function: Callable[..., PyTree[Array]],
    *args: Any,
    repeats: int = 3,
    most_seconds: float = 1.0,
) -> Executable:
    """As [`compile_fresh`][], with the median of several times where these are short.

    Compiles again until it has done so `repeats` times, or for `most_seconds` in all.
    """
    runs = [compile_fresh(function, *args)]

    def total(run: Executable) -> float:
        return run.trace_seconds + run.compile_seconds

    while len(runs) < repeats and sum(map(total, runs)) < most_seconds:
        runs.append(compile_fresh(function, *args))
    return sorted(runs, key=total)[len(runs) // 2]


def _memory_bytes(compiled: jax.stages.Compiled) -> int | None:
    analysis = compiled.memory_analysis()  # Not available on all platforms.
    if analysis is None:
        return None
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


class Rounds(NamedTuple):
    """How run times are taken.

    **Attributes:**

    - `repeats`: how many rounds are made, in each of which everybody has a turn.
    - `least_repeats`: how many are made even if that takes longer than `most_seconds`.
    - `most_seconds`: how long they may take together.
    - `turn_seconds`: how long a turn is at least: calls that are shorter are repeated.
    """

    repeats: int = 20
    least_repeats: int = 5
    most_seconds: float = 10.0
    turn_seconds: float = 0.005


def interleaved_seconds(
    calls: Mapping[_Name, Callable[[], PyTree[Array]]], rounds: Rounds = Rounds()
) -> dict[_Name, float]:
    """The median time of each call.

    All are called in turn, round after round, so that what disturbs the machine for a
    while disturbs all of them alike, and their ratios hardly. Every call is waited for
    before the next one: a sequence of steps, as an ODE's, can't overlap either.
    """
    once = {name: _turn_seconds(call, 2) for name, call in calls.items()}
    counts = {name: math.ceil(rounds.turn_seconds / once[name]) for name in calls}
    round_seconds = sum(once[name] * counts[name] for name in calls)
    affordable = int(rounds.most_seconds / max(round_seconds, 1e-9))
    repeats = min(rounds.repeats, max(rounds.least_repeats, affordable))
    seconds: dict[_Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(_turn_seconds(call, counts[name]))
    return {name: float(np.median(times)) for name, times in seconds.items()}


def _turn_seconds(call: Callable[[], PyTree[Array]], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / count


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of these packages; of those installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, str | int]:
    """What ran it, as far as the operating system and JAX tell."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "platform": device.platform,
        "device": device.device_kind,
    }


def _usable_cores() -> int:
    # A process may be pinned to fewer cores than there are; not known on all systems.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":")[1] for line in lines if line.startswith("model name")]
    return models[0].strip() if models else platform.processor() or platform.machine()
