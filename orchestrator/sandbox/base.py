"""What every sandbox takes and gives: a command with its mounts and limits in, what it did out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

OnOutput = Callable[[str], None]
More = Callable[[], float]


@dataclass(frozen=True)
class Mount:
    """A host file or folder seen inside at `target` (absolute). Read-only unless `writable`."""

    source: Path
    target: Path
    writable: bool = False


@dataclass(frozen=True)
class Limits:
    """What a command may use; None is unlimited.

    wall_s: seconds by the clock, the whole process tree dies after.
    cpu_s: CPU seconds of each process.
    memory_bytes: of each process (rlimits), and of the tree where cgroups are writable.
    file_bytes: the largest file that may be written.
    output_bytes: kept of stdout and of stderr, the first and the last half each.
    processes: in the tree; held by cgroups where writable, else by RLIMIT_NPROC, which root ignores.
    """

    wall_s: float = 600.0
    cpu_s: int | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None
    output_bytes: int = 1_000_000
    processes: int | None = None


@dataclass(frozen=True)
class Command:
    """argv runs in `cwd` (a path inside) with `env` on top of the sandbox's own small environment.

    more: asked when `limits.wall_s` is over, and whenever what it gave is: so many seconds more, or 0 to end it.
    """

    argv: tuple[str, ...]
    cwd: Path
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    limits: Limits = field(default_factory=Limits)
    more: More | None = None


@dataclass(frozen=True)
class Completed:
    """What a command did. `exit_code` is minus the signal if one ended it; 127 is "no such command".

    `truncated`: stdout or stderr was longer than kept. `peak_memory_bytes`: of the tree where cgroups are writable,
    else of the largest process; None if the tree had to be killed before it could be asked.
    """

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int | None


class Sandbox(Protocol):
    """Runs commands; `tier` ("bubblewrap" or "none") goes on every receipt. Safe to call from many threads."""

    @property
    def tier(self) -> str: ...

    def run(self, command: Command, on_output: OnOutput | None = None) -> Completed:
        """Run to the end or to the limits. `on_output` gets stdout and stderr as they come, in this thread.

        Raises SandboxUnavailable if the sandbox could not be built; never for what the command does.
        """
        ...
