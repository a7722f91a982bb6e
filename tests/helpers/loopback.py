"""Servers on this machine for tests: plain HTTP with every way to fail, and a Hugging Face Hub."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answers for one path.

    Args:
        body: the whole file.
        status: HTTP status.
        content_type: of the body.
        headers: further headers.
        sent_bytes: stop after so many bytes, though the length of all of `body` was announced.
        stalls: after that keep the connection open and silent, instead of closing it.
        announces_length: send Content-Length.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None
    stalls: bool = False
    announces_length: bool = True


@dataclass(slots=True)
class Loopback:
    """A running server: `replies` may be changed while it runs, `requests` is what was asked."""

    url: str
    replies: dict[str, Reply]
    requests: list[str]
    closing: threading.Event


@contextmanager
def serve(replies: Mapping[str, Reply] | None = None) -> Iterator[Loopback]:
    """Serve `replies` by path ("/file.pth") on a free port until the block ends."""
    loopback = Loopback("", dict(replies or {}), [], threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            loopback.requests.append(f"{self.command} {path}")
            reply = loopback.replies.get(path, _missing())
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            if reply.announces_length:
                self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(reply.body[: reply.sent_bytes])
                self.wfile.flush()
            if with_body and reply.stalls:
                loopback.closing.wait(20)

        def log_message(self, *args: Any) -> None:
            """Keep quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """Clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    loopback.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield loopback
    finally:
        loopback.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def hub_replies(repo_id: str, files: Mapping[str, bytes]) -> dict[str, Reply]:
    """Return the replies with which a Hugging Face Hub serves a model repository's files."""
    return {
        f"/{repo_id}/resolve/{revision}/{name}": Reply(
            body, headers={"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        )
        for name, body in files.items()
        for revision in ("main", COMMIT)
    }


def _missing() -> Reply:
    return Reply(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
