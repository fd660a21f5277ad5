"""A server on the loopback that speaks the protocol of the Hugging Face hub, well and badly."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

COMMIT = "0" * 39 + "1"
TOKEN = "hf_of_me"
OWNER = "me"


class Hub:
    """Files by ``OWNER/NAME/FILE``; what goes wrong, by ``OWNER/NAME``; and what was asked for.

    ``faults`` maps a repository to ``"short"`` (it breaks off), ``"wrong"`` (other bytes than its
    digest says), ``"wrong once"``, ``"gated"``, ``"bad card"`` (its README is refused), ``"full"``
    (large files are) or ``"cut"`` (their sending breaks off).

    Attributes:
        files, faults, asked: see above.
        private: whether a repository that was made is, by its name.
        commits: the messages, in order.
        stored: large files that were sent, by SHA-256.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}
        self.asked: list[str] = []
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.stored: dict[str, bytes] = {}
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

            def do_POST(self) -> None:
                hub.take(self, _body(self))

            def do_PUT(self) -> None:
                hub.store(self, _body(self))

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
        if parts[:2] == ["api", "models"]:
            return self._about(request, "/".join(parts[2:4]))
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

    # ------------------------------------------------------------------------------------ uploads

    def take(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        """What is asked for by POST on the way to a commit, each under its own address."""
        self.asked.append(f"{request.command} {request.path}")
        path = request.path.split("?")[0].strip("/")
        if path == "api/validate-yaml":
            return self._validate(request, json.loads(body))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(request, 401, "", "Invalid username or password.")
        if path == "api/repos/create":
            return self._create(request, json.loads(body))
        repo = "/".join(path.removeprefix("api/models/").removesuffix(".git").split("/")[:2])
        repo = repo.removesuffix(".git")
        if repo not in self.private:
            return self._error(request, 404, "RepoNotFound")
        if path == f"api/models/{repo}/preupload/main":
            return self._modes(request, json.loads(body))
        if path == f"{repo}.git/info/lfs/objects/batch":
            return self._batch(request, repo, json.loads(body))
        if path == f"{repo}.git/info/lfs/verify":
            known = json.loads(body)["oid"] in self.stored
            return self._json(request, 200, {}) if known else self._error(request, 404, "")
        if path == f"api/models/{repo}/commit/main":
            return self._commit(request, repo, [json.loads(line) for line in body.splitlines()])
        return self._error(request, 404, "EntryNotFound")

    def store(self, request: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        """``/storage/SHA256``: a large file, which has to have that digest."""
        self.asked.append(f"{request.command} {request.path}")
        if "cut" in self.faults.values():
            request.close_connection = True
            return None
        digest = request.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != digest:
            return self._error(request, 400, "", "wrong digest")
        self.stored[digest] = body
        return self._json(request, 200, {})

    def _about(self, request: http.server.BaseHTTPRequestHandler, repo: str) -> None:
        if repo not in self.private:
            return self._error(request, 404, "RepoNotFound")
        about = {"id": repo, "private": self.private[repo], "sha": COMMIT, "siblings": []}
        return self._json(request, 200, about)

    def _validate(self, request: http.server.BaseHTTPRequestHandler, asked: Any) -> None:
        assert asked["repoType"] == "model"
        if "bad card" in self.faults.values():
            errors = [{"message": '"license" must be one of [mit]'}]
            return self._json(request, 400, {"errors": errors, "warnings": []})
        return self._json(request, 200, {"errors": [], "warnings": []})

    def _create(self, request: http.server.BaseHTTPRequestHandler, asked: Any) -> None:
        repo = f"{asked['organization'] or OWNER}/{asked['name']}"
        if not repo.startswith(f"{OWNER}/"):
            return self._error(request, 403, "", "You don't have the rights to create a model")
        url = {"url": f"{self.address}/{repo}"}
        if repo in self.private:
            return self._json(request, 409, {"error": "You already created this repo", **url})
        self.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
        return self._json(request, 200, url)

    def _modes(self, request: http.server.BaseHTTPRequestHandler, asked: Any) -> None:
        files = []
        for file in asked["files"]:
            large = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return self._json(request, 200, {"files": files})

    def _batch(self, request: http.server.BaseHTTPRequestHandler, repo: str, asked: Any) -> None:
        assert asked["operation"] == "upload"
        assert "basic" in asked["transfers"]
        objects = []
        for wanted in asked["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if self.faults.get(repo) == "full":
                answer["error"] = {"code": 507, "message": "storage is full"}
            elif wanted["oid"] not in self.stored:
                answer["actions"] = {
                    "upload": {"href": f"{self.address}/storage/{wanted['oid']}"},
                    "verify": {"href": f"{self.address}/{repo}.git/info/lfs/verify"},
                }
            objects.append(answer)
        return self._json(request, 200, {"transfer": "basic", "objects": objects})

    def _commit(
        self, request: http.server.BaseHTTPRequestHandler, repo: str, lines: list[Any]
    ) -> None:
        header, *operations = lines
        assert header["key"] == "header"
        new = {}
        for operation in operations:
            value = operation["value"]
            name = f"{repo}/{value['path']}"
            if operation["key"] == "file":
                assert value["encoding"] == "base64"
                new[name] = base64.b64decode(value["content"])
            else:
                assert (operation["key"], value["algo"]) == ("lfsFile", "sha256")
                new[name] = self.stored[value["oid"]]
        self.files |= new
        self.commits.append(header["value"]["summary"])
        url = f"{self.address}/{repo}/commit/{COMMIT}"
        return self._json(request, 200, {"success": True, "commitUrl": url, "commitOid": COMMIT})

    def _json(self, request: http.server.BaseHTTPRequestHandler, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _error(
        self, request: http.server.BaseHTTPRequestHandler, status: int, code: str, said: str = ""
    ) -> None:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", said or code)
        request.send_header("Content-Length", "0")
        request.end_headers()


def _body(request: http.server.BaseHTTPRequestHandler) -> bytes:
    """What was sent, of a declared length or in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body = b""
    while size := int(request.rfile.readline().split(b";")[0], 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body
