"""What the self-test tries from inside, as a program of its own: standard library only, run with `python -I -S`.

It takes JSON on stdin ({"<try>": argument}) and prints JSON ({"<try>": what it got, or null where it was stopped}).
Outside the sandbox every try succeeds (`kernel` for root only): so the tests know that a "stopped" means something.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

ATTEMPT_S = 1.0


def connect_tcp(port: int) -> str:
    """Reach a listener on the host's loopback."""
    with socket.create_connection(("127.0.0.1", port), ATTEMPT_S) as connection:
        return connection.recv(64).decode()


def connect_unix(address: str) -> str:
    """Reach a unix socket by its path, or by its abstract name if it starts with `@`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ATTEMPT_S)
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
        return connection.recv(64).decode()


def read_file(path: str) -> str:
    """Read a file that is not mounted."""
    return Path(path).read_text()


def write_file(path: str) -> str:
    """Write where nothing writable is mounted."""
    Path(path).write_text("escaped")
    return "written"


def find_in_environments(canary: str) -> str:
    """Find a word in our own environment, or in that of any process that /proc shows, process 1 among them."""
    processes = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for folder in ("self", *processes):
        try:
            if canary.encode() in Path(f"/proc/{folder}/environ").read_bytes():
                return f"/proc/{folder}/environ"
        except OSError:
            continue
    raise LookupError(canary)


def signal_process(pid: int) -> str:
    """Reach a process of the host by its number."""
    if str(os.getpid()) == str(pid):
        raise ProcessLookupError(pid)
    os.kill(pid, 0)
    return Path(f"/proc/{pid}/cmdline").read_text()


def open_kernel_setting(path: str) -> str:
    """Open one of the kernel's settings for writing. Nothing is written: if this works, that is enough."""
    os.close(os.open(path, os.O_WRONLY))
    return "opened for writing"


TRIES: dict[str, Callable[..., str]] = {
    "tcp": connect_tcp,
    "unix": connect_unix,
    "abstract": connect_unix,
    "file": read_file,
    "write": write_file,
    "environment": find_in_environments,
    "process": signal_process,
    "kernel": open_kernel_setting,
}


def attempt(name: str, argument: object) -> str | None:
    """What the try got; None if anything at all stopped it."""
    try:
        return TRIES[name](argument)
    except (OSError, LookupError, ValueError):
        return None


def main() -> None:
    tries = json.load(sys.stdin)
    json.dump({name: attempt(name, argument) for name, argument in tries.items()}, sys.stdout)


if __name__ == "__main__":
    main()
