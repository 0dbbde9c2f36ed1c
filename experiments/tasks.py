"""All tasks, in the order of the page of results."""

from . import (
    budgets,
    classification,
    dynamics,
    flows,
    forms,
    latent_ode,
    midpoints,
    sampling,
    toy,
)
from .config import UsageError
from .task import Task


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        toy.TOY,
        classification.DIGITS,
        classification.MNIST,
        toy.ORDERS_TASK,
        midpoints.TASK,
        forms.TASK,
        *dynamics.TASKS,
        *flows.TASKS,
        latent_ode.TASK,
        budgets.TASK,
        sampling.TASK,
    )
}


def find(name: str) -> Task:
    """Finds a task by its name.

    **Raises:**

    A `UsageError` with the list of tasks, for an unknown one.
    """
    if name not in TASKS:
        raise UsageError(f"the tasks are {', '.join(TASKS)}, but got {name!r}")
    return TASKS[name]
