"""Limits as a prefix of argv, and the control groups that hold a whole tree where they are writable.

rlimits are set by util-linux's `prlimit`, which then becomes the command: a Python `preexec_fn` may deadlock in a
program with threads. They bind each process; a fork shares none of its parent's use. Control groups bind the tree.
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.base import Limits

# libraries, thread stacks and allocators' reserves are address space but not memory
ADDRESS_SPACE_SLACK = 4 << 30
OWN_PROCESSES = 2  # bubblewrap itself, and the first process of its sandbox
JOIN = """
_left=$1; shift
while [ "$_left" -gt 0 ]; do echo $$ >"$1" || exit 125; shift; _left=$((_left-1)); done
exec "$@"
"""
CGROUP_ROOT = Path("/sys/fs/cgroup")


def rlimit_argv(limits: Limits) -> list[str]:
    """The words to put before argv so that it runs within the limits; core dumps are always off.

    Raises SandboxUnavailable if `prlimit` is missing.
    """
    words = [util_linux("prlimit"), "--core=0"]
    if limits.cpu_s is not None:
        words.append(f"--cpu={limits.cpu_s}")
    if limits.file_bytes is not None:
        words.append(f"--fsize={limits.file_bytes}")
    if limits.memory_bytes is not None:
        words += [f"--data={limits.memory_bytes}", f"--as={limits.memory_bytes + ADDRESS_SPACE_SLACK}"]
    if limits.processes is not None:
        words.append(f"--nproc={limits.processes + OWN_PROCESSES}")
    return [*words, "--"]


def util_linux(program: str) -> str:
    """A program of util-linux by its path. Raises SandboxUnavailable if it is missing."""
    if found := shutil.which(program, path="/usr/bin:/bin:/usr/local/bin"):
        return found
    raise SandboxUnavailable(f"no `{program}`, so commands can't be held; type: apt-get install util-linux")


@dataclass(frozen=True)
class Knob:
    """One controller's files: the limit, and the highest use seen (if it tells)."""

    controller: str
    limit: str
    peak: str | None


V1 = {
    "memory": Knob("memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    "pids": Knob("pids", "pids.max", None),
}
V2 = {"memory": Knob("", "memory.max", "memory.peak"), "pids": Knob("", "pids.max", None)}


@dataclass(frozen=True)
class ControlGroup:
    """One command's folders under /sys/fs/cgroup; empty where none is writable."""

    folders: tuple[Path, ...]
    peak_file: Path | None

    def join_argv(self) -> list[str]:
        """The words to put before argv so that it joins the groups first, then becomes argv."""
        if not self.folders:
            return []
        files = (str(folder / "cgroup.procs") for folder in self.folders)
        return ["/bin/sh", "-c", JOIN, "sh", str(len(self.folders)), *files]

    def peak_memory_bytes(self) -> int | None:
        with suppress(OSError, ValueError):
            return int(self.peak_file.read_text()) if self.peak_file else None
        return None

    def remove(self) -> None:
        """Take the folders away. One that still holds a dying process stays, empty, for the kernel."""
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()


def control_group(limits: Limits) -> ControlGroup:
    """Make a group that holds the tree to memory_bytes and processes, as far as this machine lets us."""
    processes = None if limits.processes is None else limits.processes + OWN_PROCESSES
    wanted = {"memory": limits.memory_bytes, "pids": processes}
    folders: list[Path] = []
    peak: Path | None = None
    for name, limit in wanted.items():
        parent, knob = _writable(name) if limit is not None else (None, None)
        if parent is None or knob is None:
            continue
        folder = _made(folders, parent)
        with suppress(OSError):
            (folder / knob.limit).write_text(str(limit))
        peak = folder / knob.peak if knob.peak else peak
    return ControlGroup(tuple(folders), peak)


def _made(folders: list[Path], parent: Path) -> Path:
    """The command's folder beneath `parent`: with one hierarchy (v2) both controllers share it."""
    for folder in folders:
        if folder.parent == parent:
            return folder
    folder = parent / f"odyssey-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    folders.append(folder)
    return folder


@lru_cache(maxsize=4)
def _writable(name: str) -> tuple[Path | None, Knob | None]:
    """Where we may make groups of a controller: beneath our own group, else at the hierarchy's root."""
    for parent, knob in _candidates(name):
        trial = parent / f"odyssey-trial-{uuid.uuid4().hex[:12]}"
        with suppress(OSError):
            trial.mkdir()
            try:
                if os.access(trial / knob.limit, os.W_OK) and os.access(trial / "cgroup.procs", os.W_OK):
                    return parent, knob
            finally:
                trial.rmdir()
    return None, None


def _candidates(name: str) -> list[tuple[Path, Knob]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    places: list[tuple[Path, Knob]] = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if name in controllers.split(","):
            places += [(CGROUP_ROOT / name / own.lstrip("/"), V1[name]), (CGROUP_ROOT / name, V1[name])]
        elif not controllers:
            places += [(CGROUP_ROOT / own.lstrip("/"), V2[name]), (CGROUP_ROOT, V2[name])]
    return places
