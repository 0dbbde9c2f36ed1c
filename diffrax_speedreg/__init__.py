import importlib.metadata

from . import rules as rules
from ._nfe import nfe as nfe
from ._problem import (
    final_state as final_state,
    InitialValueProblem as InitialValueProblem,
    solve_adaptive as solve_adaptive,
    solve_fixed as solve_fixed,
)
from ._quadrature import (
    gauss_legendre as gauss_legendre,
    Quadrature as Quadrature,
    random_end_time as random_end_time,
    random_nodes as random_nodes,
)
from ._regularizers import (
    AbstractRegularizer as AbstractRegularizer,
    JacobianNorm as JacobianNorm,
    Speed as Speed,
    WeightedSum as WeightedSum,
)
from ._solution import (
    taylor_coefficients as taylor_coefficients,
    total_derivative as total_derivative,
)
from ._solver.correction import (
    AbstractCorrection as AbstractCorrection,
    ConstantCorrection as ConstantCorrection,
    CorrectionMLP as CorrectionMLP,
)
from ._solver.estimates import (
    EstimateRegularizedSolver as EstimateRegularizedSolver,
    EstimateState as EstimateState,
    solver_state as solver_state,
)
from ._solver.hypersolver import (
    HyperSolver as HyperSolver,
    HyperState as HyperState,
)
from ._solver.taylor_lagrange import (
    TaylorLagrangeSolver as TaylorLagrangeSolver,
    TaylorLagrangeState as TaylorLagrangeState,
)
from ._term import (
    SpeedRegularizedTerm as SpeedRegularizedTerm,
    SpeedState as SpeedState,
)
from ._training.alternating import (
    AlternatingState as AlternatingState,
    AlternatingTrainer as AlternatingTrainer,
    fit as fit,
)
from ._training.divergence import (
    check_finite as check_finite,
    solving as solving,
    TrainingDiverged as TrainingDiverged,
)
from ._training.known import fit_solver as fit_solver
from ._training.losses import (
    dynamics_loss as dynamics_loss,
    midpoint_loss as midpoint_loss,
)


__version__ = importlib.metadata.version("diffrax-speedreg")
