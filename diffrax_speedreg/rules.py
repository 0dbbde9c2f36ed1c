"""How to write rules for the Taylor expansion of primitives.

Anything that `jax.jvp` can differentiate has an expansion without this; a rule makes
one cheaper, or possible for a primitive that has no JVP rule.
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
