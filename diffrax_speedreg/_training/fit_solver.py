from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from .._checks import check_callable, check_is, check_positive_integer
from .._nfe import evaluations
from .checkpoints import Checkpoints
from .fit import fit
from .progress import Callback, Progress
from .reference import InitialValueProblem, Reference, solver_error
from .states import TrainingState
from .trainer import Trainer
from .updates import check_optimizer


class SolverFit(eqx.Module):
    """Result of [`diffrax_speedreg.training.fit_solver`][].

    **Attributes:**

    - `solver`: the trained solver.
    - `errors`: the mean absolute error for each batch, before the last solver step, in
        the units of the state. A vector.
    - `error`: the mean absolute error on the validation batch.
    - `nfe`: the number of vector field evaluations of a solve.
    - `runge_kutta`: the errors on the validation batch of Diffrax's explicit
        Runge-Kutta solvers, a dictionary by their names with the best first. Each makes
        as many equal steps as fit into `nfe` evaluations.
    """

    solver: dfx.AbstractSolver
    errors: Float[np.ndarray, " steps"]
    error: float
    nfe: int
    runge_kutta: dict[str, float]


_RUNGE_KUTTA = (
    *(dfx.Euler(), dfx.Heun(), dfx.Midpoint(), dfx.Ralston(), dfx.Bosh3()),
    *(dfx.Tsit5(), dfx.Dopri5(), dfx.Dopri8()),
)


def fit_solver(
    solver: dfx.AbstractSolver,
    equation: Callable[[Any], InitialValueProblem],
    batches: Callable[[Key[Array, ""], int], PyTree[Any]],
    *,
    num_steps: int,
    optimizer: optax.GradientTransformation,
    reference: Reference,
    solver_steps: int = 4,
    validation: PyTree[Any] = None,
    validate_every: int = 100,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    key: Key[Array, ""] | None = None,
) -> SolverFit:
    """Trains a learned solver for known equations.

    Use it if the vector field is fixed. To train a model at the same time, use
    [`diffrax_speedreg.training.fit`][]. The learned part of the solver is fitted so
    that a few coarse steps end where an accurate reference solve ends.

    !!! example

        ```python
        fitted = dsr.training.fit_solver(
            solver,
            lambda y0: dsr.training.InitialValueProblem(term, y0, 0.0, 0.5),
            lambda key, step: jr.uniform(jr.fold_in(key, step), (500, 2)),
            num_steps=1000,
            optimizer=optax.adam(1e-3),
            reference=dsr.training.Reference(num_steps=1),
        )
        ```

    **Arguments:**

    - `solver`: a [`diffrax_speedreg.AbstractLearnedSolver`][].
    - `equation`: a function of a batch that returns an
        [`diffrax_speedreg.training.InitialValueProblem`][]. Its arguments may differ
        from sample to sample. If it has a `y1`, no reference solves are made.
    - `batches`: a function `(key, step)` that returns a batch for `equation`, such as
        random initial states.
    - `num_steps`: the number of batches.
    - `optimizer`: the Optax optimizer.
    - `reference`: the [`diffrax_speedreg.training.Reference`][].
    - `solver_steps`: the number of optimizer steps for each batch.
    - `validation`: the batch on which errors are measured. By default, it is the batch
        after the last one.
    - `validate_every`: the number of steps from one validation to the next.
    - `callbacks`, `checkpoints`: as for [`diffrax_speedreg.training.fit`][]. A run with
        the same `num_steps` resumes from the latest checkpoint.
    - `key`: a `jax.random` key for `batches`. The default is `jax.random.key(0)`.

    **Returns:**

    A [`diffrax_speedreg.training.SolverFit`][], with the trained solver, its error, and
    the errors of Runge-Kutta methods at equal cost.

    **Raises:**

    A `ValueError` if the solver has no learned part.
    [`diffrax_speedreg.training.TrainingDiverged`][] if an error, or the solver after a
    step, is not finite.
    """
    check_callable(equation, "equation", "batch -> InitialValueProblem")
    check_callable(batches, "batches", "(key, step) -> batch")
    check_optimizer(optimizer, "optimizer")
    num_steps = check_positive_integer(num_steps, "num_steps")
    if checkpoints is not None:
        check_is(checkpoints, Checkpoints, "checkpoints", "Checkpoints(folder)")
    trainer = Trainer(
        None, None, lambda model, batch: equation(batch), optimizer, reference
    )
    key = jr.key(0) if key is None else key
    state = trainer.init(None, solver, key=key, aux=np.full(num_steps, np.nan))
    if checkpoints is not None:
        state = checkpoints.restore(state)
    held_out = batches(key, num_steps) if validation is None else validation

    def validate(state: TrainingState) -> Mapping[str, Any]:
        return dict(validation=trainer.evaluate(state, held_out).error)

    def record(errors: np.ndarray, progress: Progress) -> np.ndarray:
        errors[progress.step - 1] = progress.losses[-1]
        return errors

    state = fit(
        trainer,
        state,
        batches,
        num_steps=num_steps,
        solver_steps=solver_steps,
        validate=validate,
        validate_every=validate_every,
        record=record,
        callbacks=callbacks,
        checkpoints=checkpoints,
    )
    assert state.solver is not None
    error, nfe, others = _compare(state.solver, equation(held_out), reference)
    return SolverFit(state.solver, state.aux, error, nfe, others)


def _compare(
    solver: dfx.AbstractSolver, problem: InitialValueProblem, reference: Reference
) -> tuple[float, int, dict[str, float]]:
    """Computes the error of a solver, its evaluations, and the errors of methods of
    the same cost."""
    whole = reference.whole()
    exact = whole.solve(problem)
    whole.check(exact)
    nfe = evaluations(solver, adaptive=False).of_steps(reference.num_steps)
    measure = eqx.filter_jit(solver_error)
    error = float(measure(solver, problem, exact, reference.num_steps))
    others = {}
    for other in _RUNGE_KUTTA:
        counts = evaluations(other, adaptive=False)
        steps = (nfe - counts.at_first_step) // counts.per_step
        if steps > 0:
            name = type(other).__name__
            others[name] = float(measure(other, problem, exact, steps))
    return error, nfe, dict(sorted(others.items(), key=lambda item: item[1]))
