"""What a pickle of torch's may name: the types of storages, and the functions that put tensors
together. Here they only note where values lie; whatever else a pickle names is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from flaxmed.types import InputError

_MOST_INT = 2**63
_MOST_SHOWN = 100  # characters of what a file says, in a message

# the classes that torch names for the type of a storage's values
STORAGES: dict[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
# what stands in checkpoints as a value: never called, and of no use here
VALUES = {
    f"torch.{name}"
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("int64", "int32", "int16", "int8", "uint8"),
    )
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A part of a row of values that the file holds under a key.

    Attributes:
        key: Name of the row.
        dtype: Of its values.
        length: Number of values in the whole row.
        start: First value of this part.
        size: Number of values of this part.
    """

    key: str
    dtype: np.dtype[Any]
    length: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where in a storage the values of a tensor lie, as the file says it: unchecked.

    Attributes:
        storage: That holds the values.
        offset: Of the first one, in values.
        shape: Extents; whole numbers from 0.
        strides: In values; whole numbers from 0, perhaps not as many as extents.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Global:
    """Something that a pickle names.

    Attributes:
        name: With its module: ``torch.FloatStorage``.
    """

    name: str


def known_global(name: str) -> Global:
    """A class or a function by its name, which nothing looks up.

    Raises:
        InputError: State dicts have no use for it.

    Example:
        >>> known_global("torch.FloatStorage")
        Global(name='torch.FloatStorage')
        >>> known_global("builtins.eval")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        flaxmed.types.InputError: refers to builtins.eval, which is neither a tensor nor ...
    """
    if name in FUNCTIONS or name in STORAGES or name in VALUES:
        return Global(name)
    refers = f"refers to {one_line(name)}"
    package = name.partition(".")[0]
    of_networks = package != "torch" or name.startswith("torch.nn.")
    if not of_networks or package in sys.stdlib_module_names | {"__builtin__", "numpy", ""}:
        raise InputError(
            f"{refers}, which is neither a tensor nor a number or text; nothing of it was run. "
            "Expected a state dict alone, as torch.save(model.state_dict(), FILE) writes it"
        )
    raise InputError(
        f"{refers}, so it holds a program, not weights alone; nothing of it was run. Convert it "
        "once where torch and that package are installed; this runs code from the file, so only if "
        "you trust it: torch.save(torch.load(FILE, weights_only=False).state_dict(), OUT)"
    )


def mapping_key(key: Any) -> Any:
    """The key of a mapping: text, a small number or None, whose hashes no file can choose.

    Raises:
        InputError: Another one.

    Example:
        >>> mapping_key("fc.weight")
        'fc.weight'
    """
    if key is None or type(key) in (str, bool):
        return key
    if type(key) is int and abs(key) < 2**32:
        return key
    raise InputError(f"a mapping has a key of type {type(key).__name__}; expected text")


def whole_numbers(values: Any, what: str) -> tuple[int, ...]:
    """Numbers from 0 on, as extents and offsets are.

    Args:
        values: A list or a tuple, perhaps.
        what: Subject and verb of the sentence that refuses them.

    Raises:
        InputError: Other ones.

    Example:
        >>> whole_numbers([2, 3], "a tensor's shape is")
        (2, 3)
        >>> whole_numbers([2, -3], "a tensor's shape is")
        Traceback (most recent call last):
        flaxmed.types.InputError: a tensor's shape is (2, -3); expected whole numbers from 0
    """
    if type(values) not in (list, tuple):
        raise InputError(f"{what} of type {type(values).__name__}; expected whole numbers from 0")
    if not all(type(value) is int and 0 <= value < _MOST_INT for value in values):
        raise InputError(f"{what} {numbers(values)}; expected whole numbers from 0")
    return tuple(values)


def numbers(values: Sequence[Any]) -> str:
    """The first few of what should be whole numbers, however large they are.

    Example:
        >>> numbers([64, 10**99, "3"])
        '(64, a huge number, str)'
    """
    shown = [
        (str(v) if abs(v) < 2**64 else "a huge number") if type(v) is int else type(v).__name__
        for v in values[:6]
    ]
    return f"({', '.join(shown)}{', ...' if len(values) > 6 else ''})"


def one_line(value: object) -> str:
    """What a file or an error says, fit for a message: on one line, not too long.

    Example:
        >>> one_line("a\\nb")
        'a b'
    """
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: _MOST_SHOWN + 1])
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + " ..."


# ------------------------------------------------------------------ what a pickle may call


def _ordered_dict(items: Any = ()) -> Any:
    """Python 2 gives the items here, as pairs."""
    if type(items) not in (list, tuple):
        raise InputError(f"damaged: a mapping is made of {type(items).__name__}; expected a list")
    made: collections.OrderedDict[Any, Any] = collections.OrderedDict()
    for item in items:
        if type(item) not in (list, tuple) or len(item) != 2:
            raise InputError("damaged: a mapping is made of what are no pairs")
        made[mapping_key(item[0])] = item[1]
    return made


def _counter(counts: Any = None) -> Any:
    """What a schedule of milestones holds: the mapping itself, not a copy of it."""
    return {} if counts is None else counts


def _size(extents: Any = ()) -> Any:
    return whole_numbers(extents, "torch.Size is made of numbers")


def _device(kind: Any, index: Any = None) -> None:
    """Where tensors were, which says nothing here."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if type(storage) is not Storage:
        raise InputError(f"damaged: a tensor in {type(storage).__name__}; expected a storage")
    (offset,) = whole_numbers((offset,), "a tensor's offset is")
    shape = whole_numbers(shape, "a tensor's shape is")
    return Tensor(storage, offset, shape, whole_numbers(strides, "a tensor's strides are"))


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Tensor:
    if metadata:  # a sign or a conjugation that is still to be done
        raise InputError("a tensor has metadata; expected one whose values are stored as they are")
    return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor:
    if type(data) is not Tensor:
        raise InputError(f"damaged: a parameter of {type(data).__name__}; expected a tensor")
    return data


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
