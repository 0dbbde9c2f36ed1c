import functools
import operator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from .._checks import check_positive_integer


class Batches(eqx.Module):
    """Batches of a data set, in an order that a key and the step decide.

    Each epoch goes through the data in a new order; the last samples of it that do not
    fill a batch are left out. There is nothing to be saved of where one is in the data:
    a training that goes on from step 1000 gets the batch that it would have got.

    !!! example

        ```python
        batches = dsr.Batches((images, labels), 128)
        batch = batches(jax.random.key(0), 1000)
        ```
    """

    data: PyTree[np.ndarray]
    size: int

    def __init__(self, data: PyTree[Any], size: int):
        """**Arguments:**

        - `data`: a pytree of arrays, whose first axes are the samples. They are kept in
            the memory of the host.
        - `size`: the number of samples in a batch.

        A `ValueError` is raised if arrays differ in their number of samples, if there
        are fewer than fill a batch, or if some are not finite.
        """
        self.data = jtu.tree_map(np.asarray, data)
        self.size = check_positive_integer(size, "size")
        leaves = jtu.tree_leaves_with_path(self.data)
        if not leaves:
            raise ValueError(f"The data have no arrays: got {data!r}.")
        counts = {f"data{jtu.keystr(path)}": _length(leaf) for path, leaf in leaves}
        if len(set(counts.values())) > 1:
            raise ValueError(
                "All arrays of the data must have the same number of samples along the "
                f"first axis, but got {counts}."
            )
        if self.num_samples < self.size:
            raise ValueError(
                f"The data have {self.num_samples} samples, which do not fill a batch "
                f"of {self.size}. Choose a smaller `size`."
            )
        message = describe_non_finite(self.data, "data")
        if message is not None:
            raise ValueError(f"{message} Remove or replace such samples.")

    @property
    def num_samples(self) -> int:
        return len(jtu.tree_leaves(self.data)[0])

    @property
    def num_batches(self) -> int:
        """In an epoch."""
        return self.num_samples // self.size

    def __call__(
        self, key: Key[Array, ""], step: int | Int[Array, ""]
    ) -> PyTree[np.ndarray]:
        """Looks up a batch.

        **Arguments:**

        - `key`: a `jax.random.key` that decides the order.
        - `step`: the number of batches before this one, such as `state.step`.

        **Returns:**

        The batch: arrays like the data's, with `size` samples.
        """
        epoch, index = divmod(operator.index(step), self.num_batches)
        words = tuple(np.asarray(_key_data(key)).tolist())
        order = _order(words, epoch, self.num_samples)
        chosen = order[index * self.size : (index + 1) * self.size]
        return jtu.tree_map(lambda leaf: leaf[chosen], self.data)


def describe_non_finite(tree: PyTree[Any], name: str) -> str | None:
    """Where in a pytree of host arrays there is something that is not finite."""
    for path, leaf in jtu.tree_leaves_with_path(tree):
        if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
            continue
        leaf = np.asarray(leaf)
        finite = np.isfinite(leaf)
        if not finite.all():
            index = tuple(map(int, np.argwhere(~finite)[0]))
            return (
                f"`{name}{jtu.keystr(path)}` is {leaf[index]} at index {index}, and "
                f"{int((~finite).sum())} of its {leaf.size} numbers are not finite."
            )
    return None


def _length(leaf: np.ndarray) -> int | None:
    return len(leaf) if leaf.ndim else None


# There is one for each step, and primitives that are not compiled are slow.
_key_data = jax.jit(jr.key_data)


# A training asks for the same order again and again.
@functools.lru_cache(maxsize=4)
def _order(words: tuple[int, ...], epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([*words, epoch]).permutation(num_samples)
