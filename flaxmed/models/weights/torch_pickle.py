"""Torch's pickles, read without an unpickler: nothing that a file names is imported or called.

A pickle is a program for a stack machine. Here the few instructions that state dicts consist of
are carried out, on tuples, lists, mappings, text and numbers; what they may call is a table. Every
instruction takes time and memory in proportion to its own bytes: a small file is a small job.
"""

from __future__ import annotations

import collections
import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from flaxmed.models.weights.torch_objects import (
    FUNCTIONS,
    STORAGES,
    Global,
    Storage,
    known_global,
    mapping_key,
    one_line,
    whole_numbers,
)
from flaxmed.types import InputError

MOST_INSTRUCTIONS = 2_000_000  # DenseNet-121 takes 24 thousand
MOST_DEPTH = 100  # of objects that are begun and not finished
_MOST_ARGUMENTS = 8

_PUSHED = {  # the argument is the object
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
}
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_CODES: dict[str, Any] = vars(pickletools)["code2op"]


@runtime_checkable
class Stream(Protocol):
    """What a pickle is read from."""

    def read(self, count: int, /) -> bytes:
        """Up to ``count`` bytes."""

    def readline(self) -> bytes:
        """The bytes up to the end of a line."""


def read_pickle(stream: Stream, storages: dict[str, Storage] | None = None) -> Any:
    """The object of a pickle: containers, text, numbers, and where the values of tensors lie.

    Args:
        stream: At the pickle's first byte; afterwards behind its last one.
        storages: Takes all storages that the pickle refers to, by key.

    Raises:
        InputError: Something else is in it, or it is no pickle. The line does not name the file.

    Example:
        >>> import io
        >>> read_pickle(io.BytesIO(b"\\x80\\x02}X\\x05\\x00\\x00\\x00epochK\\x03s."))
        {'epoch': 3}
        >>> read_pickle(io.BytesIO(b"cposix\\nsystem\\n."))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        flaxmed.types.InputError: refers to posix.system, which is neither a tensor nor ...
    """
    machine = _Machine({} if storages is None else storages)
    try:
        while machine.step(stream):
            pass
    except InputError:
        raise
    except IndexError:
        raise InputError("damaged: its pickle takes from an empty stack") from None
    except (ValueError, OverflowError, MemoryError) as error:
        reason = one_line(error)
        raise InputError(f"damaged or truncated: its pickle cannot be read ({reason})") from None
    return machine.result()


def _argument(opcode: Any, stream: Stream) -> Any:
    if opcode.name == "GLOBAL":  # pickletools would read escapes in it
        lines = stream.readline(), stream.readline()
        if not lines[1].endswith(b"\n"):
            raise InputError("truncated: its pickle ends too early")
        return ".".join(line.decode().removesuffix("\n") for line in lines)
    return opcode.arg.reader(stream) if opcode.arg else None


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below the open marks
        self._memo: dict[int, Any] = {}
        self._storages = storages
        self._spent = 0
        self._steps: dict[str, Callable[[Any], None]] = {
            "PROTO": self._protocol,
            "FRAME": lambda _: None,
            "STOP": lambda _: None,
            "MARK": self._mark,
            "BINSTRING": self._old_text,
            "SHORT_BINSTRING": self._old_text,
            "TUPLE": self._long_tuple,
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self._stack.pop()]),
            "APPENDS": lambda _: self._extend(self._pop_mark()),
            "SETITEM": lambda _: self._set([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._set(self._pop_mark()),
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": self._get,
            "LONG_BINGET": self._get,
            "GLOBAL": lambda name: self._stack.append(known_global(name)),
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "BINPERSID": self._persistent,
        }

    def step(self, stream: Stream) -> bool:
        """Carry out the next instruction; False after the last one."""
        code = stream.read(1)
        if not code:
            raise InputError("truncated: its pickle ends too early")
        opcode = _CODES.get(code.decode("latin-1"))
        name = opcode.name if opcode else f"{code[0]:#04x}"
        self._spend(1)
        if name in _PUSHED:
            self._stack.append(_argument(opcode, stream))
        elif name in _MADE:
            self._stack.append(_MADE[name]())
        elif name in self._steps:
            self._steps[name](_argument(opcode, stream))
        else:
            raise InputError(f"its pickle has the instruction {name}, which state dicts have not")
        return name != "STOP"

    def result(self) -> Any:
        """The one object that is left."""
        if len(self._stack) != 1 or self._marked:
            raise InputError("damaged: its pickle ends with objects that are not finished")
        return self._stack[0]

    def _spend(self, count: int) -> None:
        self._spent += count
        if self._spent > MOST_INSTRUCTIONS:
            raise InputError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")

    def _protocol(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise InputError(f"pickle protocol {version}; expected 2 to 5")

    def _mark(self, _: None) -> None:
        if len(self._marked) == MOST_DEPTH:
            raise InputError(f"its pickle is nested more than {MOST_DEPTH} deep")
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _old_text(self, latin: str) -> None:
        """Text of Python 2, of whose bytes pickletools makes characters."""
        self._stack.append(latin.encode("latin-1").decode("utf-8"))

    def _long_tuple(self, _: None) -> None:
        items = tuple(self._pop_mark())
        self._stack.append(items)

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise InputError("damaged: its pickle appends to what is no list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise InputError("damaged: its pickle sets items of what is no mapping")
        for i in range(0, len(items), 2):
            target[mapping_key(items[i])] = items[i + 1]

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise InputError(f"damaged: its pickle refers to object {index}, which is not there")
        self._stack.append(self._memo[index])

    def _stack_global(self, _: None) -> None:
        module, name = self._stack.pop(-2), self._stack.pop()
        if type(module) is not str or type(name) is not str:
            raise InputError("damaged: its pickle names something by what is no text")
        self._stack.append(known_global(f"{module}.{name}"))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Global or function.name not in FUNCTIONS:
            raise InputError("its pickle calls something that state dicts do not call")
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise InputError(f"damaged: {function.name} is called in a way that torch does not")
        # a long list can stand in the memo, and be given many times
        self._spend(sum(len(given) for given in arguments if type(given) in (list, tuple)))
        try:
            self._stack.append(FUNCTIONS[function.name](*arguments))
        except TypeError:
            raise InputError(f"damaged: {function.name} with {len(arguments)} arguments") from None

    def _build(self, _: None) -> None:
        """Attributes of an OrderedDict, as ``_metadata`` of a state dict is: not needed."""
        state = self._stack.pop()
        if type(self._stack[-1]) is not collections.OrderedDict or not isinstance(state, dict):
            raise InputError("its pickle gives attributes to something else than a state dict")

    def _persistent(self, _: None) -> None:
        """``("storage", type, key, place, length)``, in old files with ``(key, start, size)``."""
        reference = self._stack.pop()
        if type(reference) is not tuple or len(reference) not in (5, 6):
            raise InputError("damaged: a reference to values has not the form of torch's")
        whole = _whole(*reference[:5])
        if self._storages.setdefault(whole.key, whole) != whole:
            raise InputError(f"storage {one_line(whole.key)} is declared in two ways")
        self._stack.append(_part(whole, reference[5] if len(reference) == 6 else None))


def _whole(tag: Any, kind: Any, key: Any, place: Any, length: Any) -> Storage:
    if tag != "storage" or type(kind) is not Global or type(key) is not str:
        raise InputError("damaged: a reference to values has not the form of torch's")
    if kind.name not in STORAGES:
        raise InputError(f"damaged: {kind.name} for the type of a storage")
    (length,) = whole_numbers((length,), f"storage {one_line(key)} has the length")
    return Storage(key, STORAGES[kind.name], length, 0, length)


def _part(whole: Storage, view: Any) -> Storage:
    if view is None:
        return whole
    if type(view) is not tuple or len(view) != 3:
        raise InputError("damaged: a part of a storage has not the form of torch's")
    start, size = whole_numbers(view[1:], "a part of a storage is")
    if start + size > whole.length:
        raise InputError(f"a part of storage {one_line(whole.key)} reaches beyond its end")
    return dataclasses.replace(whole, start=start, size=size)
