"""Options, records and timing of all benchmarks."""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import numpy as np
import pandas as pd


Row: TypeAlias = dict[str, Any]
_Item = TypeVar("_Item")

PACKAGES = ("diffrax-speedreg", "jax", "jaxlib", "diffrax", "equinox", "optax")
PACKAGES += ("probdiffeq", "heyoka")
LEAST_ROUNDS, TURN_SECONDS = 5, 0.005
# A row is refused if its wall time exceeds its CPU time by this factor: a call keeps at
# least one core busy, unless other programs are in the way.
DISTURBED = 1.15
_COLUMNS = ["seconds", "spread", "cpu_seconds", "trace_seconds", "compile_seconds"]
_COLUMNS += ["memory_bytes", "evaluations", "error", "failure"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of all benchmarks."""

    fields: tuple[str, ...] = ()
    """Vector fields; if empty, all of them."""
    batch: tuple[int, ...] = ()
    """Batch sizes of all fields; if empty, each field has its own."""
    quick: bool = False
    """Make a short run, to see that it works."""
    repeats: int = 20
    """Rounds of run times."""
    seconds: float = 10.0
    """Limit on all rounds of a comparison, of which at least 5 are made."""
    precision: Literal["default", "high", "highest"] = "highest"
    """Precision of matrix products, where the hardware has a choice."""
    seed: int = 0
    """Seed of parameters and states."""
    out: Path = Path("benchmarks/results")
    """Folder for the results."""
    render: Path | None = None
    """Measure nothing, but write the report of this JSON file again."""

    def choose(self, plans: Mapping[str, _Item]) -> dict[str, _Item]:
        if unknown := set(self.fields) - set(plans):
            raise SystemExit(f"--fields must be among {[*plans]}; got {unknown}.")
        return {name: plans[name] for name in self.fields or plans}

    def path(self, name: str) -> Path:
        self.out.mkdir(parents=True, exist_ok=True)
        quick = "-quick" if self.quick else ""
        return self.out / f"{name}-{jax.default_backend()}{quick}.json"

    def few(self, items: Iterable[_Item]) -> list[_Item]:
        """Returns all items, or only the first one for a short run."""
        return [*items][: 1 if self.quick else None]

    def batches(self, *sizes: int) -> tuple[int, ...]:
        return self.batch or ((4,) if self.quick else sizes)


def circumstances() -> tuple[dict[str, str], dict[str, str | int]]:
    """Returns the versions of packages, and the hardware, of this process."""
    found = {one.name: one.version for one in importlib.metadata.distributions()}
    versions = {name: found[name] for name in PACKAGES if name in found}
    cpus = Path("/proc/cpuinfo")
    text = cpus.read_text() if cpus.exists() else ""
    names = re.findall("model name.*: (.*)", text)
    # A process may be restricted to some cores. Not all systems report this.
    restricted = hasattr(os, "sched_getaffinity")
    hardware = dict(
        cpu=names[0] if names else platform.machine(),
        cores=len(os.sched_getaffinity(0)) if restricted else os.cpu_count() or 1,
        device=jax.devices()[0].device_kind,
    )
    kept = {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}
    return dict(python=platform.python_version()) | versions, hardware | kept


@dataclasses.dataclass(frozen=True)
class Record:
    """Rows of measurements by table, and their circumstances."""

    options: Mapping[str, Any]
    versions: Mapping[str, str]
    hardware: Mapping[str, str | int]
    tables: dict[str, list[Row]]

    @classmethod
    def begin(cls, options: Options) -> "Record":
        """Configures JAX: single precision, and no cache from earlier runs."""
        jax.config.update("jax_enable_x64", False)
        jax.config.update("jax_enable_compilation_cache", False)
        jax.config.update("jax_default_matmul_precision", options.precision)
        ignored = ("out", "render")
        settings = {k: v for k, v in vars(options).items() if k not in ignored}
        # As a file holds them.
        settings = {k: [*v] if isinstance(v, tuple) else v for k, v in settings.items()}
        return cls(settings, *circumstances(), {})

    @classmethod
    def load(cls, path: Path) -> "Record":
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        """Writes JSON, with a line for each row."""
        tables = ",\n".join(
            f'  "{name}": [\n   ' + ",\n   ".join(map(json.dumps, rows)) + "\n  ]"
            for name, rows in self.tables.items()
        )
        text = json.dumps(vars(self) | dict(tables=None), indent=1, default=str)
        path.write_text(text.removesuffix("null\n}") + f"{{\n{tables}\n }}\n}}\n")

    def frame(self, table: str) -> pd.DataFrame:
        """Makes a frame of a table, in which disturbed rows have no times."""
        frame = pd.DataFrame(self.tables.get(table, []))
        missing = {name: None for name in _COLUMNS if name not in frame}
        frame = frame.assign(**missing).astype(dict.fromkeys(_COLUMNS[:-1], float))
        disturbed = frame["seconds"] > DISTURBED * frame["cpu_seconds"]
        failure = frame["failure"].astype(object)
        return frame.assign(
            seconds=frame["seconds"].mask(disturbed),
            failure=failure.mask(disturbed, "refused: disturbed"),
            build=frame["trace_seconds"] + frame["compile_seconds"],
        )


@dataclasses.dataclass(frozen=True)
class Executable:
    """Compiled function, the times to trace and to compile it, and the memory for
    temporaries and outputs, as reported by XLA."""

    call: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median time of a call, half the distance of its quartiles, and its CPU time."""

    seconds: float
    spread: float
    cpu_seconds: float | None

    @property
    def disturbed(self) -> bool:
        cpu = self.cpu_seconds
        return cpu is not None and self.seconds > DISTURBED * cpu


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Function that is compared with others, with its arguments.

    Contestants with the same function share its compilation. `columns` name it in the
    record, and `describe` makes more of its output, or raises an error.
    """

    columns: Row
    function: Callable[..., Any] | Executable
    args: tuple[Any, ...]
    describe: Callable[[Any], Row]


def compile_fresh(function: Callable[..., Any], *args: Any, repeats: int) -> Executable:
    """Compiles as if for the first time in this process.

    All of JAX's caches are cleared before. The traces of inner functions (such as the
    jitted ones of `jax.nn`) are cached too, and would favor the second contestant.
    Short compilations are repeated, and the median one is returned.
    """
    runs: list[Executable] = []
    begin = time.perf_counter()
    while not runs or len(runs) < repeats and time.perf_counter() - begin < 1.0:
        jax.clear_caches()
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*args)
        traced = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
        used: Any = compiled.memory_analysis()  # Not available on all platforms.
        memory = used and used.temp_size_in_bytes + used.output_size_in_bytes
        runs.append(Executable(compiled, traced - start, end - traced, memory))
    runs.sort(key=lambda run: run.trace_seconds + run.compile_seconds)
    return runs[len(runs) // 2]


def interleave(calls: Sequence[Callable[[], Any]], options: Options) -> list[Timing]:
    """Measures the times of calls.

    All are called in turn, round after round: a disturbance of the machine then affects
    all of them alike, and hardly changes their ratios. Each call ends before the next
    one starts, like the steps of an ODE solver, which can't overlap.
    """
    once = [_turn(call, 2)[0] for call in calls]
    counts = [math.ceil(TURN_SECONDS / seconds) for seconds in once]
    limit = 0.1 if options.quick else options.seconds
    affordable = int(limit / max(np.dot(once, counts), 1e-9))
    rounds = min(options.repeats, max(LEAST_ROUNDS, affordable))
    turns = np.array([[*map(_turn, calls, counts)] for _ in range(rounds)])
    # An accelerator works while the CPU waits.
    on_cpu = jax.default_backend() == "cpu"
    timings = []
    for number in range(len(calls)):
        low, median, high = np.quantile(turns[:, number, 0], (0.25, 0.5, 0.75))
        cpu = float(np.median(turns[:, number, 1])) if on_cpu else None
        timings.append(Timing(float(median), float(high - low) / 2, cpu))
    return timings


def _turn(call: Callable[[], Any], count: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        jax.block_until_ready(call())
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def measure(
    contestants: Sequence[Contestant], options: Options, repeats: int = 1
) -> list[Row]:
    """Compiles all contestants, and measures them in turn. Any failure is a result."""

    @functools.cache
    def compiled(function: Callable[..., Any]) -> Executable:
        return compile_fresh(function, *one.args, repeats=repeats)

    rows, calls = [], {}
    for number, one in enumerate(contestants):
        rows.append(dict(one.columns))
        try:
            function = one.function
            if not isinstance(function, Executable):
                function = compiled(function)
            call = functools.partial(function.call, *one.args)
            rows[-1] |= one.describe(jax.block_until_ready(call()))
        except Exception as error:
            line = str(error).strip().split("\n")[0]  # Some messages are pages long.
            rows[-1]["failure"] = f"{type(error).__name__}: {line}"[:160]
        else:
            rows[-1] |= {k: v for k, v in vars(function).items() if k != "call"}
            calls[number] = call
    for number, timing in zip(calls, interleave([*calls.values()], options)):
        rows[number] |= vars(timing)
    return rows
