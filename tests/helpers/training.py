"""Helpers of the tests of training: a linear equation to be learned."""

from typing import Any

import diffrax as dfx
import diffrax_speedreg as dsr
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax


ROTATION = jnp.array([[0.0, 2.0], [-2.0, 0.0]])
NUM_STEPS = 2


class Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, y, args):
        return y @ self.matrix.T


def equation(model, batch):
    return dsr.training.InitialValueProblem(dfx.ODETerm(model), batch[0])


def solve(model, solver, batch, num_steps=NUM_STEPS) -> Any:
    problem = equation(model, batch)
    return dsr.fixed_step_solve(problem.term, solver, 0.0, 1.0, num_steps, problem.y0)


def loss(model, solver, batch):
    return jnp.mean((solve(model, solver, batch).ys[-1] - batch[1]) ** 2)


def penalized(weight):
    def total(model, solver, batch):
        solution = solve(model, solver, batch)
        penalty = solution.solver_state.midpoint_penalty
        value = jnp.mean((solution.ys[-1] - batch[1]) ** 2)
        return value + weight * penalty, dict(data=value, penalty=penalty)

    return total


def make_batch(key, size=16):
    x = jr.normal(key, (size, 2))
    return x, x @ jax.scipy.linalg.expm(ROTATION).T


def make_batches(size=16, num_samples=64):
    return dsr.training.Batches(make_batch(jr.key(7), num_samples), size)


def make_reference(
    num_steps: Any = NUM_STEPS, solver: Any = dfx.Tsit5(), **options: Any
):
    """Makes a reference with the solver that compiles fastest."""
    return dsr.training.Reference(num_steps, solver, **options)


def make_trainer(**kwargs) -> Any:
    options: dict[str, Any] = dict(
        loss=loss,
        model_optimizer=optax.adam(2e-2),
        equation=equation,
        solver_optimizer=optax.adam(1e-2),
        reference=make_reference(),
    )
    return dsr.training.Trainer(**(options | kwargs))


def make_state(trainer, solver=None, **options) -> Any:
    if solver is None:
        solver = dsr.TaylorLagrangeSolver(2, dsr.MidpointMLP(2, key=jr.key(0)))
    return trainer.init(Linear(ROTATION + 0.3), solver, key=jr.key(3), **options)


def arrays(tree):
    return eqx.filter(tree, eqx.is_array)


def same_bits(x, y):
    """Returns whether all arrays have the same bytes, structures and dtypes."""

    def leaves(tree):
        data = jax.tree_util.tree_map(
            lambda leaf: (
                jr.key_data(leaf)
                if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
                else leaf
            ),
            arrays(tree),
        )
        return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(data)]

    pairs = list(zip(leaves(x), leaves(y), strict=True))
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
