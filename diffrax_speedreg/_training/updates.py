"""Steps of an optimizer."""

import contextlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, Inexact, PyTree


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


def stays_finite(
    value: Inexact[Array, ""], before: PyTree[Any], after: PyTree[Any]
) -> Bool[Array, ""]:
    """Whether a loss is finite, and all that a step has changed.

    What is infinite from the start may stay so: a mask of a model, the best value that
    an optimizer has seen.
    """

    def fine(old: Array, new: Array) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(new) | (old == new))

    old, new = (eqx.filter(tree, eqx.is_inexact_array) for tree in (before, after))
    leaves = jtu.tree_leaves(jtu.tree_map(fine, old, new))
    return jnp.stack([jnp.isfinite(value), *leaves]).all()


@contextlib.contextmanager
def naming_batch(batch: PyTree[Any]) -> Iterator[None]:
    """A context in which an error says what the batch was."""
    try:
        yield
    except (TypeError, ValueError) as error:
        shapes = eqx.tree_pformat(batch, struct_as_array=True)
        raise ValueError(
            f"{error}\nThe batch was {shapes}. If that does not explain it, compare "
            "shapes and dtypes with what the model, `problem` and `loss` are made for."
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
