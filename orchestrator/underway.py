"""The paid calls that this process has on their way, for those who wait until one has ended.

The ledger's own rows can't say it: what a dead process began never ends, so nobody may wait for it.
Safe from several threads and event loops.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future


class UnderWay:
    """`next_end` is settled when the next call ends; take it before you look, so that no end is missed."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.next_end = _pending()
        self._closed = False
        self._lock = threading.Lock()

    def begin(self, key: str) -> bool:
        """Whether it may begin: nothing may any more once the process is being left."""
        with self._lock:
            if not self._closed:
                self.keys.add(key)
            return not self._closed

    def end(self, key: str) -> None:
        with self._lock:
            self.keys.discard(key)
            ended, self.next_end = self.next_end, _pending()
        ended.set_result(None)

    async def let_end(self) -> None:
        """Wait until nothing is under way, and let nothing begin."""
        with self._lock:
            self._closed = True
        while True:
            ended = self.next_end
            if not self.keys:
                return
            await asyncio.wrap_future(ended)


def _pending() -> Future[None]:
    found = Future[None]()
    found.set_running_or_notify_cancel()  # who stops waiting must not cancel it for the others
    return found
