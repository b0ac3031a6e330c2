"""What a person sees while a plan runs, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.terminal import printable

QUIET_KINDS = frozenset({"output"})
OUTPUT_EVERY_S = 15.0
WORDS = 300
SHOWN = 200
MARKS = {
    "waiting": "·",
    "running": "▶",
    "accepted": "✔",
    "missed": "≠",
    "unmeasured": "?",
    "failed": "✘",
    "blocked": "▪",
    "paused": "‖",
}
ENDS = frozenset(MARKS) - {"waiting", "running"}


def tell(line: str) -> None:
    """A line on stderr. Once nobody reads it any more, this and all later ones are dropped: talk can fail no work."""
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process lives


@dataclass(slots=True)
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
        self._printed_at: dict[str, float] = {}
        self._screen: Any = None

    def expect(self, tasks: Iterable[tuple[str, str, str, str]]) -> None:
        """The tasks of the run: id, title, agent, status. Only a table needs to keep them."""
        if self._live:
            self._rows = {task: _Row(title, agent, status) for task, title, agent, status in tasks}

    def say(self, task: str, kind: str, text: str) -> None:
        with self._lock:
            row = self._rows.get(task)
            if row:
                self._update(row, kind, text)
            if self._screen is None and self._is_news(task, kind):
                self._print(task, kind, text)
            if kind in ENDS:
                self._printed_at.pop(task, None)

    def _is_news(self, task: str, kind: str) -> bool:
        """What commands print is shown now and then, so that long work is seen to go on."""
        due = time.monotonic() - self._printed_at.get(task, 0.0) >= OUTPUT_EVERY_S
        return kind not in QUIET_KINDS or (due and task in self._printed_at)

    def _print(self, task: str, kind: str, text: str) -> None:
        self._printed_at[task] = time.monotonic()
        if kind in QUIET_KINDS:
            kind, text = "...", _last_line(text)
        words = " ".join(f"{kind} {text}".split())[:WORDS]
        tell(f"{time.strftime('%H:%M:%S')} {task or 'run'}: {words}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._live:
            yield
            return
        from rich.console import Console
        from rich.live import Live

        self._screen = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._table)
        self._screen.start()
        try:
            yield
        finally:
            with suppress(OSError, ValueError):  # a terminal that was closed
                self._screen.stop()

    def _update(self, row: _Row, kind: str, text: str) -> None:
        row.since = row.since or time.monotonic()
        if kind in MARKS:
            row.status = kind
            row.ended = time.monotonic() if kind not in ("running", "waiting") else 0.0
        line = _last_line(text)
        row.last = printable(line if kind in QUIET_KINDS or kind in MARKS else f"{kind}: {line}")[:SHOWN]

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
                table.add_row(MARKS[row.status], task, row.agent, clock, Text(row.last))
        return table


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
