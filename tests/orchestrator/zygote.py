"""Runs `orchestrate` again and again in forks of one warm process, and kills a fork at the boundary that it is told.

Reads lines of JSON {"cwd", "argv", "kill", "at", "env", "service"}; answers {"code", "passed": [boundaries in order],
"err"}. A boundary is a call that has an effect, from before and from after: a send, a turn's tools and each of them, a
commit, a merge, a record; of `orchestrate pr merge` each command to git and each record. `kill` is the number of the
boundary at which the fork gets SIGKILL, -1 lets it end by itself; a boundary whose name is in `at` kills it earlier.
`service`: the address at which the fork believes Anthropic to be.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WHICH = {"tool": 0, "git": 1}  # the argument that says which tool or command it is


def boundaries() -> list[tuple[Any, str, str]]:
    from orchestrator import publish, tools
    from orchestrator.forge import local
    from orchestrator.ledger import Ledger
    from orchestrator.providers.anthropic import MessagesApi
    from orchestrator.workspace import Repository

    return [
        (MessagesApi, "reply", "send"),
        (Ledger, "begin_call", "intent"),
        (Ledger, "end_call", "paid"),
        (tools, "call_all", "tools"),
        (tools, "_whole", "tool"),
        (Repository, "commit_snapshot", "commit"),
        (Ledger, "add_receipt", "receipt"),
        (local.LocalForge, "open", "pull request"),
        (Repository, "set_branch", "merge"),
        (publish, "publish", "publish"),
        (local, "git", "git"),
        (Ledger, "set_pull", "status"),
    ]


class Counter:
    """Counts boundaries into a file that outlives the process, and dies at the one that was asked for."""

    def __init__(self, log: Path, kill: int, at: list[str]) -> None:
        self._file = log.open("w")
        self._kill, self._at = kill, at
        self._count = 0
        self._lock = threading.Lock()  # a turn's tools run side by side

    def __call__(self, name: str) -> None:
        with self._lock:
            self._file.write(name + "\n")
            self._file.flush()
            if self._count == self._kill or name in self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._count += 1


def around(function: Callable[..., Any], name: str, passed: Counter, is_async: bool) -> Callable[..., Any]:
    if is_async:

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            passed(f"before {name}")
            result = await function(*args, **kwargs)
            passed(f"after {name}")
            return result

        return call_async

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        told = f"{name} {args[WHICH[name]]}" if name in WHICH else name
        passed(f"before {told}")
        result = function(*args, **kwargs)
        passed(f"after {told}")
        return result

    return call


def child(job: dict[str, Any], log: Path, err: Path) -> None:
    os.chdir(job["cwd"])
    os.environ.pop("ANTHROPIC_BASE_URL", None)
    os.environ.update(job["env"])
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    passed = Counter(log, job["kill"], job["at"])
    for owner, attribute, name in boundaries():
        setattr(owner, attribute, around(getattr(owner, attribute), name, passed, name == "send"))
    if job["service"]:
        from orchestrator.providers import anthropic

        anthropic.SERVICE = job["service"]
    sys.argv = ["orchestrate", *job["argv"]]
    from orchestrator.cli import main

    main()


def warm() -> None:
    """Whatever a run imports, imported once."""
    import anthropic.resources.messages
    import anthropic.resources.models  # noqa: F401
    import dbos  # noqa: F401

    import orchestrator.cli
    import orchestrator.documents
    import orchestrator.runner
    import orchestrator.session
    import orchestrator.views  # noqa: F401


def main() -> None:
    warm()
    folder = Path(tempfile.mkdtemp())
    log, err = folder / "passed", folder / "err"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                child(json.loads(line), log, err)
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "passed": log.read_text().splitlines(),
            "err": err.read_text(),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
