import gc
from pathlib import Path

import jax
import jax.random as jr
import jaxtyping
import pytest

from .helpers.configuration import (
    check_types,
    collect_garbage_seldom,
    configure,
    keep_compiled,
)
from .helpers.one_each import (
    pytest_addoption as pytest_addoption,
    pytest_collection_modifyitems as pytest_collection_modifyitems,
)
from .helpers.slow_tests import pytest_terminal_summary as pytest_terminal_summary


configure()
collect_garbage_seldom()


def pytest_configure(config):
    # The engine makes closures for every equation. Checks of all of them take long.
    check_types(engine=config.option.markexpr != "not thorough")
    if hasattr(config, "cache"):  # There is none with `-p no:cacheprovider`.
        keep_compiled(config.cache.mkdir("jax"))


@pytest.fixture
def key():
    return jr.key(0)


@pytest.fixture
def without_type_checks():
    """Disables type checks, as for users: the library itself checks the arguments."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


_maps = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def few_executables():
    """Clears compiled functions after a test, if there are many.

    Each of them takes memory, and a few of the memory maps of a process. Linux allows
    65530 of these, and XLA aborts if there are no more.
    """
    yield
    if _maps.exists() and _maps.read_bytes().count(b"\n") > 12_000:
        jax.clear_caches()
        gc.collect()
