"""The safetensors format, read and written by its own library."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives NumPy the name bfloat16, which safetensors looks up)
import numpy as np
import safetensors
import safetensors.numpy

from flaxmed.files import written_whole
from flaxmed.models.weights.opening import opened
from flaxmed.models.weights.torch_objects import numbers, one_line
from flaxmed.types import InputError

WANTED = "a safetensors file"
MOST_HEADER = 100_000_000  # bytes; the library's own bound
TYPES = {  # as the format spells them
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Args:
        path: The file.

    Returns:
        Arrays of any shape by name, in the file's types (bfloat16 is that of ``ml_dtypes``), and
        the texts by name that the header has besides.

    Raises:
        InputError: No such file, a damaged or truncated one, a header that does not fit the data,
            tensors of types that NumPy has not.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_safetensors(path, {"x": np.arange(3)}, {"from": "torchvision"})
        >>> tensors, metadata = read_safetensors(path)
        >>> tensors["x"].tolist(), metadata
        ([0, 1, 2], {'from': 'torchvision'})
    """
    path = Path(path)
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            tensors = {name: _tensor(file, name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (safetensors.SafetensorError, OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: damaged or truncated ({one_line(error)})") from None


def _check_header(path: Path) -> None:
    """What is said of the length of the header, before that much is read."""
    with opened(path, WANTED) as file:
        start = file.read(8)
        size = file.seek(0, os.SEEK_END)
    if len(start) < 8:
        raise InputError(f"{path}: truncated: {size} bytes; expected {WANTED}")
    length = int.from_bytes(start, "little")
    if length > size - 8:
        raise InputError(f"{path}: truncated: declares a header of {length} bytes, has {size}")
    if length > MOST_HEADER:
        raise InputError(
            f"{path}: declares a header of {length} bytes; expected at most {MOST_HEADER}"
        )


def _tensor(file: safetensors.safe_open, name: str) -> np.ndarray:
    part = file.get_slice(name)
    if part.get_dtype() not in TYPES:
        raise InputError(
            f"{one_line(name)}: values of type {part.get_dtype()}; expected {', '.join(TYPES)}"
        )
    shape = part.get_shape()
    if len(shape) > 32:
        raise InputError(f"{one_line(name)}: shape {numbers(shape)}; expected up to 32 extents")
    return file.get_tensor(name)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as a safetensors file: the whole of it, or nothing; the same give the same.

    Args:
        path: The file; one that is there is replaced at a stroke.
        tensors: Arrays of any shape by name: floats, bfloat16 too, whole numbers, truth values.
        metadata: Texts by name, for the header.

    Raises:
        InputError: An array of another type; a folder that cannot be written.
        RunError: The disk is full.

    Example:
        >>> write_safetensors("no/such/a.safetensors", {"x": np.zeros(3)})
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such: cannot write here: No such file or directory
    """
    path = Path(path)
    native = {name: _native(path, name, array) for name, array in tensors.items()}
    data = safetensors.numpy.save(native, metadata=dict(metadata or {}))
    with written_whole(path) as file:
        for part in _in_order(data):
            file.write(part)
        file.flush()
        os.fsync(file.fileno())  # a full disk may not show before


def _in_order(data: bytes) -> Iterator[bytes | memoryview]:
    """A file with its metadata in the order of their names, which the library leaves to chance."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the numbers aligned
    yield len(text).to_bytes(8, "little") + text
    yield memoryview(data)[end:]


def _native(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as the library takes it: its bytes in C order, little-endian."""
    array = np.asarray(array)
    if array.dtype.name not in TYPES.values():
        raise InputError(
            f"{path}: {one_line(name)}: values of type {array.dtype}; expected "
            f"{', '.join(TYPES.values())}"
        )
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")
