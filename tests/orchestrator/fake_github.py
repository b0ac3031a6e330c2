"""GitHub's issues on a real socket: pages, pull requests among the issues, tokens, faults; every request is counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

REPO = "ada/engine"


@dataclass
class FakeGitHub:
    """What the server holds. `faults` are answers (status, message) given before any right one."""

    issues: list[dict[str, Any]] = field(default_factory=list)
    token: str = ""
    faults: list[tuple[int, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, title: str, body: str | None = "", state: str = "open", **more: Any) -> dict[str, Any]:
        issue = {"number": len(self.issues) + 1, "title": title, "body": body, "state": state}
        self.issues.append({**issue, "labels": [], "milestone": None, **more})
        return self.issues[-1]

    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET")]

    def answer(self, verb: str, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts[:4] != ["repos", *REPO.split("/"), "issues"]:
            return 404, {"message": "Not Found"}
        if verb == "GET":
            assert query["state"] == ["all"]
            size, page = int(query["per_page"][0]), int(query["page"][0])
            return 200, self.issues[(page - 1) * size : page * size]
        if verb == "POST":
            assert set(body) == {"title", "body"}
            return 201, self.add(**body, author_association="OWNER")
        issue = self.issues[int(parts[4]) - 1]
        issue.update(body)
        return 200, issue


@contextmanager
def running(fake: FakeGitHub) -> Iterator[FakeGitHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            asked = urlparse(self.path)
            fake.requests.append(f"{self.command} {asked.path}")
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fake.faults:
                status, content = fake.faults.pop(0)
                found: tuple[int, Any] = (status, {"message": content})
            elif fake.token and self.headers.get("Authorization") != f"token {fake.token}":
                found = (401, {"message": "Bad credentials"})
            else:
                found = fake.answer(self.command, asked.path, parse_qs(asked.query), json.loads(raw or b"{}"))
            self._send(*found)

        def _send(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = _answer

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
