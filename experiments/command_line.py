"""The command lines of the experiments: the options that all of them have."""

import argparse
import hashlib
import json
import math
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffrax_speedreg as dsr

from .data import DataUnavailable


Outcome = TypeVar("Outcome")
# Of the options, those that do not change what a training computes.
_ASIDE = ("methods", "output", "resume")


class Parser(argparse.ArgumentParser):
    """With the options that all experiments have."""

    def __init__(
        self,
        name: str,
        description: str | None,
        *,
        epochs: int,
        quick: str,
        full: str = "",
        methods: Sequence[str] = (),
    ):
        """**Arguments:**

        - `name`: of the module.
        - `description`: its docstring.
        - `epochs`: the default.
        - `quick`, `full`: what these options do, as help texts. Without one for `full`,
            there is no such option.
        - `methods`: those that can be asked for, if only some of them can be.
        """
        self.methods = tuple(methods)
        self._added: list[argparse.Action] = []
        super().__init__(
            prog=f"python -m experiments.{name}",
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        add = self.add_argument
        if methods:
            listed = ", ".join(map(repr, methods))
            add("methods", nargs="*", help=f"some of {listed}, or 'all'")
        add("--seed", type=seed, default=0, help="decides everything")
        add("--epochs", type=positive(int), default=epochs, help="of every training")
        if full:
            add("--full", action="store_true", help=full)
        add("--quick", action="store_true", help=f"under a minute: {quick}")
        add("--resume", action="store_true", help="go on from the last checkpoints")
        add(
            "--output",
            type=writable_folder,
            default=f"{name}-output",
            help="folder for the results",
        )

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        self._added.append(action)
        return action

    def add_weights(
        self,
        speed: float,
        *,
        kinetic: float | None = None,
        jacobian: float | None = None,
        penalty: float | None = None,
    ) -> None:
        """Options for the weights of a loss's summands, of those with a default."""
        weights = [
            ("--lambda", speed, "regularization", "weight of the speed"),
            ("--kinetic", kinetic, "kinetic", "RNODE's weight of the kinetic energy"),
            ("--jacobian", jacobian, "jacobian", "RNODE's of the Jacobian's norm"),
            ("--penalty", penalty, "penalty", "weight of the steps' remainders"),
        ]
        for option, default, name, text in weights:
            if default is not None:
                self.add_argument(
                    option,
                    type=nonnegative(float),
                    default=default,
                    dest=name,
                    metavar="W",
                    help=text,
                )

    def options(self) -> argparse.Namespace:
        """Those given; an error that lists the methods if one is not among them."""
        options = self.parse_args()
        if self.methods and options.methods == ["all"]:
            options.methods = list(self.methods)
        for method in options.methods if self.methods else ():
            if method not in self.methods:
                known = ", ".join(self.methods)
                self.error(f"the methods are {known}, but got {method!r}")
        return options

    def command(self, recorded: Mapping[str, str], *methods: str) -> str:
        """What to type to get what was recorded under some options again."""
        words = [*methods]
        for action in self._added:
            value = recorded.get(action.dest, str(action.default))
            if action.dest in _ASIDE or value == str(action.default):
                continue
            words.append(action.option_strings[0])
            if action.nargs != 0:
                words.append(value)
        return f"{self.prog} {shlex.join(words)}".strip()


def checkpoints(options: argparse.Namespace, name: str) -> dsr.Checkpoints:
    """Where a training keeps its checkpoints; with `--resume`, goes on from there.

    Each combination of options has a folder of its own, so that no training goes on
    from one of other settings. What lies there is removed without `--resume`.

    **Arguments:**

    - `name`: of what is trained, by which it differs from what else is trained with
        the same options.
    """
    settings = {k: str(v) for k, v in sorted(vars(options).items()) if k not in _ASIDE}
    digest = hashlib.sha256(json.dumps([name, settings]).encode()).hexdigest()[:12]
    folder = options.output / "checkpoints" / f"{file_name(name)}-{digest}"
    if folder.exists() and not options.resume:
        shutil.rmtree(folder)
    if options.resume and not folder.exists():
        print(f"{name}: no checkpoints with these options in {folder.parent}: from 0.")
    return dsr.Checkpoints(folder, settings, keep=2)


def attempt(run: Callable[[], Outcome]) -> Outcome | str:
    """What a training comes to; if it diverged, at which step and why.

    Exits with a message if there are no data, or the checkpoints are of no use.
    """
    try:
        return run()
    except dsr.TrainingDiverged as error:
        return str(error)
    except (DataUnavailable, dsr.CheckpointError) as error:
        sys.exit(f"error: {error}")


def file_name(name: str) -> str:
    """That of a method, as a part of a file's name."""
    return name.lower().replace(" ", "-")


class HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Shows defaults, and keeps the description as it was written."""


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    return _number(kind, "positive", lambda value: value > 0)


def nonnegative(kind: Callable[[str], float]) -> Callable[[str], float]:
    return _number(kind, "nonnegative", lambda value: value >= 0)


def _number(
    kind: Callable[[str], float], adjective: str, holds: Callable[[float], bool]
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not holds(value):
            raise argparse.ArgumentTypeError(
                f"must be a {adjective} {kind.__name__}, but got {text!r}"
            )
        return value

    return parse


def seed(text: str) -> int:
    value = nonnegative(int)(text)
    if value >= 2**32:
        raise argparse.ArgumentTypeError(f"must be below 2**32, but got {text!r}")
    return int(value)


def writable_folder(text: str) -> Path:
    """Makes the folder, before anything that takes long."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"must be a folder that can be written to, but got {text!r} "
            f"({error.strerror})"
        ) from error
    return folder
