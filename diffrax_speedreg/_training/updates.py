"""Steps of an optimizer."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Bool, Inexact, PyTree

from .._checks import check_that


def check_optimizer(optimizer: Any, name: str) -> None:
    """Checks that something is an optimizer, and not the function that makes one."""
    methods = [getattr(optimizer, method, None) for method in ("init", "update")]
    wanted = "an Optax optimizer, such as `optax.adam(1e-3)`"
    okay = all(map(callable, methods)) and not isinstance(optimizer, type)
    if not okay and callable(optimizer):
        called = getattr(optimizer, "__name__", "it")
        wanted += f" (call it: `{called}(...)`)"
    check_that(okay, name, wanted, optimizer)


def update(
    optimizer: optax.GradientTransformation,
    params: PyTree[Array],
    opt_state: PyTree[Any],
    value: Inexact[Array, ""],
    grads: PyTree[Array],
    value_fn: Callable[[PyTree[Array]], Inexact[Array, ""]],
    name: str,
) -> tuple[PyTree[Array], PyTree[Any]]:
    """Computes the parameters and the optimizer's state after a step.

    `name` is the name of the optimizer's state in the message of an error.
    """
    # JAX's gradient of a complex number is the conjugate of the direction of ascent.
    ascent = jtu.tree_map(jnp.conj, grads)
    optimizer = optax.with_extra_args_support(optimizer)
    # Optax mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        _check_state(opt_state, eqx.filter_eval_shape(optimizer.init, params), name)
        with _naming_missing_arguments():
            updates, opt_state = optimizer.update(
                ascent, opt_state, params, value=value, grad=ascent, value_fn=value_fn
            )
    return eqx.apply_updates(params, updates), opt_state


def stays_finite(
    value: Inexact[Array, ""],
    before: PyTree[Any],
    after: PyTree[Any],
    others: PyTree[Any] = None,
) -> Bool[Array, ""]:
    """Returns whether a loss, the `others` and all changes of a step are finite.

    Values that are infinite before the step may stay infinite: for example a mask of a
    model, or the best value that an optimizer has seen.
    """

    def fine(old: Array, new: Array) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(new) | (old == new))

    old, new = (eqx.filter(tree, eqx.is_inexact_array) for tree in (before, after))
    leaves = jtu.tree_leaves(jtu.tree_map(fine, old, new))
    others = jtu.tree_leaves(eqx.filter((value, others), eqx.is_inexact_array))
    leaves += [jnp.all(jnp.isfinite(leaf)) for leaf in others]
    return jnp.stack(leaves).all()


@contextlib.contextmanager
def naming_batch(batch: PyTree[Any]) -> Iterator[None]:
    """Context that adds a description of the batch to the message of an error."""
    try:
        yield
    except (TypeError, ValueError) as error:
        shapes = eqx.tree_pformat(batch, struct_as_array=True)
        raise ValueError(
            f"{error}\nThe batch was {shapes}. If that does not explain it, compare "
            "shapes and dtypes with what the model, `equation` and `loss` expect."
        ) from error


@contextlib.contextmanager
def _naming_missing_arguments() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        missing = re.search(r"missing .* keyword-only argument.*", str(error))
        if missing is None:
            raise
        raise ValueError(
            f"The optimizer needs an argument that it does not get: {missing[0]}. A "
            "step passes `value`, `grad` and `value_fn`. Bind other arguments, for "
            "example by `optax.inject_hyperparams`, or wrap the optimizer in one that "
            "passes them."
        ) from error


def _check_state(opt_state: PyTree[Any], expected: PyTree[Any], name: str) -> None:
    def shapes(tree: PyTree[Any]) -> list[tuple[int, ...]]:
        return [jnp.shape(leaf) for leaf in jtu.tree_leaves(tree)]

    same_structure = jtu.tree_structure(opt_state) == jtu.tree_structure(expected)
    if not same_structure or shapes(opt_state) != shapes(expected):
        raise ValueError(
            f"`{name}` belongs to another model or optimizer: it is\n"
            f"{eqx.tree_pformat(opt_state, struct_as_array=True)}\nbut the trained "
            f"arrays need\n{eqx.tree_pformat(expected, struct_as_array=True)}\nMake it "
            "by `trainer.init(model, solver, key=...)`."
        )
