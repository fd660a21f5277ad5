"""One mesh axis, ``data``: each batch is split over the devices, parameters are on all of them.

The devices may be those of several processes, each of which feeds its own. (Several seeds at once
have an axis of their own instead: ``stacked.py``.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over ``devices`` (all of them if None), process by process.

    Example:
        >>> make_mesh(jax.devices()[:1]).shape["data"]
        1
    """
    found = jax.devices() if devices is None else devices
    return Mesh(np.asarray(sorted(found, key=lambda device: device.process_index)), ("data",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every array of ``tree``, the same in every process, whole on every device."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """Every array of ``tree`` split along ``axis`` over the mesh; its length must fit.

    Every process holds the whole, and puts its share on its own devices.
    """
    return _put(tree, NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names[0])))


def join_shares(tree: Any, mesh: Mesh) -> Any:
    """As ``shard_batch`` along the first axis, of arrays of which each process holds its share."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array: Any) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding == sharding:
            return array
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree)


def on_host(array: jax.Array) -> np.ndarray:
    """The whole of an array, in every process, though each may hold a share of it alone.

    Example:
        >>> on_host(shard_batch(np.arange(2), make_mesh(jax.devices()[:1]))).tolist()
        [0, 1]
    """
    if not (array.is_fully_addressable or array.is_fully_replicated):
        if not isinstance(array.sharding, NamedSharding):
            raise TypeError(f"expected an array that is split over a mesh, got {array.sharding}")
        everywhere = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(_same, out_shardings=everywhere)(array)
    return np.asarray(array)


def _same(array: jax.Array) -> jax.Array:  # one function, so that it is compiled once
    return array


def padded_size(batch_size: int, mesh: Mesh, *, parts: int = 1) -> int:
    """The smallest number of rows that holds ``batch_size`` and divides among the devices.

    Args:
        batch_size: rows wanted.
        mesh: whose devices share them.
        parts: micro-batches into which each device's rows must divide, too.

    Example:
        >>> padded_size(10, make_mesh(jax.devices()[:1]), parts=4)
        12
    """
    unit = mesh.devices.size * parts
    return -(-batch_size // unit) * unit
