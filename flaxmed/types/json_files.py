"""Reading JSON that may be anything: one object, or one to a line; bounded, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxmed.types.errors import InputError

MOST_BYTES = 64 * 2**20


def read_json(path: Path, *, wanted: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        wanted: what was expected there, for the line that says it is not.

    Raises:
        InputError: no such file, too large a one, not JSON, or no object.

    Example:
        >>> read_json(Path("no/such.json"), wanted="a run of flaxmed")
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such.json: no such file; expected a run of flaxmed
    """
    return _object(_text(path, wanted), str(path))


def read_json_lines(path: Path, *, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that holds one to a line, each with the place to name it by.

    A last line that does not end was cut off while it was written, and does not count.

    Raises:
        InputError: as ``read_json``; the line is named.
    """
    for number, line in enumerate(_text(path, wanted).split("\n")[:-1], 1):
        place = f"{path}, line {number}"
        yield place, _object(line, place)


def _text(path: Path, wanted: str) -> str:
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file; expected {wanted}")
        if not path.is_file():
            raise InputError(f"{path}: not a file; expected {wanted}")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(f"{path}: {size} bytes; expected {wanted}, {MOST_BYTES} at most")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected {wanted}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError:
        raise InputError(f"{place}: not readable as JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{place}: not readable as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{place}: expected a JSON object, got {type(found).__name__}")
    return found
