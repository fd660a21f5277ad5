"""How much memory training takes: beforehand from shapes alone, afterwards as it was."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def tree_bytes(tree: Any) -> int:
    """What the arrays of a tree take.

    Example:
        >>> tree_bytes({"a": jnp.zeros((2, 3)), "b": jnp.zeros(1, jnp.int8)})
        25
    """
    return sum(
        int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def activation_bytes(model: Any, shape: tuple[int, int, int]) -> int:
    """What the forward pass of a training step keeps for the backward pass, besides parameters.

    These are the residuals of ``jax.vjp``, before XLA fuses or drops any: the number that grows
    with the batch, and that rematerialisation brings down.

    Args:
        model: a network, or its shapes (``nnx.eval_shape``).
        shape: images, height and width of a batch.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(2, stem="small", rngs=nnx.Rngs(0)))
        >>> one, two = (activation_bytes(model, (n, 28, 28)) for n in (1, 2))
        >>> round(two / one, 2)
        2.0
    """
    graphdef, *states = nnx.split(
        nnx.view(model, use_running_average=False), nnx.Param, nnx.BatchStat
    )
    params, batch_stats = (nnx.to_pure_dict(state) for state in states)

    def residuals(params: Any, batch_stats: Any, images: jax.Array) -> Any:
        def logits(params: Any) -> Any:
            network = nnx.merge(graphdef, params, batch_stats)
            return network(images, jnp.ones(images.shape[0], bool))

        return jax.vjp(logits, params)[1]

    def kept(n: int) -> int:
        images = jax.ShapeDtypeStruct((n, *shape[1:], model.in_channels), jnp.float32)
        return tree_bytes(jax.eval_shape(residuals, params, batch_stats, images))

    # parameters are kept too, wherever they are used: they do not grow with the batch
    return kept(2 * shape[0]) - kept(shape[0])


def seed_bytes(model: Any, shape: tuple[int, int, int]) -> int:
    """About what training one seed takes: activations with their gradients, parameters four times
    (with gradients and Adam's two moments)."""
    return 4 * tree_bytes(nnx.state(model, nnx.Param)) + 2 * activation_bytes(model, shape)


def peak_memory(mesh: jax.sharding.Mesh) -> int | None:
    """The most bytes that were in use so far: of the fullest device of an accelerator; on a CPU,
    whose memory everything shares, of this process; None where the system does not tell.

    Example:
        >>> from flaxmed.training.sharding import make_mesh
        >>> peak_memory(make_mesh()) > 10_000_000
        True
    """
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    if all("peak_bytes_in_use" in one for one in stats):
        return max(one["peak_bytes_in_use"] for one in stats)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
