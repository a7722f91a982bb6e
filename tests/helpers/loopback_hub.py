"""A Hugging Face Hub on this machine: repositories that huggingface_hub writes to and reads from.

As much of the protocol as its client uses for models: make a repository, ask how files are to be
sent, send large ones by git LFS, commit, list, resolve with ETag and ranges, and refuse. `refuse`
makes the next requests of a kind fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants, file_download

LFS_BYTES = 5000  # files from here on are sent by LFS
LFS_SUFFIXES = (".safetensors", ".onnx")
WORD = "hf_loopback"  # the token that may write


@dataclass(frozen=True, slots=True)
class Failure:
    """What to do instead of an answer.

    Args:
        status: HTTP status; 0 cuts the connection.
        after_bytes: of the body; then the connection is cut.
        times: how often.
    """

    status: int = 500
    after_bytes: int | None = None
    times: int = 1


@dataclass(slots=True)
class HubServer:
    """A running Hub.

    Args:
        url: its address.
        commits: of each repository, oldest first: (id, files).
        objects: LFS files by their sha256.
        requests: method and path of what was asked.
        failures: pattern of "METHOD path" to what happens instead.
        is_gated: reading needs the token too.
        damages: this file is sent with another last byte.
    """

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    is_gated: bool = False
    damages: str = ""

    def refuse(self, pattern: str, failure: Failure) -> None:
        """Let requests that match fail."""
        self.failures[pattern] = failure

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        """Return the files of a revision, or None."""
        commits = self.commits.get(repo)
        if not commits:
            return None
        if revision == "main":
            return commits[-1][1]
        return dict(commits).get(revision)

    def head(self, repo: str, revision: str = "main") -> str:
        """Return the commit that a revision stands for."""
        return self.commits[repo][-1][0] if revision == "main" else revision


@contextmanager
def serve_hub(monkeypatch: pytest.MonkeyPatch, token: str | None = WORD) -> Iterator[HubServer]:
    """Run a Hub on a free port, and let huggingface_hub use it with a token."""
    hub = HubServer()
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    for module in (constants, file_download):  # versions before 1.0 have a copy in the second
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Clients that hang up are part of the tests."""


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

        def _answer(self) -> None:
            path = unquote(self.path.partition("?")[0])
            length = int(self.headers.get("Content-Length") or 0)
            self.cut_after: int | None = None
            request = f"{self.command} {path}"
            hub.requests.append(request)
            failure = self._failure(request)
            if failure is not None and failure.status == 0 and failure.after_bytes is not None:
                self.rfile.read(failure.after_bytes)
                self.close_connection = True
                self.connection.close()
                return
            body = self._body(length)
            if failure is not None and failure.after_bytes is not None:
                self.cut_after = failure.after_bytes
            elif failure is not None:
                self._send(failure.status, {"error": "as the test wants it"})
                return
            self._route(path, body)

        def _body(self, length: int) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(length)
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _failure(self, request: str) -> Failure | None:
            for pattern, failure in list(hub.failures.items()):
                if re.search(pattern, request):
                    if failure.times <= 1:
                        del hub.failures[pattern]
                    else:
                        hub.failures[pattern] = Failure(
                            failure.status, failure.after_bytes, failure.times - 1
                        )
                    return failure
            return None

        def _may_write(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {WORD}":
                return True
            status = 403 if self.headers.get("Authorization") else 401
            self._send(status, {"error": "You don't have the rights to write here"})
            return False

        def _route(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                self._create(json.loads(body))
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
                self._preupload(match[1], json.loads(body))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
                self._batch(json.loads(body))
            elif match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
                self._receive(match[1], body)
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
                self._commit(match[1], body)
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path):
                self._tree(match[1], match[2])
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._info(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(match[1], match[2], match[3])
            else:
                self._send(404, {"error": f"no such path {path}"})

        def _create(self, wish: dict[str, Any]) -> None:
            if not self._may_write():
                return
            repo = f"{wish.get('organization') or 'user'}/{wish['name']}"
            status = 409 if repo in hub.commits else 200
            hub.commits.setdefault(repo, [(_commit_id(repo, {}), {})])
            self._send(status, {"url": f"{hub.url}/{repo}", "id": repo, "name": repo})

        def _preupload(self, repo: str, wish: dict[str, Any]) -> None:
            if not self._may_write():
                return
            there = hub.files(repo) or {}
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(file["path"], there[file["path"]])
                    if file["path"] in there
                    else None,
                }
                for file in wish["files"]
            ]
            self._send(200, {"files": files})

        def _batch(self, wish: dict[str, Any]) -> None:
            if not self._may_write():
                return
            objects = []
            for each in wish["objects"]:
                upload = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}", "header": {}}}
                actions = {} if each["oid"] in hub.objects else {"actions": upload}
                objects.append({**each, **actions})
            self._send(200, {"transfer": "basic", "objects": objects})

        def _receive(self, oid: str, body: bytes) -> None:
            if hashlib.sha256(body).hexdigest() != oid:
                self._send(400, {"error": "another digest"})
                return
            hub.objects[oid] = body
            self._send(200, {})

        def _commit(self, repo: str, body: bytes) -> None:
            if not self._may_write():
                return
            files = dict(hub.files(repo) or {})
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if value.get("parentCommit") not in (None, hub.head(repo)):
                    self._send(412, {"error": "the branch has moved"})
                    return
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            commit = _commit_id(repo, files)
            hub.commits[repo].append((commit, files))
            url = f"{hub.url}/{repo}/commit/{commit}"
            self._send(200, {"commitUrl": url, "commitOid": commit, "success": True})

        def _tree(self, repo: str, revision: str) -> None:
            files = self._readable(repo, revision)
            if files is not None:
                self._send(200, [_entry(name, content) for name, content in files.items()])

        def _info(self, repo: str, revision: str) -> None:
            files = self._readable(repo, revision)
            if files is not None:
                info = {"id": repo, "modelId": repo, "sha": hub.head(repo, revision)}
                siblings = [{"rfilename": name} for name in files]
                self._send(200, {**info, "siblings": siblings, "tags": [], "downloads": 0})

        def _resolve(self, repo: str, revision: str, name: str) -> None:
            files = self._readable(repo, revision)
            if files is None:
                return
            headers = {"X-Repo-Commit": hub.head(repo, revision)}
            if name not in files:
                self._send(404, {}, {**headers, "X-Error-Code": "EntryNotFound"})
                return
            content = files[name]
            if name == hub.damages:
                content = content[:-1] + b"?"
            oid = _oid(name, content)
            headers |= {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
            if _is_large(name, len(content)):
                headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            status, wanted = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if wanted and int(wanted[1]) < len(content):
                start = int(wanted[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                status, content = 206, content[start:]
            self._send(status, content, headers)

        def _readable(self, repo: str, revision: str) -> dict[str, bytes] | None:
            if hub.is_gated and self.headers.get("Authorization") != f"Bearer {WORD}":
                status = 403 if self.headers.get("Authorization") else 401
                self._send(status, {}, {"X-Error-Code": "GatedRepo"})
                return None
            if repo not in hub.commits:
                self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
                return None
            files = hub.files(repo, revision)
            if files is None:
                self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return files

        def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
            self.send_header("Content-Type", kind)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: self.cut_after])
            if self.cut_after is not None:
                self.close_connection = True
                self.connection.close()

    return Handler


def _is_large(name: str, size: int) -> bool:
    return size >= LFS_BYTES or name.endswith(LFS_SUFFIXES)


def _oid(name: str, content: bytes) -> str:
    if _is_large(name, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
    if _is_large(name, len(content)):
        return {
            **entry,
            "lfs": {"oid": _oid(name, content), "size": len(content), "pointerSize": 1},
        }
    return {**entry, "oid": _oid(name, content)}


def _commit_id(repo: str, files: dict[str, bytes]) -> str:
    digest = hashlib.sha1(repo.encode())
    for name, content in sorted(files.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()
