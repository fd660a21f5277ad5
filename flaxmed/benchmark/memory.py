"""Memory: what a forward pass keeps for the backward pass, and the most that a device has held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Var


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


def peak_bytes() -> int | None:
    """The most bytes of the first device that this process has had in use; None on a CPU.

    Example:
        >>> peak_bytes() is None or peak_bytes() > 0
        True
    """
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")
