import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from .states import ModelReport, SolverReport, TrainingState


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of [`diffrax_speedreg.training.fit`][], passed to its callbacks.

    **Attributes:**

    - `step`: the number of steps so far.
    - `state`: the state after these steps.
    - `model`: the [`diffrax_speedreg.training.ModelReport`][] of the last model step;
        `None` without a loss.
    - `solver`: the [`diffrax_speedreg.training.SolverReport`][] of the last solver
        step; `None` before the first one.
    - `losses`: the loss of each step in the last round, a vector. Without a loss, it is
        the error of the solver.
    - `seconds`: the duration of the round, with its solver steps.
    - `validation`: the result of the last validation; empty before the first one.
    """

    step: int
    state: TrainingState
    model: ModelReport | None
    solver: SolverReport | None
    losses: Float[np.ndarray, " steps"]
    seconds: float
    validation: Mapping[str, Any]


Callback: TypeAlias = Callable[[Progress], None]


class ProgressBar:
    """Callback that shows a progress bar with tqdm.

    Pass it to [`diffrax_speedreg.training.fit`][]. It shows the loss, auxiliary outputs
    that are a dictionary of scalars, the error of the solver, and the results of the
    validation.

    !!! example

        ```python
        with dsr.training.ProgressBar(10_000) as bar:
            state = dsr.training.fit(
                trainer, state, batches, num_steps=10_000, callbacks=[bar]
            )
        ```
    """

    def __init__(self, num_steps: int, **options: Any):
        """**Arguments:**

        - `num_steps`: the number of the last step.
        - `options`: for `tqdm.tqdm`, such as `desc` or `mininterval`.

        **Raises:**

        An `ImportError` if tqdm, which is an optional dependency, is not installed.
        """
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "A progress bar needs tqdm: `pip install diffrax-speedreg[progress]`."
            ) from error
        # Only the first of several processes has something to show.
        hidden = True if jax.process_index() > 0 else None
        defaults: dict[str, Any] = dict(total=num_steps, unit="step", disable=hidden)
        self._bar = tqdm(**(defaults | options))
        self._latest: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the bar. It stays on the screen."""
        self._describe()
        self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Shows the progress.

        **Arguments:**

        - `progress`: a [`diffrax_speedreg.training.Progress`][].
        """
        if self._latest is None:
            # The rate of a resumed run counts only the steps made since.
            self._bar.initial = self._bar.n = progress.step - len(progress.losses)
        self._latest = progress
        # Numbers are fetched and written only as often as the bar is drawn.
        if self._bar.update(progress.step - self._bar.n):
            self._describe()

    def _describe(self) -> None:
        if self._latest is None or self._bar.disable:
            return
        model, solver = self._latest.model, self._latest.solver
        shown: dict[str, Any] = {}
        if model is not None:
            aux = model.aux if isinstance(model.aux, dict) else {}
            shown |= dict(loss=model.loss) | aux
        if solver is not None:
            shown["error"] = solver.error
        shown |= self._latest.validation
        entries = {k: f"{float(v):.4g}" for k, v in shown.items() if np.ndim(v) == 0}
        self._bar.set_postfix(entries, refresh=False)
