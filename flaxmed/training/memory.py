"""How much memory training takes: beforehand from shapes alone, afterwards as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Var


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


def activation_bytes(loss: Callable[..., Any], params: Any, *others: Any) -> int:
    """Bytes that the forward pass of ``loss(params, *others)`` keeps for the gradient of params.

    These are the residuals of ``jax.vjp``: every array that the backward pass reads and the forward
    pass computed, each once. Arguments are not counted, parameters among them: they are in memory
    anyhow. It is what the derivative asks for, before XLA decides to compute a part of it anew or
    to keep it in another form; nothing is computed here, and the same on every device.

    Args:
        loss: a function whose result is a single number.
        params: a tree of arrays, or of their shapes, as ``jax.ShapeDtypeStruct`` has them.
        others: further arguments, likewise.

    Example:
        The sine's derivative is a cosine, and is kept; that of the product by ``p`` is ``x``:

        >>> import jax.numpy as jnp
        >>> p, x = jnp.ones(3), jnp.ones((5, 3))
        >>> activation_bytes(lambda p, x: (p * x).sum(), p, x)
        0
        >>> activation_bytes(lambda p, x: jnp.sin(p * x).sum(), p, x) == 5 * 3 * 4
        True
    """

    def residuals(params: Any, *others: Any) -> list[Any]:
        _, backward = jax.vjp(lambda params: loss(params, *others), params)
        return jax.tree.leaves(backward)

    jaxpr = jax.make_jaxpr(residuals)(params, *others).jaxpr
    kept = {out for out in jaxpr.outvars if isinstance(out, Var)}
    kept -= {*jaxpr.invars, *jaxpr.constvars}
    avals: list[Any] = [out.aval for out in kept]
    return sum(aval.size * aval.dtype.itemsize for aval in avals)


def kept_for_gradients(model: nnx.Module, batch: dict[str, Any]) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass.

    Args:
        model: a network; its values are not used.
        batch: ``images`` uint8 ``[n, h, w, c]`` and ``mask``, or their shapes.

    Example:
        >>> from flaxmed.models import ResNet18
        >>> model = nnx.eval_shape(lambda: ResNet18(8, stem="small", rngs=nnx.Rngs(0)))
        >>> batch = {"images": jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)}
        >>> batch |= {"mask": jax.ShapeDtypeStruct((2,), bool)}
        >>> kept_for_gradients(model, batch) > 2 * 8 * 8 * 64 * 4  # the first layer's output alone
        True
    """
    train_view = nnx.view(model, use_running_average=False)
    graphdef, *states = nnx.split(train_view, nnx.Param, nnx.BatchStat)
    params, statistics = (nnx.to_pure_dict(state) for state in states)

    def loss(params: Any, statistics: Any, batch: dict[str, Any]) -> Any:
        network: Any = nnx.merge(graphdef, params, statistics)
        images = batch["images"].astype(jnp.float32) / 255  # a normalisation is fused with it
        logits = network(images, mask=batch["mask"].astype(bool))
        return logits.sum()

    return activation_bytes(loss, params, statistics, batch)


def seed_bytes(model: Any, shape: tuple[int, int, int], *, averaged: bool = False) -> int:
    """About what training one seed takes: activations with their gradients, parameters four times
    (with gradients and Adam's two moments).

    Args:
        model: a network, or its shapes.
        shape: images, height and width of a batch.
        averaged: whether parameters are there once more, averaged.
    """
    images = jax.ShapeDtypeStruct((*shape, model.in_channels), jnp.uint8)
    batch = {"images": images, "mask": jax.ShapeDtypeStruct(shape[:1], bool)}
    copies = 5 if averaged else 4
    return copies * tree_bytes(nnx.state(model, nnx.Param)) + 2 * kept_for_gradients(model, batch)


def device_peak() -> int | None:
    """The most bytes of a device's own memory that were in use so far; None where none tells.

    Example:
        >>> device_peak() is None or device_peak() > 0
        True
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return max(peaks, default=None)


def peak_memory() -> int | None:
    """The most bytes in use so far: of the fullest accelerator; where there is none, and everything
    shares one memory, of this process; None where the system does not tell.

    Example:
        >>> peak_memory() is None or peak_memory() > 10_000_000
        True
    """
    if (peak := device_peak()) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
