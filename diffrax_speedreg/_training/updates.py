"""Steps of an optimizer."""

import contextlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, PyTree


def init_optimizer(
    optimizer: optax.GradientTransformation, trained: PyTree[Any]
) -> PyTree[Any]:
    return optimizer.init(eqx.filter(trained, eqx.is_inexact_array))


def update(
    optimizer: optax.GradientTransformation,
    trained: PyTree[Any],
    grads: PyTree[Array],
    opt_state: PyTree[Any],
    name: str,
) -> tuple[PyTree[Any], PyTree[Any]]:
    """What is trained after a step of the optimizer, and the optimizer's state.

    `name` is what the optimizer's state is called in the message of an error.
    """
    params = eqx.filter(trained, eqx.is_inexact_array)
    # Optax mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        expected = eqx.filter_eval_shape(optimizer.init, params)
        _check_state(opt_state, expected, name)
        # JAX's gradient by a complex number is the conjugate of the way upwards.
        ascent = jtu.tree_map(jnp.conj, grads)
        updates, opt_state = optimizer.update(ascent, opt_state, params)
    return eqx.apply_updates(trained, updates), opt_state


def all_finite(tree: PyTree[Any]) -> Bool[Array, ""]:
    """Whether all floating-point numbers in a pytree are finite."""
    leaves = jtu.tree_leaves(eqx.filter(tree, eqx.is_inexact_array))
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


@contextlib.contextmanager
def naming_batch(batch: PyTree[Any]) -> Iterator[None]:
    """A context in which an error says what the batch was."""
    try:
        yield
    except (TypeError, ValueError) as error:
        shapes = eqx.tree_pformat(batch, struct_as_array=True)
        raise ValueError(
            f"The batch {shapes} can't be used with this model, `problem` and `loss`: "
            f"{error}\nCompare its shapes and dtypes with what the model was made for."
        ) from error


def _check_state(opt_state: PyTree[Any], expected: PyTree[Any], name: str) -> None:
    def shapes(tree: PyTree[Any]) -> list[tuple[int, ...]]:
        return [jnp.shape(leaf) for leaf in jtu.tree_leaves(tree)]

    same_structure = jtu.tree_structure(opt_state) == jtu.tree_structure(expected)
    if not same_structure or shapes(opt_state) != shapes(expected):
        raise ValueError(
            f"`{name}` is of another model or optimizer: it is\n"
            f"{eqx.tree_pformat(opt_state, struct_as_array=True)}\nbut what is trained "
            f"needs\n{eqx.tree_pformat(expected, struct_as_array=True)}\nMake it by "
            "`trainer.init(model, solver, key=...)`."
        )
