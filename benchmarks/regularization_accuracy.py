"""How accurate quadrature is, and what the right norm spares: in double precision."""

import functools
from collections.abc import Callable, Iterator, Sequence

import diffrax as dfx
import diffrax_speedreg as dsr
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .contestants import VectorField
from .fields import blocks
from .problem import Problem, rescale
from .regularization_records import NormSteps, QuadratureError
from .regularization_ways import augmented, plain, Setting


ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
# With which the solution bends a few times.
_SCALE = 1.5
_PRECISE = dfx.Dopri8(), 1e-9


def precise_speed(problem: Problem, order: int) -> float:
    """Beside the state, with steps that are short enough for the speed too."""
    with jax.enable_x64(True):
        params, y0 = _in_double((problem.params, problem.y))

        @jax.jit
        def speed(params: PyTree[Array], y0: PyTree[Array]) -> Float[Array, ""]:
            term = dsr.SpeedRegularizedTerm(_term(problem, params), order)
            ivp = dsr.InitialValueProblem(term, term.init(y0))
            solution = dsr.solve_adaptive(ivp, *_PRECISE, max_steps=None)
            return term.split(dsr.final_state(solution))[1]

        return float(speed(params, y0))


def quadrature_errors(
    activation: str, order: int, nums_nodes: Sequence[int], seed: int
) -> Iterator[QuadratureError]:
    """Of a smooth field, and of one with kinks."""
    problem = _small(ACTIVATIONS[activation], seed)
    exact = precise_speed(problem, order)
    with jax.enable_x64(True):
        params, y0 = _in_double((problem.params, problem.y))

        @jax.jit
        def speeds(params: PyTree[Array], y0: PyTree[Array]) -> list[Float[Array, ""]]:
            term = _term(problem, params)
            solver, tolerance = _PRECISE
            solution = dfx.diffeqsolve(
                term,
                solver,
                0.0,
                1.0,
                None,
                y0,
                saveat=dfx.SaveAt(dense=True),
                stepsize_controller=dfx.PIDController(tolerance, tolerance),
                max_steps=4096,
            )
            rules = [dsr.gauss_legendre(0.0, 1.0, n) for n in nums_nodes]
            return [
                rule.integrate(
                    dsr.Speed(order), term, jax.vmap(solution.evaluate)(rule.ts)
                )
                for rule in rules
            ]

        found = [float(speed) for speed in speeds(params, y0)]
    for num_nodes, speed in zip(nums_nodes, found):
        yield QuadratureError(activation, order, num_nodes, abs(speed / exact - 1))


def norm_steps(order: int, tolerance: float, seed: int) -> NormSteps:
    """Of Tsit5, on a field with `tanh`."""
    problem = _small(jnp.tanh, seed)
    solver = dfx.Tsit5()
    ways = dict(
        plain=plain,
        with_norm=augmented,
        without_norm=functools.partial(augmented, with_norm=False),
    )
    with jax.enable_x64(True):
        params, y0 = _in_double((problem.params, problem.y))
        field = VectorField(
            lambda t, y: problem.field(params, t, y), problem.autonomous
        )
        setting = Setting(field, y0, order, jr.key(seed), tolerance, max_steps=4096)
        counts = {
            name: int(
                jax.jit(lambda y0: way(solver, setting._replace(y0=y0)).num_steps)(y0)
            )
            for name, way in ways.items()
        }
    return NormSteps(order, tolerance, **counts)


def _small(activation: Callable[[Array], Array], seed: int) -> Problem:
    """A single sample: a mean over a batch would smooth the kinks, and outweigh the
    speed in a norm of both."""
    return rescale(blocks(activation, 1, jr.key(seed)), _SCALE)


def _in_double(tree: PyTree[Array]) -> PyTree[Array]:
    return jtu.tree_map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)


def _term(problem: Problem, params: PyTree[Array]) -> dfx.ODETerm:
    return dfx.ODETerm(lambda t, y, args: problem.field(params, jnp.asarray(t), y))
