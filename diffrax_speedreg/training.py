"""Training of models and of learned solvers."""

from ._budget import ErrorBudget as ErrorBudget
from ._training.batches import Batches as Batches
from ._training.checkpoints import (
    CheckpointError as CheckpointError,
    Checkpoints as Checkpoints,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from ._training.divergence import TrainingDiverged as TrainingDiverged
from ._training.fit import fit as fit
from ._training.fit_solver import fit_solver as fit_solver, SolverFit as SolverFit
from ._training.mesh import (
    data_mesh as data_mesh,
    replicate as replicate,
    shard_batch as shard_batch,
)
from ._training.progress import Progress as Progress, ProgressBar as ProgressBar
from ._training.reference import (
    InitialValueProblem as InitialValueProblem,
    Reference as Reference,
    ReferenceFailed as ReferenceFailed,
    ReferenceSolution as ReferenceSolution,
)
from ._training.states import (
    Evaluation as Evaluation,
    ModelReport as ModelReport,
    RegularizedLoss as RegularizedLoss,
    SolverReport as SolverReport,
    Stateful as Stateful,
    TrainingState as TrainingState,
)
from ._training.trainer import Trainer as Trainer
