from .jaxprs import count_primitive as count_primitive, equations as equations
from .numerics import (
    convergence_orders as convergence_orders,
    finite_difference as finite_difference,
    nested_coefficients as nested_coefficients,
    tolerance as tolerance,
    tree_allclose as tree_allclose,
)
