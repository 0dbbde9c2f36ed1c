"""Trains the papers' neural-ODE classifier of MNIST by every method, and measures it.

One file of results for each method, so that methods can be run one by one; the table
and the picture show those of all files in the folder. Without methods, nothing is
trained, and they are made anew.

The data are looked for in $DIFFRAX_SPEEDREG_DATA/mnist, and else fetched from OpenML.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import optax.contrib
from jaxtyping import Array, ArrayLike, Float, Key

from . import classification, command_line, records, report
from .classification import Batch, Classifier
from .data import load_mnist
from .training import Loss, Recorder, train_adaptively, train_alternating


ADAPTIVE = classification.Adaptive(dfx.Dopri5(), tolerance=1.4e-8, max_steps=256)
PIXELS, WIDTH, CLASSES = 784, 100, 10
TEST_BATCH = 1000
NODES = 4
TAYLOR_STEPS = 2
# Of the paper's schedule.
REMAINDER_UPDATES = 150
TAYLOR_LAGRANGE = ("truncated Taylor", "hypersolver", "Taylor-Lagrange")
UNNAMED = "default"
# Which options only some methods heed.
HEEDED = {
    "plain": (),
    "augmented R_K": ("order", "regularization"),
    "quadrature R_K": ("order", "regularization"),
    "RNODE": ("kinetic", "jacobian"),
    **dict.fromkeys(TAYLOR_LAGRANGE, ("penalty",)),
}
METHODS = tuple(HEEDED)


class Published(NamedTuple):
    """Figures of a paper; all but the evaluations are relative to its plain method."""

    accuracy: float
    nfe: float
    solve_seconds: float
    training_seconds: float


# Heights of the bars of TL-NODE's figure; its evaluations from their ratios, which only
# these numbers of the form 2 + 6 n have.
PUBLISHED = {
    "plain": Published(1.0, 110, 1.0, 1.0),
    "augmented R_K": Published(1.0015, 80, 0.687, 2.211),
    "truncated Taylor": Published(0.8415, 205.7, 0.046, 0.0262),
    "Taylor-Lagrange": Published(1.0037, 62, 0.0638, 0.0684),
}
_NOTES = f"""The papers' network. The reduced scheme is the same for all methods:
batches of 100, and Muon with a learning rate of 0.03, which falls to 0 along
a cosine. The papers' schemes are stochastic gradient descent with momentum
(TayNODE, batches of 100, 160 epochs) and Adam (Taylor-Lagrange, batches of
500, 500 epochs): `--full`, or `--scheme` for fewer epochs. NFE: by Dopri5 at
1.4e-8, in batches of {TEST_BATCH} test images as one state, their mean.
Evaluation: the median time for such a batch, by the method's own solver.
Training: all steps, with compilation. In brackets: relative to plain. The
paper's figures are derived from the heights of the bars in TL-NODE's figure,
which are relative to its plain method; its augmented R_K is called TayNODE
there, and its truncated Taylor method T-NODE. For the other methods it has no
figures that were seen. Weights: of the speed (TayNODE's: 6e-5 for its scheme);
RNODE's of the kinetic energy and of the Jacobian's norm; of the remainders.
They were chosen by the loss and the evaluations during training."""


class Field(eqx.Module):
    """The field of a batch: two layers, each of which sees the time."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self, key: Key[Array, ""]):
        first_key, second_key = jr.split(key)
        self.first = eqx.nn.Linear(PIXELS + 1, WIDTH, key=first_key)
        self.second = eqx.nn.Linear(WIDTH + 1, PIXELS, key=second_key)

    def __call__(
        self, t: Float[ArrayLike, ""], y: Float[Array, "batch pixels"], args: None
    ) -> Float[Array, "batch pixels"]:
        for layer in (self.first, self.second):
            inputs = classification.append_time(t, jax.nn.sigmoid(y))
            y = jax.vmap(layer)(inputs)
        return y


def classifier(key: Key[Array, ""]) -> Classifier:
    field_key, readout_key = jr.split(key)
    readout = eqx.nn.Linear(PIXELS, CLASSES, key=readout_key)
    return Classifier(
        Field(field_key), eqx.nn.Sequential([eqx.nn.Lambda(jax.nn.sigmoid), readout])
    )


class Scheme(NamedTuple):
    """How to train: for how many epochs, in which batches, and what the optimizer is
    for a number of steps."""

    epochs: int
    batch_size: int
    optimizer: Callable[[int], optax.GradientTransformation]


def _schedule(initial: float, scales: dict[float, float], steps: int) -> optax.Schedule:
    """Piecewise constant; the boundaries are parts of the training."""
    boundaries = {round(part * steps): scale for part, scale in scales.items()}
    return optax.piecewise_constant_schedule(initial, boundaries)


def taynode_optimizer(steps: int) -> optax.GradientTransformation:
    scales = {60 / 160: 0.1, 100 / 160: 0.1, 140 / 160: 0.1}
    return optax.sgd(_schedule(0.1, scales, steps), momentum=0.9)


def taylor_lagrange_optimizer(steps: int) -> optax.GradientTransformation:
    schedule = _schedule(1e-2, {450 / 500: 1e-2}, steps)
    return optax.chain(optax.adaptive_grad_clip(1e-3), optax.adam(schedule))


def reduced_optimizer(steps: int) -> optax.GradientTransformation:
    """The network sees little but the mean of a sigmoid's values, and gradient descent
    is slow: Muon's updates are as large in all directions."""
    return optax.contrib.muon(optax.cosine_decay_schedule(0.03, steps))


SCHEMES = {
    "reduced": Scheme(10, 100, reduced_optimizer),
    "TayNODE": Scheme(160, 100, taynode_optimizer),
    "Taylor-Lagrange": Scheme(500, 500, taylor_lagrange_optimizer),
}


def scheme_name(method: str, scheme: str, full: bool) -> str:
    """The one that is asked for; if none is, that of the method's paper or, unless in
    full, the reduced one."""
    if scheme != UNNAMED:
        return scheme
    if not full:
        return "reduced"
    return "Taylor-Lagrange" if method in TAYLOR_LAGRANGE else "TayNODE"


def scheme(method: str, options: argparse.Namespace) -> tuple[Scheme, int]:
    """The scheme that a method is trained by, and for how many epochs."""
    chosen = SCHEMES[scheme_name(method, options.scheme, options.full)]
    epochs = 1 if options.quick else chosen.epochs if options.full else options.epochs
    return chosen, epochs


def load(quick: bool) -> tuple[Batch, list[Batch]]:
    """The training set, and the test set in batches."""
    data = load_mnist()
    sizes = (1000, TEST_BATCH) if quick else (None, None)
    train, test = (
        Batch(jnp.asarray(images[:size]), jnp.asarray(labels[:size]))
        for images, labels, size in zip(data[::2], data[1::2], sizes)
    )
    count = len(test.labels) // TEST_BATCH
    parts = zip(*(jnp.split(x, count) for x in test))
    return train, [Batch(*part) for part in parts]


def adaptive_loss(method: str, options: argparse.Namespace) -> Loss:
    weight = options.regularization

    def speed(key: Key[Array, ""], batch: Batch) -> dsr.AbstractRegularizer:
        return dsr.Speed(options.order)

    def rnode(key: Key[Array, ""], batch: Batch) -> dsr.AbstractRegularizer:
        jacobian = dsr.JacobianNorm.draw(key, batch.images)
        return options.kinetic * dsr.Speed(1) + options.jacobian * jacobian

    losses = {
        "plain": ADAPTIVE.plain_loss,
        "augmented R_K": ADAPTIVE.augmented_loss(speed, weight),
        "quadrature R_K": ADAPTIVE.quadrature_loss(speed, weight, NODES),
        "RNODE": ADAPTIVE.augmented_loss(rnode, 1.0),
    }
    return losses[method]


def cheap_solver(
    method: str, key: Key[Array, ""]
) -> dsr.TaylorLagrangeSolver | dsr.HyperSolver:
    """Each of which evaluates the field, or a coefficient, twice in a step."""
    if method == "truncated Taylor":
        return dsr.TaylorLagrangeSolver(2)
    correction = dsr.CorrectionMLP(PIXELS, activation=jax.nn.relu, key=key)
    if method == "hypersolver":
        return dsr.HyperSolver(dfx.Heun(), correction)
    return dsr.TaylorLagrangeSolver(2, correction)


def run(method: str, options: argparse.Namespace) -> records.Result:
    train, test = load(options.quick)
    chosen, epochs = scheme(method, options)
    batches = classification.Batches(train, chosen.batch_size, options.seed)
    model_key, solver_key, key = jr.split(jr.key(options.seed), 3)
    model = classifier(model_key)
    count = eqx.filter_jit(ADAPTIVE.nfe)
    record = Recorder(
        method,
        epochs,
        batches.per_epoch,
        lambda model: count(model, test[0]),
        command_line.checkpoints(options, f"mnist {method}"),
    )
    optimizer = chosen.optimizer(record.steps)
    if method in TAYLOR_LAGRANGE:
        trainer = dsr.AlternatingTrainer(
            problem=classification.problem,
            loss=classification.cross_entropy,
            num_steps=TAYLOR_STEPS,
            model_optimizer=optimizer,
            solver_optimizer=optax.adam(1e-4, 0.999, 0.9999),
            penalty=options.penalty,
            penalty_mean="absolute",
            reference_solver=ADAPTIVE.solver,
            reference_tolerance=ADAPTIVE.tolerance,
            reference_max_steps=ADAPTIVE.max_steps,
        )
        model, solver = train_alternating(
            trainer,
            model,
            cheap_solver(method, solver_key),
            batches,
            record,
            key=key,
            remainder_every=max(1, record.steps // REMAINDER_UPDATES),
        )
        solve = classification.fixed(solver, TAYLOR_STEPS)
    else:
        loss = adaptive_loss(method, options)
        model = train_adaptively(loss, model, batches, optimizer, record, key=key)
        solve = ADAPTIVE.solve
    return classification.evaluate(method, model, solve, ADAPTIVE, test, record)


def outcomes(folder: Path) -> dict[Path, tuple[str, records.Result | str]]:
    """Of all files in the folder: which method's, and what came of it."""
    return {
        path: (method, records.load(path))
        for method in METHODS
        for path in sorted(folder.glob("mnist-*.json"))
        if f"{path.stem}-".startswith(f"{_stem(method)}-")
    }


def table(folder: Path) -> str | None:
    """The methods beside the paper's figures, in Markdown."""
    found = outcomes(folder)
    _, plain = found.get(folder / f"{_stem('plain')}.json", ("", ""))
    rows = [["method", "scheme", "epochs", "test accuracy", "NFE", "evaluation"]]
    rows[0] += ["training", "paper: accuracy", "NFE", "evaluation", "training"]
    rows[0] += ["status", "command"]
    for path, (method, outcome) in found.items():
        options = records.options(path)
        scheme = scheme_name(method, options["scheme"], options["full"] == "True")
        row = [label(method, options), scheme, *_measured(outcome, plain)]
        paper = PUBLISHED.get(method)
        row += ["-"] * 5 if paper is None else [f"{x:g}" for x in paper] + ["derived"]
        others = set().union(*HEEDED.values()) - set(HEEDED[method])
        heeded = {name: x for name, x in options.items() if name not in others}
        rows.append([*row, f"`{parser().command(heeded, method)}`"])
    return f"{report.table(rows)}\n\n{_NOTES}" if found else None


def label(method: str, options: Mapping[str, str]) -> str:
    """A method, and the weights that it has."""
    if "R_K" in method:
        name = method.replace("K", options["order"])
        return f"{name}, λ = {options['regularization']}"
    if method == "RNODE":
        return f"RNODE, {options['kinetic']} and {options['jacobian']}"
    if method in TAYLOR_LAGRANGE:
        return f"{method}, penalty {options['penalty']}"
    return method


def _measured(
    outcome: records.Result | str, plain: records.Result | str | None
) -> list[str]:
    if isinstance(outcome, str):
        return ["", outcome, "", "", ""]

    def beside_plain(seconds: float, name: str) -> str:
        if not isinstance(plain, records.Result):
            return f"{seconds:.3g} s"
        return f"{seconds:.3g} s ({seconds / getattr(plain, name):.3g})"

    return [
        str(len(outcome.nfe_by_epoch)),
        f"{100 * outcome.accuracy:.2f} %",
        f"{outcome.nfe:g}",
        beside_plain(outcome.solve_seconds, "solve_seconds"),
        beside_plain(outcome.training_seconds, "training_seconds"),
    ]


def show(options: argparse.Namespace) -> None:
    """Prints the table of all results in the folder, and draws the picture of those
    with the weights by default."""
    results, drawn = [], []
    for path, (method, outcome) in outcomes(options.output).items():
        if isinstance(outcome, str):
            print(f"{path.stem}: {outcome}")
            continue
        name = label(method, records.options(path))
        results.append(outcome._replace(method=name))
        if path.stem == _stem(method):
            drawn.append(outcome)
    if results:
        print(f"\n{report.results_table(results)}")
    if drawn:
        report.draw(drawn, options.output / "mnist.png")


def file_name(method: str, options: argparse.Namespace) -> str:
    """With the scheme and what else it heeds, if that is not the default."""
    words = [_stem(method)]
    for name in ("scheme", *HEEDED[method]):
        value = getattr(options, name)
        if value != parser().get_default(name):
            words.append(f"{name}-{value}")
    return f"{command_line.file_name(' '.join(words))}.json"


def _stem(method: str) -> str:
    return command_line.file_name(f"mnist {method}")


def parser() -> command_line.Parser:
    made = command_line.Parser(
        "mnist",
        __doc__,
        epochs=10,
        quick="an epoch on a part of the data",
        full="the scheme of the method's paper, and all its epochs",
        methods=METHODS,
    )
    add = made.add_argument
    add("--scheme", choices=[UNNAMED, *SCHEMES], default=UNNAMED, help="to train by")
    add(
        "--order", type=command_line.positive(int), default=3, help="K of the speed R_K"
    )
    made.add_weights(1.0, kinetic=0.1, jacobian=0.1, penalty=10.0)
    return made


def main() -> None:
    options = parser().options()
    # Solves at this tolerance see the roundoff of products in less than float32.
    jax.config.update("jax_default_matmul_precision", "highest")
    for method in options.methods:
        outcome = command_line.attempt(lambda: run(method, options))
        path = options.output / file_name(method, options)
        records.save(path, options, outcome)
    show(options)


if __name__ == "__main__":
    main()
