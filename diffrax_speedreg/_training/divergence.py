import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .batches import describe_non_finite
from .reference import ReferenceFailed


REMEDY = "Try a smaller learning rate, gradient clipping or a smaller penalty."


class TrainingDiverged(RuntimeError):
    """Exception for a training run that can't go on. The message says why, and at which
    step.

    **Attributes:**

    - `state`: the state before the round that failed, if
        [`diffrax_speedreg.training.fit`][] raised this.
    """

    state: PyTree[Any] = None


def raise_diverged(
    value: float, value_name: str, trained_name: str, step: int, batch: PyTree[Any]
) -> NoReturn:
    """Raises [`diffrax_speedreg.training.TrainingDiverged`][] for a step whose results
    are not finite.

    **Arguments:**

    - `value`, `value_name`: the loss, and its name.
    - `trained_name`: the name of the half that was trained.
    - `step`: the number of the step.
    - `batch`: the batch, which may be the reason.
    """
    if not np.isfinite(value):
        reason = describe_non_finite(jax.device_get(batch), "batch")
        raise TrainingDiverged(
            f"Training diverged: the {value_name} is {value} at step {step}. "
            f"{REMEDY if reason is None else reason}"
        )
    raise TrainingDiverged(
        f"Training diverged: the {value_name} is {value:.4g} at step {step}, but the "
        f"{trained_name} or its optimizer's state after it is not finite: a gradient "
        f"is not. {REMEDY}"
    )


@contextlib.contextmanager
def naming_step(step: int, last: int | None = None) -> Iterator[None]:
    """Context that converts an error of the running computation, such as that of an
    equation that can't be solved, to
    [`diffrax_speedreg.training.TrainingDiverged`][]. `last` is the last step of a
    round, if there are several."""
    where = f"step {step}" if last in (None, step) else f"one of steps {step} to {last}"
    try:
        yield
    except ReferenceFailed as error:
        raise TrainingDiverged(f"Training stopped at {where}. {error}") from error
    except eqx.EquinoxRuntimeError as error:
        # The message, without the stack and the advice that Equinox puts around it.
        *_, message = str(error).split("EquinoxRuntimeError: ")
        raise TrainingDiverged(
            f"Training stopped at {where}, by an error of the computation: "
            f"{message.strip().splitlines()[0]} If the equation has become too hard to "
            f"solve: {REMEDY}"
        ) from error
