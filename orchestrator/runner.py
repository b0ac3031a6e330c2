"""The durable workflows: run a plan, do a task. Everything that has an effect is a step; the rest is pure.

plan: while tasks are left, start those whose needs are met, wait until one ends
task: for each tier of its ladder: open a worktree, let the agent work, freeze the change, let the gate judge;
      then publish it as a pull request, or say why not
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from orchestrator import attempt as attempts
from orchestrator import publish, risk
from orchestrator.calls import Calls, Json
from orchestrator.engine import Engine
from orchestrator.forge.base import Forge
from orchestrator.gate import Gate
from orchestrator.house import Run
from orchestrator.loop import Loop, Outcome
from orchestrator.providers.base import Provider
from orchestrator.records import Change, Judgement, Plan, Task, Tier

DONE = ("accepted", "missed", "unmeasured")  # published: what needs them may go on
ENDED = (*DONE, "failed", "blocked")
POLL_S = 0.05
MAX_REBASES = 5


@dataclass(frozen=True)
class Tried:
    """One attempt that came to a judgement."""

    change: Change
    judgement: Judgement
    outcome: Outcome


class Runner:
    def __init__(self, run: Run, forge: Forge, secret: bytes) -> None:
        self._run = run
        self._forge = forge
        self._secret = secret
        self._publishing = threading.Lock()
        database = run.state.path("runs", run.id) / "workflows.db"
        self._engine = Engine(database, {"plan": self.run_plan, "task": self.do_task})

    def go(self) -> str:
        """Run, or go on. Returns the run's status. Raises Paused."""
        with self._engine:
            return str(asyncio.run(self._engine.run("plan", f"{self._run.id}/plan")))

    # The plan

    async def run_plan(self) -> Json:
        started: list[str] = []
        while True:
            status = await self._engine.step("look", self._look)
            for task in startable(self._run.plan, status, started, self._run.settings.parallel):
                started.append(task)
                await self._engine.spawn("task", f"{self._run.id}/{task}", task)
            ended = [task for task in status if status[task] in ENDED]
            if len(ended) == len(status):
                return await self._engine.step("finish", partial(self._finish, status))
            stuck = blocked(self._run.plan, status)
            if stuck:
                await self._engine.step("block", partial(self._block, stuck))
            else:
                await self._engine.step("wait", partial(self._wait, len(ended)))

    async def _look(self) -> dict[str, str]:
        return {row["id"]: row["status"] for row in self._run.ledger.tasks(self._run.id)}

    async def _wait(self, ended: int) -> int:
        while sum(status in ENDED for status in (await self._look()).values()) <= ended:
            await asyncio.sleep(POLL_S)
        return ended

    async def _block(self, stuck: dict[str, str]) -> None:
        for task, why in stuck.items():
            self._set(task, status="blocked", detail=why)

    async def _finish(self, status: dict[str, str]) -> str:
        outcome = "accepted" if all(value == "accepted" for value in status.values()) else "incomplete"
        self._run.ledger.set_run(self._run.id, status=outcome, finished_at=self._run.ledger.time())
        return outcome

    # One task

    async def do_task(self, task_id: str) -> Json:
        task = self._run.task(task_id)
        try:
            return await self._climb(task)
        except Exception as error:
            # Whatever a step raised ends this task, not the run; the journal gives the same error again on replay.
            return await self._end(task, "failed", f"{type(error).__name__}: {error}")

    async def _climb(self, task: Task) -> Json:
        """The ladder of tiers: each attempt starts afresh from files, with the last failure as evidence."""
        feedback, last = "", cast(Tried | None, None)
        for number, tier in enumerate(self._run.assignments[task.id].tiers, 1):
            if not await self._engine.step("brain", partial(self._has_brain, task, number, tier)):
                return await self._out_of_brains(task, tier, last)
            last = await self._try(task, number, tier, feedback)
            if last.judgement.outcome in ("accepted", "unmeasured"):
                return await self._publish(task, last)
            feedback = last.judgement.feedback
            self._run.say(task.id, "refused", feedback)
        if last and last.judgement.outcome == "missed":
            return await self._publish(task, last)
        return await self._end(task, "failed", feedback)

    async def _try(self, task: Task, number: int, tier: Tier, feedback: str) -> Tried:
        opened = await self._engine.step("open", partial(self._open, task, number, tier))
        worktree = Path(opened["worktree"])
        provider = attempts.brain(self._run, task, number, tier, feedback)
        assert provider is not None, "checked by _climb"
        loop = Loop(self._calls(task.id, provider), self._run.repository, self._engine)
        outcome = await loop.work(attempts.prepare(self._run, task, number, tier, worktree, feedback))
        frozen = await self._engine.step("freeze", partial(self._freeze, task, number, tier, worktree, opened["base"]))
        change = Change.model_validate(frozen)
        if not outcome.finished:
            return Tried(change, self._unfinished(task, change, outcome), outcome)
        return Tried(change, await self._judge(task, change), outcome)

    def _calls(self, task_id: str, provider: Provider) -> Calls:
        run = self._run
        return Calls(provider, run.ledger, self._engine, run.settings.prices, tell=partial(run.say, task_id))

    def _unfinished(self, task: Task, change: Change, outcome: Outcome) -> Judgement:
        found = risk.assess(change, self._run.skill(task.id).risk)
        return Judgement(outcome="refused", risk=found, feedback=f"the agent did not finish: {outcome.text}")

    async def _judge(self, task: Task, change: Change) -> Judgement:
        return await Gate(self._run, task, change, self._engine, self._secret).judge()

    async def _publish(self, task: Task, tried: Tried) -> Json:
        """Stack the change on what was accepted meanwhile; judge it again where that could change what was measured."""
        for _ in range(MAX_REBASES):
            done = await self._engine.step("publish", partial(self._publish_once, task, tried))
            if "stale" not in done:
                return await self._end(task, tried.judgement.outcome, done["detail"], tried)
            change = Change.model_validate(done["stale"])
            tried = Tried(change, await self._judge(task, change), tried.outcome)
            if tried.judgement.outcome == "refused":
                return await self._end(task, "failed", f"after rebasing: {tried.judgement.feedback}")
        return await self._end(task, "failed", f"other changes moved the base {MAX_REBASES} times")

    async def _out_of_brains(self, task: Task, tier: Tier, last: Tried | None) -> Json:
        if last and last.judgement.outcome == "missed":
            return await self._publish(task, last)
        need = (
            f"it needs a language model (tier {tier}), and this run has none; start it with --provider anthropic and "
            "ANTHROPIC_API_KEY set, or with --provider mailbox to have the questions answered by whoever you like"
        )
        why = f"its procedure was refused: {last.judgement.feedback}\n" if last else ""
        return await self._end(task, "blocked", why + need)

    # Steps

    async def _has_brain(self, task: Task, number: int, tier: Tier) -> bool:
        return attempts.brain(self._run, task, number, tier, "") is not None

    async def _open(self, task: Task, number: int, tier: Tier) -> Json:
        run = self._run
        head = run.repository.resolve(f"refs/heads/{run.stack}") or run.base_commit
        branch = f"odyssey/{run.id}/attempts/{task.id}/{number}"
        worktree, base = await asyncio.to_thread(run.repository.open, branch, head)
        self._set(task.id, status="running", attempt=number, tier=tier, started_at=run.ledger.time())
        run.say(task.id, "attempt", f"{number}, tier {tier}, {run.assignments[task.id].agent}")
        return {"worktree": str(worktree), "base": base}

    async def _freeze(self, task: Task, number: int, tier: Tier, worktree: Path, base: str) -> Json:
        run = self._run
        author = f"{run.assignments[task.id].agent} ({tier})"
        message = f"{task.title}\n\nPlan: {run.plan.path}\nTask: {task.id}, attempt {number}"
        commit = await asyncio.to_thread(run.repository.commit, worktree, base, message, author)
        return run.repository.change(task.id, number, tier, base, commit).model_dump(mode="json")

    async def _publish_once(self, task: Task, tried: Tried) -> Json:
        def locked() -> Json:
            with self._publishing:
                return publish.publish(self._run, self._forge, task, tried.change, tried.judgement, tried.outcome.text)

        return await asyncio.to_thread(locked)

    async def _end(self, task: Task, status: str, detail: str, tried: Tried | None = None) -> Json:
        async def end() -> str:
            verdicts = [each.model_dump(mode="json") for each in tried.judgement.verdicts] if tried else []
            self._set(task.id, status=status, detail=detail, verdicts=json.dumps(verdicts))
            for number in range(1, (tried.change.attempt if tried else 0) + 1):
                self._run.repository.close(f"odyssey/{self._run.id}/attempts/{task.id}/{number}")
                self._clear(task, number)
            return status

        return await self._engine.step("end", end)

    def _clear(self, task: Task, number: int) -> None:
        """Of what the gate made for an attempt, keep what the receipts speak of: each training's own folder."""
        for commit in self._run.state.path("gate", f"{self._run.id}-{task.id}-{number}").iterdir():
            for made in commit.iterdir():
                if made.name != "out" and made.is_dir():
                    shutil.rmtree(made, ignore_errors=True)

    def _set(self, task: str, **fields: Any) -> None:
        if fields.get("status") in ENDED:
            fields["finished_at"] = self._run.ledger.time()
        self._run.ledger.set_task(self._run.id, task, **fields)
        if "status" in fields:
            self._run.say(task, fields["status"], fields.get("detail", ""))


# Pure: what may start, and what never will


def startable(plan: Plan, status: dict[str, str], started: list[str], parallel: int) -> list[str]:
    """Tasks whose needs are all published, in the plan's order, as many as there are free places."""
    free = parallel - sum(status[task] not in ENDED for task in started)
    ready = [
        task.id
        for task in plan.tasks
        if task.id in status
        and task.id not in started
        and status[task.id] not in ENDED
        and all(status.get(need, "accepted") in DONE for need in task.needs)
    ]
    return ready[: max(free, 0)]


def blocked(plan: Plan, status: dict[str, str]) -> dict[str, str]:
    """Tasks that wait for one that ended without being published, with the reason."""
    return {
        task.id: f"it needs `{need}`, which is {status[need]}"
        for task in plan.tasks
        if status.get(task.id) == "waiting"
        for need in task.needs
        if status.get(need) in ("failed", "blocked")
    }
