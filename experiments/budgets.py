"""Budgets of evaluations, compared with fixed weights and with every other way.

A budget (`dsr.NFEBudget`) is compared with a sweep over seven decades of fixed weights,
on six tasks, and all regularizers with each other under equal budgets, on the digits.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import diffrax_speedreg as dsr
import equinox as eqx
import jax
import optax
import pandas as pd
from jaxtyping import Key
from matplotlib.figure import Figure

from . import classification, flows, latent_ode, plots, tables, toy
from .config import Options
from .methods import Method
from .problem import Problem
from .record import Record
from .task import Task
from .training import failure_of, Run, train_briefly
from .ways import WAYS, WEIGHTED


DECADES = tuple(10.0**k for k in range(-5, 2))
ALL_WAYS = "digits"
# The seed of the sweep over weights.
SWEPT = 0
# The budgets under which the ways are compared, and the orders on MNIST.
EQUAL = {"digits": (31, 43), "mnist": (31,)}
COMPARED = {"digits": tuple(WEIGHTED), "mnist": ("R_2", "R_4", "R_5")}


@dataclasses.dataclass(frozen=True)
class BudgetOptions(Options):
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 1
    """Multiple of the usual number of training steps."""


class Sized(NamedTuple):
    """Problem and optimizer, with the number of training steps and the budgets.

    The budgets go up to the evaluations of plain training.
    """

    problem: Callable[[Key[Any, ""], int], Problem]
    optimizer: Callable[[int], optax.GradientTransformation]
    steps: int
    budgets: tuple[int, ...]


class Setting(NamedTuple):
    """Training run of a way: with a fixed weight, with a budget, or with neither."""

    way: str
    budget: int | None = None
    weight: float | None = None


def _mnist(key: Key[Any, ""], seed: int) -> Problem:
    """Makes the problem, with the first 2,000 test images."""
    problem = classification.mnist_problem(key, 200)
    return dataclasses.replace(problem, test=problem.test[:2])


def _adam(rate: float) -> Callable[[int], optax.GradientTransformation]:
    return lambda steps: optax.adam(optax.cosine_decay_schedule(rate, steps))


SIZED = {
    "digits": Sized(
        classification.digits_problem,
        lambda steps: optax.adam(3e-3),
        420,
        (25, 31, 37, 43, 49),
    ),
    "mnist": Sized(_mnist, classification.muon, 600, (25, 31, 37)),
    "physionet": Sized(
        lambda key, _: latent_ode.problem(key, None, quick=False),
        lambda steps: latent_ode.optimizer(),
        600,
        (25, 31, 43),
    ),
    "moons": Sized(
        lambda key, _: flows.flow_problem("moons", flows.FlowOptions(), key),
        _adam(1e-2),
        500,
        (31, 43, 55),
    ),
    "miniboone": Sized(
        lambda key, _: flows.flow_problem("miniboone", flows.MinibooneOptions(), key),
        classification.muon,
        600,
        (31, 43, 55),
    ),
    "cubic map": Sized(
        lambda key, _: toy.problem(key), _adam(1e-2), 1000, (25, 31, 43)
    ),
}


def settings(name: str, swept: bool) -> Iterator[Setting]:
    """Lists the runs of a task with a seed."""
    budgets = SIZED[name].budgets
    yield Setting("plain")
    yield from (Setting("R_3", budget) for budget in budgets)
    if swept:
        yield from (Setting("R_3", weight=weight) for weight in DECADES)
    for way in COMPARED.get(name, ()):
        for budget in EQUAL[name]:
            if way != "R_3" or budget not in budgets:
                yield Setting(way, budget)
    if name == ALL_WAYS:
        yield from (Setting(w) for w in WAYS if w not in WEIGHTED and w != "plain")


def execute(run: Run) -> Record:
    sized, seed = SIZED[run.method], run.record.seed
    steps = 5 if run.options.quick else run.options.epochs * sized.steps
    listed = list(settings(run.method, seed == SWEPT))
    for setting in listed[:2] if run.options.quick else listed:
        identity = setting._asdict()
        if any(identity.items() <= row.items() for row in run.record.rows):
            continue
        problem = sized.problem(run.key, seed)
        problem = dataclasses.replace(
            problem,
            # At 1e-6, MNIST's plain model takes hardly more than the least number.
            tolerance=1e-7 if run.method == "mnist" else 1e-6,
            max_steps=128,
            test=problem.test[:8],
        )
        budget = None if setting.budget is None else dsr.NFEBudget(setting.budget)
        way, weight = WAYS[setting.way], setting.weight or 0.0
        method = Method(way=way, weight=weight, budget=budget)
        try:
            optimizer = sized.optimizer(steps)
            _, row = train_briefly(problem, method, optimizer, steps, run.key)
        except (dsr.training.TrainingDiverged, eqx.EquinoxRuntimeError) as error:
            row = dict(failure=failure_of(error))
        run = run.with_rows(identity | row)
        jax.clear_caches()
    return run.record


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    """Makes a frame of all runs that did not fail.

    The training time is also given relative to that of the plain run of the same seed.
    """
    frame = pd.DataFrame(
        row | dict(task=made.method, seed=made.seed)
        for made in records
        for row in made.rows
        if row.get("failure") is None
    )
    plain = frame[frame.way == "plain"][["task", "seed", "training_seconds"]]
    frame = frame.merge(plain, on=["task", "seed"], suffixes=("", "_plain"))
    return frame.assign(relative=frame.training_seconds / frame.training_seconds_plain)


def _figures(runs: pd.DataFrame) -> dict[str, str]:
    seconds = f"{runs.training_seconds.mean():.0f} s ({runs.relative.mean():.2f})"
    return {
        "NFE": ", ".join(f"{nfe:.0f}" for nfe in runs.nfe),
        "loss": tables.mean(runs.loss.to_numpy(), ".3f"),
        "training": seconds,
    }


def budgets_table(records: Sequence[Record]) -> pd.DataFrame:
    """Makes the table with a row for each budget: the runs, and the best fixed weight
    that takes no more evaluations than the run of its seed."""
    frame, rows = _frame(records), []
    frame = frame[frame.way.isin(["plain", "R_3"])]
    for name in [name for name in SIZED if name in set(frame.task)]:
        mine = frame[frame.task == name]
        fixed = mine[mine.budget.isna()]
        rows.append(_budget_row(name, "none", mine[mine.way == "plain"], fixed[:0]))
        for budget in SIZED[name].budgets:
            runs = mine[mine.budget == budget]
            # NaN without a run, so that no weight is the best.
            nfe = runs[runs.seed == SWEPT].nfe.max()
            best = fixed[(fixed.seed == SWEPT) & (fixed.nfe <= nfe)]
            best = best.nsmallest(1, "loss")
            rows.append(_budget_row(name, budget, runs, best))
    return pd.DataFrame(rows)


def _budget_row(
    name: str, budget: Any, runs: pd.DataFrame, best: pd.DataFrame
) -> dict[str, Any]:
    cell = "-" if budget == "none" else "none"
    for row in best.itertuples():
        weight = "plain" if row.way == "plain" else f"weight {row.weight:g}"
        (loss,) = runs[runs.seed == SWEPT].loss
        cell = f"{row.loss:.3f} at {row.nfe:.0f}, {weight}; budget: {loss:.3f}"
    weights = ", ".join(f"{weight:.2g}" for weight in runs.final_weight)
    head = {"task": name, "budget": budget}
    return head | _figures(runs) | {"weight": weights, "best fixed weight": cell}


def ways_table(name: str, records: Sequence[Record]) -> pd.DataFrame:
    """Makes the table of ways under equal budgets."""
    frame, rows = _frame(records), []
    frame = frame[(frame.task == name) & frame.weight.isna()]
    for way in ("plain", *(way for way in WAYS if way != "plain")):
        groups = frame[frame.way == way].groupby("budget", dropna=False)
        for budget, runs in groups:
            accuracy = tables.mean(100 * runs.accuracy.to_numpy(), ".2f")
            head = {"way": way, "budget": "none" if pd.isna(budget) else f"{budget:g}"}
            rows.append(head | {"accuracy (%)": accuracy} | _figures(runs))
    return pd.DataFrame(rows)


def draw(records: plots.Records) -> Figure | None:
    mine = records.get(ALL_WAYS, [])
    rows = [row for made in mine for row in made.rows if row.get("failure") is None]
    return plots.budgets(rows) if rows else None


TASK = Task(
    name="budgets",
    options=BudgetOptions,
    heeds={name: () for name in SIZED},
    execute=execute,
    tables={
        "budgets": budgets_table,
        "digits": lambda records: ways_table("digits", records),
        "mnist": lambda records: ways_table("mnist", records),
    },
    draw=draw,
)
