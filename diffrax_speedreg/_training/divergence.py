import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from .batches import describe_non_finite
from .targets import ReferenceFailed


REMEDY = "Try a smaller learning rate, gradient clipping or a smaller penalty."


class TrainingDiverged(RuntimeError):
    """Raised when a training can't go on; says at which step.

    **Attributes:**

    - `state`: the state after the last step that went well, if
        [`diffrax_speedreg.fit`][] raised this.
    """

    state: PyTree[Any] = None


def check_finite(
    loss: Inexact[Array, ""], step: int, name: str = "loss", why: str | None = None
) -> None:
    """Raises [`diffrax_speedreg.TrainingDiverged`][] if a loss is not finite.

    **Arguments:**

    - `loss`: the loss of a step.
    - `step`: the number of that step, for the message.
    - `name`: what to call the loss there.
    - `why`: the reason, if it is known; otherwise, remedies are proposed.
    """
    if not jnp.isfinite(loss):
        raise TrainingDiverged(
            f"Training diverged: the {name} is {float(loss)} at step {step}. "
            f"{REMEDY if why is None else why}"
        )


def raise_diverged(
    value: Inexact[Array, ""],
    value_name: str,
    trained_name: str,
    step: int,
    batch: PyTree[Any],
) -> NoReturn:
    """Raises [`diffrax_speedreg.TrainingDiverged`][] for a report that is not finite.

    **Arguments:**

    - `value`, `value_name`: the loss, and what to call it.
    - `trained_name`: what to call what was trained.
    - `step`: the number of the step.
    - `batch`: which may be the reason.
    """
    where = describe_non_finite(jax.device_get(batch), "batch")
    check_finite(value, step, value_name, where)
    raise TrainingDiverged(
        f"Training diverged: the {value_name} is {float(value):.4g} at step {step}, "
        f"but the {trained_name} or its optimizer's state after it is not finite: a "
        f"gradient is not. {REMEDY}"
    )


@contextlib.contextmanager
def solving(step: int) -> Iterator[None]:
    """A context in which an error of the running computation, such as that of an
    equation that can't be solved, raises [`diffrax_speedreg.TrainingDiverged`][].

    **Arguments:**

    - `step`: the number of the step, for the message.
    """
    try:
        yield
    except ReferenceFailed as error:
        raise TrainingDiverged(f"Training stopped at step {step}. {error}") from error
    except eqx.EquinoxRuntimeError as error:
        # The message, without the stack and the advice that Equinox puts around it.
        *_, message = str(error).split("EquinoxRuntimeError: ")
        raise TrainingDiverged(
            f"Training stopped at step {step}, by an error of the computation: "
            f"{message.strip().splitlines()[0]} If the equation has become too hard to "
            f"solve: {REMEDY}"
        ) from error
