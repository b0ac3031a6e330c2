"""Commands of one turn side by side, with one result however they race.

Each works on a copy of the worktree as it was when the first began; what they changed is brought back in the order of
the calls, and nobody's changes reach a copy that is still to be made. Of two that changed the same file the first wins,
and the second is told: its copy did not have the first one's change.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Turn(Protocol):
    """A call's place among its neighbours: `copied` says that it has what it needs; inside `with`, it is its turn.

    taken: paths that the calls before it have changed.
    """

    taken: set[str]

    def copied(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Alone:
    """No neighbours."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def copied(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Turnstile:
    """The places of `count` calls. Each must `leave`, however it ends, or those behind it wait for ever."""

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._copied = [False] * count
        self._left = [False] * count
        self.taken: set[str] = set()

    def place(self, number: int) -> Turn:
        return _Place(self, number)

    def leave(self, number: int) -> None:
        with self._changed:
            self._copied[number] = self._left[number] = True
            self._changed.notify_all()

    def copied(self, number: int) -> None:
        with self._changed:
            self._copied[number] = True
            self._changed.notify_all()

    def wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(self._left[:number]) and all(self._copied[number:]))


class _Place:
    def __init__(self, turnstile: Turnstile, number: int) -> None:
        self._turnstile = turnstile
        self._number = number
        self.taken = turnstile.taken

    def copied(self) -> None:
        self._turnstile.copied(self._number)

    def __enter__(self) -> None:
        self._turnstile.wait(self._number)

    def __exit__(self, *_: object) -> None:
        pass
