"""Downloads: over https, to a temporary name, checked against a published digest, then renamed."""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flaxmed.files.whole import made_dir, written_whole
from flaxmed.types import InputError

_CHUNK = 2**18
_TIMEOUT = 30.0  # seconds without a byte


def download(
    url: str,
    target: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    hint: str = "",
    progress: bool = True,
) -> None:
    """Fetch ``url`` to ``target``, whole and verified by its digest or not at all.

    Several processes may fetch the same target at once: each writes to a name of its own, and the
    last to finish replaces the file by an identical one.

    Args:
        url: an https address, or http on this machine's loopback.
        target: the file to make; its folder is created.
        md5: the published digest, hexadecimal; or ``sha256``, one of both.
        sha256: likewise, or its first digits, as torch's file names have them.
        hint: what to do instead, said when the download fails.
        progress: whether to show a progress bar on stderr.

    Raises:
        InputError: an address that is not https, no connection, an interrupted or wrong download,
            or an unwritable folder. Nothing is left behind.
        RunError: the disk is full.
    """
    check_url(url)
    hint = f"; {hint}" if hint else ""
    name, expected = ("MD5", md5) if md5 else ("SHA-256", sha256)
    if not expected:
        raise ValueError(f"{url}: a published digest is needed")
    digest = hashlib.new(name.replace("-", ""), usedforsecurity=False)
    with made_dir(target.parent), written_whole(target) as file:
        try:
            for chunk in _chunks(url, target.name, progress):
                digest.update(chunk)
                file.write(chunk)
        except _NetworkError as error:
            raise InputError(
                f"{target.name}: could not be downloaded from {url} ({error}){hint}"
            ) from None
        if not digest.hexdigest().startswith(expected):
            raise InputError(
                f"{target.name}: the file at {url} has {name} {digest.hexdigest()}; "
                f"expected {expected}{hint}"
            )


def check_url(url: str) -> None:
    """Refuse addresses other than https, or http on the loopback.

    Raises:
        InputError: another scheme or host.

    Example:
        >>> check_url("http://127.0.0.1:8000/a.npz")
        >>> check_url("ftp://example.org/a.npz")
        Traceback (most recent call last):
        flaxmed.types.InputError: ftp://example.org/a.npz: refused; expected an https address
    """
    parts = urllib.parse.urlsplit(url)
    if not ((parts.scheme == "https" and parts.hostname) or _on_loopback(url)):
        raise InputError(f"{url}: refused; expected an https address")


def _on_loopback(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http":
        return False
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


class _NetworkError(Exception):
    """The other side, or the way there, failed; not the disk on this side."""


def _chunks(url: str, name: str, progress: bool) -> Iterator[bytes]:
    """The bytes at an address, as they come.

    Raises:
        _NetworkError: no connection, or one that broke off.
    """
    received, expected = 0, None
    try:
        with _opener(url).open(url, timeout=_TIMEOUT) as response:
            length = response.headers.get("Content-Length") or ""
            expected = int(length) if length.isdigit() else None
            with _bar(name, expected, progress) as bar:
                while True:
                    chunk = response.read(_CHUNK)
                    if not chunk:
                        break
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise _NetworkError(_reason(error)) from None
    if expected is not None and received != expected:
        raise _NetworkError(f"it broke off after {received} of {expected} bytes")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only, and on the loopback from the loopback only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        https = urllib.parse.urlsplit(newurl).scheme == "https"
        if not (https or (_on_loopback(req.full_url) and _on_loopback(newurl))):
            fp.close()
            raise urllib.error.URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """https and loopback http, through the user's proxy; no ftp, no file."""
    opener = urllib.request.OpenerDirector()
    proxies: dict[str, str] | None = {} if _on_loopback(url) else None
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "flaxmed")]
    return opener


def _bar(name: str, total: int | None, progress: bool) -> tqdm[Any]:
    # where stderr is a file, a line every ten seconds is enough
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc=f"downloading {name}",
        disable=not progress,
        mininterval=interval,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
