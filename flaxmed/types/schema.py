"""Whether what came from JSON has the shape that was expected; what has not is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flaxmed.types.errors import InputError


def check_shape(value: Any, shape: Any, place: str) -> None:
    """Raises InputError unless ``value`` has the shape; keys that are not in it are left alone.

    Args:
        value: from JSON.
        shape: a type, None or ``object`` (anything); ``[shape]`` for a list of these; a dictionary
            of the shapes of some keys, or ``{...: shape}`` for that of all; a tuple of shapes, of
            which one must fit.
        place: the file, and in it the key; what the message begins with.

    Example:
        >>> check_shape({"epochs": 3, "more": []}, {"epochs": int}, "run.json")
        >>> check_shape({"epochs": "3"}, {"epochs": int}, "run.json")
        Traceback (most recent call last):
        flaxmed.types.InputError: run.json: epochs: expected a whole number, got '3'
    """
    if isinstance(shape, tuple):
        if not any(_fits(value, one) for one in shape):
            check_shape(value, next(one for one in shape if one is not None), place)
    elif isinstance(shape, list) and isinstance(value, list):
        for i, item in enumerate(value):
            check_shape(item, shape[0], f"{place}[{i}]")
    elif isinstance(shape, dict) and isinstance(value, Mapping):
        for key, inner in value.items():
            if key in shape or ... in shape:
                between = "." if ": " in place else ": " if place else ""
                shown = key if str(key).isprintable() else repr(key)
                check_shape(inner, shape.get(key, shape.get(...)), f"{place}{between}{shown}")
    elif not _is_a(value, shape):
        raise InputError(f"{place}: expected {_name(shape)}, got {value!r:.60}")


def _fits(value: Any, shape: Any) -> bool:
    try:
        check_shape(value, shape, "")
    except InputError:
        return False
    return True


def _is_a(value: Any, shape: Any) -> bool:
    if shape is object or shape is None:
        return shape is object or value is None
    if not isinstance(shape, type) or (isinstance(value, bool) and shape is not bool):
        return False
    return isinstance(value, shape) and is_number(value, orelse=True)


def is_number(value: Any, *, orelse: bool = False) -> bool:
    """Whether a value from JSON is a number that arithmetic can take; ``orelse`` of other types.

    Example:
        >>> is_number(2.5), is_number(10**400), is_number(float("nan")), is_number(True)
        (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return orelse
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _name(shape: Any) -> str:
    if isinstance(shape, list):
        return "a list"
    if isinstance(shape, dict):
        return "an object"
    return {
        None: "null",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
    }[shape]
