"""The durable workflows: hand out a plan, do a task. Everything that has an effect is a step; the rest is pure.

plan: hand the tasks out; while any is left, start those whose needs are met, wait until one ends
task: for each tier of its ladder: open a worktree, let the agent work, freeze the change, let the gate judge;
      then, for a language model's change, the levels above read it, as far up as its risk deserves;
      then publish it as a pull request, or say why not
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from orchestrator import attempt as attempts
from orchestrator import outcomes, publish, review, risk
from orchestrator.calls import BUDGET, NO_MODEL, Calls, Json
from orchestrator.colleagues import Blocked, Team
from orchestrator.engine import DATABASE, Engine, Paused
from orchestrator.forge.base import Forge
from orchestrator.gate import Gate
from orchestrator.hierarchy import Hierarchy, plan_key, todo
from orchestrator.house import Run
from orchestrator.loop import Attempt, Loop, Outcome
from orchestrator.providers.base import Provider
from orchestrator.records import Assignment, Change, Judgement, Task, Tier
from orchestrator.review import Reviewing
from orchestrator.schedule import ENDED, PAUSED, Schedule

MAX_REBASES = 5
REVIEWED = ("accepted", "unmeasured", "missed")


@dataclass(frozen=True)
class Tried:
    """One attempt that came to a judgement. judged: how many at the task did, dearer ones after a miss among them."""

    change: Change
    judgement: Judgement
    outcome: Outcome
    judged: int = 0


class Unanswered(Exception):
    """The service will not answer, whoever is asked: no dearer tier is tried, and this one is not to blame."""

    status = "blocked"

    def __str__(self) -> str:
        remedy = "no dearer model was asked; mend what is named (endpoint and model ids: in your own config.toml)"
        return f"{super().__str__()}\n{remedy} and run the plan again"


class Runner:
    def __init__(self, run: Run, forge: Forge, secret: bytes) -> None:
        self._run = run
        self._forge = forge
        self._secret = secret
        self._publishing = threading.Lock()
        database = run.state.path("runs", run.id) / DATABASE
        self._engine = Engine(database, {"delegate": self.delegate, "task": self.do_task}, self._hold, self._leave)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._todo = todo(run.plan, run.assignments, run.ledger.statuses(run.id))
        self._key = plan_key(run.plan, run.library, self._todo)
        self._assign(self._delegation())
        run.ledger.on_warning = lambda _, task, words: run.hear(task, "budget", words)

    def go(self) -> str:
        """Run, or go on. Returns the run's status. Raises Paused."""
        for task in self._paused():
            self._run.ledger.set_task(self._run.id, task, status="running")
        self._run.ledger.settle(self._run.id)
        with self._engine:
            return str(asyncio.run(self._engine.drive(self.run_plan())))

    # The plan. What is done stands in the ledger, so this needs no journal of its own

    async def run_plan(self) -> str:
        run = self._run
        await self._hand_out()
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Queue()
        schedule = Schedule(run.plan, run.ledger.statuses(run.id))
        at_work: set[str] = set()
        while not schedule.over:
            while len(at_work) < run.settings.parallel and (task := schedule.take()):
                at_work.add(task)
                await self._engine.spawn("task", f"{run.id}/{task}", task)
            stuck = schedule.stuck()
            for waiting, why in stuck.items():
                self._set(waiting, status="blocked", detail=why)
                schedule.end(waiting, "blocked")
            if not stuck:
                ended, status = await self._ended.get()
                schedule.hold(ended) if status == PAUSED else schedule.end(ended, status)
                at_work.discard(ended)
        self._raise_paused()
        outcome = "accepted" if set(schedule.status.values()) == {"accepted"} else "incomplete"
        run.ledger.set_run(run.id, status=outcome, finished_at=run.ledger.time())
        return outcome

    def _raise_paused(self) -> None:
        """Tasks whose own budgets are used up end the run resumable, once everything else is done."""
        if paused := self._paused():
            why = [row["detail"] for row in self._run.ledger.each_task(self._run.id) if row["id"] in paused]
            raise Paused("\n".join(why), BUDGET, paused[0])

    def _paused(self) -> list[str]:
        return [task for task, status in self._run.ledger.statuses(self._run.id).items() if status == PAUSED]

    async def _hand_out(self) -> None:
        """Let the hierarchy hand out what language models will do, once for these tasks and these people.

        One in which somebody gave no answer that can be used is this run's alone: the next run asks again.
        """
        run, kept = self._run, self._delegation()
        if kept is None and self._todo and attempts.model(run, lambda *_: None):
            made = await self._engine.finish("delegate", f"{run.id}/@plan")
            whole = len(json.loads(made)) == len(self._todo)
            kept = run.ledger.keep_delegation(self._key if whole else run.id, run.id, made)
        self._assign(kept)

    def _delegation(self) -> str | None:
        return self._run.ledger.delegation(self._run.id) or self._run.ledger.delegation(self._key)

    def _assign(self, kept: str | None) -> None:
        for each in json.loads(kept or "[]"):
            assignment = Assignment.model_validate(each)
            if assignment.task in self._run.assignments:
                self._run.assignments[assignment.task] = assignment
                self._run.ledger.set_task(self._run.id, assignment.task, agent=assignment.agent)

    async def delegate(self) -> Json:
        """The workflow in which the chief and the leads are asked."""
        run = self._run
        provider = attempts.model(run, partial(run.say, ""))
        if provider is None:  # the run was resumed without one: the planner's word stands
            return "[]"
        hierarchy = Hierarchy(
            run.plan,
            run.library,
            self._calls("", provider),
            run.id,
            run.settings.models,
            lambda words: run.say("", "delegated", words),
        )
        return json.dumps([each.model_dump(mode="json") for each in await hierarchy.assign(self._todo)])

    # One task

    async def do_task(self, task_id: str) -> Json:
        task = self._run.task(task_id)
        try:
            return await self._climb(task)
        except Exception as error:
            # Whatever a step raised ends this task, not the run; the journal gives the same error again on replay.
            return await self._end(task, "failed", f"{type(error).__name__}: {error}")

    async def _climb(self, task: Task) -> Json:
        """The ladder of tiers: each attempt starts afresh from files, with the last failure as evidence.

        A miss was measured: it stands, whatever becomes of later attempts, until code that differs is measured too.
        """
        feedback, last, missed = "", cast(Tried | None, None), cast(Tried | None, None)
        begun = await self._engine.step("begin", partial(self._begin, task))
        for number, tier in enumerate(begun["ladder"], 1):
            opened = begun["opened"] if number == 1 else await self._reopen(task, number, tier)
            if opened is None:
                return await self._out_of_brains(task, tier, missed or last)
            try:
                last = replace(await self._try(task, number, tier, feedback, opened, missed), judged=number)
            except (Blocked, Unanswered) as stopped:
                return await self._give_up(task, missed or last, stopped.status, str(stopped))
            if last.judgement.outcome in ("accepted", "unmeasured"):
                return await self._publish(task, last)
            missed = last if last.judgement.outcome == "missed" else missed and replace(missed, judged=number)
            feedback = last.judgement.feedback
            self._run.say(task.id, "refused", feedback)
        return await self._give_up(task, missed or last, "failed", feedback)

    async def _try(
        self, task: Task, number: int, tier: Tier, feedback: str, opened: Json, missed: Tried | None
    ) -> Tried:
        """One attempt. missed: what an earlier one measured; code that is the same gets no second draw of seeds."""
        worktree = Path(opened["worktree"])
        provider = attempts.brain(self._run, task, number, tier, feedback) or await self._unplugged(task)
        loop = self._agents(task, provider)
        attempt = attempts.prepare(self._run, task, number, tier, worktree, feedback)
        outcome = await loop.work(replace(attempt, tree=opened["tree"]))
        if outcome.unanswered:
            raise Unanswered(outcome.text)
        frozen = await self._engine.step("freeze", partial(self._freeze, task, number, tier, outcome, opened["base"]))
        change = Change.model_validate(frozen)
        if not outcome.finished:
            return Tried(change, self._unfinished(task, change, outcome), outcome)
        if missed and not await self._engine.step("differs", partial(self._differs, task, missed.change, change)):
            return missed
        judgement = await self._judge(task, change)
        if tier != "procedure" and judgement.outcome in REVIEWED:
            judgement = await self._review(task, attempt, change, judgement, outcome, provider)
        return Tried(change, judgement, outcome)

    def _agents(self, task: Task, provider: Provider) -> Loop:
        """The loop, with the colleagues whom its agents may ask; a procedure asks nobody."""
        calls = self._calls(task.id, provider)
        if provider.name == "procedure":
            return Loop(calls, self._run.repository, self._engine)
        team = Team(self._run, task, lambda: self._agents(task, provider))
        return Loop(calls, self._run.repository, self._engine, team)

    async def _review(
        self, task: Task, worked: Attempt, change: Change, judgement: Judgement, outcome: Outcome, provider: Provider
    ) -> Judgement:
        """Each level above reads the change and what those below it found, as far up as the risk by now deserves."""
        run, assignment = self._run, self._run.assignments[task.id]
        skill = run.library.skills.get(review.SKILL)
        if len(assignment.chain) < 2 or skill is None or not change.files:
            return judgement
        diff = run.repository.diff(change.base, change.commit)
        asked = Reviewing(run.plan, task, assignment.brief, assignment.agent, outcome.text, diff, judgement.outcome)
        loop, level = Loop(self._calls(task.id, provider), run.repository, self._engine), 0
        while judgement.outcome in REVIEWED and (
            above := review.readers(assignment.chain, judgement.risk.level)[level:]
        ):
            reviewer, level = run.library.agents[above[0]], level + 1
            asked = replace(asked, found=judgement.review)
            reading = review.attempt(asked, reviewer, skill, worked, run.settings.models[reviewer.model], level)
            judgement = review.judged(judgement, await review.read(loop, reading), reviewer.name)
            run.say(task.id, "review", "; ".join(judgement.review[len(asked.found) :]))
        return judgement

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
            if "conflict" in done:
                return await self._end(task, "failed", done["conflict"], tried)
            if "stale" not in done:
                return done["status"]
            change = Change.model_validate(done["stale"])
            again = review.kept(tried.judgement, await self._judge(task, change))
            tried = replace(tried, change=change, judgement=again)
            if tried.judgement.outcome == "refused":
                return await self._end(task, "failed", f"after rebasing: {tried.judgement.feedback}")
        return await self._end(task, "failed", f"other changes moved the base {MAX_REBASES} times", tried)

    async def _out_of_brains(self, task: Task, tier: Tier, last: Tried | None) -> Json:
        need = (
            f"it needs a model of tier {tier}, and this run has none; start it with --provider anthropic and "
            "ANTHROPIC_API_KEY set, or with --provider mailbox to have the questions answered by whoever you like"
        )
        why = f"its procedure was refused: {last.judgement.feedback}\n" if last else ""
        return await self._give_up(task, last, "blocked", why + need)

    async def _unplugged(self, task: Task) -> Any:
        """What a language model began waits for one, where the run has none any more. Does not return."""
        need = "it needs --provider anthropic with ANTHROPIC_API_KEY set, mailbox or replay:FILE"
        why = f"task `{task.id}` is under way with a language model, and the run's provider is now `none`; {need}"
        return await self._engine.pause(why, NO_MODEL)

    async def _give_up(self, task: Task, last: Tried | None, status: str, why: str) -> Json:
        """The task's end, where no tier is left; what was measured is published even so."""
        if last and last.judgement.outcome == "missed":
            return await self._publish(task, last)
        return await self._end(task, status, why)

    # Steps

    async def _begin(self, task: Task) -> Json:
        """The router's ladder for this task, on record why, and where its first attempt works."""
        decision = outcomes.route(self._run, task)
        with self._run.ledger.together():
            self._run.ledger.set_task(self._run.id, task.id, why_tier=decision.why)
            self._run.say(task.id, "router", decision.why)
        opened = await self._open(task, 1, decision.tiers[0]) if decision.tiers else None
        return {"ladder": list(decision.tiers), "opened": opened}

    async def _reopen(self, task: Task, number: int, tier: Tier) -> Json:
        return await self._engine.step("open", partial(self._open, task, number, tier))

    async def _open(self, task: Task, number: int, tier: Tier) -> Json:
        """Where the attempt works; None when nobody can answer on its tier."""
        run = self._run
        if attempts.brain(run, task, number, tier, "") is None:
            return None
        head = run.repository.resolve(f"refs/heads/{run.stack}") or run.base_commit
        branch = f"odyssey/{run.id}/attempts/{task.id}/{number}"
        worktree, base = await asyncio.to_thread(run.repository.open, branch, head)
        with run.ledger.together():
            self._set(task.id, status="running", attempt=number, tier=tier, started_at=run.ledger.time())
            run.say(task.id, "attempt", f"{number}, tier {tier}, {run.assignments[task.id].agent}")
        return {"worktree": str(worktree), "base": base, "tree": run.repository.tree(base)}

    async def _freeze(self, task: Task, number: int, tier: Tier, outcome: Outcome, base: str) -> Json:
        run = self._run
        author = f"{run.assignments[task.id].agent} ({tier})"
        message = f"{task.title}\n\nPlan: {run.plan.path}\nTask: {task.id}, attempt {number}"
        commit = await asyncio.to_thread(run.repository.commit_snapshot, outcome.tree, base, message, author)
        return run.repository.change(task.id, number, tier, base, commit).model_dump(mode="json")

    async def _differs(self, task: Task, measured: Change, change: Change) -> Json:
        """Whether what could change the measurement did."""
        files = await asyncio.to_thread(self._run.repository.changed, measured.commit, change.commit)
        return any(publish.matters(self._run, task, file.path) for file in files)

    async def _publish_once(self, task: Task, tried: Tried) -> Json:
        def locked() -> Json:
            with self._publishing:
                return publish.publish(self._run, self._forge, task, tried.change, tried.judgement, tried.outcome.text)

        done = await asyncio.to_thread(locked)
        if "detail" not in done:
            return done
        return {"status": self._ended_as(task, tried.judgement.outcome, done["detail"], tried)}

    async def _end(self, task: Task, status: str, detail: str, tried: Tried | None = None) -> Json:
        async def end() -> str:
            return self._ended_as(task, status, detail, tried)

        return await self._engine.step("end", end)

    def _ended_as(self, task: Task, status: str, detail: str, tried: Tried | None) -> str:
        begun = self._run.ledger.attempts_at(self._run.id, task.id)
        verdicts = [each.model_dump(mode="json") for each in tried.judgement.verdicts] if tried else []
        # a dearer tier that was begun and had no answer is not the one that ended the task
        by = {"attempt": tried.change.attempt, "tier": tried.change.tier, "judged": tried.judged} if tried else {}
        self._set(task.id, status=status, detail=detail, verdicts=json.dumps(verdicts), **by)
        for number in range(1, (max(begun, tried.change.attempt) if tried else 0) + 1):
            self._run.repository.close(f"odyssey/{self._run.id}/attempts/{task.id}/{number}")
            self._clear(task, number)
        return status

    def _clear(self, task: Task, number: int) -> None:
        """Of what the gate made for an attempt, keep what the receipts speak of: each training's own folder."""
        for commit in self._run.state.path("gate", f"{self._run.id}-{task.id}-{number}").iterdir():
            for made in commit.iterdir():
                if made.name != "out" and made.is_dir():
                    shutil.rmtree(made, ignore_errors=True)

    def _hold(self, task_id: str, reason: str) -> None:
        """One task stops where it is; the rest of the plan goes on."""
        budget = self._run.task(task_id).budget
        where = f"; it is set in {self._run.plan.path}:{budget.line}" if budget else ""
        self._set(task_id, status=PAUSED, detail=f"{reason}{where}")

    async def _leave(self) -> None:
        """Answers under way are paid for: whatever ends the run waits for them."""
        under_way = self._run.ledger.under_way
        if under_way.keys:
            self._run.say("", "leaving", f"{len(under_way.keys)} answers under way are waited for; nothing else begins")
        await under_way.let_end()

    def _set(self, task: str, **fields: Any) -> None:
        ended = fields["status"] in ENDED
        if ended:
            fields["finished_at"] = self._run.ledger.time()
        with self._run.ledger.together():
            self._run.ledger.set_task(self._run.id, task, **fields)
            self._run.say(task, fields["status"], fields.get("detail", ""))
        if (ended or fields["status"] == PAUSED) and self._loop:
            self._loop.call_soon_threadsafe(self._ended.put_nowait, (task, fields["status"]))
