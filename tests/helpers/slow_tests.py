"""A hook for pytest that reports default tests which take too long."""

import itertools
from collections import defaultdict
from typing import Any

import pytest


LIMIT = 20.0  # Seconds, with fixtures.


def pytest_terminal_summary(terminalreporter: Any) -> None:
    seconds = defaultdict[str, float](float)
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport) and "thorough" not in report.keywords:
            seconds[report.nodeid] += report.duration
    slow = {name: time for name, time in seconds.items() if time > LIMIT}
    if slow:
        terminalreporter.section(f"default tests that took more than {LIMIT:g} s")
        for name in sorted(slow, key=slow.__getitem__, reverse=True):
            terminalreporter.line(f"{slow[name]:.0f} s {name}")
        terminalreporter.line("Make them faster, or mark them as `thorough`.")
