"""HDF5 in the form in which Keras writes it, read in Python alone and within bounds.

Keras leaves HDF5's file format at its oldest setting: groups with symbol tables, attributes of
text, arrays of floating-point numbers in one piece. Only that is read here, by the specification
(HDF5 File Format Specification 3.0, sections II.A, III and IV), and everything else is refused. The
C library is not asked: it reads all of HDF5, but of two thousand files with a few bytes changed
several make it loop for ever or end the process, which no caller could turn into an error message.

Nothing leads out of the file, and no address, size or count is believed before it is checked.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flaxmed.models.weights.hdf5_messages import (
    MOST_BYTES,
    Damaged,
    Type,
    attribute,
    float_type,
    heap_name,
    shape_of,
    type_of,
    unpack,
)
from flaxmed.types import InputError

__all__ = ["Damaged", "Entry", "Hdf5File", "Object"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_STEPS = 40_000  # links, messages and texts: DenseNet-121 has twelve thousand

_UNDEFINED = 2**64 - 1  # an address that leads nowhere
_SOFT_LINK = 2  # cache type of a symbol table's entry

# Types of header messages.
_DATASPACE, _DATATYPE, _EXTERNAL_FILES = 0x01, 0x03, 0x07
_LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x08, 0x0C, 0x10, 0x11
_NEWER_LINKS = (0x02, 0x06)  # of groups that are no longer in the old form
_SHARED = 0x02  # flag: the message holds an address of what it would say
_STORED_HERE = 1  # class of layout: in one piece, in this file


@dataclasses.dataclass(frozen=True)
class Entry:
    """A link of a group: the name's object, or a name that stands for another name.

    Attributes:
        address: Of the object's header.
        soft: Whether it is a soft link, which is never followed.
    """

    address: int
    soft: bool


class Object:
    """A group or an array of the file, at a path.

    Attributes:
        path: Names from the root, joined by ``/``; the root's is empty.
    """

    def __init__(self, file: Hdf5File, address: int, path: str):
        self.path = path
        self._file = file
        self._address = address
        self._messages = file._messages(address, path or "the root")
        self._entries: dict[str, Entry] | None = None

    @property
    def is_group(self) -> bool:
        """Whether it has links, and no values."""
        return any(kind in (_SYMBOL_TABLE, *_NEWER_LINKS) for kind, _, _ in self._messages)

    @property
    def address(self) -> int:
        """Where its header is: two names of one object share it."""
        return self._address

    def children(self) -> dict[str, Entry]:
        """The links of a group, in the order of their names; none of an array."""
        if self._entries is None:
            self._entries = dict(self._links())
        return self._entries

    def get(self, path: str) -> Object | None:
        """The object at a path below this one, or None if there is none.

        Raises:
            Damaged: A soft link on the way, or headers that cannot be read.
        """
        here: Object = self
        for name in path.split("/"):
            entry = here.children().get(name)
            if entry is None:
                return None
            below = f"{here.path}/{name}".lstrip("/")
            if entry.soft:
                raise Damaged(f"'{below}' is a soft link; expected an object of this file")
            here = Object(self._file, entry.address, below)
        return here

    def names(self, attribute: str) -> list[str] | None:
        """An attribute's texts, or None if it has no such attribute.

        Keras writes long lists in pieces: ``layer_names0``, ``layer_names1``, ...
        """
        whole = self._attribute(attribute)
        if whole is not None:
            return whole
        found: list[str] = []
        pieces = 0
        while (piece := self._attribute(f"{attribute}{pieces}")) is not None:
            found += piece
            pieces += 1
        return found if pieces else None

    def values(self) -> np.ndarray:
        """An array's values; bfloat16 becomes float32.

        Raises:
            Damaged: It is a group, its type is no floating-point one, or its values are not in one
                piece in this file.
        """
        place = f"'{self.path}'"
        if self.is_group:
            raise Damaged(f"{place} is a group; expected an array")
        if any(kind == _EXTERNAL_FILES for kind, _, _ in self._messages):
            raise Damaged(f"{place} has its values in other files; expected them in this one")
        shape = shape_of(self._only(_DATASPACE), place)
        kind = type_of(self._only(_DATATYPE), place)
        # h5py has no name for bfloat16, so Keras notes it beside bytes without a meaning
        brain = (kind.kind, kind.size) == (5, 2) and self.names("dtype") == ["bfloat16"]
        dtype = np.dtype("<u2") if brain else float_type(kind, place)
        flat = np.frombuffer(self._content(math.prod(shape) * dtype.itemsize, place), dtype)
        if brain:  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(shape).astype(flat.dtype.newbyteorder("="))

    def _content(self, size: int, place: str) -> memoryview:
        """The bytes of an array in one piece."""
        layout = self._only(_LAYOUT)
        version, kind = layout[0], layout[1]
        if version != 3 or kind != _STORED_HERE:
            raise Damaged(
                f"{place} is stored in chunks, packed, or as a view of other arrays; "
                "expected it in one piece, as Keras writes it"
            )
        address, stored = unpack("<QQ", layout, 2, place)
        if size and address == _UNDEFINED:
            raise Damaged(f"{place} has a shape but no values")
        if size != stored:
            raise Damaged(f"{place} has a shape of {size} bytes and {stored} bytes of values")
        self._file._spend(size)
        return self._file._bytes(address, size, place) if size else memoryview(b"")

    def _only(self, wanted: int) -> memoryview:
        found = [(flags, body) for kind, flags, body in self._messages if kind == wanted]
        if len(found) != 1 or found[0][0] & _SHARED or len(found[0][1]) < 8:
            raise Damaged(f"'{self.path}' is no array that can be read: its header is not Keras's")
        return found[0][1]

    def _links(self) -> Iterator[tuple[str, Entry]]:
        for kind, _, body in self._messages:
            if kind in _NEWER_LINKS:  # HDF5 changes to it, for one, where a link leads to a file
                raise Damaged(
                    f"'{self.path or '/'}' keeps its links, perhaps to other files, in a form that "
                    "Keras does not write"
                )
            if kind == _SYMBOL_TABLE:
                tree, heap = unpack("<QQ", body, 0, self.path)
                yield from self._file._symbols(tree, heap, self.path or "the root")

    def _attribute(self, name: str) -> list[str] | None:
        for kind, flags, body in self._messages:
            if kind == _ATTRIBUTE and not flags & _SHARED:
                place = f"an attribute of '{self.path or '/'}'"
                found, rest = attribute(body, place)
                if found == name.encode():
                    return self._file._texts(*rest, f"the attribute {name} of '{self.path or '/'}'")
        return None


class Hdf5File:
    """A file in the form in which Keras writes it.

    Args:
        path: The file, read whole.

    Attributes:
        root: Its first group, from which all else is reached.

    Raises:
        InputError: It cannot be read or is larger than 1 GiB.
        Damaged: It is no HDF5, another form of it, or was cut off.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "weights.h5")
        >>> _ = path.write_bytes(SIGNATURE + b"\\x03" + bytes(40))  # a version to come
        >>> try:
        ...     Hdf5File(path)
        ... except Damaged as error:
        ...     print(str(error).split(",")[0])
        not an HDF5 file in the form that Keras writes
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._data = memoryview(_read(Path(path)))
        self._left = MOST_BYTES
        self._steps = MOST_STEPS
        self._heaps: dict[int, dict[int, memoryview]] = {}
        self.root = Object(self, self._root_address(), "")

    def _root_address(self) -> int:
        if bytes(self._data[:8]) != SIGNATURE:
            raise Damaged("not an HDF5 file")
        version = self._data[8] if len(self._data) > 8 else 255
        sizes = bytes(self._data[13:15])
        if version > 1 or sizes != b"\x08\x08":
            raise Damaged(
                "not an HDF5 file in the form that Keras writes, of versions 0 or 1 and with "
                "addresses of 8 bytes; h5repack --low=0 --high=0 changes newer ones"
            )
        start = 24 if version == 0 else 28
        base, _, end, _, _, root = unpack("<6Q", self._data, start, "the superblock")
        if base:
            raise Damaged("not an HDF5 file in the form that Keras writes: it begins later")
        if end > len(self._data):
            raise Damaged(f"cut off: it declares {end} bytes and has {len(self._data)}")
        return int(root)

    def _bytes(self, address: int, size: int, place: str) -> memoryview:
        if address > len(self._data) or size > len(self._data) - address:
            raise Damaged(f"damaged: {place} lies beyond the end of the file")
        return self._data[address : address + size]

    def _signed(self, address: int, signature: bytes, size: int, place: str) -> memoryview:
        head = self._bytes(address, size, place)
        if bytes(head[: len(signature)]) != signature:
            raise Damaged(f"damaged: no {signature.decode()} where {place} refers to one")
        return head

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Damaged(f"its arrays declare more than {MOST_BYTES >> 30} GiB together")

    def _count(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise Damaged("more groups, arrays and names than any network of Keras has")

    def _messages(self, address: int, place: str) -> list[tuple[int, int, memoryview]]:
        """Type, flags and body of every message of an object's header (version 1)."""
        head = self._bytes(address, 16, place)
        if bytes(head[:4]) == b"OHDR":
            raise Damaged(f"{place} has a header in a form that Keras does not write")
        if head[0] != 1:
            raise Damaged(f"damaged: {place} has no header")
        (left,) = unpack("<H", head, 2, place)
        (size,) = unpack("<I", head, 8, place)
        self._count(1 + left)  # at most: every block after the first takes a message
        blocks = [self._bytes(address + 16, size, place)]
        found = []
        for block in blocks:
            at = 0
            while left and at + 8 <= len(block):
                kind, size, flags = unpack("<HHB", block, at, place)
                if size > len(block) - at - 8:
                    raise Damaged(f"damaged: the header of {place} is longer than its block")
                body = block[at + 8 : at + 8 + size]
                at += 8 + size
                left -= 1
                if kind == _CONTINUATION:
                    start, length = unpack("<QQ", body, 0, place)
                    blocks.append(self._bytes(start, length, place))
                else:
                    found.append((kind, flags, body))
        return found

    def _symbols(self, tree: int, heap: int, place: str) -> Iterator[tuple[str, Entry]]:
        """The entries of a group's symbol table."""
        head = self._signed(heap, b"HEAP", 32, place)
        size, _, address = unpack("<3Q", head, 8, place)
        texts = self._bytes(address, size, place)
        for leaf in self._leaves(tree, place):
            head = self._signed(leaf, b"SNOD", 8, place)
            (count,) = unpack("<H", head, 6, place)
            body = self._bytes(leaf + 8, 40 * count, place)
            self._count(count)
            for i in range(count):
                offset, target, cache = unpack("<QQI", body, 40 * i, place)
                yield heap_name(texts, offset, place), Entry(target, cache == _SOFT_LINK)

    def _leaves(self, tree: int, place: str) -> Iterator[int]:
        """Addresses of the leaves of a B-tree (version 1) of a group; no node is met twice."""
        met: set[int] = set()
        waiting: list[tuple[int, int | None]] = [(tree, None)]
        while waiting:
            node, expected = waiting.pop()
            head = self._signed(node, b"TREE", 24, place)
            kind, level, count = unpack("<BBH", head, 4, place)
            if kind or node in met or expected not in (None, level):
                raise Damaged(f"damaged: the list of links of {place}")
            met.add(node)
            self._count(count)
            body = self._bytes(node + 24, 16 * count, place)
            below = [unpack("<Q", body, 16 * i + 8, place)[0] for i in range(count)]
            if level == 0:
                yield from below
            else:
                waiting += [(child, level - 1) for child in reversed(below)]

    def _texts(self, kind: Type, shape: tuple[int, ...], data: memoryview, place: str) -> list[str]:
        """An attribute's values as texts."""
        count = math.prod(shape)
        if count == 0:
            return []  # Keras gives an empty list the type of a number
        if kind.kind not in (3, 9) or (kind.kind == 9 and (kind.bits & 15, kind.size) != (1, 16)):
            raise Damaged(f"{place} holds no text; expected names")
        if kind.size * count > len(data) or not kind.size:
            raise Damaged(f"damaged: {place} has {count} names, more than it can hold")
        self._count(count)
        pieces = [data[i * kind.size : (i + 1) * kind.size] for i in range(count)]
        if kind.kind == 9:
            pieces = [self._heaped(piece, place) for piece in pieces]
        try:
            return [bytes(piece).split(b"\0")[0].decode() for piece in pieces]
        except UnicodeDecodeError:
            raise Damaged(f"damaged: {place} is not text in UTF-8") from None

    def _heaped(self, reference: memoryview, place: str) -> memoryview:
        """The text of any length that a reference leads to."""
        length, address, index = unpack("<IQI", reference, 0, place)
        if address not in self._heaps:
            self._heaps[address] = self._heap(address, place)
        text = self._heaps[address].get(index)
        if text is None or length > len(text):
            raise Damaged(f"damaged: {place} refers to text that is not there")
        return text[:length]

    def _heap(self, address: int, place: str) -> dict[int, memoryview]:
        """The objects of a global heap's collection by their number."""
        head = self._signed(address, b"GCOL", 16, place)
        (size,) = unpack("<Q", head, 8, place)
        collection = self._bytes(address, size, place)
        found: dict[int, memoryview] = {}
        at = 16
        while at + 16 <= len(collection):
            self._count(1)
            index, _, _, size = unpack("<HHIQ", collection, at, place)
            if index == 0:  # the free space, with which a collection ends
                break
            if size > len(collection) - at - 16:
                raise Damaged(f"damaged: {place} refers to text beyond the end of its heap")
            found[index] = collection[at + 16 : at + 16 + size]
            at += 16 + -(-size // 8) * 8
        return found


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: expected a file on disk")  # a pipe would be waited for
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise InputError(
                    f"{path}: more than {MOST_BYTES >> 30} GiB; expected a file of weights"
                )
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected a file") from None
