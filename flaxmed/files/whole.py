"""Files that are whole or not there, and the folders for them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from flaxmed.types import InputError, RunError


def cache_dir() -> Path:
    """Where downloads and memory maps go when no other folder is named: ``~/.cache/flaxmed``."""
    return Path.home() / ".cache" / "flaxmed"


def is_writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def make_dir(folder: Path) -> Path:
    """Create ``folder`` and its parents.

    Raises:
        InputError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot create this folder: {error.strerror}") from None
    return folder


@contextmanager
def made_dir(folder: Path) -> Iterator[Path]:
    """:func:`make_dir`; what it created is gone again when the block fails and left it empty.

    Raises:
        InputError: it cannot be created.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield make_dir(folder)
    except BaseException:
        for path in created:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def written_whole(target: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes ``target`` when the block succeeds and vanishes when it does not.

    The temporary name is unique, so that several processes may write the same target at once.

    Raises:
        InputError: the folder is not writable.
        RunError: the disk is full.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        opened = open(temporary, "xb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{target.parent}: cannot write here: {error.strerror}") from None
    try:
        with opened as file:
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise RunError(f"{target}: could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
