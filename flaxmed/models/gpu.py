"""How a GPU computes what cuDNN and XLA are slow at: the forms, and the table that chooses.

Times in microseconds on an H100, bfloat16, batch 128, XLA -> the form chosen; what is not named
here is left to XLA. Both forms are the shifted slices of ``cpu.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from flaxmed.models.forms import Lowering, pad, shifted, spread_gradient, wide_dtype, xla_conv
from flaxmed.models.window import ConvWindow, Window

_CHANNELS_OF_CUDNN = 64  # in multiples of these it convolves depthwise near the memory's rate


def conv_lowering(g: ConvWindow) -> Lowering:
    """The table: which form each direction takes on a GPU.

    Depthwise, channels that 64 divides are cuDNN's: 55x55x256 199, where nine shifts take 475. Of
    Xception's 728, forward: 28x28 2534 -> 321, 14x14 447 -> 192; kernel gradient 28x28 1032 -> 517,
    14x14 355 -> 243 (nine sums: 396).
    """
    c, o = g.channels
    if g.groups == c == o and c > 1 and c % _CHANNELS_OF_CUDNN and g.stride == 1:
        forms = (_depthwise, _depthwise_input_grad, _depthwise_kernel_grad)
        return Lowering(*(functools.partial(form, g) for form in forms))
    return Lowering()


def _depthwise(g: ConvWindow, x: Array, kernel: Array) -> Array:
    starts = {tap: tap for tap in g.taps}
    return _sum_of_taps(pad(x, g.pads), kernel, starts, g.out).astype(x.dtype)


def _depthwise_input_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    kh, kw = g.window
    starts = {(i, j): (kh - 1 - i, kw - 1 - j) for i, j in g.taps}
    return _sum_of_taps(spread_gradient(g, dy), kernel, starts, g.size).astype(x.dtype)


def _sum_of_taps(
    padded: Array,
    kernel: Array,
    starts: dict[tuple[int, int], tuple[int, int]],
    size: tuple[int, int],
) -> Array:
    """For each tap the slice from its start on, times its weights."""
    # Written once in the narrow dtype: nine reads of padding that is computed anew cost more.
    padded = lax.optimization_barrier(padded)
    wide = wide_dtype(padded.dtype)
    terms = (
        shifted(padded, *start, size).astype(wide) * kernel[(*tap, 0)].astype(wide)
        for tap, start in starts.items()
    )
    return functools.reduce(jnp.add, terms)


def _depthwise_kernel_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    """cuDNN's, on channels of zeros beside the image's."""
    c = g.channels[0]
    more = -c % 32  # 728 to 736; to 768, 14x14 takes 367

    def widened(a: Array) -> Array:
        return jnp.pad(a, ((0, 0), (0, 0), (0, 0), (0, more)))

    wider = dataclasses.replace(g, channels=(c + more, c + more), groups=c + more)
    convolve = functools.partial(xla_conv, wider, widened(x))
    return jax.vjp(convolve, widened(kernel))[1](widened(dy))[0][..., :c]


# Max pooling, 3x3 stride 2, 112x112x64: XLA's forward 138, gradient 1310; here both together 358.


def max_pool(g: Window, x: Array) -> tuple[Array, Array]:
    """The largest value of each window, and the number of the tap (int8) where it first is."""
    padded = pad(x, g.pads, -jnp.inf)
    best, *others = [shifted(padded, i, j, g.out, g.stride) for i, j in g.taps]
    winner = jnp.zeros(best.shape, jnp.int8)
    for tap, value in enumerate(others, start=1):
        winner = jnp.where(value > best, jnp.int8(tap), winner)
        best = jnp.maximum(best, value)
    return best, winner


def max_pool_grad(g: Window, dy: Array, winner: Array) -> Array:
    """Each input pixel collects from the windows that it won.

    Padded row v is ``s * p + a``, with s the stride: the taps i = a, a + s, ... reach it, from the
    windows p, p - 1, ... So the pixels of each (a, b) are a sum of shifted, masked gradients, and
    interleaving them gives the image.
    """
    s, wide = g.stride, wide_dtype(dy.dtype)
    (top, bottom), (left, right) = g.pads
    cells = -(-(g.size[0] + top + bottom) // s), -(-(g.size[1] + left + right) // s)

    def collected(a: int, b: int) -> Array:
        total = jnp.zeros((dy.shape[0], *cells, dy.shape[3]), wide)
        for tap, (i, j) in enumerate(g.taps):
            if (i % s, j % s) == (a, b):
                won = jnp.where(winner == tap, dy, jnp.zeros((), dy.dtype)).astype(wide)
                (down, across), (oh, ow) = (i // s, j // s), g.out
                pads = (down, cells[0] - oh - down), (across, cells[1] - ow - across)
                total += pad(won, pads)
        return total

    rows = [jnp.stack([collected(a, b) for b in range(s)], axis=3) for a in range(s)]
    n, c = dy.shape[0], dy.shape[3]
    whole = jnp.stack(rows, axis=2).reshape(n, s * cells[0], s * cells[1], c)
    return whole[:, top : top + g.size[0], left : left + g.size[1]].astype(dy.dtype)


# XLA sums the columns of 4096 rows or fewer in one go, 32 columns to a block of threads: few blocks
# for a wide card. ResNet-18 on 28 px, batch 128, on an H200: a training step 2470 -> 2266.

_ROWS_IN_ONE_GO = 4096
_ROWS_TO_A_PART = 64


def channel_sums(x: Array) -> Array:
    """The sum of each channel, in two steps where the rows are few."""
    n, h, w, c = x.shape
    rows = n * h * w
    wanted = max(rows // _ROWS_TO_A_PART, 1)
    parts = math.gcd(n, 1 << (wanted.bit_length() - 1))
    if parts < 4 or rows > _ROWS_IN_ONE_GO:
        return jnp.sum(x, (0, 1, 2))
    # without the barrier XLA sees one sum in the two
    return lax.optimization_barrier(jnp.sum(x.reshape(parts, rows // parts, c), 1)).sum(0)
