"""What the tests of training share: a linear equation to be learned."""

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


class Linear(eqx.Module):
    matrix: jax.Array

    def __call__(self, t, y, args):
        return y @ self.matrix.T


def problem(model, batch):
    return dsr.InitialValueProblem(dfx.ODETerm(model), batch[0])


def loss(model, y1, batch):
    return jnp.mean((y1 - batch[1]) ** 2)


def make_batch(key, size=16):
    x = jr.normal(key, (size, 2))
    return x, x @ jax.scipy.linalg.expm(ROTATION).T


def make_batches(size=16, num_samples=64):
    return dsr.Batches(make_batch(jr.key(7), num_samples), size)


def make_trainer(**kwargs):
    options: dict[str, Any] = dict(
        problem=problem,
        loss=loss,
        num_steps=2,
        model_optimizer=optax.adam(2e-2),
        solver_optimizer=optax.adam(1e-2),
        reference_solver=dfx.Tsit5(),  # Compiles fastest.
    )
    return dsr.AlternatingTrainer(**(options | kwargs))


def make_state(trainer, solver=None):
    if solver is None:
        solver = dsr.TaylorLagrangeSolver(2, dsr.CorrectionMLP(2, key=jr.key(0)))
    return trainer.init(Linear(ROTATION + 0.3), solver, key=jr.key(3))


def arrays(tree):
    return eqx.filter(tree, eqx.is_array)


def same_bits(x, y):
    """NumPy's bytes of all arrays are equal, and so are structures and dtypes."""

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
