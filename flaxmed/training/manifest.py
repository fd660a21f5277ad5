"""The seal of a finished checkpoint: the size and SHA-256 of each of its files, written last.

orbax notices a missing file, but restores flipped bits in silence. What has no seal was never
finished; what does not match its seal is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from flaxmed.types import InputError, read_json

NAME = "manifest.json"
_CHUNK = 2**20


def seal(folder: Path) -> None:
    """Write ``manifest.json`` for all files in ``folder``, whole and on disk when this returns.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = (Path(name) / "values").write_bytes(b"1234")
        ...     seal(Path(name))
        ...     before = damage(Path(name))
        ...     _ = (Path(name) / "values").write_bytes(b"1235")
        ...     after = damage(Path(name))
        >>> before, after.endswith("values: its SHA-256 is not that of manifest.json")
        (None, True)
    """
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in _files(folder)
    }
    temporary = folder / f".{NAME}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in ``folder``, in one line that names the file; or None."""
    if not (folder / NAME).exists():
        return f"{folder}: was not finished"
    try:
        files = read_json(folder / NAME, wanted="the seal of a checkpoint")["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (InputError, KeyError, TypeError, AttributeError):
        return f"{folder / NAME}: cannot be read"
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in expected):
        return f"{folder / NAME}: cannot be read"
    if unsealed := [name for name in _files(folder) if name not in expected]:
        return f"{folder / unsealed[0]}: is not in {NAME}"
    for name, (size, digest) in expected.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{path}: has {path.stat().st_size} bytes, {size} by {NAME}"
            if _sha256(path) != digest:
                return f"{path}: its SHA-256 is not that of {NAME}"
        except FileNotFoundError:
            return f"{path}: is missing"
        except OSError as error:
            return f"{path}: cannot be read: {error.strerror}"
        except ValueError:  # no name of a file
            return f"{folder / NAME}: cannot be read"
    return None


def _files(folder: Path) -> list[str]:
    """All files of a checkpoint but its seal, by their path in it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [str(path.relative_to(folder)) for path in paths]
    return [name for name in names if name not in (NAME, f".{NAME}.tmp")]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
