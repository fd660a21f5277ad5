"""Downloads, from a server on the loopback that behaves well and badly."""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flaxmed.data import load_dataset, medmnist
from flaxmed.files import check_url, download, web, written_whole
from flaxmed.types import InputError, RunError

BODY = np.random.default_rng(0).bytes(700_000)
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/good, /slow, /short (breaks off), /wrong (other bytes), /to?ADDRESS (redirect), else 404."""

    def do_GET(self) -> None:
        route, _, query = self.path.partition("?")
        if route == "/to":
            self.send_response(302)
            self.send_header("Location", query)
            self.end_headers()
        elif route in ("/good", "/slow", "/short", "/wrong", "/unsized"):
            self.send_response(200)
            if route != "/unsized":
                self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.send_body(route)
        else:
            self.send_error(404)

    def send_body(self, route: str) -> None:
        body = BODY[::-1] if route == "/wrong" else BODY
        for start in range(0, len(body) // 2 if route == "/short" else len(body), 100_000):
            self.wfile.write(body[start : min(start + 100_000, len(body))])
            if route == "/slow":
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{instance.server_address[1]}"
        instance.shutdown()


@pytest.mark.parametrize("route", ["/good", "/unsized", "/to?/good"])
def test_whole_file_arrives(route, server, tmp_path, capsys):
    target = tmp_path / "new" / "folder" / "a.npz"
    download(server + route, target, md5=MD5)
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["a.npz"]
    assert "downloading a.npz" in capsys.readouterr().err


def test_a_digest_may_be_the_first_digits_of_a_sha256(server, tmp_path):
    """As in torch's names: resnet18-f37072fd.pth."""
    sha256 = hashlib.sha256(BODY).hexdigest()
    download(server + "/good", tmp_path / "a.pth", sha256=sha256[:8], progress=False)
    with pytest.raises(InputError, match=f"has SHA-256 {sha256}; expected 00000000"):
        download(server + "/good", tmp_path / "b.pth", sha256="0" * 8, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    with pytest.raises(ValueError, match="a published digest is needed"):
        download(server + "/good", tmp_path / "c.pth")


def test_progress_can_be_silent(server, tmp_path, capsys):
    download(server + "/good", tmp_path / "a.npz", md5=MD5, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (
            "/wrong",
            rf"a\.npz: the file at .*/wrong has MD5 [0-9a-f]{{32}}; expected {MD5}; do this",
        ),
        ("/short", r"a\.npz: could not be downloaded from .* \(it broke off after \d+ of 700000"),
        ("/missing", r"a\.npz: could not be downloaded from .* \(HTTP 404 Not Found\); do this"),
        ("/to?http://example.org/a", r"redirected to http://example\.org/a, which is not https"),
        ("/to?ftp://example.org/a", r"redirected to ftp://example\.org/a, which is not https"),
        ("/to?file:///etc/hostname", r"HTTP 302 .*not allowed"),
        ("/to?/to?/to?/to?/missing", r"HTTP 404"),
    ],
)
def test_failures_leave_nothing_behind(route, message, server, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        download(server + route, tmp_path / "new" / "cache" / "a.npz", md5=MD5, hint="do this")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a", "ftp://127.0.0.1/a", "file:///etc/hostname", "a.npz", "https:///a"],
)
def test_only_https_or_loopback(url, tmp_path):
    with pytest.raises(InputError, match="refused; expected an https address"):
        download(url, tmp_path / "a.npz", md5=MD5)
    assert list(tmp_path.iterdir()) == []


def test_https_may_not_fall_to_loopback_http():
    handler = web._Redirects()
    request = web.urllib.request.Request("https://example.org/a")
    with pytest.raises(web.urllib.error.URLError, match="not https"):
        handler.redirect_request(request, io.BytesIO(), 302, "", {}, "http://127.0.0.1/a")
    assert handler.redirect_request(request, None, 302, "", {}, "https://example.org/b") is not None


@pytest.mark.parametrize("url", ["http://localhost:1/a", "http://[::1]/a", "http://127.9.9.9/a"])
def test_loopback_addresses(url):
    check_url(url)


def test_interrupt_leaves_nothing_behind(server, tmp_path, monkeypatch):
    def interrupted(*_: object) -> Iterator[bytes]:
        yield b"some bytes"
        assert len(list(tmp_path.iterdir())) == 1  # the temporary file
        raise KeyboardInterrupt

    monkeypatch.setattr(web, "_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download(server + "/good", tmp_path / "a.npz", md5=MD5)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path):
    def fill() -> None:
        with written_whole(tmp_path / "a.npz") as file:
            file.write(b"some bytes")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match=r"a\.npz: could not be written: No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create this folder"):
        download(server + "/good", tmp_path / "file" / "a.npz", md5=MD5)
    with pytest.raises(InputError, match="cannot write here"), written_whole(tmp_path / "no" / "a"):
        pass


def test_a_failed_replacement_keeps_the_old_file(server, tmp_path):
    target = tmp_path / "a.npz"
    target.write_bytes(b"old")
    with pytest.raises(InputError):
        download(server + "/wrong", target, md5=MD5)
    assert target.read_bytes() == b"old"


def test_two_processes_at_once(server, tmp_path):
    code = (
        "import sys; from pathlib import Path; from flaxmed.files import download; "
        f"download('{server}/slow', Path(sys.argv[1]), md5='{MD5}', progress=False)"
    )
    target = tmp_path / "a.npz"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(target)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    seen_together = 0
    while any(process.poll() is None for process in processes):
        seen_together = max(seen_together, len(list(tmp_path.glob(".a.npz.*.part"))))
        if target.exists():
            assert target.read_bytes() == BODY  # never half a file under the final name
        time.sleep(0.02)
    for process in processes:
        assert process.wait() == 0, process.stderr.read().decode()
        process.stderr.close()
    assert seen_together == 2, "the two did not overlap"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert target.read_bytes() == BODY


def test_offline(tmp_path, monkeypatch):
    """The published address: the test world refuses the network as a machine without one does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_dataset("breastmnist", data_dir=tmp_path)
    text = str(error.value)
    assert "\n" not in text
    assert "breastmnist.npz: could not be downloaded" in text
    assert f"put it at {tmp_path / 'breastmnist.npz'}" in text
    assert "--dataset phantom, which works offline" in text
    assert list(tmp_path.iterdir()) == []


def test_load_dataset_downloads_once(server, tmp_path, monkeypatch, real_data_dir):
    body = (real_data_dir / "breastmnist.npz").read_bytes()
    monkeypatch.setattr(sys.modules[__name__], "BODY", body)
    monkeypatch.setattr(medmnist, "ADDRESS", server + "/good?{file}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLAXMED_DATA_DIR", str(tmp_path / "data"))
    first = load_dataset("breastmnist")
    assert Path(tmp_path / "data" / "breastmnist.npz").read_bytes() == body
    monkeypatch.setattr(medmnist, "ADDRESS", "http://127.0.0.1:9/{file}")
    assert load_dataset("breastmnist").origin == first.origin
