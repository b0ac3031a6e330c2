"""At most so many commands at once, whoever asks: tasks, tools and the gate's trainings share the machine.

Numba's threads spin while they wait; two trainings with all the processor's threads each run many times slower than
one after the other. So commands queue here, and each gets its share of the threads (`Settings.threads`).
"""

from __future__ import annotations

import threading

from orchestrator.sandbox.base import Command, Completed, OnOutput, Sandbox


class ThrottledSandbox:
    """A sandbox with a queue before it. Time spent waiting is not part of a command's time."""

    def __init__(self, sandbox: Sandbox, at_once: int) -> None:
        self._sandbox = sandbox
        self._places = threading.BoundedSemaphore(at_once)

    @property
    def tier(self) -> str:
        return self._sandbox.tier

    def run(self, command: Command, on_output: OnOutput | None = None) -> Completed:
        with self._places:
            return self._sandbox.run(command, on_output)
