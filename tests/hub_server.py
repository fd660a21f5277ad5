"""A server on the loopback that speaks the layout of the Hugging Face hub, well and badly."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator

COMMIT = "0" * 39 + "1"


class Hub:
    """Files by ``OWNER/NAME/FILE``; what goes wrong, by ``OWNER/NAME``; and what was asked for.

    ``faults`` maps a repository to ``"short"`` (it breaks off), ``"wrong"`` (other bytes than its
    digest says), ``"wrong once"`` or ``"gated"``.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}
        self.asked: list[str] = []
        self.address = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[Hub]:
        """The server, in a thread of its own."""
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.address = f"http://127.0.0.1:{server.server_address[1]}"
            try:
                yield self
            finally:
                server.shutdown()

    def answer(self, request: http.server.BaseHTTPRequestHandler, *, body: bool) -> None:
        """``/OWNER/NAME/resolve/REVISION/FILE``: large files, as the hub keeps weights."""
        self.asked.append(f"{request.command} {request.path}")
        parts = request.path.split("?")[0].strip("/").split("/")
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        known = any(file.startswith(f"{repo}/") for file in self.files)
        fault = self.faults.get(repo)
        if fault == "gated":
            return self._error(request, 403, "GatedRepo")
        if not known or parts[2:3] != ["resolve"]:
            return self._error(request, 404, "RepoNotFound")
        if f"{repo}/{name}" not in self.files:
            return self._error(request, 404, "EntryNotFound")
        data = self.files[f"{repo}/{name}"]
        digest = hashlib.sha256(data).hexdigest()
        request.send_response(200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("X-Linked-Etag", f'"{digest}"')
        request.send_header("X-Linked-Size", str(len(data)))
        request.send_header("ETag", f'"{digest}"')
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if not body:
            return None
        if fault in ("wrong", "wrong once"):
            data = bytes([data[0] ^ 1]) + data[1:]
            if fault == "wrong once":
                self.faults.pop(repo)
        request.wfile.write(data[: len(data) // 2] if fault == "short" else data)
        if fault == "short":
            request.close_connection = True
        return None

    def _error(self, request: http.server.BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", code)
        request.send_header("Content-Length", "0")
        request.end_headers()
