"""How the tests run JAX: in float64, strictly, on eight simulated devices."""

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
    # JAX 0.10 compiles in a third of the time with these. Other releases may not know
    # them, which XLA takes for an error.
    if jax.__version_info__[:2] == (0, 10):
        os.environ["XLA_FLAGS"] = " ".join(
            [
                os.environ.get("XLA_FLAGS", ""),
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
            ]
        )


def check_types(*, engine: bool) -> None:
    """Checks the types of what the library's functions get and return.

    To be called before the library is imported.
    """
    parts = {path.stem for path in (_ROOT / _PACKAGE).iterdir()}
    others = [f"{_PACKAGE}.{part}" for part in sorted(parts - {"__init__", "_engine"})]
    jaxtyping.install_import_hook([_PACKAGE] if engine else others, _CHECKER)


def keep_compiled(folder: Path) -> None:
    """Keeps what is compiled for the next run of the tests."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def collect_garbage_seldom() -> None:
    """Traces are many small objects, of which few are garbage."""
    gc.set_threshold(100_000, 50, 100)
