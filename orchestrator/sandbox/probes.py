"""The sandbox's self-test at start: live canaries outside, and a program inside that goes for each of them.

A canary that is reached stops the run with what leaked. A sandbox that doesn't start, or has no working Python inside,
stops it too. About 50 ms.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox import canaries
from orchestrator.sandbox.base import Command, Limits, Mount, Sandbox
from orchestrator.sandbox.bubblewrap import BubblewrapSandbox, find_bwrap
from orchestrator.sandbox.unsafe import UnsandboxedSandbox

PROBE_S = 30.0
LEAKS = {
    "tcp": "the host's loopback network answers",
    "unix": "a unix socket of the host answers",
    "abstract": "an abstract unix socket of the host answers",
    "file": "a file that is not mounted can be read",
    "write": "a folder that is not mounted can be written",
    "environment": "a host process's environment can be read",
    "process": "a host process can be signalled",
    "kernel": "the kernel's settings can be written",
}


def choose_sandbox(unsafe: bool = False) -> Sandbox:
    """The sandbox to run with: bubblewrap, tested; or none, if a person said so (`unsafe`).

    Raises SandboxUnavailable with the command to type if there is no sandbox, or if it leaks.
    """
    if unsafe:
        return UnsandboxedSandbox()
    sandbox = BubblewrapSandbox(find_bwrap())
    self_test(sandbox)
    return sandbox


def self_test(sandbox: Sandbox) -> None:
    """Raises SandboxUnavailable if anything outside can be reached from inside."""
    leaks = escapes(sandbox)
    if leaks:
        told = "; ".join(f"{LEAKS[name]} ({got!r})" for name, got in leaks.items())
        raise SandboxUnavailable(
            f"the sandbox leaks: {told}. Nothing was run. Report this with `bwrap --version` and `uname -r`"
        )


def escapes(sandbox: Sandbox) -> dict[str, str]:
    """The tries that succeeded, and what each got; {} is what a sandbox should give."""
    script = Path(canaries.__file__).resolve()
    inside = Path("/probe/canaries.py")
    with live_canaries() as tries:
        command = Command(
            argv=(sys.executable, "-I", "-S", str(inside)),
            cwd=Path("/"),
            mounts=(Mount(script, inside),),
            stdin=json.dumps(dict(tries)).encode(),
            limits=Limits(wall_s=PROBE_S),
        )
        done = sandbox.run(command)
        try:
            got = json.loads(done.stdout)
        except ValueError as error:
            raise SandboxUnavailable(
                f"{sys.executable}: doesn't run in the sandbox (exit {done.exit_code}): {done.stderr.strip()[-500:]}"
            ) from error
        # what the host sees is the truth about writing
        if Path(str(tries["write"])).exists():
            got["write"] = "written"
    return {name: str(found) for name, found in got.items() if found is not None}


@contextmanager
def live_canaries() -> Iterator[Mapping[str, object]]:
    """Things outside that answer, and how to reach each: listeners, a secret file, a process with a secret."""
    token = secrets.token_hex(16)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="canary-")))
        (folder / "secret").write_text(token)
        path, abstract = str(folder / "socket"), f"@canary-{token}"
        tcp = _listener(stack, socket.AF_INET, ("127.0.0.1", 0), token)
        _listener(stack, socket.AF_UNIX, path, token)
        _listener(stack, socket.AF_UNIX, "\0" + abstract[1:], token)
        process = stack.enter_context(_sleeper(token))
        yield {
            "tcp": tcp.getsockname()[1],
            "unix": path,
            "abstract": abstract,
            "file": str(folder / "secret"),
            "write": str(folder / "written"),
            "environment": token,
            "process": process.pid,
            "kernel": "/proc/sys/kernel/core_pattern",
        }


def _listener(stack: ExitStack, family: int, address: object, token: str) -> socket.socket:
    """A socket that hands the token to whoever connects."""
    server = stack.enter_context(socket.socket(family))
    server.bind(address)  # type: ignore[arg-type]
    server.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.sendall(token.encode())

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(_shut, server)
    return server


def _shut(server: socket.socket) -> None:
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept


@contextmanager
def _sleeper(token: str) -> Iterator[subprocess.Popen[bytes]]:
    """A host process that holds the token in its environment and waits."""
    with subprocess.Popen(
        ["/bin/cat"], env={"CANARY": token}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()
