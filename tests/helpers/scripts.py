"""Runs scripts and code of the docs as users do, but in this process."""

import contextlib
import importlib
import io
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jaxtyping


class Ended(NamedTuple):
    """Result of a script, as from `subprocess.run`."""

    returncode: int
    stdout: str
    stderr: str


# JAX's default settings, which scripts may change.
_settings = dict(
    jax_default_matmul_precision=None,
    jax_enable_compilation_cache=True,
    jax_enable_x64=False,
    jax_numpy_dtype_promotion="standard",
    jax_numpy_rank_promotion="allow",
)


@contextlib.contextmanager
def as_a_user() -> Iterator[None]:
    """Context in which JAX has its default settings, and types are not checked."""
    before = {name: getattr(jax.config, name) for name in _settings}
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for name, value in _settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jaxtyping.config.update("jaxtyping_disable", False)


def run_code(page: Path) -> dict[str, Any]:
    """Runs the Python code in a page of Markdown; returns the names that it defines."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    names: dict[str, Any] = dict(__name__="__main__")
    with as_a_user():
        exec(compile(code, page.name, "exec"), names)
    return names


def run(module: str, *options: Any, environment: Mapping[str, str] = {}) -> Ended:
    """Runs `python -m module *options`, for a module with a function `main`."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), None
    with (
        as_a_user(),
        warnings.catch_warnings(action="ignore"),  # Of the libraries that draw.
        mock.patch.object(sys, "argv", [module, *map(str, options)]),
        mock.patch.dict("os.environ", environment),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            importlib.import_module(module).main()
        except SystemExit as error:
            code = error.code
    if isinstance(code, str):
        print(code, file=stderr)
        code = 1
    return Ended(code or 0, stdout.getvalue(), stderr.getvalue())
