"""What all benchmarks keep of a compiled function, or of why there is none."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar


Results = TypeVar("Results")


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


def save(results: Any, path: Path) -> None:
    path.write_text(json.dumps(plain(results), indent=1) + "\n")


def load(
    path: Path, results: Callable[..., Results], **kinds: Callable[..., Any]
) -> Results:
    """What was saved: lists of these named tuples, and how they came about."""
    record = json.loads(path.read_text())
    for key, kind in kinds.items():
        record[key] = [kind(**_with_runs(one)) for one in record[key]]
    return results(**record)


def _with_runs(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: Run(**{"memory_bytes": None, **value})
        if isinstance(value, Mapping)
        else value
        for key, value in record.items()
    }


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
