"""Reading .npz archives: arrays by name, never unpickled, no more of them than was declared."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from flaxmed.types.errors import InputError, RunError

MOST_BYTES = 8 * 2**30  # of an array that is read into memory
_MOST_FOLD = 1032  # what deflate can make of one byte; a member that declares more of it lies
_MOST_HEADER = 2**16
_CHUNK = 2**20
# what zipfile, zlib and numpy raise at files that they cannot make sense of
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(EOFError, OSError, RuntimeError, ValueError, TypeError, SyntaxError, OverflowError),
    MemoryError,  # of the parser that reads a header
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One array of an archive, known from its header alone."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int  # of the data, in bytes


class Archive:
    """An .npz file, opened to read arrays by name.

    Raises:
        InputError: no such file, not a zip archive, truncated. ``read`` and ``header`` raise it
            for object arrays, damaged members and headers that do not fit the data.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
        >>> np.savez_compressed(path, x=np.arange(3))
        >>> with Archive(path) as archive:
        ...     archive.names, archive.read("x").tolist()
        (['x'], [0, 1, 2])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; expected an .npz archive")
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _BROKEN as error:
            raise InputError(
                f"{self.path}: not an .npz archive, or a truncated one ({error})"
            ) from None
        self._members = {
            info.filename.removesuffix(".npy"): info
            for info in self._zip.infolist()
            if info.filename.endswith(".npy")
        }
        self._headers: dict[str, Member] = {}

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """The arrays in the archive, in its order."""
        return list(self._members)

    def header(self, name: str) -> Member:
        """Shape and type of an array, checked against the size of its member; reads no data."""
        if name not in self._headers:
            info = self._members[name]
            with self.opened(name) as file:
                self._headers[name] = self._read_header(name, info, file)
        return self._headers[name]

    def read(self, name: str) -> np.ndarray:
        """The array, in memory, in C order."""
        member = self.header(name)
        if member.info.file_size > MOST_BYTES:
            raise InputError(
                f"{self.path}: {name}: declares {member.info.file_size} bytes; expected at most "
                f"{MOST_BYTES} for what is read into memory"
            )
        with self.opened(name) as file:
            flat = np.empty(math.prod(member.shape), member.dtype)
            file.read(member.offset)
            left = flat.view(np.uint8).data if flat.nbytes else memoryview(b"")
            while len(left):
                count = file.readinto(left[:_CHUNK])
                if not count:
                    raise InputError(f"{self.path}: {name}: the data end too early")
                left = left[count:]
            if member.fortran:
                return np.ascontiguousarray(flat.reshape(member.shape[::-1]).T)
            return flat.reshape(member.shape)

    @contextmanager
    def opened(self, name: str) -> Iterator[io.BufferedIOBase]:
        """A member's bytes, header and data; whatever is wrong with them becomes one line."""
        self._check_fold(name, self._members[name])
        try:
            with self._zip.open(self._members[name]) as file:
                yield cast(io.BufferedIOBase, file)
        except (InputError, RunError):
            raise
        except _BROKEN as error:
            raise InputError(
                f"{self.path}: {name}: damaged or unreadable ({' '.join(str(error).split())})"
            ) from None

    def _check_fold(self, name: str, info: zipfile.ZipInfo) -> None:
        """Refuse what numpy would not have written, a bomb above all, before a byte is unpacked."""
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{self.path}: {name}: packed in a way that numpy does not use; expected what "
                "numpy.savez_compressed writes"
            )
        if info.file_size > _MOST_FOLD * (info.compress_size + 1):
            raise InputError(
                f"{self.path}: {name}: declares {info.file_size} bytes, more than its "
                f"{info.compress_size} packed ones can hold"
            )

    def _read_header(self, name: str, info: zipfile.ZipInfo, file: io.BufferedIOBase) -> Member:
        # no more than a header can be: its own length may say anything
        start = io.BytesIO(file.read(_MOST_HEADER))
        version = np.lib.format.read_magic(start)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise InputError(f"{self.path}: {name}: .npy version {version} is not supported")
        shape, fortran, dtype = readers[version](start)
        if dtype.hasobject:
            raise InputError(
                f"{self.path}: {name}: holds Python objects, which are never unpickled; expected "
                "an array of numbers or text"
            )
        if dtype.subdtype is not None or dtype.itemsize == 0:
            raise InputError(
                f"{self.path}: {name}: values of type {dtype}; expected an array of numbers or text"
            )
        if len(shape) > 32 or not all(0 <= extent < 2**40 for extent in shape):
            raise InputError(
                f"{self.path}: {name}: its header declares the shape {shape}; expected up to 32 "
                "extents from 0"
            )
        size = start.tell() + dtype.itemsize * math.prod(shape)
        if size != info.file_size:
            raise InputError(
                f"{self.path}: {name}: its header declares {size} bytes (shape {shape}, {dtype}) "
                f"but it has {info.file_size}"
            )
        return Member(info, shape, dtype, fortran, start.tell())
