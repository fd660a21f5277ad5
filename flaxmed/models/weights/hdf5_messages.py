"""The pieces of HDF5's headers, decoded and checked: types, shapes, attributes, names.

By the HDF5 File Format Specification 3.0, section IV.A; only what Keras writes.
"""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np

MOST_BYTES = 2**30  # of a file, and of all values read from it: ten times the largest network's

# Floating-point types: size, then bit offset, precision, place and size of the exponent, of the
# mantissa, and the exponent's bias.
_FLOATS = {
    (2, 0, 16, 10, 5, 0, 10, 15): np.float16,
    (4, 0, 32, 23, 8, 0, 23, 127): np.float32,
    (8, 0, 64, 52, 11, 0, 52, 1023): np.float64,
}
_CLASSES = (
    *("whole-number", "floating-point", "time", "text", "bit", "opaque", "compound", "reference"),
    *("enumerated", "variable-length", "array"),
)


class Damaged(Exception):
    """What is wrong with the file, and where, without the file's name."""


@dataclasses.dataclass(frozen=True)
class Type:
    """A datatype: its class (1 floating-point, 3 text of one length, 9 of any length)."""

    kind: int
    bits: int
    size: int
    properties: bytes


def unpack(form: str, data: memoryview, at: int, place: str) -> tuple[int, ...]:
    """``struct.unpack_from``, for what describes ``place``.

    Raises:
        Damaged: The data end before.

    Example:
        >>> unpack("<HB", memoryview(b"\\x01\\x00\\x02"), 0, "the root")
        (1, 2)
    """
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise Damaged(f"damaged: what describes {place} is cut off") from None


def heap_name(texts: memoryview, offset: int, place: str) -> str:
    """The name at an offset of a local heap, which a zero ends.

    Raises:
        Damaged: There is none, or it is not UTF-8.

    Example:
        >>> heap_name(memoryview(bytes(8) + b"layers" + bytes(2)), 8, "the root")
        'layers'
    """
    if offset >= len(texts):
        raise Damaged(f"damaged: a name in {place} is not there")
    name, zero, _ = bytes(texts[offset : offset + 1024]).partition(b"\0")
    try:
        if zero and name:
            return name.decode()
    except UnicodeDecodeError:
        pass
    raise Damaged(f"damaged: a name in {place} is not text of up to 1024 bytes")


def type_of(body: memoryview, place: str) -> Type:
    """A datatype from its message.

    Raises:
        Damaged: The message is cut off.

    Example:
        >>> type_of(memoryview(bytes([0x13, 0, 0, 0, 5, 0, 0, 0])), "'name'")  # five characters
        Type(kind=3, bits=0, size=5, properties=b'')
    """
    kind, low, middle, high, size = unpack("<4BI", body, 0, place)
    return Type(kind & 15, low | middle << 8 | high << 16, size, bytes(body[8:]))


def float_type(kind: Type, place: str) -> np.dtype:
    """The dtype of floating-point numbers.

    Raises:
        Damaged: The values are none, or of another size than 2, 4 or 8 bytes.

    Example:
        >>> half = struct.pack("<HHBBBBI", 0, 16, 10, 5, 0, 10, 15)
        >>> float_type(Type(kind=1, bits=0x0F20, size=2, properties=half), "'0'") == np.float16
        True
    """
    if kind.kind != 1 or len(kind.properties) < 12:
        name = _CLASSES[kind.kind] if kind.kind < len(_CLASSES) else "unknown"
        raise Damaged(f"{place} holds {name} values; expected floating-point numbers")
    layout = (kind.size, *struct.unpack_from("<HHBBBBI", kind.properties))
    if kind.bits & 0x40 or layout not in _FLOATS:
        raise Damaged(f"{place} holds floating-point numbers of an unknown form")
    return np.dtype(_FLOATS[layout]).newbyteorder(">" if kind.bits & 1 else "<")


def shape_of(body: memoryview, place: str) -> tuple[int, ...]:
    """The shape that a dataspace's message of at least 4 bytes declares; a scalar's is empty.

    Raises:
        Damaged: The message is cut off, or the shape larger than any file may be.

    Example:
        >>> shape_of(memoryview(struct.pack("<BBBB4xQQ", 1, 2, 0, 0, 3, 64)), "'0'")
        (3, 64)
    """
    version, rank, kind = body[0], body[1], body[3]
    if version not in (1, 2) or rank > 32 or (version == 2 and kind == 2):
        raise Damaged(f"damaged: {place} has no shape")
    shape = unpack(f"<{rank}Q", body, 8 if version == 1 else 4, place)
    if math.prod(extent or 1 for extent in shape) > MOST_BYTES:
        raise Damaged(f"{place} declares the shape {'x'.join(map(str, shape))}")
    return shape


def attribute(
    body: memoryview, place: str
) -> tuple[bytes, tuple[Type, tuple[int, ...], memoryview]]:
    """An attribute's name; its type, shape and bytes, from its message.

    Raises:
        Damaged: The message is cut off, or in a form that Keras does not write.

    Example:
        >>> kind, shape = bytes([0x13, 0, 0, 0, 5, 0, 0, 0]), bytes([1, 0, 0, 0, 0, 0, 0, 0])
        >>> body = struct.pack("<BxHHH", 1, 5, 8, 8) + b"name".ljust(8, b"\\0") + kind + shape
        >>> name, (kind, shape, data) = attribute(memoryview(body + b"stem1"), "an attribute")
        >>> name, shape, bytes(data)
        (b'name', (), b'stem1')
    """
    version, flags, name, kind, shape = unpack("<BBHHH", body, 0, place)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise Damaged(f"damaged: {place} is in a form that Keras does not write")
    at, pieces = (9 if version == 3 else 8), []
    for size in (name, kind, shape):
        if size > len(body) - at:
            raise Damaged(f"damaged: {place} is cut off")
        pieces.append(body[at : at + size])
        at += -(-size // 8) * 8 if version == 1 else size
    if len(pieces[2]) < 4:
        raise Damaged(f"damaged: {place} has no shape")
    found = bytes(pieces[0]).split(b"\0")[0]
    return found, (type_of(pieces[1], place), shape_of(pieces[2], place), body[at:])
