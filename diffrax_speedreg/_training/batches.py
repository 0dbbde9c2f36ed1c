import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from .._checks import check_integer, check_key, check_positive_integer


class Batches(eqx.Module):
    """Batches of a data set, in an order that depends only on a key and the step.

    Pass it to [`diffrax_speedreg.training.fit`][]. Each epoch goes through the data in
    a new order, and leaves out the last samples if they do not fill a batch. A run that
    resumes at step 1000 gets the same batches as an uninterrupted one.

    !!! example

        ```python
        batches = dsr.training.Batches((images, labels), 128)
        batch = batches(jax.random.key(0), 1000)
        ```
    """

    data: PyTree[np.ndarray]
    size: int

    def __init__(self, data: PyTree[Any], size: int):
        """**Arguments:**

        - `data`: a pytree of arrays, whose first axes are the samples. They stay in the
            memory of the host. Those that are strided views are copied once.
        - `size`: the number of samples in a batch.

        **Raises:**

        A `ValueError` if the arrays have different numbers of samples or none, if there
        are fewer samples than `size`, or if a value is not finite.
        """
        # `numpy.take` would copy all of a strided array in each step.
        self.data = jtu.tree_map(lambda x: np.asarray(x, order="C"), data)
        self.size = check_positive_integer(size, "size")
        leaves = jtu.tree_leaves_with_path(self.data)
        if not leaves:
            raise ValueError(f"The data have no arrays: got {data!r}.")
        for path, leaf in leaves:
            if leaf.ndim == 0 or leaf.dtype.hasobject:
                raise ValueError(
                    "The data must be arrays of numbers, whose first axes are the "
                    f"samples, but `data{jtu.keystr(path)}` is {leaf[()]!r}. Convert "
                    "lists of rows by `numpy.array(rows)`."
                )
        counts = {f"data{jtu.keystr(path)}": len(leaf) for path, leaf in leaves}
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
        """The number of batches in an epoch."""
        return self.num_samples // self.size

    def __call__(
        self, key: Key[Array, ""], step: int | Int[Array, ""]
    ) -> PyTree[np.ndarray]:
        """Returns the batch of a step.

        **Arguments:**

        - `key`: a `jax.random` key that determines the order.
        - `step`: the number of batches before this one, such as `state.step`.

        **Returns:**

        A pytree like the data, with `size` samples.
        """
        check_key(key)
        epoch, index = divmod(check_integer(step, "step", 0), self.num_batches)
        words = tuple(np.asarray(_key_data(key)).tolist())
        order = _order(words, epoch, self.num_samples)
        chosen = order[index * self.size : (index + 1) * self.size]
        # Faster than by an index.
        return jtu.tree_map(lambda leaf: np.take(leaf, chosen, axis=0), self.data)


def describe_non_finite(tree: PyTree[Any], name: str) -> str | None:
    """Describes where in a pytree of host arrays a number is not finite, if any."""
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


# This is called in each step, and compiled since single primitives are slow.
_key_data = jax.jit(jr.key_data)


@functools.lru_cache(maxsize=4)
def _order(words: tuple[int, ...], epoch: int, num_samples: int) -> np.ndarray:
    return np.random.default_rng([*words, epoch]).permutation(num_samples)
