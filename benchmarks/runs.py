"""What all benchmarks keep of a compiled function, or of why there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Run(NamedTuple):
    """Of one compiled function: median run time, and what compiling it took."""

    seconds: float
    trace_seconds: float
    compile_seconds: float
    memory_bytes: int | None


def seconds(run: Run | None) -> float | None:
    return None if run is None else run.seconds


def build_seconds(run: Run | None) -> float | None:
    """Tracing, lowering and compiling: what a user waits for."""
    return None if run is None else run.trace_seconds + run.compile_seconds


def memory(run: Run | None) -> float | None:
    return None if run is None else run.memory_bytes


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def describe(error: Exception) -> str:
    """The first line, shortened: the messages of some errors are pages long."""
    line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {line}"[:160]


def plain(value: Any) -> Any:
    """For JSON: named tuples as dictionaries, without those of their entries that are
    `None`."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        entries = value._asdict().items()  # pyright: ignore[reportAttributeAccessIssue]
        return {key: plain(entry) for key, entry in entries if entry is not None}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return value
