"""Convolution and pooling: one meaning, a lowering for each backend.

The meaning is that of ``lax.conv_general_dilated`` and ``lax.reduce_window`` on ``[N, H, W, C]``
images. On a TPU these are also what runs; on a CPU the forms of ``cpu.py`` and ``native`` do, and
on a GPU those of ``gpu.py``, in whichever of the three directions (forward, input gradient, kernel
gradient) they are faster. Each direction chooses for itself, with ``lax.platform_dependent`` inside
a custom derivative, so that no gradient is taken through a choice. ``tests/test_layers.py`` and
``tests/test_gpu.py`` hold every form against XLA's.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxmed.models import cpu, gpu, native
from flaxmed.models.forms import Lowering, wide_dtype, xla_conv
from flaxmed.models.window import ConvWindow, Padding, Window, resolve_padding
from flaxmed.types import InputError

_LOWERINGS = ("auto", "jax", "xla")
_lowering = "auto"


@contextlib.contextmanager
def lowering(mode: str) -> Iterator[None]:
    """Chooses how the operations of this module are lowered inside a ``with`` block.

    The mode is read when an operation is traced. A function that ``jax.jit`` has compiled keeps the
    lowering of its first call: make a new ``jax.jit`` (of a new function) inside each block.

    Args:
        mode: "auto", by backend and shape, the default; "jax", the same without the C++ of
            ``native``, for a batch that is spread over several CPU devices; or "xla", plain ``lax``
            everywhere, which is also the mode that supports forward-mode differentiation.

    Raises:
        InputError: If the mode is none of these.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, k = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
        >>> with lowering("xla"):
        ...     y = jax.jit(lambda x, k: conv2d(x, k))(x, k)
        >>> y.shape
        (1, 4, 4, 2)
    """
    global _lowering
    if mode not in _LOWERINGS:
        raise InputError(f"lowering must be one of {', '.join(_LOWERINGS)}, got {mode!r}")
    before, _lowering = _lowering, mode
    try:
        yield
    finally:
        _lowering = before


def lowering_on(devices: int) -> str:
    """The mode for a batch that is spread over this many devices: ``native`` serves one alone.

    Example:
        >>> lowering_on(1), lowering_on(8)
        ('auto', 'jax')
    """
    return "auto" if devices == 1 else "jax"


def in_native_code(dtype: Any) -> bool:
    """Whether operations on ``dtype`` go to the functions of ``native``, under this lowering."""
    return _lowering == "auto" and native.serves(dtype)


def _per_backend(
    on_cpu: Callable[..., Any] | None,
    default: Callable[..., Any],
    on_gpu: Callable[..., Any] | None = None,
) -> Any:
    """What runs the form of the backend where the computation is placed, if it has one."""
    forms = {"cpu": on_cpu, "cuda": on_gpu}
    own = {platform: form for platform, form in forms.items() if form is not None}
    if not own:
        return default
    return lambda *args: lax.platform_dependent(*args, **own, default=default)


def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    groups: int = 1,
) -> Float[Array, "n oh ow o"]:
    """2-D convolution (cross-correlation), as ``lax.conv_general_dilated`` defines it.

    Sums are taken in float32 or wider; the result has the dtype of ``x``. Reverse-mode
    differentiation only, unless ``lowering("xla")`` is on.

    Args:
        x: Images.
        kernel: Weights, ``[kh, kw, c / groups, o]``, of the dtype of ``x``.
        stride: Step of the window, in pixels, along both axes.
        padding: "SAME", "VALID", one number of zeros for all four sides, or
            ``((top, bottom), (left, right))``.
        groups: 1; or c, for a depthwise convolution.

    Returns:
        The filtered images.

    Example:
        >>> import jax.numpy as jnp
        >>> conv2d(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), padding="VALID")[0, 0, 0]
        Array([9.], dtype=float32)
    """
    (_, h, w, c), (kh, kw, _, o) = x.shape, kernel.shape
    pads = resolve_padding(padding, (h, w), (kh, kw), stride)
    g = ConvWindow((h, w), (kh, kw), stride, pads, (c, o), groups)
    if _lowering == "xla":
        return xla_conv(g, x, kernel)
    return _conv(g, x, kernel)


def _cpu_forms(g: ConvWindow, x: Array) -> Lowering:
    if 0 in g.size or 0 in g.out:
        return Lowering()
    forms = native.forms(g, x.dtype) if in_native_code(x.dtype) else None
    return cpu.conv_lowering(g) if forms is None else Lowering(*forms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(g: ConvWindow, x: Array, kernel: Array) -> Array:
    on_cpu, on_gpu = _cpu_forms(g, x), gpu.conv_lowering(g)
    forward = functools.partial(xla_conv, g)
    return _per_backend(on_cpu.forward, forward, on_gpu.forward)(x, kernel)


def _conv_fwd(g: ConvWindow, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv(g, x, kernel), (x, kernel)


def _conv_bwd(g: ConvWindow, operands: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = operands

    # Two choices, not one for both: the first layer's input gradient is then never computed.
    def input_grad(dy: Array, x: Array, kernel: Array) -> Array:
        return jax.vjp(lambda x: xla_conv(g, x, kernel), x)[1](dy)[0]

    def kernel_grad(dy: Array, x: Array, kernel: Array) -> Array:
        return jax.vjp(lambda kernel: xla_conv(g, x, kernel), kernel)[1](dy)[0]

    on_cpu, on_gpu = _cpu_forms(g, x), gpu.conv_lowering(g)
    return (
        _per_backend(on_cpu.input_grad, input_grad, on_gpu.input_grad)(dy, x, kernel),
        _per_backend(on_cpu.kernel_grad, kernel_grad, on_gpu.kernel_grad)(dy, x, kernel),
    )


_conv.defvjp(_conv_fwd, _conv_bwd)


def scaled_conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw i o"],
    factor: Float[Array, " o"],
    shift: Float[Array, " o"],
    *,
    relu: bool = False,
    stride: int = 1,
    padding: Padding = "SAME",
    groups: int = 1,
) -> Float[Array, "n oh ow o"]:
    """``conv2d(x, kernel) * factor + shift``, and a ReLU where asked; in one pass on a CPU.

    Args:
        x, kernel, stride, padding, groups: As for ``conv2d``.
        factor, shift: Of each output channel, in float32 or wider, as is what is done with them.
        relu: Whether a ReLU follows.

    Example:
        >>> import jax.numpy as jnp
        >>> x, kernel, one = jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1)), jnp.ones(1)
        >>> float(scaled_conv2d(x, kernel, -2 * one, one, relu=True)[0, 0, 0, 0])
        0.0
    """
    (_, h, w, c), (kh, kw, _, o) = x.shape, kernel.shape
    pads = resolve_padding(padding, (h, w), (kh, kw), stride)
    g = ConvWindow((h, w), (kh, kw), stride, pads, (c, o), groups)
    if groups == 1 and in_native_code(x.dtype):
        return _scaled_conv(g, relu, x, kernel, factor, shift)
    return _scaled_conv_in_steps(g, relu, x, kernel, factor, shift)


def _scaled_conv_in_steps(g: ConvWindow, relu: bool, *operands: Array) -> Array:
    x, kernel, factor, shift = operands
    y = xla_conv(g, x, kernel) if _lowering == "xla" else _conv(g, x, kernel)
    y = (y.astype(factor.dtype) * factor + shift).astype(x.dtype)
    return jax.nn.relu(y) if relu else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scaled_conv(g: ConvWindow, relu: bool, *operands: Array) -> Array:
    return native.scaled_conv(g, relu, *operands)


def _scaled_conv_fwd(g: ConvWindow, relu: bool, *operands: Array) -> tuple[Array, Any]:
    return _scaled_conv(g, relu, *operands), operands


def _scaled_conv_bwd(g: ConvWindow, relu: bool, operands: Any, dy: Array) -> tuple[Array, ...]:
    # Evaluation is differentiated for saliency alone: the steps are done anew.
    return jax.vjp(functools.partial(_scaled_conv_in_steps, g, relu), *operands)[1](dy)


_scaled_conv.defvjp(_scaled_conv_fwd, _scaled_conv_bwd)


def bottleneck(
    pieces: Sequence[Float[Array, "n h w _"]],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    kernel: Float[Array, "1 1 c o"],
    factor: Float[Array, " o"],
    shift: Float[Array, " o"],
) -> Float[Array, "n h w o"]:
    """``scaled_conv2d(relu(x * scale + bias), ..., relu=True)`` of all pieces' channels, ``x``.

    In one pass on a CPU, in float32.

    Args:
        pieces: Images.
        scale, bias: Of each channel of all pieces, in float32 or wider.
        kernel, factor, shift: As for ``scaled_conv2d``.

    Example:
        >>> import jax.numpy as jnp
        >>> x, one = jnp.ones((1, 1, 1, 1)), jnp.ones(1)
        >>> scale, kernel = jnp.array([1.0, -1.0]), jnp.ones((1, 1, 2, 1))
        >>> float(bottleneck([x, x], scale, 0 * scale, kernel, one, one)[0, 0, 0, 0])
        2.0
    """
    operands = (tuple(pieces), scale, bias, kernel, factor, shift)
    in_one = pieces[0].dtype == factor.dtype and in_native_code(factor.dtype)
    return _bottleneck(*operands) if in_one else _bottleneck_in_steps(*operands)


def _bottleneck_in_steps(
    pieces: tuple[Array, ...], scale: Array, bias: Array, kernel: Array, *after: Array
) -> Array:
    x = jnp.concatenate(pieces, axis=-1)
    x = jax.nn.relu((x.astype(scale.dtype) * scale + bias).astype(x.dtype))
    return scaled_conv2d(x, kernel, *after, relu=True)


@jax.custom_vjp
def _bottleneck(pieces: tuple[Array, ...], *operands: Array) -> Array:
    return native.bottleneck(pieces, *operands)


def _bottleneck_fwd(*operands: Any) -> tuple[Array, Any]:
    return _bottleneck(*operands), operands


def _bottleneck_bwd(operands: Any, dy: Array) -> tuple[Any, ...]:
    return jax.vjp(_bottleneck_in_steps, *operands)[1](dy)


_bottleneck.defvjp(_bottleneck_fwd, _bottleneck_bwd)


def max_pool(
    x: Float[Array, "n h w c"], *, window: int, stride: int, padding: Padding = "VALID"
) -> Float[Array, "n oh ow c"]:
    """Largest value of each window, as ``lax.reduce_window`` defines it.

    Padding never wins, a NaN always does. Of equal values the first in the window, row by row,
    receives the gradient.

    Args:
        x: Images.
        window: Side of the square window, in pixels.
        stride: Step of the window.
        padding: As in ``conv2d``.

    Returns:
        The pooled images.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), window=2, stride=2)[0, :, :, 0]
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    size, windows = (x.shape[1], x.shape[2]), (window, window)
    g = Window(size, windows, stride, resolve_padding(padding, size, windows, stride))
    return _xla_max_pool(g, x) if _lowering == "xla" else _max_pool(g, x)


def _xla_max_pool(g: Window, x: Array) -> Array:
    window, strides = (1, *g.window, 1), (1, g.stride, g.stride, 1)
    pads = ((0, 0), *g.pads, (0, 0))
    return lax.reduce_window(x, -math.inf, lax.max, window, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(g: Window, x: Array) -> Array:
    on_cpu, default = (functools.partial(f, g) for f in (cpu.max_pool, _xla_max_pool))
    return _per_backend(on_cpu, default)(x)


def _max_pool_fwd(g: Window, x: Array) -> tuple[Array, tuple[Array, Array]]:
    def without_winner(pool: Callable[[Window, Array], Array], x: Array) -> tuple[Array, Array]:
        y = pool(g, x)
        return y, jnp.zeros(y.shape, jnp.int8)

    on_cpu, default = (functools.partial(without_winner, f) for f in (cpu.max_pool, _xla_max_pool))
    y, winner = _per_backend(on_cpu, default, functools.partial(gpu.max_pool, g))(x)
    return y, (x, winner)


def _max_pool_bwd(g: Window, kept: tuple[Array, Array], dy: Array) -> tuple[Array]:
    def on_cpu(dy: Array, x: Array, winner: Array) -> Array:
        return cpu.max_pool_grad(g, dy, x)

    def on_gpu(dy: Array, x: Array, winner: Array) -> Array:
        return gpu.max_pool_grad(g, dy, winner)

    def select_and_scatter(dy: Array, x: Array, winner: Array) -> Array:
        return jax.vjp(functools.partial(_xla_max_pool, g), x)[1](dy)[0]

    return (_per_backend(on_cpu, select_and_scatter, on_gpu)(dy, *kept),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


def avg_pool(x: Float[Array, "n h w c"], *, window: int) -> Float[Array, "n oh ow c"]:
    """Mean of windows side by side; what does not fill a window at the far edges is dropped.

    Args:
        x: Images.
        window: Side of the square window, in pixels, and its step.

    Returns:
        The pooled images.

    Example:
        >>> import jax.numpy as jnp
        >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), window=2)[0, :, :, 0]
        Array([[ 2.5,  4.5],
               [10.5, 12.5]], dtype=float32)
    """
    g = Window((x.shape[1], x.shape[2]), (window, window), window, ((0, 0), (0, 0)))
    return _xla_avg_pool(g, x) if _lowering == "xla" else _avg_pool(g, x)


def _xla_avg_pool(g: Window, x: Array) -> Array:
    window = (1, *g.window, 1)
    total = lax.reduce_window(x.astype(wide_dtype(x.dtype)), 0.0, lax.add, window, window, "VALID")
    return (total / math.prod(g.window)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _avg_pool(g: Window, x: Array) -> Array:
    on_cpu, default = (functools.partial(f, g) for f in (cpu.avg_pool, _xla_avg_pool))
    return _per_backend(on_cpu, default)(x)


def _avg_pool_fwd(g: Window, x: Array) -> tuple[Array, Array]:
    return _avg_pool(g, x), x


def _avg_pool_bwd(g: Window, x: Array, dy: Array) -> tuple[Array]:
    def xla(dy: Array, x: Array) -> Array:
        return jax.vjp(functools.partial(_xla_avg_pool, g), x)[1](dy)[0]

    return (_per_backend(functools.partial(cpu.avg_pool_grad, g), xla)(dy, x),)


_avg_pool.defvjp(_avg_pool_fwd, _avg_pool_bwd)


def channel_sums(x: Float[Array, "n h w c"]) -> Float[Array, " c"]:
    """The sum of each channel over rows and pixels.

    Example:
        >>> import jax.numpy as jnp
        >>> channel_sums(jnp.ones((2, 3, 3, 1)))
        Array([18.], dtype=float32)
    """
    return _all_pixels(x) if _lowering == "xla" else _channel_sums(x.shape, x)


def _all_pixels(x: Array) -> Array:
    return jnp.sum(x, (0, 1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _channel_sums(shape: tuple[int, ...], x: Array) -> Array:
    return _per_backend(None, _all_pixels, gpu.channel_sums)(x)


def _channel_sums_fwd(shape: tuple[int, ...], x: Array) -> tuple[Array, None]:
    return _channel_sums(shape, x), None  # the shape is all that the gradient needs of x


def _channel_sums_bwd(shape: tuple[int, ...], _: None, dy: Array) -> tuple[Array]:
    return (jnp.broadcast_to(dy, shape),)


_channel_sums.defvjp(_channel_sums_fwd, _channel_sums_bwd)


def over_pixels(values: Float[Array, " c"], shape: Sequence[int]) -> Float[Array, "n h w c"]:
    """A value of each channel at every pixel of maps of this shape; its gradient is their sum.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.grad(lambda v: over_pixels(v, (2, 3, 3, 1)).sum())(jnp.ones(1))
        Array([18.], dtype=float32)
    """
    shape = tuple(shape)
    return jnp.broadcast_to(values, shape) if _lowering == "xla" else _over_pixels(values, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _over_pixels(values: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(values, shape)


def _over_pixels_fwd(values: Array, shape: tuple[int, ...]) -> tuple[Array, None]:
    return _over_pixels(values, shape), None


def _over_pixels_bwd(shape: tuple[int, ...], _: None, dy: Array) -> tuple[Array]:
    return (_channel_sums(shape, dy),)


_over_pixels.defvjp(_over_pixels_fwd, _over_pixels_bwd)
