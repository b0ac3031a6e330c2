"""A Messages server that says what a script says: a real socket, HTTP/1.1, server-sent events, and every fault.

A script is a list of turns, and a conversation is told by its first user message. A turn is a `Turn` to be streamed or
a `Fault`; faults are used up one a request, so that what comes after them is the answer to the same request again.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = Any


@dataclass(frozen=True)
class Turn:
    """What the model says: text, calls as (name, input or raw text), why it stops, what it used."""

    text: str = ""
    calls: tuple[tuple[str, Json], ...] = ()
    stop: str = ""
    usage: dict[str, Any] = field(default_factory=lambda: {"input_tokens": 100, "output_tokens": 20})
    details: dict[str, Any] | None = None

    def events(self, name: str) -> list[dict[str, Any]]:
        stop = self.stop or ("tool_use" if self.calls else "end_turn")
        begin = {**self.usage, "output_tokens": 1}
        message = {
            "id": f"msg_{name}", "type": "message", "role": "assistant", "model": "m", "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": begin,
        }  # fmt: skip
        found: list[dict[str, Any]] = [{"type": "message_start", "message": message}, {"type": "ping"}]
        for index, (block, deltas) in enumerate(self._blocks(name)):
            found.append({"type": "content_block_start", "index": index, "content_block": block})
            found += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            found.append({"type": "content_block_stop", "index": index})
        delta = {"stop_reason": stop, "stop_sequence": None, "stop_details": self.details}
        usage = {"output_tokens": self.usage["output_tokens"]}
        return [*found, {"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def _blocks(self, name: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        if self.text:
            half = len(self.text) // 2
            deltas = [{"type": "text_delta", "text": part} for part in (self.text[:half], self.text[half:])]
            yield {"type": "text", "text": ""}, deltas
        for number, (tool, value) in enumerate(self.calls):
            raw = value if isinstance(value, str) else json.dumps(value)
            third = max(len(raw) // 3, 1)
            parts = [raw[at : at + third] for at in range(0, len(raw), third)]
            block = {"type": "tool_use", "id": f"toolu_{name}_{number}", "name": tool, "input": {}}
            yield block, [{"type": "input_json_delta", "partial_json": part} for part in parts]

    def stream(self, name: str) -> bytes:
        lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in self.events(name)]
        return "".join(lines).encode()


@dataclass(frozen=True)
class Fault:
    """status: an error answer. cut: bytes of the stream before the connection ends; reset: it ends with a reset.
    silent: no answer for so many seconds. drips: the stream's bytes one by one, so many seconds apart. event: an
    `error` event in a stream that had begun."""

    status: int = 0
    kind: str = "api_error"
    message: str = "no"
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    of: Turn = Turn("cut")
    reset: bool = False
    silent: float = 0
    drips: float = 0
    event: str = ""


NO_CREDIT = Fault(
    status=400,
    kind="invalid_request_error",
    message="Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing.",
)


@dataclass
class FakeApi:
    """The server's state: scripts by what the first message holds, and all requests that came in."""

    scripts: dict[str, list[Turn]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    models: tuple[str, ...] = ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5")
    retired: tuple[str, ...] = ()
    listing: tuple[int, bytes] | None = None  # status and body, in place of the list of models
    requests: list[dict[str, Any]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)  # replies that went out whole, by conversation and turn
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    choose: Callable[[dict[str, Any]], tuple[str, Turn | Fault]] | None = None

    def next(self, body: dict[str, Any]) -> tuple[str, Turn | Fault]:
        with self.lock:
            self.requests.append(body)
            if self.faults:
                return "fault", self.faults.pop(0)
        if self.choose:
            return self.choose(body)
        first = json.dumps(body["messages"][0])
        key = next(key for key in self.scripts if key in first)
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        return f"{key}{turn}", self.scripts[key][turn]


@contextmanager
def serving(api: FakeApi) -> Iterator[FakeApi]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    api: FakeApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.api.listing:
            self._send(*self.api.listing, {"content-type": "application/json"})
            return
        dated = {"created_at": "2026-01-01T00:00:00Z", "display_name": "M", "type": "model"}
        stages = [*((name, "active") for name in self.api.models), *((name, "retired") for name in self.api.retired)]
        listed = [{"id": name, "lifecycle": stage, **dated} for name, stage in stages]
        self._json(200, {"data": listed, "has_more": False, "first_id": None, "last_id": None})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.api.headers.append({key.lower(): value for key, value in self.headers.items()})
        name, turn = self.api.next(body)
        if isinstance(turn, Fault):
            self._fault(turn)
            return
        self._stream(turn.stream(name))
        with self.api.lock:
            self.api.answered.append(name)

    def _json(self, status: int, document: Json, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(document).encode(), {"content-type": "application/json", **(headers or {})})

    def _send(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"content-length": str(len(raw)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, raw: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True

    def _drip(self, fault: Fault) -> None:
        self._stream(b"")
        with suppress(OSError):  # until nobody listens any more
            for byte in fault.of.stream("f"):
                self.wfile.write(bytes([byte]))
                time.sleep(fault.drips)

    def _fault(self, fault: Fault) -> None:
        if fault.status:
            details = {"details": {"error_code": fault.code}} if fault.code else {}
            error = {"type": fault.kind, "message": fault.message, **details}
            self._json(fault.status, {"type": "error", "error": error, "request_id": "r"}, fault.headers)
            return
        self.close_connection = True
        if fault.silent:
            time.sleep(fault.silent)
        elif fault.drips:
            self._drip(fault)
        elif fault.event:
            begin = fault.of.stream("f").split(b"event: content_block_stop")[0]
            error = {"type": "error", "error": {"type": fault.event, "message": "in the middle"}}
            self._stream(begin + f"event: error\ndata: {json.dumps(error)}\n\n".encode())
        elif fault.cut is not None:
            self._stream(fault.of.stream("f")[: fault.cut])
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
