"""Options that all tasks have, and the commands that repeat a record."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
QUICK = ROOT / "quick-output"
# These say which runs to make, and do not change any of them.
_CHOICES = ("methods", "seeds", "output", "restart")


class UsageError(Exception):
    """Error of a command, whose message says which words there are."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a task. A record holds those that its method heeds."""

    methods: tyro.conf.Positional[tuple[str, ...]] = ()
    """Methods to run, all of them by default."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, with a run for each."""
    quick: bool = False
    """Make a small run in about a minute, to see that it works."""
    restart: bool = False
    """Ignore earlier records and checkpoints."""
    output: Path | None = None
    """Folder for the records; by default that of the committed ones."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            whole = isinstance(value, int)
            if not math.isfinite(value) or value < 0 or (whole and value == 0):
                kind = "a positive integer" if whole else "a nonnegative number"
                name = field.name.replace("_", "-")
                raise UsageError(f"--{name} must be {kind}, but got {value!r}")
        if not self.seeds or not all(0 <= seed < 2**32 for seed in self.seeds):
            raise UsageError(f"--seeds must be from 0 to 2**32 - 1, not {self.seeds}")

    @property
    def folder(self) -> Path:
        return self.output or (QUICK if self.quick else RESULTS)

    def recorded(self, unheeded: Sequence[str]) -> dict[str, Any]:
        """Returns the options that determine the numbers of a run."""
        left_out = (*_CHOICES, *unheeded)
        values = {k: v for k, v in vars(self).items() if k not in left_out}
        # As a file holds them.
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def differences(options: type[Options], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recorded options that are not the present defaults."""
    defaults = options().recorded(())
    return {k: v for k, v in recorded.items() if k not in defaults or v != defaults[k]}


def command(task: str, methods: Sequence[str], changes: Mapping[str, Any]) -> str:
    """Makes the command that repeats runs with changed options."""
    words = ["python", "-m", "experiments", "run", task, *methods]
    for name, value in changes.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}"]
        words += [] if value is True else map(str, values)
    return shlex.join(words)
