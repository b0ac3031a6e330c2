"""What a person sees while a plan runs, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

QUIET_KINDS = frozenset({"output"})
MARKS = {
    "waiting": "·",
    "running": "▶",
    "accepted": "✔",
    "missed": "≠",
    "unmeasured": "?",
    "failed": "✘",
    "blocked": "▪",
}


@dataclass
class _Row:
    title: str
    agent: str
    status: str = "waiting"
    last: str = ""
    since: float = 0.0
    ended: float = 0.0


class Display:
    """Hears every event. `say` may be called from any thread."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}
        self._screen: Any = None

    def expect(self, tasks: Iterable[tuple[str, str, str, str]]) -> None:
        """The tasks of the run: id, title, agent, status."""
        for task, title, agent, status in tasks:
            self._rows[task] = _Row(title, agent, status)

    def say(self, task: str, kind: str, text: str) -> None:
        with self._lock:
            row = self._rows.get(task)
            if row:
                self._update(row, kind, text)
            if self._screen is None and kind not in QUIET_KINDS:
                words = " ".join(f"{kind} {text}".split())
                print(f"{time.strftime('%H:%M:%S')} {task or 'run'}: {words[:300]}", file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._live:
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._table) as self._screen:
            yield

    def _update(self, row: _Row, kind: str, text: str) -> None:
        row.since = row.since or time.monotonic()
        if kind in MARKS:
            row.status = kind
            row.ended = time.monotonic() if kind not in ("running", "waiting") else 0.0
        line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        row.last = line.strip() if kind in QUIET_KINDS or kind in MARKS else f"{kind}: {line.strip()}"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1))
        for name in ("", "task", "agent", "time", "now"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1 if name == "now" else None)
        with self._lock:
            for task, row in self._rows.items():
                seconds = (row.ended or time.monotonic()) - row.since if row.since else 0
                clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if row.since else ""
                table.add_row(MARKS[row.status], task, row.agent, clock, Text(row.last[:200]))
        return table
