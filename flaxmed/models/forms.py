"""What the forms of ``cpu.py`` and ``gpu.py`` are put together from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from flaxmed.models.window import ConvWindow, Pads, Window


@dataclass(frozen=True)
class Lowering:
    """How a backend computes each direction of one convolution; None leaves it to XLA.

    ``forward(x, kernel)``, ``input_grad(dy, x, kernel)`` and ``kernel_grad(dy, x, kernel)``; the
    gradients are also given the operand that they differentiate, for its shape and dtype.
    """

    forward: Callable[[Array, Array], Array] | None = None
    input_grad: Callable[[Array, Array, Array], Array] | None = None
    kernel_grad: Callable[[Array, Array, Array], Array] | None = None


def wide_dtype(dtype: Any) -> Any:
    """The dtype in which sums are taken: float32, or wider if the operands are."""
    return jnp.promote_types(dtype, jnp.float32)


def pad(x: Array, pads: Pads, value: float = 0.0, dilation: int = 1) -> Array:
    """Spreads the pixels ``dilation`` apart, then pads height and width (a negative pad crops)."""
    (top, bottom), (left, right) = pads
    inner = dilation - 1
    config = ((0, 0, 0), (top, bottom, inner), (left, right, inner), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def shifted(padded: Array, i: int, j: int, size: tuple[int, int], stride: int = 1) -> Array:
    """The slice of a padded image from (i, j) on: ``size`` pixels, ``stride`` apart."""
    n, _, _, c = padded.shape
    bottom, right = i + (size[0] - 1) * stride + 1, j + (size[1] - 1) * stride + 1
    return lax.slice(padded, (0, i, j, 0), (n, bottom, right, c), (1, stride, stride, 1))


def spread_gradient(g: Window, dy: Array) -> Array:
    """The output gradient at the input's resolution.

    What tap (i, j) of input pixel (u, v) contributed to lies at (u + kh - 1 - i, v + kw - 1 - j).
    """
    pads = []
    for n, out, k, (low, _) in zip(g.size, g.out, g.window, g.pads, strict=True):
        before = k - 1 - low
        pads.append((before, n + k - 1 - before - ((out - 1) * g.stride + 1)))
    return pad(dy, (pads[0], pads[1]), dilation=g.stride)


def place(part: Array, first: tuple[int, int], size: tuple[int, int], dilation: int = 1) -> Array:
    """``part`` with its pixels ``dilation`` apart from ``first`` on, in an image of zeros."""
    ends = (
        (start, n - start - ((k - 1) * dilation + 1))
        for start, n, k in zip(first, size, part.shape[1:3], strict=True)
    )
    rows, columns = ends
    return pad(part, (rows, columns), dilation=dilation)


def xla_conv(g: ConvWindow, x: Array, kernel: Array) -> Array:
    """XLA's own convolution."""
    # bfloat16 needs no preferred_element_type here: GPU and TPU accumulate it in float32 anyhow,
    # and a float32 result would only be rounded afterwards.
    return lax.conv_general_dilated(
        x,
        kernel,
        (g.stride, g.stride),
        g.pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=g.groups,
    )
