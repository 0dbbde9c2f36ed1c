import importlib.metadata

from ._solution import (
    taylor_coefficients as taylor_coefficients,
    total_derivative as total_derivative,
)
from ._solver.midpoint import (
    AbstractMidpoint as AbstractMidpoint,
    MidpointMLP as MidpointMLP,
)
from ._solver.taylor_lagrange import (
    TaylorLagrangeSolver as TaylorLagrangeSolver,
    TaylorLagrangeState as TaylorLagrangeState,
)
from ._term import (
    SpeedRegularizedTerm as SpeedRegularizedTerm,
    SpeedState as SpeedState,
)


__version__ = importlib.metadata.version("diffrax-speedreg")
