"""Ctrl-C and SIGTERM: finish the step, save, say how to go on. A second one ends at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Halted(KeyboardInterrupt):
    """Raised by a signal when there is no step to finish; a KeyboardInterrupt, so that no library swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """Whether a signal asked to stop. Until `gentle` is set a signal raises Halted: nothing is under way yet."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.gentle = False

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """What a signal does; also to be called by tests."""
        if not self.gentle or self.signal is not None:
            raise Halted(number)
        self.signal = number


@contextmanager
def listening() -> Iterator[Stop]:
    """Inside, SIGINT and SIGTERM ask the yielded Stop; afterwards they do what they did before."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
