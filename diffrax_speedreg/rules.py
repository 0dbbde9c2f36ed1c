"""Rules for the Taylor expansion of primitives, and tools to write them.

All functions that `jax.jvp` can differentiate have an expansion without such rules. A
rule makes it cheaper, or possible for a primitive that has no JVP rule.
"""

from ._engine import (
    bilinear as bilinear,
    cauchy_product as cauchy_product,
    linear as linear,
    Operation as Operation,
    register as register,
    Rule as Rule,
    Series as Series,
)
