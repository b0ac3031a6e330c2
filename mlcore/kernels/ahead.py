"""Compiling kernels before they are needed: which ones a piece of work would run, and all of them by two processes.

Numba compiles one kernel at a time in a process. So a child process walks the list from its end, this one from its
beginning, until they meet; what the child compiled comes out of the cache on the disk, which is where both put it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from mlcore.kernels.jit import noting

POLL_S = 0.005
LONGEST_S = 30.0  # that a child is waited for: one that was forked at a bad moment may stand still
NOWHERE = 1 << 40


@dataclass(frozen=True)
class Job:
    """A kernel to compile for arguments of some types."""

    name: str
    dispatcher: Any
    signature: tuple[Any, ...]

    def do(self) -> None:
        """Compile it, or load it from the cache."""
        self.dispatcher.compile(self.signature)


def jobs_of(work: Callable[[], object]) -> list[Job]:
    """What `work` would run, once each, in its order. `work` is called, with kernels that do nothing."""
    with noting() as calls, np.errstate(all="ignore"):
        work()
    jobs: dict[Any, Job] = {}
    for dispatcher, arguments in calls:
        signature = tuple(numba.typeof(argument) for argument in arguments)
        function = dispatcher.py_func
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__.lstrip('_')}"
        jobs.setdefault((id(dispatcher), signature), Job(name, dispatcher, signature))
    return list(jobs.values())


def compile_all(jobs: Sequence[Job], tell: Callable[[int, Job], None], share: bool) -> None:
    """Have all jobs done in this process. tell: called with a job's number before its turn. share: with a child."""
    with _child(jobs) if share and len(jobs) > 1 and hasattr(os, "fork") else contextlib.nullcontext() as child:
        for number, job in enumerate(jobs):
            tell(number, job)
            if child:
                child.meet(number)
            job.do()


class _Child:
    """The process that walks from the end. `places`: the numbers of its job and of ours, in memory that both see."""

    def __init__(self, pid: int, places: Any) -> None:
        self.pid, self.places, self.ended = pid, places, False

    def meet(self, number: int) -> None:
        """Say where we are; and if the child is just there, wait until it is done, though not for ever."""
        self.places[1], until = number, time.monotonic() + LONGEST_S
        while self.places[0] == number and not self.has_ended() and time.monotonic() < until:
            time.sleep(POLL_S)

    def has_ended(self) -> bool:
        self.ended = self.ended or os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return self.ended


@contextlib.contextmanager
def _child(jobs: Sequence[Job]) -> Iterator[_Child]:
    places = np.frombuffer(mmap.mmap(-1, 16), np.int64)
    places[:] = NOWHERE, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child only compiles
        pid = os.fork()
    if pid == 0:
        _walk_back(jobs, places)
    child = _Child(pid, places)
    try:
        yield child
    finally:
        if not child.has_ended():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _walk_back(jobs: Sequence[Job], places: Any) -> None:
    """The child's whole life. It leaves without unwinding: files and buffers are the parent's."""
    try:
        for number in reversed(range(len(jobs))):
            if number <= places[1]:
                break
            places[0] = number
            jobs[number].do()
        places[0] = NOWHERE
    finally:
        os._exit(0)
