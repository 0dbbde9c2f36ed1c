"""Training on several devices: the sharding of batches and states.

The computations do not depend on it: `jax.jit` splits them as their inputs are split.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._checks import check_integer, check_is


_T = TypeVar("_T")
_axis = "batch"


def data_mesh(num_devices: int | None = None) -> Mesh:
    """Makes a mesh of devices, over which [`diffrax_speedreg.training.fit`][] splits
    batches.

    **Arguments:**

    - `num_devices`: the number of devices; by default all of them, including those of
        the other processes of `jax.distributed`.

    **Returns:**

    A mesh of one axis.

    **Raises:**

    A `ValueError` if there are not that many devices.
    """
    devices = jax.devices()
    wanted = len(devices)
    if num_devices is not None:
        wanted = check_integer(num_devices, "num_devices", 0)
    if not 1 <= wanted <= len(devices):
        raise ValueError(
            f"`num_devices` must be from 1 to {len(devices)}, the number of devices, "
            f"but got {num_devices}. On a CPU, set "
            '`jax.config.update("jax_num_cpu_devices", n)` before the first use of JAX.'
        )
    return Mesh(np.array(devices[:wanted]), (_axis,))


def replicate(tree: _T, mesh: Mesh | None) -> _T:
    """Puts arrays on all devices of a mesh.

    **Arguments:**

    - `tree`: a pytree, such as the state of a training run, whose arrays are the same
        in all processes.
    - `mesh`: a mesh from [`diffrax_speedreg.training.data_mesh`][]; `None` to leave
        the pytree as it is.

    **Returns:**

    The pytree, with its arrays on all devices of the mesh.
    """
    return _place(tree, mesh, lambda leaf: PartitionSpec())


def shard_batch(batch: PyTree[Any], mesh: Mesh | None, *, axis: int = 0) -> PyTree[Any]:
    """Splits a batch over the devices of a mesh.

    **Arguments:**

    - `batch`: the whole batch, the same in all processes. Scalars and random keys are
        not split.
    - `mesh`: a mesh from [`diffrax_speedreg.training.data_mesh`][]; `None` to leave
        the batch as it is.
    - `axis`: the axis of the samples.

    **Returns:**

    The batch on the mesh.

    **Raises:**

    A `ValueError` if the size of an axis is not a multiple of the number of devices.
    """

    def spec(leaf: Any) -> PartitionSpec:
        if jnp.ndim(leaf) <= axis or _is_key(leaf):
            return PartitionSpec()
        if mesh is not None and leaf.shape[axis] % mesh.size != 0:
            raise ValueError(
                f"A batch of {leaf.shape[axis]} samples can't be split over "
                f"{mesh.size} devices. Choose a batch size that is a multiple of "
                "their number."
            )
        return PartitionSpec(*[None] * axis, _axis)

    return _place(batch, mesh, spec)


def _place(tree: _T, mesh: Mesh | None, spec: Callable[[Any], PartitionSpec]) -> _T:
    if mesh is None:
        return tree
    check_is(mesh, Mesh, "mesh", "data_mesh()")

    def place(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        if isinstance(leaf, jax.Array) and _is_key(leaf):
            data = _distribute(jr.key_data(leaf), NamedSharding(mesh, PartitionSpec()))
            return jr.wrap_key_data(data, impl=jr.key_impl(leaf))
        return _distribute(leaf, NamedSharding(mesh, spec(leaf)))

    return jtu.tree_map(place, tree)


def _distribute(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    # Unlike `jax.device_put`, this works on devices of other processes, too.
    local = np.asarray(leaf)
    return jax.make_array_from_callback(local.shape, sharding, local.__getitem__)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
