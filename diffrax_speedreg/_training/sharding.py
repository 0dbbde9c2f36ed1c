"""Training on several devices: arrays split over a mesh, or the same on all of it."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact, PyTree


_T = TypeVar("_T")
_axis = "batch"
# Of arrays that are the same on all devices.
whole = PartitionSpec()


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of devices, over which the samples of a batch are split.

    **Arguments:**

    - `num_devices`: how many; by default, all that there are, those of the other
        processes of `jax.distributed` among them.

    **Returns:**

    A mesh of one axis. A `ValueError` is raised if there are not that many devices.
    """
    devices = jax.devices()
    wanted = len(devices) if num_devices is None else num_devices
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

    - `tree`: a pytree, such as the state of a training, whose arrays are the same in
        all processes.
    - `mesh`: from [`diffrax_speedreg.data_mesh`][]; for `None`, nothing is done.

    **Returns:**

    The pytree, with arrays that live on the whole mesh.
    """
    return _place(tree, mesh, lambda leaf: whole)


def shard_batch(batch: PyTree[Any], mesh: Mesh | None) -> PyTree[Any]:
    """Splits a batch over the devices of a mesh, along the first axis of its arrays.

    **Arguments:**

    - `batch`: the whole batch, the same in all processes, each of which keeps what its
        own devices need. Scalars and random keys are not split.
    - `mesh`: from [`diffrax_speedreg.data_mesh`][]; `None` for a single device, where
        a jitted function takes a batch as it is.

    **Returns:**

    The batch on the mesh.

    **Raises:**

    A `ValueError` if an array's first axis can't be divided by the number of devices.
    """
    return _place(batch, mesh, lambda leaf: _batch_spec(leaf, mesh))


def is_writer() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def mean_over_shards(tree: PyTree[Array], mesh: Mesh | None) -> PyTree[Array]:
    """Inside of [`on_mesh`][]: the mean over its shards, which are of equal size."""
    return tree if mesh is None else jax.lax.pmean(tree, _axis)


def gather_shards(x: Inexact[Array, " local"], mesh: Mesh | None) -> Array:
    """Inside of [`on_mesh`][]: the parts of all shards, one after the other."""
    return x if mesh is None else jax.lax.all_gather(x, _axis, tiled=True)


def on_mesh(
    function: Callable[[PyTree[Any], PyTree[Any]], PyTree[Array]],
    mesh: Mesh | None,
    replicated: PyTree[Any],
    batch: PyTree[Any],
    *,
    in_specs: PyTree[PartitionSpec] | None = None,
    out_specs: Callable[[PyTree[Any]], PyTree[PartitionSpec]] = lambda out: whole,
) -> PyTree[Array]:
    """Calls a function on each shard of a batch.

    The function is traced for a single shard, and only then mapped over the mesh: while
    Equinox's loops are differentiated, arrays whose types mention a mesh would be in
    their way. How inputs and outputs are split is told by specs like the batch, and by
    a function of what the outputs are like.
    """
    if mesh is None:
        return function(replicated, batch)
    specs = (whole, batch_specs(batch, mesh) if in_specs is None else in_specs)
    arrays, static = eqx.partition((replicated, batch), eqx.is_array)
    closed, shape = jax.make_jaxpr(
        lambda *arrays: function(*eqx.combine(arrays, static)),
        axis_env=[(_axis, mesh.size)],
        return_shape=True,
    )(*_local_structs(arrays, specs, mesh))

    def mapped(*arrays: PyTree[Array]) -> PyTree[Array]:
        leaves = jex.jaxpr_as_fun(closed)(*jtu.tree_leaves(arrays))
        return jtu.tree_unflatten(jtu.tree_structure(shape), leaves)

    return jax.shard_map(
        mapped, mesh=mesh, in_specs=specs, out_specs=out_specs(shape), check_vma=False
    )(*arrays)


def split_axis(axis: int) -> PartitionSpec:
    """Of arrays whose samples are along that axis."""
    return PartitionSpec(*[None] * axis, _axis)


def batch_specs(batch: PyTree[Any], mesh: Mesh | None) -> PyTree[PartitionSpec]:
    """Of a batch, whose samples are along the first axis of its arrays."""
    arrays = eqx.filter(batch, eqx.is_array)
    return jtu.tree_map(lambda leaf: _batch_spec(leaf, mesh), arrays)


def _batch_spec(leaf: Array | np.ndarray, mesh: Mesh | None) -> PartitionSpec:
    if jnp.ndim(leaf) == 0 or _is_key(leaf):
        return whole
    if mesh is not None and leaf.shape[0] % mesh.size != 0:
        raise ValueError(
            f"A batch of {leaf.shape[0]} samples can't be split over {mesh.size} "
            "devices. Choose a batch size that is a multiple of their number."
        )
    return PartitionSpec(_axis)


def _place(tree: _T, mesh: Mesh | None, spec: Callable[[Any], PartitionSpec]) -> _T:
    if mesh is None:
        return tree

    def place(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        if isinstance(leaf, Array) and _is_key(leaf):
            data = _distribute(jr.key_data(leaf), NamedSharding(mesh, whole))
            return jr.wrap_key_data(data, impl=jr.key_impl(leaf))
        return _distribute(leaf, NamedSharding(mesh, spec(leaf)))

    return jtu.tree_map(place, tree)


def _distribute(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    local = np.asarray(leaf)
    return jax.make_array_from_callback(local.shape, sharding, local.__getitem__)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _local_structs(
    arrays: PyTree[Array], specs: PyTree[PartitionSpec], mesh: Mesh
) -> PyTree[jax.ShapeDtypeStruct]:
    """What a single shard looks like; `specs` may be a prefix of `arrays`."""

    def struct(leaf: Array, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        shape = list(leaf.shape)
        for axis, name in enumerate(spec):
            shape[axis] //= 1 if name is None else mesh.size
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return jtu.tree_map(
        lambda spec, part: jtu.tree_map(lambda leaf: struct(leaf, spec), part),
        specs,
        arrays,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )
