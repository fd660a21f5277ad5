"""How a CPU computes the convolutions and pools: the forms, and the table that chooses.

XLA's own convolution trains these networks three to seven times slower on a CPU than PyTorch
does. One idea answers that: *a k x k convolution is a sum over k*k taps, each a shifted slice of
the image times one entry of the kernel*: a matrix product where channels mix, an element-wise
product where they do not. What remains is which direction (forward, input gradient, kernel
gradient) takes that form, and how the slices are laid out; ``conv_lowering`` is the table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from flaxmed.models.forms import Lowering, pad, place, shifted, spread_gradient, wide_dtype
from flaxmed.models.window import ConvWindow, Window, cropped_taps

_PATCHES_IN_CACHE = 2**20  # values: 4 MB in float32


# --- Convolution ----------------------------------------------------------------------------------


def conv_lowering(g: ConvWindow) -> Lowering:
    """The table: which form each direction takes on a CPU, and the measured reason.

    Times in ms, float32, batch 64 (32 where said) on two cores with AVX2, XLA -> the form chosen.
    """

    def row(forward: Any = None, input_grad: Any = None, kernel_grad: Any = None) -> Lowering:
        bound = (f and functools.partial(f, g) for f in (forward, input_grad, kernel_grad))
        return Lowering(*bound)

    c, o = g.channels
    # Depthwise, 14x14x728: forward 577 -> 64, forward and backward 3715 -> about 160.
    if g.groups == c == o and c > 1:
        return row(_depthwise, _depthwise_input_grad, _depthwise_kernel_grad)
    # Other grouped convolutions occur in none of the networks.
    if g.groups != 1:
        return row()
    # One tap, 14x14, 728 to 728: forward 311 -> 115, forward and backward 1918 -> 315.
    if g.window == (1, 1) and g.pads == ((0, 0), (0, 0)):
        return row(_pointwise, _pointwise_input_grad, _pointwise_kernel_grad)
    narrowing = g.stride == 1 and 2 * o <= c
    tiny, small = math.prod(g.out) <= 4, math.prod(g.out) <= 64
    if narrowing:
        # The output gradient's patches are the smaller matrix. 128 to 32: 28x28 213 -> 101,
        # 14x14 26 -> 18, 7x7 4.7 -> 3.7.
        kernel_grad = _kernel_grad_by_gradient_patches
    elif small and c >= 32:
        # 7x7, 256 to 256 (batch 32): 32 -> 25.
        kernel_grad = _products_kernel_grad
    else:
        # 28x28, 64 to 64: 312 -> 99 (nine products: 186); 14x14, 128 to 128: 108 -> 76; 28x28 to
        # 14x14, 64 to 128: 64 -> 36. The stems: 28x28x3 8 -> 6, 64x64x3 7x7 stride 2 140 -> 43.
        kernel_grad = _kernel_grad_by_image_patches
    # Forward and input gradient, tiny maps. 2x2, 512 to 512: 808 -> 9, 2405 -> 15; 4x4 to 2x2,
    # 256 to 512: input gradient 507 -> 9. Small maps: 7x7, 256 to 256 (batch 32): 27 -> 19,
    # 28 -> 21; but 128 to 32: even, and DenseNet-121 has forty of these to compile.
    if tiny or (small and c >= 32 and not narrowing):
        return row(_products, _products_input_grad, kernel_grad)
    # At 28x28, 64 to 64 (batch 32) XLA's 33 and 35 stand against 101 and 106.
    return row(kernel_grad=kernel_grad)


# Depthwise: one multiply-add per tap, the channels side by side.


def _depthwise(g: ConvWindow, x: Array, kernel: Array) -> Array:
    wide = wide_dtype(x.dtype)
    padded, kernel = pad(x.astype(wide), g.pads), kernel.astype(wide)
    terms = (shifted(padded, i, j, g.out, g.stride) * kernel[i, j, 0] for i, j in g.taps)
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _depthwise_input_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    wide = wide_dtype(x.dtype)
    spread, kernel = spread_gradient(g, dy.astype(wide)), kernel.astype(wide)
    kh, kw = g.window
    terms = (shifted(spread, kh - 1 - i, kw - 1 - j, g.size) * kernel[i, j, 0] for i, j in g.taps)
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _depthwise_kernel_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    wide = wide_dtype(x.dtype)
    # All taps in one pass over each padded image, then the sum over the images: 31 ms at 14x14x728,
    # against 219 for a sum per tap. Without the barriers XLA fuses the two steps back into one.
    padded, dy = lax.optimization_barrier(pad(x.astype(wide), g.pads)), dy.astype(wide)
    products = [shifted(padded, i, j, g.out, g.stride) * dy for i, j in g.taps]
    zeros = [jnp.zeros((), wide)] * len(products)

    def add(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
        return [a + b for a, b in zip(left, right, strict=True)]

    per_image = lax.optimization_barrier(lax.reduce(products, zeros, add, (1, 2)))
    return jnp.stack([p.sum(0) for p in per_image]).reshape(kernel.shape).astype(kernel.dtype)


# Dense: one matrix product per tap, or one product with the slices side by side (patches).


def _matmul(a: Array, b: Array) -> Array:
    """``a @ b``, summed and returned in float32 or wider."""
    return lax.dot_general(
        a, b, (((a.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide_dtype(a.dtype)
    )


def _matmul_over_pixels(a: Array, b: Array) -> Array:
    """``[n, h, w, c], [n, h, w, o] -> [c, o]``, summed in float32 or wider."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return lax.dot_general(
        a, b, (((0,), (0,)), ((), ())), preferred_element_type=wide_dtype(a.dtype)
    )


def _pixelwise(x: Array, matrix: Array) -> Array:
    """``[n, h, w, c], [c, o] -> [n, h, w, o]`` as one matrix product."""
    n, h, w, c = x.shape
    return _matmul(x.reshape(-1, c), matrix).reshape(n, h, w, -1)


def _pointwise(g: ConvWindow, x: Array, kernel: Array) -> Array:
    return _pixelwise(shifted(x, 0, 0, g.out, g.stride), kernel[0, 0]).astype(x.dtype)


def _pointwise_input_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    return spread_gradient(g, _pixelwise(dy, kernel[0, 0].T).astype(x.dtype))


def _pointwise_kernel_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    dk = _matmul_over_pixels(shifted(x, 0, 0, g.out, g.stride), dy)
    return dk.reshape(kernel.shape).astype(kernel.dtype)


def _products(g: ConvWindow, x: Array, kernel: Array) -> Array:
    y = jnp.zeros((x.shape[0], *g.out, g.channels[1]), wide_dtype(x.dtype))
    for tap in cropped_taps(g):
        part = _pixelwise(shifted(x, *tap.start, tap.size, g.stride), kernel[tap.position])
        y += place(part, tap.first, g.out)
    return y.astype(x.dtype)


def _products_input_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    dx = jnp.zeros(x.shape, wide_dtype(x.dtype))
    for tap in cropped_taps(g):
        part = _pixelwise(shifted(dy, *tap.first, tap.size), kernel[tap.position].T)
        dx += place(part, tap.start, g.size, g.stride)
    return dx.astype(x.dtype)


def _products_kernel_grad(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    zeros = jnp.zeros(g.channels, wide_dtype(x.dtype))
    dk = {
        tap.position: _matmul_over_pixels(
            shifted(x, *tap.start, tap.size, g.stride), shifted(dy, *tap.first, tap.size)
        )
        for tap in cropped_taps(g)
    }
    stacked = jnp.stack([dk.get(tap, zeros) for tap in g.taps])
    return stacked.reshape(kernel.shape).astype(kernel.dtype)


def _kernel_grad_by_image_patches(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    def product(x: Array, dy: Array) -> Array:
        padded = pad(x, g.pads)
        patches = [shifted(padded, i, j, g.out, g.stride) for i, j in g.taps]
        return _matmul_over_pixels(jnp.concatenate(patches, -1), dy)  # [kh * kw * c, o]

    size = math.prod(g.out) * len(g.taps) * g.channels[0]
    return _sum_over_blocks(product, x, dy, size).reshape(kernel.shape).astype(kernel.dtype)


def _kernel_grad_by_gradient_patches(g: ConvWindow, dy: Array, x: Array, kernel: Array) -> Array:
    kh, kw = g.window

    def product(x: Array, dy: Array) -> Array:
        spread = spread_gradient(g, dy)
        patches = [shifted(spread, kh - 1 - i, kw - 1 - j, g.size) for i, j in g.taps]
        return _matmul_over_pixels(x, jnp.concatenate(patches, -1))  # [c, kh * kw * o]

    c, o = g.channels
    dk = _sum_over_blocks(product, x, dy, math.prod(g.size) * len(g.taps) * o)
    return dk.reshape(c, kh, kw, o).transpose(1, 2, 0, 3).astype(kernel.dtype)


def _sum_over_blocks(
    product: Callable[[Array, Array], Array], x: Array, dy: Array, patches_size: int
) -> Array:
    """The sum of ``product(x, dy)`` over blocks of images whose patches stay in the cache.

    Written for all images at once, the patches cost more in fresh memory than the product does.
    """
    n = x.shape[0]
    fits = max(1, _PATCHES_IN_CACHE // patches_size)
    block = max(size for size in range(1, n + 1) if n % size == 0 and size <= fits)
    if block == n:
        return product(x, dy)
    x, dy = (a.reshape(n // block, block, *a.shape[1:]) for a in (x, dy))
    zeros = jnp.zeros_like(jax.eval_shape(product, x[0], dy[0]))

    def add(total: Array, operands: tuple[Array, Array]) -> tuple[Array, None]:
        return total + product(*operands), None

    return lax.scan(add, zeros, (x, dy))[0]


# --- Pools ----------------------------------------------------------------------------------------


def max_pool(g: Window, x: Array) -> Array:
    """The maximum of shifted slices. 3x3 stride 2, 32x32x64: 15 -> 4 ms."""
    return functools.reduce(jnp.maximum, _pool_slices(g, x))


def max_pool_grad(g: Window, dy: Array, x: Array) -> Array:
    """Gives each gradient to the first of the largest values. With the forward: 197 -> 16 ms."""
    best, *others = _pool_slices(g, x)
    winner = jnp.zeros(best.shape, jnp.int8)
    for tap, value in enumerate(others, start=1):
        better = value > best
        best, winner = jnp.where(better, value, best), jnp.where(better, jnp.int8(tap), winner)
    (top, bottom), (left, right) = g.pads
    padded = (g.size[0] + top + bottom, g.size[1] + left + right)
    nothing = jnp.zeros((), dy.dtype)
    parts = (
        place(jnp.where(winner == tap, dy, nothing), start, padded, g.stride)
        for tap, start in enumerate(g.taps)
    )
    return pad(functools.reduce(jnp.add, parts), ((-top, -bottom), (-left, -right)))


def _pool_slices(g: Window, x: Array) -> list[Array]:
    padded = pad(x, g.pads, -jnp.inf)
    return [shifted(padded, i, j, g.out, g.stride) for i, j in g.taps]


def avg_pool(g: Window, x: Array) -> Array:
    """The mean of shifted slices."""
    wide = x.astype(wide_dtype(x.dtype))
    total = functools.reduce(jnp.add, (shifted(wide, i, j, g.out, g.stride) for i, j in g.taps))
    return (total / math.prod(g.window)).astype(x.dtype)


def avg_pool_grad(g: Window, dy: Array, x: Array) -> Array:
    """Shares each gradient out evenly; windows lie side by side."""
    share = (dy.astype(wide_dtype(dy.dtype)) / math.prod(g.window)).astype(x.dtype)
    dx = jnp.repeat(jnp.repeat(share, g.window[0], axis=1), g.window[1], axis=2)
    return place(dx, (0, 0), g.size)
