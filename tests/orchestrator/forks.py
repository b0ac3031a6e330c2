"""One warm process that runs `orchestrate` in forks: no imports anew, no patience needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.orchestrator.fakeapi import FakeApi, serving

RUN = ("run", "plans/p.md", "--provider", "anthropic")


@dataclass
class Forks:
    process: subprocess.Popen[str]
    url: str = ""
    service: bool = False  # whether the server at `url` is taken for the service itself, or for a local one

    def run(self, repo: Path, argv: Sequence[str], kill: int = -1, at: Collection[str] = ()) -> dict[str, Any]:
        """What the fork came to: its exit code, the boundaries that it passed, what it said."""
        env = {"ANTHROPIC_API_KEY": "k"} | ({} if self.service else {"ANTHROPIC_BASE_URL": self.url})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {
            "cwd": str(repo),
            "argv": list(argv),
            "kill": kill,
            "at": list(at),
            "env": env,
            "service": self.url if self.service else "",
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextmanager
def forks() -> Iterator[Forks]:
    argv, pipe = [sys.executable, "-m", "tests.orchestrator.zygote"], subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


def run(warm: Forks, repo: Path, api: FakeApi | None, *argv: str, kill: int = -1) -> tuple[int, str]:
    """Exit code and what was said, with this server behind ANTHROPIC_BASE_URL; None: with nothing there."""
    with serving(api) if api else nullcontext():
        done = replace(warm, url=api.url if api else "http://127.0.0.1:9").run(repo, argv, kill)
    return done["code"], done["err"]
