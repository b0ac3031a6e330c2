"""The processes that train a group's seeds side by side.

They get a session of their own: a Ctrl-C reaches them through here only, once, so that each ends its step and saves.
Should this process be killed, the kernel tells them to end alike.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mlcore.config import Recipe
from mlcore.errors import Interrupted
from mlcore.group import Group
from mlcore.session import threads_wanted
from mlcore.stop import SIGNALS

MLCORE = "from mlcore.crew import end_with_parent; end_with_parent(); from mlcore.cli import main; main()"
PARENT_DEATH = 1  # Linux: prctl(PR_SET_PDEATHSIG, ...)

Say: TypeAlias = Callable[[str], None]


def train(group: Group, say: Say) -> list[dict[str, Any]]:
    """Train what is left of all seeds: each one's result, or its error, in the order of the seeds.

    Raises Interrupted when a signal came; those under way have saved then.
    """
    crew = _Crew(group, say, *shares(group.recipe(), len(group.seeds), os.environ))
    documents = asyncio.run(crew.all())
    if crew.signal:
        finished = sum(document.get("status") == "finished" for document in documents)
        raise Interrupted(
            f"stopped with {finished} of {len(documents)} seeds finished",
            signal_number=crew.signal,
            fix=f"go on with `mlcore train --resume {group.path}`",
        )
    return documents


def shares(recipe: Recipe, seeds: int, environ: Mapping[str, str]) -> tuple[int, int]:
    """(processes at a time, threads of each). A recipe that names its threads has so many in each process."""
    total = threads_wanted(0, environ)
    if recipe.threads:
        return min(seeds, max(1, total // recipe.threads)), recipe.threads
    processes = min(seeds, total)
    return processes, total // processes


def end_with_parent() -> None:
    """For a seed's process: have it told to stop, and so to save, when the group's process dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGTERM)


@dataclass
class _Crew:
    """The processes under way: up to `most` at a time, of `threads` each."""

    group: Group
    say: Say
    most: int
    threads: int
    signal: int = 0
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def all(self) -> list[dict[str, Any]]:
        """Every seed's result or error, in the order of the seeds."""
        seeds, free = self.group.seeds, asyncio.Semaphore(self.most)
        self.say(f"{len(seeds)} seeds, {self.most} at a time, threads each: {self.threads}; into {self.group.path}")
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._pass_on, number)
        return list(await asyncio.gather(*(self._one(seed, free) for seed in seeds)))

    def _pass_on(self, number: int) -> None:
        """One signal to each process: they save and end; none is started any more."""
        self.signal = self.signal or number
        for process in self.running:
            if process.returncode is None:
                process.send_signal(number)

    async def _one(self, seed: int, free: asyncio.Semaphore) -> dict[str, Any]:
        async with free:
            if self.signal:
                return {"message": "not begun", "exit_code": 128 + self.signal}
            environment = {**os.environ, "MLCORE_THREADS": str(self.threads)}
            argv, pipe = (sys.executable, "-c", MLCORE, *self.group.arguments(seed)), asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *argv, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
            )
            self.running.append(process)
            if self.signal:  # it came while this one was being started
                process.send_signal(self.signal)
            text, _ = await asyncio.gather(_read(process), self._tell(seed, process))
            return _document(text, await process.wait())

    async def _tell(self, seed: int, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        async for line in process.stderr:
            self.say(f"seed {seed}: {line.decode(errors='replace').rstrip()}")


async def _read(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout
    return await process.stdout.read()


def _document(text: bytes, code: int) -> dict[str, Any]:
    """What a process printed: its result, or its error."""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    ended = {} if code == 0 and said else {"exit_code": code, "status": "failed"}
    return {"message": "died without a word", **said, **ended}
