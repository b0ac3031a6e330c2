"""What the orchestrator itself costs: a plan of tasks that do nothing, and turns whose model answers at once.

Tasks go the whole way (worktree, loop, gate, pull request) by a procedure whose one step opens no process. Turns are
those of one conversation, journal and ledger and all, timed from one question to the model to the next.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.calls import Calls
from orchestrator.engine import Engine
from orchestrator.errors import OrchestratorError
from orchestrator.ledger import Ledger, load_key
from orchestrator.loop import Attempt, Loop
from orchestrator.providers.base import Reply, Request
from orchestrator.records import Budget
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from orchestrator.tools.base import ToolContext
from orchestrator.workspace import Repository, git

AGENT = (
    "---\nname: {name}\ndescription: {name}\ntools: [read, delegate]\nmodel: haiku\nlevel: {level}\n{more}---\nWork.\n"
)
SKILL = "---\nname: {name}\ndescription: does nothing\nallowed-tools: read\nmetadata:\n  {meta}\n---\nDo nothing.\n"
PROCEDURE = '[[step]]\nsay = "Nothing."\ntool = "skill"\n[step.input]\nname = "other"\n\n[finish]\nsay = "Done."\n'
TASK = "- [ ] `t{n}` Do nothing\n  - skill: nothing\n  - writes: notes/{n}.md\n"
FILES = {
    "agents/chief.md": AGENT.format(name="chief", level=0, more="delegates_to: [worker]\n"),
    "agents/worker.md": AGENT.format(name="worker", level=1, more="skills: [nothing, other]\n"),
    "skills/nothing/SKILL.md": SKILL.format(
        name="nothing", meta="procedure: scripts/procedure.toml\n  writes: notes/**"
    ),
    "skills/nothing/scripts/procedure.toml": PROCEDURE,
    "skills/other/SKILL.md": SKILL.format(name="other", meta="risk: low"),
    "pyproject.toml": "[tool.odyssey.tests]\nlow = []\nmedium = []\nhigh = []\n",
}


@dataclass(frozen=True)
class TaskCost:
    tasks: int
    seconds: float
    ms_per_task: float
    peak_mb: float  # of the largest process


@dataclass(frozen=True)
class TurnCost:
    turns: int
    median_ms: float
    p95_ms: float


def measure_tasks(count: int) -> TaskCost:
    """A run of `count` tasks in a fresh repository and a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tasks = "".join(TASK.format(n=number) for number in range(count))
        _repository(root, {**FILES, "plans/p.md": f"---\ntitle: Nothing\n---\n# Nothing\n\n## Tasks\n{tasks}"})
        started = time.monotonic()
        argv = [sys.executable, "-m", "orchestrator.cli", "run", "plans/p.md"]
        with (root.parent / f"{root.name}.log").open("w+") as log:
            process = subprocess.Popen(argv, cwd=root, stdout=subprocess.DEVNULL, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - started
            log.seek(0)
            words = log.read()[-500:]
        Path(log.name).unlink()
    if process.returncode:
        raise OrchestratorError(f"the run of {count} tasks ended with {process.returncode}: {words}")
    return TaskCost(count, round(seconds, 2), round(seconds * 1000 / count, 1), round(usage.ru_maxrss / 1024, 1))


def measure_turns(count: int) -> TurnCost:
    """One conversation of `count` turns, each with a call of a tool that opens no process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        commit = _repository(root / "user", FILES)
        book = Ledger(root / "ledger.db", load_key(root / "key"))
        book.open_run("r-1", budget=Budget(usd=1, tokens=10**9).model_dump_json())
        repository = Repository(root / "repo.git", root / "worktrees")
        repository.bring_in(root / "user", commit)
        worktree, _ = repository.open("odyssey/r-1/attempts/t/1", commit)
        brain = _Brain(count)
        attempt = _attempt(worktree, root / "outputs", count)

        async def work() -> Any:
            loop = Loop(Calls(brain, book, engine), repository, engine)
            return asdict(await loop.work(attempt))

        with Engine(root / "workflows.db", {"work": work}) as engine:
            asyncio.run(engine.drive(engine.finish("work", "w")))
        book.close()
    gaps = [(after - before) * 1000 for before, after in zip(brain.asked, brain.asked[1:], strict=False)]
    return TurnCost(len(gaps), round(statistics.median(gaps), 2), round(statistics.quantiles(gaps, n=20)[-1], 2))


@dataclass
class _Brain:
    """Answers at once: one call of a tool a turn, then an end."""

    turns: int
    asked: list[float] = field(default_factory=list)
    name: str = "bench"
    billed: bool = False

    async def reply(self, request: Request) -> Reply:
        self.asked.append(time.perf_counter())
        text = {"type": "text", "text": "I go on."}
        if request.turn >= self.turns:
            return Reply(content=(text,), stop_reason="end_turn")
        call = {"type": "tool_use", "id": f"c{request.turn}", "name": "skill", "input": {"name": "other"}}
        return Reply(content=(text, call), stop_reason="tool_use")


def _attempt(worktree: Path, outputs: Path, turns: int) -> Attempt:
    context = ToolContext(worktree, ("**",), (), UnsandboxedSandbox(), outputs, skills={"other": "Do nothing."})
    return Attempt(
        run="r-1", task="t", number=1, tier="haiku", model="bench", system="Work.", brief="Do nothing.",
        allowed=frozenset({"skill"}), tools=context, worktree=worktree, max_turns=turns + 1, window=10**9,
    )  # fmt: skip


def _repository(root: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    git(root, "init", "--quiet", "--initial-branch=main", ".")
    git(root, "add", "--all")
    who = ("-c", "user.name=bench", "-c", "user.email=bench@odyssey.invalid")
    git(root, *who, "commit", "--quiet", "--message", "The beginning")
    return git(root, "rev-parse", "HEAD")
