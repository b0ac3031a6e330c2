"""A stream kept within a budget: decoded as it comes, its head and its tail kept."""

from __future__ import annotations

import codecs

from orchestrator.sandbox.base import OnOutput


class Capture:
    """Takes a stream's bytes as they come, passes them on as text and keeps the first and last half of `budget`."""

    def __init__(self, budget: int, on_output: OnOutput | None) -> None:
        self._head_room = budget - budget // 2
        self._tail_room = budget // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, data: bytes, final: bool = False) -> None:
        """Add bytes; `final` flushes a character that was cut at the stream's end."""
        if self._on_output and (text := self._decoder.decode(data, final)):
            self._on_output(text)
        room = self._head_room - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        # trimmed only at twice its room, so that a long stream isn't moved at every chunk
        if len(self._tail) > 2 * self._tail_room:
            self._trim()

    @property
    def truncated(self) -> bool:
        return self._left_out > 0 or len(self._tail) > self._tail_room

    def text(self) -> str:
        """All of it, or head and tail around a line that says how many bytes are left out. Bad UTF-8 becomes U+FFFD."""
        self._trim()
        if not self._left_out:
            return bytes(self._head + self._tail).decode("utf-8", "replace")  # the border may cut a character
        head, tail = (bytes(part).decode("utf-8", "replace") for part in (self._head, self._tail))
        return f"{head}\n[... {self._left_out} bytes left out ...]\n{tail}"

    def _trim(self) -> None:
        surplus = max(0, len(self._tail) - self._tail_room)
        self._left_out += surplus
        del self._tail[:surplus]
