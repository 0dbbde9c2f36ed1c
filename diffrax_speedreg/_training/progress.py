import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from .states import AlternatingState, DynamicsReport, RemainderReport


@dataclasses.dataclass(frozen=True)
class Progress:
    """What callbacks of [`diffrax_speedreg.fit`][] are told after a step.

    **Attributes:**

    - `step`: the number of dynamics steps made.
    - `state`: the state after it.
    - `dynamics`: what the dynamics step told.
    - `remainder`: what the last remainder step told; `None` before the first one.
    - `validation`: what the last validation returned; empty before the first one.
    """

    step: int
    state: AlternatingState
    dynamics: DynamicsReport
    remainder: RemainderReport | None
    validation: Mapping[str, Any]


Callback: TypeAlias = Callable[[Progress], None]


class ProgressBar:
    """A callback that shows a progress bar, by tqdm.

    It shows the loss, the size of the remainder, the solver's error and the results of
    the validation, such as accuracy and NFE.

    !!! example

        ```python
        with dsr.ProgressBar(10_000) as bar:
            state = dsr.fit(trainer, state, batches, until=10_000, callbacks=[bar])
        ```
    """

    def __init__(self, until: int, **options: Any):
        """**Arguments:**

        - `until`: the number of the last step.
        - `options`: for `tqdm.tqdm`, such as `desc` or `mininterval`.

        An `ImportError` is raised if tqdm, which is optional, is not installed.
        """
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError(
                "A progress bar needs tqdm: `pip install diffrax-speedreg[progress]`."
            ) from error
        # Only the first of several processes has something to show.
        hidden = True if jax.process_index() > 0 else None
        defaults: dict[str, Any] = dict(total=until, unit="step", disable=hidden)
        self._bar = tqdm(**(defaults | options))
        self._latest: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._describe()
        self._bar.close()

    def __call__(self, progress: Progress) -> None:
        """Shows the progress: **Arguments:** `progress`, as any callback gets it."""
        if self._latest is None:
            # A training that was resumed; its speed is that of the steps made here.
            self._bar.initial = self._bar.n = progress.step - 1
        self._latest = progress
        # Numbers are fetched and written only as often as the bar is drawn.
        if self._bar.update(progress.step - self._bar.n):
            self._describe()

    def _describe(self) -> None:
        if self._latest is None or self._bar.disable:
            return
        terms, remainder = self._latest.dynamics.terms, self._latest.remainder
        shown: dict[str, Any] = dict(loss=terms.loss, remainder=terms.remainder)
        if remainder is not None:
            shown["error"] = remainder.error
        shown |= self._latest.validation
        entries = {k: f"{float(v):.4g}" for k, v in shown.items() if v is not None}
        self._bar.set_postfix(entries, refresh=False)
