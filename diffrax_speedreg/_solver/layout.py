import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Inexact, PyTree, Shaped

from .._checks import as_state, check_positive_integer


class StateLayout(eqx.Module):
    """Layout of a pytree whose leaves, without their batch axes, form one vector."""

    structure: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @classmethod
    def of(cls, sample: PyTree[Any], batch_axes: int = 0) -> "StateLayout":
        leaves, structure = jtu.tree_flatten(sample)
        shapes = tuple(jnp.shape(leaf)[batch_axes:] for leaf in leaves)
        return cls(structure, shapes)

    @classmethod
    def of_state(cls, state: int | np.integer | PyTree[Array]) -> "StateLayout":
        if isinstance(state, int | np.integer):
            state = jnp.zeros(check_positive_integer(state, "state"))
        return cls.of(as_state(state))

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    def flatten(
        self, y: PyTree[Array], name: str = "states"
    ) -> Shaped[Array, "*batch size"]:
        leaves, structure = jtu.tree_flatten(jtu.tree_map(jnp.asarray, y))
        axes = [x.ndim - len(shape) for x, shape in zip(leaves, self.shapes)]
        fits = structure == self.structure and all(
            n >= 0
            and x.shape[n:] == shape
            and x.shape[:n] == leaves[0].shape[: axes[0]]
            for n, x, shape in zip(axes, leaves, self.shapes)
        )
        if not fits:
            wanted = jtu.tree_unflatten(self.structure, self.shapes)
            raise ValueError(
                f"The midpoint was made for {name} of shapes {wanted}, with or without "
                f"leading batch axes, but got {eqx.tree_pformat(y)}. Make it with "
                f"{name} like those of the solve."
            )
        batch = leaves[0].shape[: axes[0]]
        dtype = jnp.result_type(*leaves)
        sizes = map(math.prod, self.shapes)
        flat = [x.reshape(*batch, n).astype(dtype) for x, n in zip(leaves, sizes)]
        return jnp.concatenate(flat, axis=-1)

    def unflatten(
        self, flat: Inexact[Array, "*batch size"], like: PyTree[Array]
    ) -> PyTree[Array]:
        leaves = jtu.tree_leaves(like)
        ends = [math.prod(shape) for shape in self.shapes]
        ends = [sum(ends[: i + 1]) for i in range(len(ends) - 1)]
        parts = jnp.split(flat, ends, axis=-1)
        reshaped = [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves)]
        return jtu.tree_unflatten(self.structure, reshaped)
