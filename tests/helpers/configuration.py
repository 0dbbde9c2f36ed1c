"""Configuration of JAX for the tests: float64, strict, eight simulated devices."""

import gc
import os
from pathlib import Path

import jax
import jaxtyping


_ROOT = Path(__file__).parents[2]
_PACKAGE = "diffrax_speedreg"
_CHECKER = (
    "beartype.beartype("
    "conf=beartype.BeartypeConf(strategy=beartype.BeartypeStrategy.On))"
)


def configure() -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    _compile_faster()


def _compile_faster() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    # JAX 0.10 compiles in a third of the time with these options. For other releases
    # they may be unknown, which is an error of XLA.
    if jax.__version_info__[:2] == (0, 10):
        os.environ["XLA_FLAGS"] = " ".join(
            [
                os.environ.get("XLA_FLAGS", ""),
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
            ]
        )


def check_types(*, engine: bool) -> None:
    """Checks the types of the arguments and results of the library's functions.

    This must be called before the library is imported.
    """
    parts = {path.stem for path in (_ROOT / _PACKAGE).iterdir()}
    others = [f"{_PACKAGE}.{part}" for part in sorted(parts - {"__init__", "_engine"})]
    jaxtyping.install_import_hook([_PACKAGE] if engine else others, _CHECKER)


def keep_compiled(folder: Path) -> None:
    """Keeps compiled functions for the next run of the tests."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def collect_garbage_seldom() -> None:
    """Collects garbage less often: few of the many objects of traces are garbage."""
    gc.set_threshold(100_000, 50, 100)
