"""Convolution and batch normalisation in C++ for a CPU, compiled where they run, called by XLA.

What XLA and matrix products leave of a CPU's speed on convolutions (a half to two thirds, measured)
lies in patches that are written out, or in loops that are not blocked; ``convolution.cc`` has
neither, ``winograd.h`` does 3x3 kernels with fewer operations, and ``depthwise.h`` reads a pixel
once for all taps. ``normalisation.cc`` reads its images as few times as can be. All is compiled by
the machine's own C++ compiler, for its own processor, at the first use, and kept in
``~/.cache/flaxmed/native``. Without a compiler, or with ``FLAXMED_NATIVE=0``, the forms of
``cpu.py`` and plain JAX serve: the same results to rounding, more slowly.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from flaxmed.models.window import ConvWindow

Form = Callable[..., Array]

_FOLDER = Path(__file__).parent
_SOURCES = (_FOLDER / "convolution.cc", _FOLDER / "normalisation.cc")
_DENSE = ("flaxmed_conv", "flaxmed_conv_input_grad", "flaxmed_conv_kernel_grad")
_DEPTHWISE = (
    "flaxmed_depthwise",
    "flaxmed_depthwise_input_grad",
    "flaxmed_depthwise_kernel_grad",
)
_SCALED = "flaxmed_conv_norm"
_BOTTLENECK = "flaxmed_norm_conv_norm"
_NORM = ("flaxmed_batch_norm", "flaxmed_batch_norm_grad")
# No errno and no traps: loops with a square root or a choice in them become vectors. What is not a
# number, and how sums are rounded, stays as the source says.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-shared", "-pthread"),
)
_COMPILE_SECONDS = 300


def serves(dtype: Any) -> bool:
    """Whether there are functions for operands of ``dtype`` where the default device is.

    Example:
        >>> serves(jnp.dtype("float64"))
        False
    """
    known = dtype in (jnp.float32, jnp.bfloat16)
    return known and jax.default_backend() == "cpu" and not why_not()


def forms(g: ConvWindow, dtype: Any) -> tuple[Form, Form, Form] | None:
    """Forward, input gradient and kernel gradient of a convolution, or None where there are none.

    They are for plain convolutions and depthwise 3x3 ones of stride 1, in float32; bfloat16 is
    widened on the way in and rounded on the way out. XLA does not know how to split a call into
    foreign code: of a batch that is spread over several devices each would compute the whole (see
    ``lowering("jax")``).

    Args:
        g: the convolution; its maps have pixels.
        dtype: of its operands.
    """
    (c, o), kernel = g.channels, (*g.window, g.channels[0] // g.groups, g.channels[1])
    depthwise = g.groups == c == o > 1 and (g.window, g.stride) == ((3, 3), 1)
    if not serves(dtype) or not (depthwise or g.groups == 1):
        return None
    forward, input_grad, kernel_grad = _DEPTHWISE if depthwise else _DENSE
    return (
        lambda x, k: _call(forward, g, (len(x), *g.out, o), x, k),
        lambda dy, x, k: _call(input_grad, g, (len(dy), *g.size, c), dy, k),
        lambda dy, x, k: _call(kernel_grad, g, kernel, dy, x),
    )


def _call(
    name: str, g: ConvWindow, shape: tuple[int, ...], *operands: Array, **options: np.int64
) -> Array:
    function = jax.ffi.ffi_call(
        name, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    (top, _), (left, _) = g.pads
    options |= {"stride": np.int64(g.stride), "top": np.int64(top), "left": np.int64(left)}
    wide = (operand.astype(jnp.float32) for operand in operands)
    return function(*wide, **options).astype(operands[0].dtype)


def scaled_conv(
    g: ConvWindow,
    relu: bool,
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c o"],
    factor: Float[Array, " o"],
    shift: Float[Array, " o"],
) -> Float[Array, "n oh ow o"]:
    """A convolution, times ``factor`` plus ``shift``, and perhaps a ReLU: in one pass.

    It has no derivative of its own.

    Args:
        g: the convolution, of one group.
        relu: whether a ReLU follows.
        x: images, float32 or bfloat16.
        kernel: as for ``conv2d``.
        factor, shift: of each output channel.

    Example:
        >>> g, one = ConvWindow((2, 2), (1, 1), 1, ((0, 0), (0, 0)), (1, 1), 1), jnp.ones(1)
        >>> x, kernel = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 1, 1))
        >>> if serves(one.dtype):
        ...     assert (scaled_conv(g, True, x, kernel, 2 * one, one) == 3).all()
    """
    shape = (len(x), *g.out, g.channels[1])
    return _call(_SCALED, g, shape, x, kernel, factor, shift, relu=np.int64(relu))


def bottleneck(
    pieces: Sequence[Float[Array, "n h w _"]],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    kernel: Float[Array, "1 1 c o"],
    factor: Float[Array, " o"],
    shift: Float[Array, " o"],
) -> Float[Array, "n h w o"]:
    """Scale, bias, ReLU of the pieces' channels side by side; a scaled 1x1 convolution and a ReLU.

    In one pass, which writes neither the concatenation nor its normalisation. It has no derivative
    of its own.

    Args:
        pieces: images, float32.
        scale, bias: of each channel of all pieces.
        kernel: as for ``conv2d``.
        factor, shift: of each output channel.

    Example:
        >>> x, one = jnp.ones((1, 2, 2, 1)), jnp.ones(1)
        >>> if serves(x.dtype):
        ...     y = bottleneck([x, x], jnp.ones(2), jnp.zeros(2), jnp.ones((1, 1, 2, 1)), one, one)
        ...     assert (y == 3).all()
    """
    shape = (*pieces[0].shape[:3], kernel.shape[-1])
    function = jax.ffi.ffi_call(
        _BOTTLENECK, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    return function(scale, bias, kernel, factor, shift, *pieces)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def batch_norm(
    epsilon: float,
    relu: bool,
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mask: Float[Array, " n"],
) -> tuple[Float[Array, "n h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """Batch normalisation in training; no gradient passes through the statistics it returns.

    Args:
        epsilon: added to the variance.
        relu: whether a ReLU follows.
        x: images, float32.
        scale, bias: of each channel.
        mask: of each image: 0 for padding, which enters no statistic.

    Returns:
        The normalised images; the mean and the variance (over n) of each channel.

    Example:
        >>> x, one = jnp.arange(4.0).reshape(4, 1, 1, 1), jnp.ones(1)
        >>> if serves(x.dtype):
        ...     y, mean, variance = batch_norm(0.0, True, x, one, one, jnp.ones(4))
        ...     assert mean[0] == 1.5 and variance[0] == 1.25
    """
    y, mean, variance = _norm(_NORM[0], epsilon, relu, x, scale, bias, mask)
    return y, mean, variance


def _norm(name: str, epsilon: float, relu: bool, *operands: Array) -> tuple[Array, ...]:
    """A function of the first operand's images that gives images and two values per channel."""
    images = jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)
    channels = jax.ShapeDtypeStruct(operands[0].shape[-1:], jnp.float32)
    function = jax.ffi.ffi_call(name, (images, channels, channels), vmap_method="sequential")
    return tuple(function(*operands, epsilon=np.float32(epsilon), relu=np.int64(relu)))


def _norm_forward(epsilon: float, relu: bool, *operands: Array) -> tuple[Any, Any]:
    y, mean, variance = _norm(_NORM[0], epsilon, relu, *operands)
    return (y, mean, variance), (*operands, mean, variance)


def _norm_backward(epsilon: float, relu: bool, kept: Any, cotangents: Any) -> tuple[Any, ...]:
    gradients = _norm(_NORM[1], epsilon, relu, cotangents[0], *kept)
    return *gradients, jnp.zeros_like(kept[3])  # the mask


batch_norm.defvjp(_norm_forward, _norm_backward)


@functools.cache
def why_not() -> str | None:
    """None if the library is there, after building it if need be; else why it is not.

    Example:
        >>> why_not() is None or "compiler" in why_not() or "FLAXMED_NATIVE" in why_not()
        True
    """
    if os.environ.get("FLAXMED_NATIVE", "1") == "0":
        return "switched off by FLAXMED_NATIVE=0"
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        return f"no C++ compiler ({', '.join(_compilers())}) on the path"
    try:
        library = ctypes.CDLL(str(_build(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return f"the C++ compiler {compiler} failed: {' '.join(detail.split())[:300]}"
    for name in (*_DENSE, *_DEPTHWISE, _SCALED, _BOTTLENECK, *_NORM):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def _compilers() -> tuple[str, ...]:
    return (os.environ["CXX"],) if os.environ.get("CXX") else ("c++", "g++", "clang++")


def _build(compiler: str) -> Path:
    """The library's file, compiled unless an earlier process did; whole or not there at all."""
    # What the compiler predefines tells its version and the processor's vector instructions: a home
    # folder may be shared by machines that differ.
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    machine = _run(command)
    sources = [path.read_text() for path in sorted(_FOLDER.glob("*.[ch]*"))]
    parts = (*sources, machine, importlib.metadata.version("jaxlib"), *_FLAGS)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    library = cache / "flaxmed" / "native" / f"kernels-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with _alone(library.parent), tempfile.TemporaryDirectory(dir=library.parent) as folder:
        if library.exists():  # built while this process waited
            return library
        built = Path(folder) / library.name
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), "-o", str(built)]
        _run([*command, *map(str, _SOURCES)])
        built.replace(library)
    return library


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets processes that start at once build one after the other, the first one for all.

    Where the system or the file system has no such lock, each builds: wasteful, but not wrong.
    """
    with contextlib.ExitStack() as opened:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)  # which unlocks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=_COMPILE_SECONDS
    )
    return done.stdout
