"""The sandbox proper: bubblewrap, with nothing of the host inside but what is mounted.

Inside: /usr and the Python that runs us (read-only), the command's mounts, an own /proc, /dev, /tmp and /dev/shm; no
network, no host process, no capability, no environment but the given one; user 65534, whose files belong outside to
whoever runs the orchestrator. `--ro-bind / /` would be shorter, and would let the host's unix sockets in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.base import Command, Completed, Mount, OnOutput
from orchestrator.sandbox.limits import ControlGroup, control_group, rlimit_argv
from orchestrator.sandbox.process import Ended, Launch, Usage, adopt_orphans, bury, supervise
from orchestrator.sandbox.seccomp import open_filter

TMP_BYTES = 512 << 20
SHM_BYTES = 512 << 20
ETC = ("ld.so.cache", "alternatives")  # how programs of /usr find each other; nothing about this machine or its users
NAMESPACES = ("--unshare-user", "--unshare-all", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL")
# Root that runs us stays root to the kernel's settings, whatever its number inside: one write to
# /proc/sys/kernel/core_pattern would run a program on the host.
READ_ONLY_PROC = ("--remount-ro", "/proc")
LIFETIME = ("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox")
# Killed without a word in a launch's first milliseconds, we would leave a sandbox running: bubblewrap binds its first
# process to its own life only when the rest is set up. So the command starts by waiting for that (the filter is put on
# that process next), then looks whether the other end of the lifeline, which only we hold, is still open.
ALIVE = """
_filter=
until [ "$_filter" = 2 ]; do
  while read -r _key _filter; do [ "$_key" = Seccomp: ] && break; done </proc/1/status
done
dd if=/proc/self/fd/"$1" iflag=nonblock bs=1 count=1 >/dev/null 2>&1 && exit 125
shift
exec "$@"
"""
OLDEST = (0, 5)
INSTALL = "type: apt-get install bubblewrap"


def find_bwrap(search_path: str | None = None) -> Path:
    """Bubblewrap's program, on `search_path` (default: PATH). Raises SandboxUnavailable with the command to type."""
    if sys.platform != "linux":
        raise SandboxUnavailable(f"the sandbox needs Linux, this is {sys.platform}; run Odyssey in a Linux machine")
    if found := shutil.which("bwrap", path=search_path):
        return Path(found)
    raise SandboxUnavailable(f"no bubblewrap on PATH, so nothing can be run safely; {INSTALL}")


def own_bin() -> Path:
    """Where the interpreter's commands are (`mlcore`, `pytest`): in a venv, its bin."""
    return Path(sys.prefix) / "bin"


@dataclass(frozen=True)
class BubblewrapSandbox:
    """Tier "bubblewrap". Mounts go in from the shallowest target to the deepest, in whatever order they are given."""

    bwrap: Path
    tier: str = field(default="bubblewrap", init=False)

    def run(self, command: Command, on_output: OnOutput | None = None) -> Completed:
        adopt_orphans()
        group = control_group(command.limits)
        with ExitStack() as stack:
            stack.callback(group.remove)
            rules = _closing(stack, open_filter())
            # a file: into a pipe whose reader died bubblewrap would write its death, and leave its child waiting
            status = _closing(stack, os.memfd_create("status"))
            lifeline, _ = (_closing(stack, fd) for fd in os.pipe())
            words = [*group.join_argv(), str(self.bwrap), "--seccomp", str(rules), "--json-status-fd", str(status)]
            launch = Launch(
                argv=[*words, *self._arguments(command), "--", *_alive(lifeline), *_limited(command)],
                env={},
                cwd="/",
                stdin=command.stdin,
                wall_s=command.limits.wall_s,
                more=command.more,
                output_bytes=command.limits.output_bytes,
                pass_fds=(rules, status, lifeline),
            )
            try:
                ended = supervise(launch, on_output, _kill_inside)
            finally:
                inside = bury(_status(status).get("child-pid"))
            return _completed(ended, _status(status).get("exit-code"), inside, group)

    @cached_property
    def version(self) -> tuple[int, ...]:
        """Raises SandboxUnavailable below 0.5, which can't clear the environment."""
        shown = subprocess.run([self.bwrap, "--version"], env={}, capture_output=True, text=True, check=False).stdout
        version = tuple(int(number) for number in re.findall(r"\d+", shown))
        if version < OLDEST:
            raise SandboxUnavailable(f"{self.bwrap}: {shown.strip() or 'no version'} is older than 0.5; {INSTALL}")
        return version

    def _arguments(self, command: Command) -> list[str]:
        words = [*NAMESPACES, *LIFETIME]
        if self.version >= (0, 8):
            words.append("--disable-userns")
        for name, value in {**base_env(), **command.env}.items():
            words += ["--setenv", name, value]
        words += ["--proc", "/proc", *READ_ONLY_PROC, "--dev", "/dev"]
        words += self._tmpfs("/dev/shm", SHM_BYTES) + self._tmpfs("/tmp", TMP_BYTES)
        words += _system_words()
        for mount in sorted((*interpreter_mounts(), *command.mounts), key=lambda mount: len(mount.target.parts)):
            words += ["--bind" if mount.writable else "--ro-bind", str(mount.source), str(mount.target)]
        return [*words, "--remount-ro", "/", "--chdir", str(command.cwd)]

    def _tmpfs(self, target: str, size: int) -> list[str]:
        sized = ["--size", str(size)] if self.version >= (0, 7) else []
        return ["--perms", "1777", *sized, "--tmpfs", target]


def _closing(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _limited(command: Command) -> list[str]:
    return [*rlimit_argv(command.limits), *command.argv]


def _alive(lifeline: int) -> list[str]:
    return ["/bin/sh", "-c", ALIVE, "sh", str(lifeline)]


def base_env() -> Mapping[str, str]:
    """The environment inside before the command's own: enough for Python and the shell, nothing of the host's."""
    path = os.pathsep.join((str(own_bin()), "/usr/local/bin", "/usr/bin", "/bin"))
    return {"PATH": path, "HOME": "/tmp", "TMPDIR": "/tmp", "USER": "nobody", "LOGNAME": "nobody", "LANG": "C.UTF-8"}


def interpreter_mounts() -> tuple[Mount, ...]:
    """The venv and the installation it stands on, read-only, under the names that their symlinks use."""
    prefixes = {Path(sys.prefix), Path(sys.base_prefix)}
    names = prefixes | {prefix.resolve() for prefix in prefixes}
    return tuple(Mount(name.resolve(), name) for name in sorted(names) if not name.is_relative_to("/usr"))


def _system_words() -> Iterable[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/") / name
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    for name in ETC:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return words


def _kill_inside(pid: int) -> None:
    """Kill the sandbox's first process, and so all in it; bubblewrap then reaps them and their use is counted."""
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


def _status(status_fd: int) -> dict[str, int]:
    """Bubblewrap's status documents in one: "child-pid", and "exit-code" if the command got to run."""
    status: dict[str, int] = {}
    for line in os.pread(status_fd, 1 << 16, 0).splitlines():
        status.update(json.loads(line))
    return status


def _completed(ended: Ended, exit_code: int | None, inside: Usage | None, group: ControlGroup) -> Completed:
    if exit_code is None and ended.returncode >= 0 and not ended.timed_out:
        raise SandboxUnavailable(diagnosis(ended.stderr.text()))
    code = ended.returncode if exit_code is None else exit_code
    if 128 < code <= 128 + signal.SIGRTMAX:  # bubblewrap reports a signal as shells do
        code = 128 - code
    return Completed(
        exit_code=-signal.SIGKILL if ended.timed_out else code,
        stdout=ended.stdout.text(),
        stderr=ended.stderr.text(),
        truncated=ended.stdout.truncated or ended.stderr.truncated,
        timed_out=ended.timed_out,
        wall_s=ended.wall_s,
        cpu_s=ended.cpu_s + (inside.cpu_s if inside else 0.0),
        peak_memory_bytes=group.peak_memory_bytes() or (inside.max_rss_bytes if inside else None),
    )


# what the kernel's switches for user namespaces are called, the value that forbids, and the command that mends it
SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
CONTAINER_FIX = "in a container, start it with: --security-opt seccomp=unconfined --security-opt systempaths=unconfined"


def diagnosis(stderr: str, switches: Iterable[tuple[str, str, str]] = SWITCHES) -> str:
    """Why bubblewrap built no sandbox, in its words, and what to type."""
    words = stderr.strip().removeprefix("bwrap: ") or "no reason given"
    if not re.search(r"namespace|uid map|Operation not permitted|No space left", words):
        return f"bubblewrap could not build the sandbox: {words}"
    for path, forbidding, fix in switches:
        with suppress(OSError):
            if Path(path).read_text().strip() == forbidding:
                return f"bubblewrap could not build the sandbox: {words}; user namespaces are off; type: {fix}"
    return f"bubblewrap could not build the sandbox: {words}; {CONTAINER_FIX}"
