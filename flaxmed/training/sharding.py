"""One mesh axis, ``data``: each batch is split over the devices, parameters are on all of them.

(Several seeds at once have an axis of their own instead: ``stacked.py``.)
"""

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


def shard_batch(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """Every array of ``tree`` split along ``axis`` over the mesh; its length must fit."""
    spec = PartitionSpec(*[None] * axis, mesh.axis_names[0])
    return jax.device_put(tree, NamedSharding(mesh, spec))


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
