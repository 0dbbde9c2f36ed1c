r"""Continuous normalizing flows: two densities in the plane, and MINIBOONE's.

A flow takes samples of the data at time 0 to samples of a normal distribution at time
1. Along a solution of $dy/dt = f(t, y)$ the density changes by $d \log p / dt = -
\operatorname{tr} \partial f / \partial y$, which is solved for along with the samples.
(Grathwohl et al., "FFJORD: Free-Form Continuous Dynamics for Scalable Reversible
Generative Models", ICLR 2019.)
"""

import dataclasses
import functools as ft
import itertools
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
from jaxtyping import Array, Float, Key

from . import data, methods, plots
from .config import Options
from .methods import Method
from .problem import Batch, final_state, Problem
from .task import Task
from .training import Experiment, Run, Trained
from .ways import WAYS


PLANAR: dict[str, data.Sampler] = dict(moons=data.moons, pinwheel=data.pinwheel)
ENTROPIES = dict(moons=data.entropy_of_moons, pinwheel=data.entropy_of_pinwheel)
PER_EPOCH, TEST_BATCHES, NUM_STEPS, TOLERANCE = 100, 16, 8, 1e-5
TEST_SEED = 2**32  # Too large for a seed of the options.
EXTENT, POINTS = 4.0, 64
Samples = Float[Array, "batch size"]
Densities = Float[Array, " batch"]
Function = Callable[[Samples], Samples]


class ConcatSquash(eqx.Module):
    r"""Layer $(W y + b) \, \sigma(u t + v) + w t$, with learned vectors $u, v, w$."""

    linear: eqx.nn.Linear
    gate: eqx.nn.Linear
    shift: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, *, key: Key[Array, ""]):
        linear_key, gate_key, shift_key = jr.split(key, 3)
        self.linear = eqx.nn.Linear(inputs, outputs, key=linear_key)
        self.gate = eqx.nn.Linear(1, outputs, key=gate_key)
        self.shift = eqx.nn.Linear(1, outputs, use_bias=False, key=shift_key)

    def __call__(self, t: Float[Array, "1"], y: Samples) -> Samples:
        gate, shift = jax.nn.sigmoid(self.gate(t)), self.shift(t)
        return jax.vmap(lambda x: self.linear(x) * gate + shift)(y)


class Field(eqx.Module):
    """Vector field of a batch of samples, each of which moves on its own."""

    layers: list[ConcatSquash]
    activation: Function = eqx.field(static=True)

    def __init__(
        self,
        size: int,
        width: int,
        depth: int,
        activation: Function,
        *,
        key: Key[Array, ""],
    ):
        sizes = list(itertools.pairwise([size, *[width] * depth, size]))
        keys = jr.split(key, len(sizes))
        self.layers = [ConcatSquash(*shape, key=k) for shape, k in zip(sizes, keys)]
        self.activation = activation

    @property
    def size(self) -> int:
        return self.layers[0].linear.weight.shape[1]

    def __call__(self, t: Any, y: Samples, args: Any = None) -> Samples:
        time = jnp.asarray(t, y.dtype).reshape(1)
        *hidden, last = self.layers
        for layer in hidden:
            y = self.activation(layer(time, y))
        return last(time, y)


class FlowState(eqx.Module):
    """Samples, and the growth of the logarithm of the density at each."""

    samples: Samples
    log_density: Densities


def exact_trace(function: Function, y: Samples) -> tuple[Samples, Densities]:
    """Computes a function of each sample, and the trace of its Jacobian.

    **Cost:** as many products with the Jacobian as a sample has entries.
    """
    axes = jnp.eye(y.shape[1], dtype=y.dtype)
    if len(axes) <= 4:
        # Separate products take half the time of those of a linearization.
        tangents = [jnp.broadcast_to(axis, y.shape) for axis in axes]
        pushed = [jax.jvp(function, (y,), (tangent,)) for tangent in tangents]
        diagonal = [dy[:, i] for i, (_, dy) in enumerate(pushed)]
        return pushed[0][0], jnp.sum(jnp.stack(diagonal), axis=0)
    value, push = jax.linearize(function, y)
    entry = lambda axis: push(jnp.broadcast_to(axis, y.shape)) @ axis
    return value, jnp.sum(jax.vmap(entry)(axes), axis=0)


def estimated_trace(
    function: Function, y: Samples, noise: Samples
) -> tuple[Samples, Densities]:
    """Estimates the trace by one product, without bias for noise of covariance one.

    (Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix for
    Laplacian Smoothing Splines", 1989.)
    """
    value, product = jax.jvp(function, (y,), (noise,))
    return value, jnp.sum(noise * product, axis=1)


def flow_field(field: Field) -> Callable[..., FlowState]:
    """Makes the field of a `FlowState`. Its `args` are the noise for the trace, or
    `None` for the exact trace."""

    def flow(t: Any, state: FlowState, noise: Samples | None) -> FlowState:
        at_time = lambda y: field(t, y)
        if noise is None:
            velocity, trace = exact_trace(at_time, state.samples)
        else:
            velocity, trace = estimated_trace(at_time, state.samples, noise)
        return FlowState(velocity, -trace)

    return flow


def equation(field: Field, batch: Batch) -> dsr.training.InitialValueProblem:
    """Makes the equation that takes samples of the data to those of the base.

    In training, the trace is estimated by random signs, except in the plane.
    """
    samples = jnp.asarray(batch.data)
    noise = None
    if batch.key is not None and samples.shape[1] > 2:
        noise = jr.rademacher(batch.key, samples.shape).astype(samples.dtype)
    state = FlowState(samples, jnp.zeros_like(samples[:, 0]))
    term = dfx.ODETerm(flow_field(field))
    return dsr.training.InitialValueProblem(term, state, args=noise)


def log_likelihood(solution: dfx.Solution) -> Densities:
    """Computes the log-likelihood of data from their solution."""
    final = final_state(solution)
    base = jnp.sum(jax.scipy.stats.norm.logpdf(final.samples), axis=1)
    return base - final.log_density


def loss(field: Field, solution: dfx.Solution, batch: Batch) -> Float[Array, ""]:
    """Computes the mean negative log-likelihood of a batch, in nats."""
    return -jnp.mean(log_likelihood(solution))


class OfSamples(dsr.AbstractRegularizer):
    """Regularizer of the samples' motion, without the density in the state."""

    field: Field
    regularizer: dsr.AbstractRegularizer

    @classmethod
    def rnode(cls, field: Field, batch: Batch, y0: FlowState) -> "OfSamples":
        return cls(field, methods.rnode(field, batch, y0.samples))

    def evaluate(
        self, term: dfx.AbstractTerm, t: Any, y: FlowState, args: Any
    ) -> tuple[FlowState, Float[Array, ""]]:
        moving = dfx.ODETerm(self.field)
        _, value = self.regularizer.evaluate(moving, t, y.samples, None)
        return term.vf(t, y, args), value


@dataclasses.dataclass(frozen=True)
class FlowOptions(Options):
    epochs: int = 20
    width: int = 64
    """Width of the network. TayNODE's has 860."""
    depth: int = 3
    """Number of hidden layers."""
    batch_size: int = 256
    """Batch size. TayNODE's is 1000."""
    rate: float = 5e-3
    """Learning rate, at most. TayNODE's is 1e-3."""
    budget: int = 37
    """Evaluations that a solve may take with a regularizer: half of plain's."""
    penalty: float = 1.0
    """Weight of the penalty of the learned solver."""


@dataclasses.dataclass(frozen=True)
class PinwheelOptions(FlowOptions):
    epochs: int = 40
    budget: int = 43


@dataclasses.dataclass(frozen=True)
class MinibooneOptions(FlowOptions):
    epochs: int = 45
    depth: int = 2
    batch_size: int = 128
    rate: float = 3e-2
    budget: int = 25
    penalty: float = 50.0


def sampled_batches(sampler: data.Sampler, size: int) -> Any:
    """Makes batches of new samples for each step."""

    def batches(key: Key[Array, ""], step: int) -> Float[np.ndarray, "size 2"]:
        words = np.asarray(jr.key_data(jr.fold_in(key, step)))
        return sampler(np.random.default_rng(words), size)

    return batches


def flow_problem(name: str, options: FlowOptions, key: Key[Array, ""]) -> Problem:
    size = options.batch_size
    if name in PLANAR:
        batches = sampled_batches(PLANAR[name], size)
        per_epoch = 5 if options.quick else PER_EPOCH
        test = PLANAR[name](np.random.default_rng(TEST_SEED), 4000)
    else:
        train, _, test, _ = data.load_miniboone()
        batches = dsr.training.Batches(
            train[: 2 * size] if options.quick else train, size
        )
        per_epoch = batches.num_batches
        test = test[: len(test) // TEST_BATCHES * TEST_BATCHES]
    # With softplus, planar flows end far from the entropies of the samplers.
    activation = jnp.tanh if name in PLANAR else jax.nn.softplus
    field = Field(test.shape[1], options.width, options.depth, activation, key=key)
    parts = [Batch(part) for part in np.split(test, TEST_BATCHES)]
    return Problem(
        *(field, batches, per_epoch, equation, loss, parts), tolerance=TOLERANCE
    )


def optimizer_of(name: str, rate: float, steps: int) -> optax.GradientTransformation:
    if name not in PLANAR:
        return optax.contrib.muon(optax.cosine_decay_schedule(rate, steps))
    warm = max(1, steps // 20)
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, warm, steps))


def method_of(
    name: str, options: FlowOptions, size: int, steps: int, key: Key[Array, ""]
) -> Method:
    if name == "plain":
        return Method()
    if name == "Taylor-Lagrange":
        sample = FlowState(jnp.zeros(size), jnp.zeros(()))
        midpoint = dsr.MidpointMLP(sample, inputs=("t", "y"), width=16, key=key)
        return Method(
            dsr.TaylorLagrangeSolver(2, midpoint),
            num_steps=NUM_STEPS,
            weight=options.penalty,
            solver_optimizer=optax.adam(1e-4, 0.999, 0.9999),
            # As many reference solves as in the paper's schedule.
            fit=dict(solver_every=max(1, steps // 120), solver_steps=1),
        )
    rnode = methods.regularized(OfSamples.rnode, dsr.gauss_legendre(4))
    way = rnode if name == "RNODE" else WAYS[name]
    return Method(way=way, budget=dsr.NFEBudget(options.budget))


def build(name: str, run: Run) -> Experiment:
    options: FlowOptions = run.options
    if options.quick:
        options = dataclasses.replace(options, width=16, epochs=1, batch_size=250)
    model_key, solver_key = jr.split(run.key)
    problem = flow_problem(name, options, model_key)
    steps = options.epochs * problem.per_epoch
    method = method_of(run.method, options, problem.model.size, steps, solver_key)
    optimizer = optimizer_of(name, options.rate, steps)
    return Experiment(problem, method, optimizer, options.epochs)


def finish(name: str, run: Run, experiment: Experiment, trained: Trained) -> Any:
    """Computes the density of a planar flow on a grid, and draws from it."""
    problem, field = experiment.problem, trained.model
    if name not in PLANAR:
        tabular = data.load_miniboone()
        samples = len(tabular.train)
        return dict(training_samples=samples, partial=tabular.partial), {}
    axis = np.linspace(-EXTENT, EXTENT, POINTS, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    @eqx.filter_jit
    def draw(field: Field, grid: Samples) -> tuple[Samples, Densities]:
        density = log_likelihood(problem.solve(field, Batch(grid)))
        # Backwards in time.
        noise = jr.normal(jr.key(0), (1000, 2), grid.dtype)
        backwards = dfx.diffeqsolve(
            *(dfx.ODETerm(field), problem.solver, 1.0, 0.0, None, noise),
            **problem.options,
        )
        return final_state(backwards), density.reshape(POINTS, POINTS)

    samples, log_density = draw(field, jnp.asarray(grid))
    # Smaller densities do not show in the picture.
    log_density = np.round(np.maximum(log_density, -20), 2)
    picture = dict(log_density=log_density, samples=np.round(samples, 2))
    return dict(entropy=ENTROPIES[name]()), picture


def _task(name: str, options: type[FlowOptions], **others: Any) -> Task:
    return Task(
        name=name,
        options=options,
        heeds={
            "plain": (),
            **dict.fromkeys(("R_2", "R_3", "RNODE"), ("budget",)),
            "Taylor-Lagrange": ("penalty",),
        },
        build=ft.partial(build, name),
        finish=ft.partial(finish, name),
        columns={
            "test NLL": ("loss", ".3f"),
            "NFE": ("nfe", ".4g"),
            "NLL by own solve": ("own_loss", ".3f"),
            "own solve": ("solve_seconds", "ms"),
            "training step": ("step_seconds", "ms"),
            "training": ("training_seconds", "s"),
        },
        draw=lambda records: plots.densities(records, EXTENT),
        **others,
    )


TASKS = (
    _task("moons", FlowOptions),
    _task("pinwheel", PinwheelOptions),
    _task("miniboone", MinibooneOptions, data=data.load_miniboone),
)
