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
    trapezoidal as trapezoidal,
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
from ._training.alternating import AlternatingTrainer as AlternatingTrainer
from ._training.batches import Batches as Batches
from ._training.checkpoint_file import (
    CheckpointError as CheckpointError,
    load_checkpoint as load_checkpoint,
    read_hyperparameters as read_hyperparameters,
    save_checkpoint as save_checkpoint,
)
from ._training.checkpoints import Checkpoints as Checkpoints
from ._training.divergence import (
    check_finite as check_finite,
    solving as solving,
    TrainingDiverged as TrainingDiverged,
)
from ._training.fitting import fit as fit
from ._training.known import fit_solver as fit_solver
from ._training.losses import (
    cross_entropy as cross_entropy,
    dynamics_loss as dynamics_loss,
    DynamicsTerms as DynamicsTerms,
    remainder_loss as remainder_loss,
)
from ._training.progress import (
    Progress as Progress,
    ProgressBar as ProgressBar,
)
from ._training.sharding import (
    data_mesh as data_mesh,
    replicate as replicate,
    shard_batch as shard_batch,
)
from ._training.states import (
    AlternatingState as AlternatingState,
    DynamicsReport as DynamicsReport,
    Evaluation as Evaluation,
    RemainderReport as RemainderReport,
)
from ._training.targets import (
    check_targets as check_targets,
    reference_targets as reference_targets,
    ReferenceFailed as ReferenceFailed,
    Targets as Targets,
)


__version__ = importlib.metadata.version("diffrax-speedreg")
