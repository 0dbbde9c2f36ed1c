import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Key, PyTree

from .._checks import check_positive_integer
from .alternating import AlternatingTrainer
from .checkpoint_file import CheckpointError
from .checkpoints import Checkpoints
from .divergence import raise_diverged, solving, TrainingDiverged
from .progress import Callback, Progress
from .sharding import replicate, shard_batch
from .states import AlternatingState, DynamicsReport, RemainderReport


class _Cadence(NamedTuple):
    every: int
    steps: int


def fit(
    trainer: AlternatingTrainer,
    state: AlternatingState,
    batches: Callable[[Key[Array, ""], int], PyTree[Any]],
    *,
    until: int,
    remainder_every: int = 10,
    remainder_steps: int = 1,
    validate: Callable[[AlternatingState], Mapping[str, Any]] | None = None,
    validate_every: int = 100,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
) -> AlternatingState:
    """Trains dynamics and remainder in turn.

    After every `remainder_every` dynamics steps the equation is solved at high fidelity
    for the last batch, and `remainder_steps` remainder steps are made with what that
    gave. (There are none for a solver without a remainder.) The same state and batches
    lead to the same numbers, on the same machine.

    **Arguments:**

    - `trainer`: what to do with a batch.
    - `state`: where to start from.
    - `batches`: `(key, step)` to a batch, such as [`diffrax_speedreg.Batches`][], for
        the state's key and the number of steps made. Batches should be of equal shapes:
        new ones are compiled for.
    - `until`: the number of dynamics steps that the state has at the end, those that it
        has at the start included.
    - `remainder_every`, `remainder_steps`: the cadence.
    - `validate`: the state to named numbers.
    - `validate_every`: the number of dynamics steps from one validation to the next;
        there is one after the last step, too.
    - `callbacks`: called after each dynamics step, and the remainder steps that follow
        it, with a [`diffrax_speedreg.Progress`][]. One of them may be a
        [`diffrax_speedreg.ProgressBar`][].
    - `checkpoints`: where to write some, at its interval, at the end, and when anything
        stops the training, Ctrl-C too. One that can't be written is a warning, and
        tried again, and an error at the end. A training that goes on from one begins
        with the next step: a callback that stopped it is not called again for the last.

    **Returns:**

    The state after the last step.

    **Raises:**

    - [`diffrax_speedreg.TrainingDiverged`][] if a loss, or what was trained, is not
        finite, or an equation can't be solved. Its attribute `state` is the state after
        the last step that went well, and the latest of the checkpoints.
    - [`diffrax_speedreg.CheckpointError`][] if the last checkpoint can't be written.
        Its attribute `state` is what should have been.
    - `ValueError` if there are checkpoints of later steps than the state's.
    """
    cadence = _Cadence(
        check_positive_integer(remainder_every, "remainder_every"),
        check_positive_integer(remainder_steps, "remainder_steps"),
    )
    check_positive_integer(validate_every, "validate_every")
    check_positive_integer(until, "until")
    first = int(state.step) + 1
    writer = _Writer(checkpoints, first - 1)
    key = state.key
    state = replicate(state, trainer.mesh)
    remainder: RemainderReport | None = None
    validation: Mapping[str, Any] = {}
    try:
        for step in range(first, until + 1):
            batch = batches(key, step - 1)
            state, dynamics, error = _advance(trainer, state, batch, step, cadence)
            remainder = remainder if error is None else error
            if validate is not None and (step % validate_every == 0 or step == until):
                validation = validate(state)
            for callback in callbacks:
                callback(Progress(step, state, dynamics, remainder, validation))
            writer.maybe_write(state)
    except BaseException as error:
        # Whatever it is, Ctrl-C too: the steps made so far should not be lost.
        if isinstance(error, TrainingDiverged):
            error.state = state
        writer.try_to_write(state)
        raise
    writer.write(state)
    return state


def _advance(
    trainer: AlternatingTrainer,
    state: AlternatingState,
    batch: PyTree[Any],
    step: int,
    cadence: _Cadence,
) -> tuple[AlternatingState, DynamicsReport, RemainderReport | None]:
    """A dynamics step, and the remainder steps that follow it."""
    placed = shard_batch(batch, trainer.mesh)
    error = None
    with solving(step):
        state, dynamics = trainer.dynamics_step(state, placed)
        if not dynamics.finite:
            raise_diverged(dynamics.total, "loss", "model", step, batch)
        if state.solver.remainder is not None and step % cadence.every == 0:
            targets = trainer.targets(state, placed)
            for _ in range(cadence.steps):
                state, error = trainer.remainder_step(state, placed, targets)
                if not error.finite:
                    raise_diverged(error.error, "error", "solver", step, batch)
    return state, dynamics, error


class _Writer:
    """Writes checkpoints when it is time to."""

    def __init__(self, checkpoints: Checkpoints | None, first_step: int):
        self.checkpoints = checkpoints
        self.last = time.monotonic()
        latest = None if checkpoints is None else checkpoints.latest_step()
        if latest is not None and latest > first_step:
            raise ValueError(
                f"The folder has a checkpoint of step {latest}, but the state is of "
                f"step {first_step}. Go on by `state = checkpoints.restore(state)`, or "
                "choose another folder."
            )

    def maybe_write(self, state: AlternatingState) -> None:
        """Only warns if it can't be done: a long training goes on."""
        if self.checkpoints is None:
            return
        if time.monotonic() - self.last >= self.checkpoints.seconds:
            self.try_to_write(state)
            self.last = time.monotonic()

    def try_to_write(self, state: AlternatingState) -> None:
        try:
            self.write(state)
        except CheckpointError as error:
            warnings.warn(f"{error} A training goes on without.")

    def write(self, state: AlternatingState) -> None:
        if self.checkpoints is None:
            return
        try:
            self.checkpoints.save(state, int(state.step))
        except CheckpointError as error:
            error.state = state
            raise
