"""Getting published weights: from the Hugging Face hub, from an address, or from a file."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from flaxmed.files import cache_dir, download
from flaxmed.models.weights.known import (
    KNOWN,
    HubFile,
    Known,
    WebFile,
    did_you_mean,
    refuse_others,
    suggestion,
)
from flaxmed.types import InputError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def find(source: str) -> tuple[Path, Known | None]:
    """The file that ``source`` names, fetched if need be, and what is known of it.

    Args:
        source: a file, or a folder with a ``model.safetensors``; a name of ``list_weights()``; or
            a repository ``OWNER/NAME`` of the Hugging Face hub that holds a ``model.safetensors``.

    Returns:
        The file, and its entry in the table, or None for what is not in it. A file that bears a
        published name and has the published digest is known too.

    Raises:
        InputError: none of these; or it could not be fetched whole, as its digest says.

    Example:
        >>> find("no/such/file.pth")
        Traceback (most recent call last):
        flaxmed.types.InputError: no/such/file.pth: no such weights; expected a file, a repos...
    """
    path = Path(os.path.expanduser(source))  # which leaves ~nobody as it is
    if path.is_dir():
        if (inside := path / HubFile("").name).is_file():
            return inside, None
        raise InputError(f"{path}: a folder without {inside.name}")
    if path.exists():
        return path, _known_copy(path)
    refuse_others(source)
    known = KNOWN.get(source)
    if known is not None:
        return fetch(known.file), known
    if not _REPOSITORY.fullmatch(source) or path.suffix in (".pth", ".pt", ".h5", ".safetensors"):
        raise InputError(f"{source}: no such weights; {suggestion(source)}")
    try:
        return fetch(HubFile(source)), None
    except InputError as error:
        if hint := did_you_mean(source):
            raise InputError(f"{error}; {hint}") from None
        raise


def _known_copy(path: Path) -> Known | None:
    """The entry of a file that somebody fetched from its address."""
    for known in KNOWN.values():
        if isinstance(known.file, WebFile) and known.file.url.rpartition("/")[2] == path.name:
            try:
                return known if path.is_file() and _is_published(path, known.file) else None
            except OSError:
                return None  # whoever reads it says why that cannot be done
    return None


def fetch(file: HubFile | WebFile) -> Path:
    """The file on this machine; downloaded once, and verified.

    Raises:
        InputError: it cannot be had, or its bytes are not those that were published.
    """
    if isinstance(file, HubFile):
        return _from_hub(file)
    target = cache_dir() / "weights" / file.url.rpartition("/")[2]
    if not (target.exists() and _is_published(target, file)):  # a damaged copy is fetched again
        hint = f"or fetch it elsewhere and pass the file, or put it at {target}"
        download(file.url, target, md5=file.md5, sha256=file.sha256, hint=hint)
    return target


def _is_published(path: Path, file: WebFile) -> bool:
    found = _digest(path, "md5" if file.md5 else "sha256")
    return found.startswith(file.md5 or file.sha256 or found)


def _from_hub(file: HubFile) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(
            f"{file.repo}: the Hugging Face hub needs a package: pip install 'flaxmed[weights]'"
        ) from None
    for _ in range(2):  # a damaged copy in the cache is fetched again, once
        try:
            path = Path(hf_hub_download(file.repo, file.name))
        except Exception as error:
            raise InputError(f"{file.repo}: {_reason(error, file)}") from None
        if (expected := _expected_sha256(path)) in (None, found := _digest(path, "sha256")):
            return path
        path.resolve().unlink()
    raise InputError(
        f"{file.repo}: {file.name} has SHA-256 {found}; the hub says {expected}; it was removed"
    )


def _expected_sha256(path: Path) -> str | None:
    """The hub's cache keeps large files under the SHA-256 that the hub gave for them."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _reason(error: Exception, file: HubFile) -> str:
    """One line for what huggingface_hub raises, of many types, over many lines."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "LocalEntryNotFoundError" in kinds:
        return "the Hugging Face hub cannot be reached, and no copy is in its cache"
    if "GatedRepoError" in kinds:
        return "access must be asked for at huggingface.co; then log in with hf auth login"
    if "EntryNotFoundError" in kinds:
        return f"the repository has no {file.name}"
    if "RepositoryNotFoundError" in kinds:
        return "no such repository on the Hugging Face hub, or it is private: hf auth login"
    first: Any = str(error).strip().splitlines() or [type(error).__name__]
    return f"{file.name} could not be downloaded: {first[0]}"
