"""One child process and its tree, from start to the last of them: output streamed, wall clock kept, usage measured.

The child leads its own session, so that Ctrl-C reaches only the orchestrator, which then ends the children
(`stop_all`, or the exception on its way out of `supervise`). If the orchestrator dies without a word (kill -9), the
kernel ends them: bubblewrap's --die-with-parent, `setpriv --pdeathsig` without it.

bubblewrap leaves before its sandbox's first process is buried, so this process becomes a subreaper: the kernel hands
it that orphan, and waiting for it is both the proof that nothing inside is alive and the only count of what it used.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.base import More, OnOutput
from orchestrator.sandbox.output import Capture

CHUNK = 1 << 16
DRAIN_S = 0.5  # for output of the dead that is still in the pipe; only an unsandboxed daemon holds it open longer


@dataclass(frozen=True)
class Launch:
    """What to start: argv as the kernel gets it, and the file descriptors it inherits."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    stdin: bytes
    wall_s: float
    output_bytes: int
    pass_fds: tuple[int, ...] = ()
    more: More | None = None


@dataclass(frozen=True)
class Ended:
    """How it ended. `returncode` as in subprocess: minus the signal. `max_rss_bytes` is the largest process's."""

    returncode: int
    stdout: Capture
    stderr: Capture
    timed_out: bool
    wall_s: float
    cpu_s: float
    max_rss_bytes: int


@dataclass(frozen=True)
class Usage:
    cpu_s: float
    max_rss_bytes: int


_live: set[int] = set()
_live_lock = threading.RLock()  # a signal's handler may interrupt its own thread's hold


def stop_all() -> int:
    """Kill every tree that `supervise` watches in any thread; how many. For the handler of Ctrl-C and SIGTERM."""
    with _live_lock:
        pids = list(_live)
        for pid in pids:
            kill_tree(pid)
        return len(pids)


def supervise(launch: Launch, on_output: OnOutput | None, kill: Callable[[int], None] | None = None) -> Ended:
    """Start it, watch it, and return when it and its tree are gone. `kill(pid)` replaces `kill_tree`.

    Raises SandboxUnavailable if argv[0] can't be started. An exception in `on_output`, and KeyboardInterrupt, end the
    tree first and go on.
    """
    kill = kill or kill_tree
    started = time.monotonic()
    child = _start(launch)
    assert child.stdout is not None
    assert child.stderr is not None
    captures = {child.stdout.fileno(): Capture(launch.output_bytes, on_output)}
    captures[child.stderr.fileno()] = Capture(launch.output_bytes, on_output)
    reaped = False
    try:
        with child.stdout, child.stderr:
            timed_out = _watch(child.pid, captures, started + launch.wall_s, kill, launch.more)
            usage = _reap(child)
            reaped = True
    finally:
        if not reaped:
            kill_tree(child.pid)
            _reap(child)
    out, err = captures.values()
    wall_s = time.monotonic() - started
    return Ended(child.returncode, out, err, timed_out, wall_s, usage.cpu_s, usage.max_rss_bytes)


def adopt_orphans() -> None:
    """Make this process the one that the kernel gives its orphaned descendants to (Linux prctl 36, for good)."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def bury(pid: int | None) -> Usage | None:
    """End an adopted orphan and wait for it; what it and its dead used. None if it isn't ours: its parent buried it."""
    with _live_lock:
        if pid is None or pid in _live:  # the number was given out anew, to a child of ours
            return None
    with suppress(ChildProcessError, ProcessLookupError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises if it isn't
        os.kill(pid, signal.SIGKILL)
        return _usage(os.wait4(pid, 0)[2])
    return None


def kill_tree(pid: int) -> None:
    """SIGKILL a child and what shares its session's first process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    # a memory file: a pipe would need a thread to fill it
    stdin = os.memfd_create("stdin")
    try:
        os.write(stdin, launch.stdin)
        os.lseek(stdin, 0, os.SEEK_SET)
        with _live_lock:
            child = subprocess.Popen(
                launch.argv,
                env=launch.env,
                cwd=launch.cwd,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=launch.pass_fds,
                start_new_session=True,
            )
            _live.add(child.pid)
        return child
    except OSError as error:
        raise SandboxUnavailable(f"{launch.argv[0]}: can't be started: {error}") from error
    finally:
        os.close(stdin)


def _watch(
    pid: int, captures: dict[int, Capture], deadline: float, kill: Callable[[int], None], more: More | None
) -> bool:
    """Read until the child is gone and its pipes are closed; whether the wall clock ended it."""
    pidfd = os.pidfd_open(pid)
    timed_out = gone = False
    try:
        with selectors.DefaultSelector() as selector:
            for fd in (*captures, pidfd):
                selector.register(fd, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in ready:
                    if key.fd == pidfd or not _read(captures[key.fd], key.fd):
                        selector.unregister(key.fd)
                    if key.fd == pidfd:
                        gone = True
                        kill_tree(pid)  # what it left behind in its group
                        deadline = time.monotonic() + DRAIN_S
                if time.monotonic() >= deadline:
                    if gone:
                        break
                    if more and not timed_out and (given := more()) > 0:
                        deadline += given
                        continue
                    if timed_out:  # asked once already: no more asking
                        kill_tree(pid)
                    timed_out = True
                    kill(pid)
                    deadline = time.monotonic() + DRAIN_S
    finally:
        os.close(pidfd)
    for capture in captures.values():
        capture.take(b"", final=True)
    return timed_out


def _read(capture: Capture, fd: int) -> bool:
    data = os.read(fd, CHUNK)
    capture.take(data)
    return bool(data)


def _reap(child: subprocess.Popen[bytes]) -> Usage:
    """Wait for the child ourselves: wait4 also tells what it and its dead used."""
    with _live_lock:  # before its pid is free for another process
        _live.discard(child.pid)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return _usage(usage)


def _usage(usage: resource.struct_rusage) -> Usage:
    return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
