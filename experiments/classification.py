"""Neural-ODE classifiers of images: handwritten digits, and MNIST as in the papers.

`digits` is the demo: `plain` solves the equation adaptively; `R_3` does so too, under a
budget of evaluations that the weight of the regularizer follows from; `Taylor-Lagrange`
makes a few coarse steps, whose midpoints are trained in turn. `mnist` has the papers'
network and their methods.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, Key
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from . import methods, plots
from .config import Options
from .data import load_mnist
from .methods import Method
from .problem import Batch, final_state, Problem
from .task import Task
from .training import Experiment, Run
from .ways import WAYS


STEPS, TEST_BATCH = 2, 1000
Pixels = Float[Array, "batch pixels"]
Scalar = Float[Array, ""]


class Images(eqx.Module):
    """Images with their labels."""

    images: Float[Array | np.ndarray, "batch pixels"]
    labels: Int[Array | np.ndarray, " batch"]


class Classifier(eqx.Module):
    """A vector field, and a readout of the classes from the final state."""

    field: Callable[..., Array]
    readout: Callable[[Float[Array, " pixels"]], Float[Array, " classes"]]

    def logits(self, solution: dfx.Solution) -> Float[Array, "batch classes"]:
        return jax.vmap(self.readout)(final_state(solution))


class DigitsField(eqx.Module):
    """Vector field of a whole batch of images, as one state."""

    mlp: eqx.nn.MLP

    def __call__(self, t: Any, y: Pixels, args: None) -> Pixels:
        return jax.vmap(self.mlp)(append_time(t, y))


class MnistField(eqx.Module):
    """The papers' vector field, with two layers. Each of them gets the time."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __call__(self, t: Any, y: Pixels, args: None) -> Pixels:
        for layer in (self.first, self.second):
            y = jax.vmap(layer)(append_time(t, jax.nn.sigmoid(y)))
        return y


def append_time(t: Any, y: Float[Array, "batch n"]) -> Float[Array, "batch n+1"]:
    time = jnp.full((len(y), 1), t, y.dtype)
    return jnp.concatenate([y, time], axis=1)


def digits_classifier(key: Key[Array, ""]) -> Classifier:
    field_key, readout_key = jr.split(key)
    mlp = eqx.nn.MLP(65, 64, 100, 2, jax.nn.tanh, key=field_key)
    return Classifier(DigitsField(mlp), eqx.nn.Linear(64, 10, key=readout_key))


def mnist_classifier(key: Key[Array, ""]) -> Classifier:
    first, second, third = jr.split(key, 3)
    field = MnistField(
        eqx.nn.Linear(785, 100, key=first), eqx.nn.Linear(101, 784, key=second)
    )
    readout = eqx.nn.Linear(784, 10, key=third)
    sigmoid = eqx.nn.Lambda(jax.nn.sigmoid)
    return Classifier(field, eqx.nn.Sequential([sigmoid, readout]))


def digits_data(seed: int) -> tuple[Images, Images]:
    """Loads the training and the test set."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts: Any = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    train, test, train_labels, test_labels = parts
    return Images(train, train_labels), Images(test, test_labels)


def equation(model: Classifier, batch: Batch) -> dsr.training.InitialValueProblem:
    y0 = jnp.asarray(batch.data.images)
    return dsr.training.InitialValueProblem(dfx.ODETerm(model.field), y0)


def cross_entropy(model: Classifier, solution: dfx.Solution, batch: Batch) -> Scalar:
    losses = optax.softmax_cross_entropy_with_integer_labels(
        model.logits(solution), batch.data.labels
    )
    return losses.mean()


def accuracy(model: Classifier, solution: dfx.Solution, batch: Batch) -> Scalar:
    predicted = jnp.argmax(model.logits(solution), axis=1)
    return jnp.mean(predicted == batch.data.labels)


def _problem(
    model: Classifier, data: Images, size: int, test: list[Images], **options: Any
) -> Problem:
    batches = dsr.training.Batches(data, size)
    return Problem(
        *(model, batches, batches.num_batches, equation, cross_entropy),
        test=[Batch(part) for part in test],
        scores=dict(accuracy=accuracy),
        **options,
    )


def digits_problem(key: Key[Array, ""], seed: int) -> Problem:
    data, test = digits_data(seed)
    return _problem(digits_classifier(key), data, 128, [test], max_steps=64)


def mnist_problem(key: Key[Array, ""], size: int, quick: bool = False) -> Problem:
    """Makes the problem, with batches of a size.

    Single precision carries its tolerance. With that of the papers, 1.4e-8, NFE counts
    rounding errors.
    """
    loaded = load_mnist()
    sizes = (1000, TEST_BATCH) if quick else (None, None)
    data, test = (
        Images(images[:size], labels[:size])
        for images, labels, size in zip(loaded[::2], loaded[1::2], sizes)
    )
    parts = np.split(np.arange(len(test.labels)), len(test.labels) // TEST_BATCH)
    split = [Images(test.images[part], test.labels[part]) for part in parts]
    model = mnist_classifier(key)
    return _problem(model, data, size, split, tolerance=1e-7)


@dataclasses.dataclass(frozen=True)
class DigitsOptions(Options):
    epochs: int = 60
    learning_rate: float = 3e-3
    """Learning rate of Adam."""
    budget: int = 31
    """Evaluations that a solve may take with R_3: half of plain's."""


def build_digits(run: Run) -> Experiment:
    options = run.options
    model_key, solver_key = jr.split(run.key)
    problem = digits_problem(model_key, run.record.seed)
    if run.method == "plain":
        method = Method()
    elif run.method == "R_3":
        budget = dsr.NFEBudget(options.budget, solver=problem.solver)
        method = Method(way=methods.derivative(3), budget=budget)
    else:
        method = Method(
            dsr.TaylorLagrangeSolver(2, dsr.MidpointMLP(64, key=solver_key)),
            num_steps=STEPS,
            penalty="midpoint_penalty",
            weight=1.0,
            solver_optimizer=optax.adam(1e-3),
            fit=dict(solver_every=10),
        )
    epochs = 2 if options.quick else options.epochs
    return Experiment(problem, method, optax.adam(options.learning_rate), epochs)


@dataclasses.dataclass(frozen=True)
class MnistOptions(Options):
    epochs: int = 10
    batch_size: int = 100
    """Batch size. The paper's is 100, with 160 epochs."""
    budget: int = 55
    """Evaluations that a solve may take with a regularizer: half of plain's."""
    penalty: float = 10.0
    """Weight of the penalty of a learned solver."""


def mnist_method(
    name: str, options: MnistOptions, steps: int, key: Key[Array, ""]
) -> Method:
    network = dsr.MidpointMLP(784, activation=jax.nn.relu, key=key)
    cheap = {
        "truncated Taylor": dsr.TaylorLagrangeSolver(2),
        "hypersolver": dsr.HyperSolver(dfx.Heun(), network),
        "Taylor-Lagrange": dsr.TaylorLagrangeSolver(2, network),
        "Taylor-Lagrange 3": dsr.TaylorLagrangeSolver(3, network),
    }
    if name in cheap:
        learned = "residual" if name == "hypersolver" else "midpoint"
        return Method(
            cheap[name],
            num_steps=1 if name == "Taylor-Lagrange 3" else STEPS,
            penalty=f"absolute_{learned}_penalty",
            weight=options.penalty,
            solver_optimizer=optax.adam(1e-4, 0.999, 0.9999),
            # As many reference solves as in the paper's schedule.
            fit=dict(solver_every=max(1, steps // 150)),
        )
    if name == "plain":
        return Method()
    return Method(way=WAYS[name], budget=dsr.NFEBudget(options.budget))


def muon(steps: int) -> optax.GradientTransformation:
    """Makes the optimizer for MNIST.

    The inputs of the network are nearly the mean of a sigmoid's values, so that
    gradient descent is slow. Muon's updates are equally large in all directions.
    """
    return optax.contrib.muon(optax.cosine_decay_schedule(0.03, steps))


def build_mnist(run: Run) -> Experiment:
    options = run.options
    model_key, solver_key = jr.split(run.key)
    problem = mnist_problem(model_key, options.batch_size, options.quick)
    epochs = 1 if options.quick else options.epochs
    steps = epochs * problem.per_epoch
    method = mnist_method(run.method, options, steps, solver_key)
    return Experiment(problem, method, muon(steps), epochs)


COLUMNS = {
    "test accuracy": ("own_accuracy", ".2%"),
    "NFE": ("nfe", ".4g"),
    "solve": ("solve_seconds", "ms"),
    "training step": ("step_seconds", "ms"),
    "training": ("training_seconds", "s"),
    "faster": ("training_seconds", "x"),
}
DIGITS = Task(
    name="digits",
    options=DigitsOptions,
    heeds={"plain": (), "R_3": ("budget",), "Taylor-Lagrange 2": ()},
    build=build_digits,
    columns=COLUMNS,
    draw=plots.trajectories,
)
MNIST = Task(
    name="mnist",
    options=MnistOptions,
    heeds={
        "plain": (),
        **dict.fromkeys(("R_3", "RNODE"), ("budget",)),
        **dict.fromkeys(
            ("truncated Taylor", "hypersolver", "Taylor-Lagrange", "Taylor-Lagrange 3"),
            ("penalty",),
        ),
    },
    build=build_mnist,
    columns={
        "test accuracy": COLUMNS["test accuracy"],
        "NFE": COLUMNS["NFE"],
        "in float64": ("nfe at 1e-7", ".4g"),
        **{k: COLUMNS[k] for k in ("solve", "training", "faster")},
    },
    draw=plots.accuracies,
    data=load_mnist,
)
