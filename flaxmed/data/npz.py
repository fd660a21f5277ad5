"""What .npz archives hold, large arrays as memory maps.

The members of a compressed .npz are deflated and cannot be mapped where they lie. An archive whose
arrays together exceed a threshold is therefore turned once, chunk by chunk, into .npy files.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from flaxmed.files import cache_dir, is_writable, make_dir, written_whole
from flaxmed.types import Archive, InputError, Member, RunError

MAP_ABOVE = 256 * 2**20  # bytes of all arrays together, above which images are memory-mapped
_ALWAYS_HASH = 64 * 2**20  # files up to this size are hashed at every load: a fraction of a second
_CHUNK = 2**20


def file_md5(path: Path, *, name: str | None = None) -> str:
    """MD5 of a file, in hexadecimal digits.

    Large files are hashed once: size, modification time and digest are remembered beside the file,
    or in the cache where its folder is read-only. ``name`` shows a progress bar of that name.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        stat = path.stat()
        if stat.st_size <= _ALWAYS_HASH:
            return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        path.open("rb").close()  # a large one, too, is refused here
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; expected a file that you may read"
        ) from None
    seen: dict[str, Any] = {
        "file": str(path.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }
    key = hashlib.sha256(seen["file"].encode()).hexdigest()[:16]
    note = _side_folder(path) / f"{path.name}.{key}.json"
    try:
        known = json.loads(note.read_text())
        if {k: known.get(k) for k in seen} == seen:
            return str(known["md5"])
    except (OSError, ValueError, AttributeError, KeyError):
        pass  # no note, or a damaged one: hash again
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        tqdm(
            total=stat.st_size, unit="B", unit_scale=True, desc=f"verifying {name or path.name}"
        ) as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    try:
        make_dir(note.parent)
        with written_whole(note) as file:
            file.write(json.dumps({**seen, "md5": digest.hexdigest()}).encode())
    except (InputError, RunError):
        pass  # nowhere to remember it: the file is hashed again next time
    return digest.hexdigest()


def _side_folder(path: Path) -> Path:
    """Where derived files of ``path`` belong: beside it, or in the cache if that is read-only."""
    parent = path.resolve().parent
    return (parent if is_writable(parent) else cache_dir()) / ".flaxmed"


def mapped(archive: Archive, name: str, folder: Path) -> np.ndarray:
    """An array as a read-only memory map of ``folder/name.npy``, which is made if absent.

    Raises:
        InputError: it cannot be read, or not image by image.
        RunError: the disk is full.
    """
    member = archive.header(name)
    if member.fortran:
        raise InputError(
            f"{archive.path}: {name}: stored in Fortran order, so that images cannot be read one "
            "by one; save it with numpy.ascontiguousarray"
        )
    target = folder / f"{name}.npy"
    if not target.is_file() or target.stat().st_size != member.info.file_size:
        make_dir(folder)
        with archive.opened(name) as file, written_whole(target) as out:
            _copy(file, out, member.info.file_size, f"unpacking {name}")
    return np.load(target, mmap_mode="r", allow_pickle=False)


def _copy(source: io.BufferedIOBase, target: IO[bytes], size: int, name: str) -> None:
    with tqdm(total=size, unit="B", unit_scale=True, desc=name) as bar:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            bar.update(len(chunk))


def read_arrays(
    path: Path, names: Iterable[str], *, map_above: int = MAP_ABOVE, digest: str | None = None
) -> Mapping[str, np.ndarray]:
    """The named arrays of an archive, large ones memory-mapped.

    Args:
        path: the .npz file.
        names: the arrays wanted; names that the file lacks are left out of the answer.
        map_above: when the wanted arrays together exceed this many bytes, those of three or more
            dimensions become memory maps.
        digest: the file's MD5, if known already.

    Raises:
        InputError: see :class:`Archive`; or no folder in which to put the memory maps.
    """
    with Archive(path) as archive:
        wanted = [name for name in names if name in archive.names]
        headers = {name: archive.header(name) for name in wanted}
        if sum(member.info.file_size for member in headers.values()) <= map_above:
            return {name: archive.read(name) for name in wanted}
        folder = _side_folder(path) / f"{path.stem}-{(digest or file_md5(path))[:12]}"
        _check_room(folder, [m for n, m in headers.items() if not (folder / f"{n}.npy").is_file()])
        return {
            name: mapped(archive, name, folder) if len(member.shape) > 2 else archive.read(name)
            for name, member in headers.items()
        }


def _check_room(folder: Path, members: list[Member]) -> None:
    """Refuse at once what would fail after minutes of unpacking."""
    needed = sum(member.info.file_size for member in members if len(member.shape) > 2)
    free = shutil.disk_usage(make_dir(folder)).free
    if needed > free:
        raise RunError(
            f"{folder}: unpacking needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB"
        )
