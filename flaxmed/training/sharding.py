"""One mesh axis, ``data``: each batch is split over the devices, parameters are on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over ``devices`` (all of them if None).

    Example:
        >>> make_mesh(jax.devices()[:1]).shape["data"]
        1
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every array of ``tree`` whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(tree: Any, mesh: Mesh) -> Any:
    """Every array of ``tree`` split along its first axis; its length must fit the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("data")))


def padded_size(batch_size: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that holds ``batch_size`` rows."""
    devices = mesh.shape["data"]
    return -(-batch_size // devices) * devices
