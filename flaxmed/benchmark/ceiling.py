"""The fastest arithmetic that the device was seen to do: what rates are set against."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxmed.models import native
from flaxmed.models.operations import conv2d

_REPEATS = 7
_PIXELS, _CHANNELS = 14, 256  # of the convolution: as of the networks' wider layers


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """A rate, and what reached it.

    Attributes:
        rate: floating-point operations per second.
        by: ``"matrix product, XLA"`` or ``"1x1 convolution, C++"``.

    Example:
        >>> Ceiling(2e9, "matrix product, XLA").rate
        2000000000.0
    """

    rate: float
    by: str


def measure_ceiling(dtype: str = "float32", *, side: int | None = None) -> Ceiling:
    """The best rate of seven large matrix products, or of flaxmed's own convolutions on a CPU.

    The convolution counts where the C++ functions serve, which at times exceed XLA's product. It is
    a matrix product, too: 3x3 ones are computed with fewer operations than are counted.

    Args:
        dtype: of the operands.
        side: of the matrices; None: 2,048 on a CPU, 8,192 elsewhere.

    Example:
        >>> measure_ceiling(side=64).rate > 0
        True
    """
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((side, side), dtype)
    found = [Ceiling(2 * side**3 / best_seconds(lambda a: a @ a, a), "matrix product, XLA")]
    if native.serves(jnp.dtype(dtype)):
        each = _CHANNELS**2 * _PIXELS**2
        images = max(1, round(side**3 / each))
        x = jnp.ones((images, _PIXELS, _PIXELS, _CHANNELS), dtype)
        kernel = jnp.ones((1, 1, _CHANNELS, _CHANNELS), dtype)
        seconds = best_seconds(conv2d, x, kernel)
        found.append(Ceiling(2 * images * each / seconds, "1x1 convolution, C++"))
    return max(found, key=lambda ceiling: ceiling.rate)


def best_seconds(function: Callable[..., Any], *operands: Any) -> float:
    """Seconds of the fastest of several calls, after one that compiles.

    Example:
        >>> best_seconds(jnp.sin, jnp.ones(3)) > 0
        True
    """
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*operands))
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*operands))
        best = min(best, time.perf_counter() - start)
    return best
