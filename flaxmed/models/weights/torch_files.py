"""Files that ``torch.save`` wrote, read as NumPy arrays without torch and without an unpickler.

Two formats hold the same: a pickle that says which tensors there are, and rows of values, the
storages, in which these lie. A zip archive has been written since torch 1.6, one stream before.
"""

from __future__ import annotations

import collections
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from flaxmed.models.weights.opening import opened
from flaxmed.models.weights.torch_objects import Storage, Tensor, numbers, one_line
from flaxmed.models.weights.torch_pickle import read_pickle
from flaxmed.types import InputError

WANTED = "a file that torch.save wrote"
ZIP = b"PK\x03\x04"
# 0x1950a86a20f9469cfc6c, as pickles have it
LEGACY = bytes.fromhex("8a0a") + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
NESTED = ("net", "state_dict", "model", "model_state_dict")
_PARALLEL = "module."  # what DataParallel puts before every name

_PROTOCOL = 1001
_MOST_PICKLE = 64 * 2**20
_MOST_SHARED = 16  # times the size of the file: what tensors that share storages may come to
_MOST_VALUES = 2**40
_CHUNK = 2**20
# what zipfile and struct raise at files that they cannot make sense of
_BROKEN = (
    *(zipfile.BadZipFile, struct.error, EOFError, OSError),
    *(RuntimeError, ValueError, OverflowError, MemoryError),
)

# Finds a storage: the number of its bytes, and how to open them.
_Place = tuple[int, Callable[[], AbstractContextManager[IO[bytes]]]]
_Find = Callable[[Storage], _Place]


def is_legacy(start: bytes) -> bool:
    """Whether a file with these first bytes, 64 of them, has the format from before torch 1.6.

    Example:
        >>> is_legacy(b"\\x80\\x02" + LEGACY + b".")
        True
    """
    return start.startswith(b"\x80") and LEGACY in start[:32]


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a state dict that ``torch.save`` wrote, by name.

    A checkpoint that keeps its state dict under ``net``, ``state_dict``, ``model`` or
    ``model_state_dict`` gives that one; the rest of it is passed over. ``module.`` is cut off where
    all names begin with it. Nothing of the file is run: it is read by an interpreter of its own,
    which knows no more than what state dicts consist of.

    Args:
        path: The file, in either format of torch's.

    Returns:
        C-contiguous arrays of any shape in the file's types; bfloat16 is that of ``ml_dtypes``.
        Those of tensors that shared their values may share them too.

    Raises:
        InputError: No such file, another format, a damaged or truncated one, tensors that lie
            beyond their values, no tensors, or a pickle that names anything else: a whole module,
            or code that somebody put there.

    Example:
        >>> read_torch("no/such.pth")
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such.pth: no such file; expected a file that torch.save wrote
    """
    path = Path(path)
    with opened(path, WANTED) as file:
        try:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(64)
            file.seek(0)
            if start.startswith(ZIP):
                content, find = _read_zip(file, size)
            elif is_legacy(start):
                content, find = _read_legacy(file, size)
            else:
                raise InputError(f"expected {WANTED}")
            return _arrays(_state_dict(content), find, size)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except _BROKEN as error:
            raise InputError(f"{path}: damaged or unreadable ({one_line(error)})") from None


# ------------------------------------------------------------------------ the zip format


def _read_zip(file: IO[bytes], size: int) -> tuple[Any, _Find]:
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN as error:
        raise InputError(f"a truncated or damaged archive ({one_line(error)})") from None
    members = _members(archive)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise InputError(f"a zip archive with {len(pickles)} files data.pkl; expected {WANTED}")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in members:
        raise InputError(
            "a TorchScript program; expected a state dict: torch.save(torch.jit.load(FILE)"
            ".state_dict(), OUT), where torch is installed"
        )
    _check_byte_order(archive, members, f"{prefix}byteorder")
    content = read_pickle(io.BytesIO(_read_member(archive, members[pickles[0]], _MOST_PICKLE)))

    def find(storage: Storage) -> _Place:
        name = f"{prefix}data/{storage.key}"
        if name not in members:
            raise InputError(f"truncated: lacks {one_line(name)}")
        info = _stored(members[name])
        return info.file_size, lambda: archive.open(info)

    return content, find


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        counts = collections.Counter(info.filename for info in archive.infolist())
        twice = next(name for name, count in counts.items() if count > 1)
        raise InputError(f"two files of the name {one_line(twice)} in the archive")
    return members


def _stored(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """A member that can be read as it lies there, which is how torch writes it."""
    name = one_line(info.filename)
    if info.flag_bits & 1:
        raise InputError(f"{name} is encrypted; expected {WANTED}")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise InputError(f"{name} is compressed, which torch does not do; expected {WANTED}")
    return info


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    if _stored(info).file_size > most:
        raise InputError(
            f"{one_line(info.filename)} has {info.file_size} bytes; expected at most {most}"
        )
    with archive.open(info) as member:
        return member.read()


def _check_byte_order(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str
) -> None:
    """Little-endian, which files without a word on it are."""
    if name in members:
        order = _read_member(archive, members[name], most=64)
        if order != b"little":
            raise InputError(
                f"{one_line(name)} says {one_line(order.decode('latin-1'))!r}; expected 'little'"
            )


# ------------------------------------------------------------------------ the format before


class _Part:
    """A file from where it stands, and no more of it than a pickle may have."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = min(_MOST_PICKLE, size - file.tell())

    def read(self, count: int, /) -> bytes:
        data = self._file.read(max(0, min(count, self._left)))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


def _read_legacy(file: IO[bytes], size: int) -> tuple[Any, _Find]:
    magic = read_pickle(_Part(file, size))
    if magic != 0x1950A86A20F9469CFC6C:
        raise InputError(f"expected {WANTED}")
    protocol = read_pickle(_Part(file, size))
    if protocol != _PROTOCOL:
        raise InputError(f"torch's format {one_line(protocol)}; expected {_PROTOCOL}")
    system = read_pickle(_Part(file, size))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise InputError("written on a big-endian machine; expected a little-endian one")
    storages: dict[str, Storage] = {}
    content = read_pickle(_Part(file, size), storages)
    places = _legacy_places(file, read_pickle(_Part(file, size)), storages, size)

    def find(storage: Storage) -> _Place:
        if storage.key not in places:
            raise InputError(f"truncated: lacks storage {one_line(storage.key)}")
        file.seek(places[storage.key])
        return storage.length * storage.dtype.itemsize, lambda: nullcontext(file)

    return content, find


def _legacy_places(
    file: IO[bytes], keys: Any, storages: Mapping[str, Storage], size: int
) -> dict[str, int]:
    """Where the values of every storage begin; before them stands their number."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise InputError("damaged: expected the list of the storages behind the tensors")
    places: dict[str, int] = {}
    at = file.tell()
    for key in keys:
        if key not in storages or key in places:
            raise InputError(f"damaged: storage {one_line(key)} is listed twice, or needlessly")
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            raise InputError(f"truncated: ends before storage {one_line(key)}")
        (count,) = struct.unpack("<q", header)
        if count != storages[key].length:
            raise InputError(
                f"storage {one_line(key)} has {count} values; expected {storages[key].length}"
            )
        places[key] = at + 8
        at += 8 + count * storages[key].dtype.itemsize
        if at > size:
            raise InputError(f"truncated: ends in storage {one_line(key)}")
    return places


# ------------------------------------------------------------------------ from both


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The mapping of tensors, from the places where it is known to be."""
    if not isinstance(content, dict):
        raise InputError(f"holds {_kind(content)}; expected a state dict: tensors by name")
    nested = [name for name in NESTED if _tensors(content.get(name))]
    if len(nested) > 1:
        raise InputError(f"tensors lie under {' and '.join(nested)}; expected one state dict")
    tensors = _tensors(content[nested[0]] if nested else content)
    if not tensors:
        found = ", ".join(one_line(key) for key in list(content)[:8]) or "nothing"
        raise InputError(
            f"no mapping of tensors: it holds {found}; expected a state dict, alone or under "
            f"{', '.join(NESTED)}"
        )
    if all(name.startswith(_PARALLEL) for name in tensors):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    return {n: t for n, t in content.items() if isinstance(n, str) and isinstance(t, Tensor)}


def _kind(content: Any) -> str:
    if isinstance(content, Tensor):
        return "one tensor without a name"
    return f"one object of type {type(content).__name__}"


def _arrays(tensors: Mapping[str, Tensor], find: _Find, size: int) -> dict[str, np.ndarray]:
    """The tensors' values. No more is allocated than the file holds, or declared than it could."""
    values = 0
    for name, tensor in tensors.items():
        _check_place(name, tensor)
        values += math.prod(tensor.shape) * tensor.storage.dtype.itemsize
    if values > _MOST_SHARED * size:
        raise InputError(
            f"its tensors have {values} bytes together, which its {size} bytes cannot hold, even "
            f"shared {_MOST_SHARED} times"
        )
    rows: dict[str, np.ndarray] = {}
    left = size
    for tensor in tensors.values():
        storage = tensor.storage
        if storage.key not in rows:
            rows[storage.key] = _read_storage(storage, find, left)
            left -= rows[storage.key].nbytes
    return {name: _view(tensor, rows[tensor.storage.key]) for name, tensor in tensors.items()}


def _check_place(name: str, tensor: Tensor) -> None:
    """All values of a tensor must lie in its storage, and be no more than this has."""
    name, shape, strides = one_line(name), tensor.shape, tensor.strides
    if len(shape) != len(strides) or len(shape) > 32:
        raise InputError(
            f"{name}: shape {numbers(shape)} and strides {numbers(strides)}; expected as many of "
            "these, 32 at most"
        )
    if math.prod(max(extent, 1) for extent in shape) > _MOST_VALUES:
        raise InputError(f"{name}: shape {numbers(shape)}; expected at most {_MOST_VALUES} values")
    count = math.prod(shape)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # an empty tensor may begin anywhere: a slice behind the last row begins behind the storage
    if count and (last >= tensor.storage.size or count > tensor.storage.size):
        raise InputError(
            f"{name}: shape {numbers(shape)}, strides {numbers(strides)} and offset "
            f"{numbers([tensor.offset])[1:-1]} need more values than its storage has, "
            f"{tensor.storage.size}"
        )


def _read_storage(storage: Storage, find: _Find, left: int) -> np.ndarray:
    """The bytes of a whole row."""
    declared = storage.length * storage.dtype.itemsize
    size, open_storage = find(storage)
    if size != declared:
        raise InputError(
            f"storage {one_line(storage.key)} has {size} bytes; expected {declared} "
            f"({storage.length} values of type {storage.dtype})"
        )
    if size > left:  # of one piece of the file many storages could be made
        raise InputError("its storages declare more bytes together than the file has")
    row = np.empty(size, np.uint8)
    to_fill = row.data if size else memoryview(b"")
    with open_storage() as file:
        while len(to_fill):
            data = file.read(min(len(to_fill), _CHUNK))
            if not data:
                raise InputError(f"truncated: ends in storage {one_line(storage.key)}")
            to_fill[: len(data)] = data
            to_fill = to_fill[len(data) :]
    return row


def _view(tensor: Tensor, row: np.ndarray) -> np.ndarray:
    """A tensor of a row of bytes; copied only if its values do not lie in order."""
    width = tensor.storage.dtype.itemsize
    array: np.ndarray = np.ndarray(
        tensor.shape,
        tensor.storage.dtype,
        buffer=row,
        offset=(tensor.storage.start + tensor.offset) * width if math.prod(tensor.shape) else 0,
        strides=[stride * width for stride in tensor.strides],
    )
    return np.asarray(array, order="C")
