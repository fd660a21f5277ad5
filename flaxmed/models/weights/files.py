"""A file of weights, whichever library wrote it: its bytes tell the format, not its name."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from flaxmed.models.naming import drop_reason
from flaxmed.models.weights.opening import opened
from flaxmed.models.weights.safetensors_files import read_safetensors
from flaxmed.models.weights.torch_files import ZIP, is_legacy, read_torch
from flaxmed.models.weights.torch_objects import one_line
from flaxmed.types import InputError

WANTED = "weights: a file of torch.save, a safetensors file, or Keras's HDF5"
HDF5 = b"\x89HDF\r\n\x1a\n"
_START = 512  # bytes that tell formats apart; a tar archive says what it is at 257
_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The tensors of a file of weights.

    Attributes:
        path: The file.
        format: Which library's: ``torch``, ``safetensors`` or ``keras``.
        tensors: Arrays of any shape by the names that the file gives them; all numbers finite, but
            of tensors that no network takes (``naming.DROPPED``).
        metadata: Texts by name: those of safetensors; of Keras's file the network's ``variant``.

    Example:
        >>> WeightFile(Path("a.pth"), "torch", {"x": np.zeros(3)}, {}).tensors["x"].shape
        (3,)
    """

    path: Path
    format: Literal["torch", "safetensors", "keras"]
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def read_weights(path: str | os.PathLike[str]) -> WeightFile:
    """The tensors of a file, whose format its first bytes tell.

    Args:
        path: A file that ``torch.save`` wrote, a safetensors file, or an HDF5 file of Keras.

    Raises:
        InputError: No such file, another format (the line says what it seems to be), a damaged
            one, or tensors with values that are not finite.

    Example:
        >>> import tempfile
        >>> from flaxmed.models.weights.safetensors_files import write_safetensors
        >>> path = Path(tempfile.mkdtemp()) / "weights.bin"
        >>> write_safetensors(path, {"fc.bias": np.zeros(3)})
        >>> file = read_weights(path)
        >>> file.format, list(file.tensors)
        ('safetensors', ['fc.bias'])
    """
    path = Path(path)
    with opened(path, WANTED) as opened_file:
        try:
            start = opened_file.read(_START)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    tensors, metadata = _READERS[(format := _format(path, start))](path)
    file = WeightFile(path, format, tensors, metadata)
    _check_finite(file)
    return file


def _format(path: Path, start: bytes) -> Literal["torch", "safetensors", "keras"]:
    seems = _zip_seems(path) if start.startswith(ZIP) else _seems(start)
    if is_legacy(start) or (start.startswith(ZIP) and not seems):
        return "torch"
    if start.startswith(HDF5):
        return "keras"
    if _is_safetensors(start):
        return "safetensors"
    raise InputError(f"{path}: {seems}; expected {WANTED}")


def _read_keras(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from flaxmed.models.weights.keras_files import read_keras_with_variant

    tensors, variant = read_keras_with_variant(path)
    return tensors, {"variant": variant}


_READERS: dict[str, Callable[[Path], tuple[dict[str, np.ndarray], dict[str, str]]]] = {
    "torch": lambda path: (read_torch(path), {}),
    "safetensors": read_safetensors,
    "keras": _read_keras,
}


def _is_safetensors(start: bytes) -> bool:
    """The length of a header in eight bytes, which are no text, and then its first brace."""
    return start[8:9] == b"{" and any(byte < 9 or byte >= 128 for byte in start[:8])


def _zip_seems(path: Path) -> str:
    """What a zip archive is that is not torch's; nothing if it may be."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError):
        return ""  # a truncated one: the reader says what is wrong
    if any(name.endswith("data.pkl") for name in names):
        return ""
    if "model.weights.h5" in names:
        return (
            "a Keras archive of a whole model; save its weights: "
            "keras.saving.load_model(FILE).save_weights('OUT.weights.h5')"
        )
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz archive of arrays"
    return "a zip archive that torch did not write"


_LFS = "a git-lfs pointer, not the file it stands for: fetch that with git lfs pull"
_PAGE = "a web page, as a download that failed leaves it"
_BEGINNINGS: dict[bytes, str] = {
    b"version https://git-lfs": _LFS,
    b"\x93NUMPY": "a .npy file of one array",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x80": "a Python pickle that torch.save did not write, which is never unpickled",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"PK\x05\x06": "an empty zip archive",
}


def _seems(start: bytes) -> str:
    """What a file is that no reader takes, by its first bytes."""
    if not start:
        return "an empty file"
    for beginning, seems in _BEGINNINGS.items():
        if start.startswith(beginning):
            return seems
    if start[257:262] == b"ustar":
        return "a tar archive (torch before 0.1.10 wrote such ones; load and save it with a later)"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return _PAGE
    if all(byte in b"\t\n\r" or byte >= 32 for byte in start) and _is_utf8(start):
        return f"a text file, which begins {one_line(start[:40].decode('utf-8', 'replace'))!r}"
    return f"not a known format, it begins with the bytes {start[:8].hex(' ')}"


def _is_utf8(start: bytes) -> bool:
    try:
        start[:-3].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(start) - 6
    return True


def _check_finite(file: WeightFile) -> None:
    # of what is left out anyway, torchxrayvision's operating points are NaN for untrained outputs
    used = {name: array for name, array in file.tensors.items() if drop_reason(name) is None}
    bad = [name for name, array in used.items() if not _is_finite(array)]
    if bad:
        more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        listed = ", ".join(one_line(name) for name in bad[:_MOST_NAMED])
        raise InputError(f"{file.path}: values that are not finite in {listed}{more}")


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind in "iub":
        return True
    return bool(np.isfinite(array).all())
