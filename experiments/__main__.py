"""Command line of the experiments.

python -m experiments                          lists the tasks and their records
python -m experiments run TASK [METHOD ...]    makes the runs that are not there yet
python -m experiments time TASK [METHOD ...]   times methods side by side
python -m experiments tables                   writes tables, pictures and pages again
python -m experiments quick                    makes a small run of each task

`run TASK --help` lists the options of a task.
"""

import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import tyro

from . import page, record, timing
from .config import Options, QUICK, RESULTS, UsageError
from .data import DataUnavailable
from .record import Record
from .task import Task
from .tasks import find, TASKS


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (words[0], words[1:]) if words else ("list", [])
    commands = dict(list=listing, run=run, time=measure, tables=tables, quick=quick)
    if command in ("-h", "--help") or command not in commands:
        print(__doc__)
        sys.exit(command not in ("-h", "--help") and f"error: no command {command!r}")
    try:
        commands[command](rest)
    except (UsageError, DataUnavailable) as error:
        sys.exit(f"error: {error}")


def parse(words: Sequence[str], command: str) -> tuple[Task, Any]:
    """Parses the name of a task, and its options."""
    if not words:
        raise UsageError(f"name a task: the tasks are {', '.join(TASKS)}")
    name, *rest = words
    task = find(name)
    program = f"python -m experiments {command} {name}"
    text = f"The methods are {', '.join(task.methods)}."
    options = tyro.cli(task.options, args=rest, prog=program, description=text)
    task.choose(options.methods)
    return task, options


def run(words: Sequence[str]) -> None:
    task, options = parse(words, "run")
    made = make_all(task, options)
    print(f"\n{page.section(task, record.load(options.folder))}")
    page.draw(task, record.load(options.folder), options.folder)
    print(f"\nRecords and pictures: {options.folder}")
    if task.build is not None:
        # With the same options, since these decide which models were kept.
        print(f"Times: python -m experiments time {shlex.join(words)}")
    if made and all(r.failure is not None for r in made):
        raise UsageError("all runs failed, as their records say")


def make_all(task: Task, options: Options) -> list[Record]:
    """Makes the runs that are not there yet."""
    task.configure()
    made = []
    for one in task.runs(options):
        if one.record.finished:
            print(f"{one.path.name}: there already; --restart makes it again")
            continue
        if one.path.exists() and record.read(one.path).version != one.record.version:
            print(f"{one.path.name}: of another version of the package, made again")
        made.append(task.make(one))
        print(f"{one.path.name}: {made[-1].failure or 'finished'}", flush=True)
    return made


def measure(words: Sequence[str]) -> None:
    task, options = parse(words, "time")
    task.configure()
    timing.measure(task, options)
    print(page.timing_table(task, record.load(options.folder)))


def tables(words: Sequence[str]) -> None:
    if words:
        raise UsageError(f"tables has no options, but got {words}")
    records = record.load(RESULTS)
    for task in TASKS.values():
        page.draw(task, records, RESULTS)
    for path in page.write(records):
        print(f"Written: {path}")


def quick(words: Sequence[str]) -> None:
    """Makes a small run of a few methods of each task. Those without data are left
    out."""
    for name in words or TASKS:
        task, start = find(name), time.monotonic()
        try:
            with warnings.catch_warnings(action="ignore"):  # Of downloads that fail.
                (task.data or list)()
        except DataUnavailable as error:
            print(f"{name}: left out. {error}")
            continue
        methods = tuple(dict.fromkeys((task.methods[0], task.methods[-1])))
        made = make_all(task, task.options(methods, quick=True, restart=True))
        page.draw(task, record.load(QUICK), QUICK)
        failures = [r.failure for r in made if r.failure is not None]
        if failures:
            raise UsageError(f"{name}: {failures[0]}")
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


def listing(words: Sequence[str]) -> None:
    """Lists records, and methods that have none of this version of the package."""
    records = record.load(RESULTS)
    version = record.new("", "", 0, {}).version
    for task in TASKS.values():
        print(f"{task.name}:")
        for method in task.methods:
            found = [r for r in records if (r.task, r.method) == (task.name, method)]
            others = sorted({r.version for r in found} - {version})
            state = f"{len(found)} records" if found else "missing"
            if others:
                state += f", of version {' and '.join(others)}, not {version}"
            if any(r.failure is not None for r in found):
                state += ", with failures"
            print(f"  {method}: {state}")


if __name__ == "__main__":
    main()
