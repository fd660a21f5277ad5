"""The seal of a finished checkpoint: the size and SHA-256 of each of its files, written last.

orbax notices a missing file, but restores flipped bits in silence. What has no seal was never
finished; what does not match its seal is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

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
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    temporary = folder / f".{NAME}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint in ``folder``, in one line that names the file; or None."""
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{folder}: was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / NAME}: cannot be read"
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
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
