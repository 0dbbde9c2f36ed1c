import importlib.metadata

from ._solution import (
    taylor_coefficients as taylor_coefficients,
    total_derivative as total_derivative,
)


__version__ = importlib.metadata.version("diffrax-speedreg")
