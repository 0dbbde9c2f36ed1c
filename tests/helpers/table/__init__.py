"""Functions of all kinds that JAX can differentiate.

`tests/test_functions.py` expands vector fields that are made of them, and
`tools/coverage.py` writes a page of the documentation from their names.
"""

from .contents import TABLE as TABLE, UNDIFFERENTIABLE as UNDIFFERENTIABLE
