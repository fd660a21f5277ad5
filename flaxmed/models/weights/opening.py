"""Opening a file of weights, or saying in one line why that cannot be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flaxmed.types import InputError


@contextmanager
def opened(path: Path, wanted: str) -> Iterator[IO[bytes]]:
    """The file, open for reading.

    Args:
        path: Of the file.
        wanted: What was expected there, for the line that says it is not.

    Raises:
        InputError: No such file, a folder, not readable.

    Example:
        >>> with opened(Path("no/such.pth"), "a file of weights"):
        ...     pass
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such.pth: no such file; expected a file of weights
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: a folder; expected {wanted}")
        if not path.exists():
            raise InputError(f"{path}: no such file; expected {wanted}")
        if not path.is_file():
            raise InputError(f"{path}: not a file; expected {wanted}")
        file = path.open("rb")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected {wanted}") from None
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{path}: no such file ({error}); expected {wanted}") from None
    with file:
        yield file
