import itertools

import jax
import jax.random as jr
import jaxtyping
import pytest


jax.config.update("jax_disable_most_optimizations", True)  # Compiles faster.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jr.key(0)


@pytest.fixture
def without_type_checks():
    """As users have it: what is wrong meets the library's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_executables():
    """Each takes a few of the memory maps that a process may have, 65530 on Linux;
    XLA aborts where there are no more."""
    yield
    if next(_tests) % 100 == 0:
        jax.clear_caches()
