import importlib.metadata

from . import rules as rules, training as training
from ._budget import NFEBudget as NFEBudget
from ._fixed_steps import fixed_step_solve as fixed_step_solve
from ._jet import jet as jet
from ._methods import augmented as augmented, in_solver as in_solver
from ._nfe import CountingController as CountingController, nfe as nfe
from ._quadrature import (
    gauss_legendre as gauss_legendre,
    Quadrature as Quadrature,
    random_nodes as random_nodes,
    trapezoidal as trapezoidal,
)
from ._regularized_solve import regularized_solve as regularized_solve
from ._regularizers import (
    AbstractRegularizer as AbstractRegularizer,
    DerivativeNorm as DerivativeNorm,
    JacobianNorm as JacobianNorm,
)
from ._solution import (
    taylor_coefficients as taylor_coefficients,
    total_derivative as total_derivative,
)
from ._solver.derivative_regularized import (
    DerivativeRegularizedSolver as DerivativeRegularizedSolver,
)
from ._solver.error_regularized import (
    ErrorRegularizedSolver as ErrorRegularizedSolver,
)
from ._solver.exponential import ExponentialTaylorSolver as ExponentialTaylorSolver
from ._solver.hypersolver import HyperSolver as HyperSolver
from ._solver.learned import AbstractLearnedSolver as AbstractLearnedSolver
from ._solver.learned_runge_kutta import LearnedRungeKutta as LearnedRungeKutta
from ._solver.midpoint import (
    AbstractMidpoint as AbstractMidpoint,
    ConstantMidpoint as ConstantMidpoint,
    MidpointMLP as MidpointMLP,
)
from ._solver.taylor_lagrange import TaylorLagrangeSolver as TaylorLagrangeSolver
from ._term import SpeedRegularizedTerm as SpeedRegularizedTerm


__version__ = importlib.metadata.version("diffrax-speedreg")
