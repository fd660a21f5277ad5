"""Convolutions in C++ for a CPU: compiled once on the machine that runs them, called by XLA.

What XLA and matrix products leave of a CPU's speed on convolutions (a half to two thirds, measured)
lies in patches that are written out, or in loops that are not blocked; ``convolution.cc`` has
neither. It is compiled by the machine's own C++ compiler, for its own processor, at the first use,
and kept in ``~/.cache/flaxmed/native``. Without a compiler, or with ``FLAXMED_NATIVE=0``, the forms
of ``cpu.py`` serve: the same results to rounding, at about half the pace.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from flaxmed.models.window import ConvWindow

Form = Callable[..., Array]

_SOURCE = Path(__file__).with_name("convolution.cc")
_DENSE = ("flaxmed_conv", "flaxmed_conv_input_grad", "flaxmed_conv_kernel_grad")
_DEPTHWISE = (
    "flaxmed_depthwise",
    "flaxmed_depthwise_input_grad",
    "flaxmed_depthwise_kernel_grad",
)
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
_COMPILE_SECONDS = 300


def forms(g: ConvWindow, dtype: Any) -> tuple[Form, Form, Form] | None:
    """Forward, input gradient and kernel gradient of a convolution, or None where there are none.

    They are for float32, for plain convolutions of any stride and depthwise ones of stride 1, where
    the default device is a CPU. XLA does not know how to split a call into foreign code: of a batch
    that is spread over several devices each would compute the whole (see ``lowering("jax")``).

    Args:
        g: the convolution.
        dtype: of its operands.
    """
    depthwise = g.groups == g.channels[0] == g.channels[1] > 1 and g.stride == 1
    if dtype != jnp.float32 or not (depthwise or g.groups == 1):
        return None
    if jax.default_backend() != "cpu" or why_not():
        return None
    forward, input_grad, kernel_grad = _DEPTHWISE if depthwise else _DENSE
    (c, o), kernel = g.channels, (*g.window, g.channels[0] // g.groups, g.channels[1])
    return (
        lambda x, k: _call(forward, g, (len(x), *g.out, o), x, k),
        lambda dy, x, k: _call(input_grad, g, (len(dy), *g.size, c), dy, k),
        lambda dy, x, k: _call(kernel_grad, g, kernel, dy, x),
    )


def _call(name: str, g: ConvWindow, shape: tuple[int, ...], *operands: Array) -> Array:
    function = jax.ffi.ffi_call(
        name, jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    (top, _), (left, _) = g.pads
    return function(*operands, stride=np.int64(g.stride), top=np.int64(top), left=np.int64(left))


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
    for name in (*_DENSE, *_DEPTHWISE):
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
    parts = (_SOURCE.read_text(), machine, jax.lib.__version__, *_FLAGS)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    library = cache / "flaxmed" / "native" / f"convolution-{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), "-o", str(built)]
        _run([*command, str(_SOURCE)])
        built.replace(library)
    return library


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=_COMPILE_SECONDS
    )
    return done.stdout
