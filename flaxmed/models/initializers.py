"""Initial values, drawn as each network's reference library draws them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Initializer = Callable[..., Any]

_CHUNK = 2**16


@functools.partial(jax.jit, static_argnames=("distribution", "dtype"))
def _chunk(key: Array, index: Any, scale: Any, distribution: str, dtype: Any) -> Array:
    key = jax.random.fold_in(key, index)
    if distribution == "normal":
        return scale * jax.random.normal(key, (_CHUNK,), dtype)
    return jax.random.uniform(key, (_CHUNK,), dtype, -scale, scale)


def _draw(
    distribution: str, scale: float, key: Array, shape: Sequence[int], dtype: Any
) -> Float[Array, "..."]:
    """Values from N(0, scale^2) or U(-scale, scale).

    XLA takes up to a second to compile a random draw, anew for each shape, and DenseNet-121 alone
    has more than sixty shapes of kernels. So all are cut from chunks of one shape.
    """
    size = math.prod(shape)
    chunks = [
        _chunk(key, i, scale, distribution=distribution, dtype=jnp.dtype(dtype))
        for i in range(-(-size // _CHUNK))
    ]
    xp: Any = jnp if isinstance(key, jax.core.Tracer) else np
    return jnp.asarray(xp.concatenate(chunks)[:size].reshape(shape))


def variance_scaling(scale: float, mode: str, distribution: str) -> Initializer:
    """Draws with variance ``scale / fan``, as ``jax.nn.initializers.variance_scaling`` defines it.

    Args:
        scale: 2 for He's, 1 for Glorot's.
        mode: "fan_in", "fan_out" or "fan_avg", of a kernel ``[..., in, out]``.
        distribution: "normal" or "uniform".

    Returns:
        A function of key, shape and dtype.

    Example:
        >>> he = variance_scaling(2.0, "fan_in", "normal")
        >>> values = he(jax.random.key(0), (3, 3, 64, 64))
        >>> round(float(values.std()), 3)  # sqrt(2 / (9 * 64))
        0.059
    """

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
        pixels = math.prod(shape[:-2])
        fan_in, fan_out = pixels * shape[-2], pixels * shape[-1]
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        deviation = math.sqrt(scale / fan)
        spread = deviation if distribution == "normal" else deviation * math.sqrt(3)
        return _draw(distribution, spread, key, shape, dtype)

    return init


def torch_linear_init(in_channels: int) -> Initializer:
    """The initialiser of ``torch.nn.Linear.reset_parameters``, for weight and bias alike.

    Args:
        in_channels: Inputs of the layer.

    Returns:
        A function of key, shape and dtype that draws from U(-b, b), b = 1 / sqrt(in_channels).

    Example:
        >>> values = torch_linear_init(4)(jax.random.key(0), (4, 100))
        >>> bool(abs(values).max() <= 0.5)
        True
    """
    bound = 1 / math.sqrt(in_channels)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
        return _draw("uniform", bound, key, shape, dtype)

    return init


def zeros(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Zeros; the key is not used.

    Example:
        >>> zeros(jax.random.key(0), (2,))
        Array([0., 0.], dtype=float32)
    """
    return jnp.asarray(np.zeros(shape, dtype))
