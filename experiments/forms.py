"""Learned midpoints of known equations, by the form of the midpoint.

Each midpoint is trained until a coarse step ends where an accurate solve ends. The
forms are a constant matrix, and networks with one factor, a factor for each entry of
the state, and a full matrix. The equations are those of the tasks on dynamics, at their
steps and at steps that are five times as long.
"""

import dataclasses
from collections.abc import Callable, Sequence

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pandas as pd
from jaxtyping import Array

from . import dynamics, midpoints, tables
from .config import Options
from .record import Record
from .task import Task
from .training import Run


BATCH, TRAJECTORIES, UPDATES, QUICK_STEPS = 500, 40, 4, 10
FORMS: dict[str, Callable[..., dsr.AbstractMidpoint]] = {
    "constant": lambda key: dsr.ConstantMidpoint(2, "matrix"),
    "scalar": lambda key: dsr.MidpointMLP(2, "scalar", key=key),
    "elementwise": lambda key: dsr.MidpointMLP(2, "elementwise", key=key),
    "matrix": lambda key: dsr.MidpointMLP(2, "matrix", key=key),
    "matrix of y and h f": lambda key: dsr.MidpointMLP(
        2, "matrix", ("t", "dt", "y", "dy"), key=key
    ),
}
QUICK_FORMS = ("matrix",)
_vanderpol = jax.vmap(dynamics.vanderpol, in_axes=(None, 0, None))
_brusselator = jax.vmap(dynamics.brusselator, in_axes=(None, 0, None))
# With the vector field of a batch.
SYSTEMS: dict[str, tuple[dynamics.System, Callable[..., Array]]] = {
    "stiff": (dynamics.STIFF, midpoints.vector_field),
    "vanderpol": (dynamics.VANDERPOL, _vanderpol),
    "vanderpol × 5": (dynamics.VANDERPOL.longer(5.0), _vanderpol),
    "brusselator": (dynamics.BRUSSELATOR, _brusselator),
    "brusselator × 5": (dynamics.BRUSSELATOR.longer(5.0), _brusselator),
}


@dataclasses.dataclass(frozen=True)
class FormsOptions(Options):
    steps: int = 1000
    """Batches that a midpoint is trained with, four updates each."""
    rate: float = 3e-3
    """Learning rate, at most."""


def execute(run: Run) -> Record:
    system, field = SYSTEMS[run.method]
    steps = QUICK_STEPS if run.options.quick else run.options.steps
    rate = optax.cosine_decay_schedule(run.options.rate, UPDATES * steps)
    forms = QUICK_FORMS if run.options.quick else FORMS

    def draw(index: int) -> dynamics.Pairs:
        states = system.draw(jr.fold_in(run.key, index), TRAJECTORIES)
        return dynamics.Pairs.of(states).flat

    def equation(pairs: dynamics.Pairs) -> dsr.training.InitialValueProblem:
        before, after = jnp.asarray(pairs.before), jnp.asarray(pairs.after)
        term = dfx.ODETerm(field)
        return dsr.training.InitialValueProblem(
            term, before, 0.0, system.step, y1=after
        )

    data, validation, errors = draw(0), draw(1), {}
    for form in forms:
        midpoint = FORMS[form](jr.fold_in(run.key, 2))
        fitted = dsr.training.fit_solver(
            dsr.TaylorLagrangeSolver(2, midpoint),
            equation,
            dsr.training.Batches(data, BATCH),
            num_steps=steps,
            solver_steps=UPDATES,
            optimizer=optax.adam(rate),
            reference=dsr.training.Reference(1, rtol=1e-5, atol=1e-5),
            validation=validation,
            key=run.key,
        )
        errors["Runge-Kutta"] = min(fitted.runge_kutta.values())
        errors[form] = fitted.error
    return dataclasses.replace(run.record, metrics=errors)


def table(records: Sequence[Record]) -> pd.DataFrame:
    rows = []
    for name in dict.fromkeys(r.method for r in records):
        group = [r.metrics for r in records if r.method == name]
        means = {k: tables.mean([m[k] for m in group], ".2g") for k in group[0]}
        rows.append({"equation": name} | means)
    return pd.DataFrame(rows)


TASK = Task(
    name="forms",
    options=FormsOptions,
    heeds=dict.fromkeys(SYSTEMS, ()),
    execute=execute,
    tables={"errors": table},
    x64=True,
)
