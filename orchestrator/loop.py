"""The agent loop: one agent, one task, one conversation. The assistant turn is kept before its tools run.

Every turn is two steps of the durable workflow: the reply (paid once, see `calls.py`; a procedure's is no step, for it
follows from the conversation) and the tools. The worktree is snapshotted after tools that can change it; a step that
was cut off starts again from the snapshot before it, so that its effects happen once, and after MOST_CUT_OFFS times its
calls are answered as cut off instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator import config, tools
from orchestrator.calls import BUDGET, FAILED, MOST_ROOM, Calls, Durable, Place
from orchestrator.conversation import Failures, assistant, error_result, handed_over, too_long, user
from orchestrator.errors import BudgetExhausted
from orchestrator.meter import MeteredSandbox
from orchestrator.providers.base import Block, Message, Reply, Request
from orchestrator.providers.rendering import written_out
from orchestrator.records import Tier
from orchestrator.tools.base import ToolContext
from orchestrator.workspace import Repository

Json = Any
ROOM = 8192  # tokens of one answer: doubled when one was cut off
MOST_CUT_OFFS = 20  # of one turn: a person may stop a run often, but what brings the machine down has to end


@dataclass(frozen=True)
class Attempt:
    """One try at a task: who answers, with which tools, where.

    chain: the agents from level 0 down to this one, a sub-agent's superiors among them. helper: a sub-agent's place
    beneath the attempt, "" for the agent itself. window: tokens of conversation after which it is handed over to a
    fresh one, None for the tier's. answer_schema: the shape of its last word, where it is not prose. tree: the worktree
    as it is now, when that is known.
    """

    run: str
    task: str
    number: int
    tier: Tier
    model: str
    system: str
    brief: str
    allowed: frozenset[str]
    tools: ToolContext
    worktree: Path
    max_turns: int
    chain: tuple[str, ...] = ()
    helper: str = ""
    window: int | None = None
    answer_schema: dict[str, Any] | None = None
    tree: str = ""

    @property
    def agent(self) -> str:
        return self.chain[-1] if self.chain else ""

    @property
    def node(self) -> str:
        """Its place in the tree of budgets."""
        return f"{self.task}/{self.number}" + (f"/{self.helper}" if self.helper else "")

    @property
    def key(self) -> str:
        return f"{self.run}/{self.node}"


@dataclass(frozen=True)
class Outcome:
    finished: bool  # the agent says that it is done; the gate decides whether that is so
    text: str
    turns: int
    tree: str = field(default="", compare=False)  # the worktree as the last turn left it
    unanswered: bool = False  # the service gave no reply, so the agent is not to blame


class Colleagues(Protocol):
    """Who answers the calls that ask another agent."""

    @property
    def names(self) -> frozenset[str]: ...

    def specs(self, attempt: Attempt) -> list[dict[str, Any]]: ...

    def ask(self, attempt: Attempt, turn: int, call: Block) -> Awaitable[Block]: ...


class Nobody:
    """An agent that works alone."""

    names: frozenset[str] = frozenset()

    def specs(self, attempt: Attempt) -> list[dict[str, Any]]:
        return []

    async def ask(self, attempt: Attempt, turn: int, call: Block) -> Block:
        raise AssertionError("nobody is there to be asked")


@dataclass(frozen=True)
class Loop:
    """Replies, and the rooms that a turn's tools pass through."""

    calls: Calls
    repository: Repository
    durable: Durable
    colleagues: Colleagues = field(default_factory=Nobody)

    async def work(self, attempt: Attempt) -> Outcome:
        """Let the provider and the tools take turns until the agent ends its turn."""
        talk: list[Message] = [user(attempt.brief)]
        tree = attempt.tree or await self.durable.step(f"{attempt.node} snapshot", lambda: self._snapshot(attempt))
        room, failures = ROOM, Failures()
        for turn in range(attempt.max_turns):
            reply = await self._reply(attempt, turn, talk, room)
            match reply.stop_reason:
                # what a local server says beside its calls may be any of these
                case "tool_use" | "end_turn" | "stop_sequence" if reply.tool_calls:
                    before, (results, tree) = tree, await self._results(attempt, turn, reply, tree)
                    talk += [assistant(reply), user(failures.told(reply.tool_calls, results, tree != before))]
                    if failures.stuck:
                        return Outcome(False, failures.stuck, turn + 1, tree)
                case "end_turn" | "stop_sequence":
                    return Outcome(True, reply.text, turn + 1, tree)
                case "pause_turn" | "compaction":
                    talk += [assistant(reply)]
                case "max_tokens" if room < MOST_ROOM:
                    room *= 2  # asked again with more room; the calls of an answer that was cut off are never run
                case "model_context_window_exceeded" if len(talk) > 1:
                    talk = await self._hand_over(attempt, turn, talk)
                case _:
                    return Outcome(False, _stopped(reply), turn + 1, tree, reply.stop_reason == FAILED)
            if too_long(reply, talk, attempt.window or config.window(attempt.tier)):
                talk = await self._hand_over(attempt, turn, talk)
        return Outcome(False, f"no end after {attempt.max_turns} turns", attempt.max_turns, tree)

    async def _reply(self, attempt: Attempt, turn: int, talk: list[Message], room: int) -> Reply:
        request = Request(
            who=attempt.node,
            turn=turn,
            tier=attempt.tier,
            model=attempt.model,
            system=attempt.system,
            messages=tuple(talk),
            tools=(*tools.specs(attempt.allowed), *self.colleagues.specs(attempt)),
            max_tokens=room,
            answer_schema=attempt.answer_schema,
        )
        return await self.calls.reply(Place(attempt.run, attempt.task, attempt.node, attempt.number), request)

    async def _results(self, attempt: Attempt, turn: int, reply: Reply, tree: str) -> tuple[list[Block], str]:
        """Every call of the turn answered, in the order of the calls: one's own tools first, then colleagues."""
        asked = [call for call in reply.tool_calls if call["name"] in self.colleagues.names]
        own = [call for call in reply.tool_calls if call not in asked]
        done = await self.durable.step(
            f"{attempt.node} tools {turn}", lambda: self._use_tools(attempt, turn, own, reply.broken, tree)
        )
        answers, tree = {block["tool_use_id"]: block for block in done["results"]}, done["tree"]
        for call in asked:
            answers[call["id"]] = await self.colleagues.ask(replace(attempt, tree=tree), turn, call)
            tree = await self.durable.step(f"{attempt.node} after {call['id']}", lambda: self._snapshot(attempt))
        return [answers[call["id"]] for call in reply.tool_calls], tree

    async def _snapshot(self, attempt: Attempt) -> str:
        return await asyncio.to_thread(self.repository.snapshot, attempt.worktree)

    async def _use_tools(
        self, attempt: Attempt, turn: int, calls: list[Block], broken: dict[str, str], tree: str
    ) -> Json:
        try:
            return await asyncio.to_thread(self._use_all, attempt, turn, calls, broken, tree)
        except BudgetExhausted as error:
            return await self.durable.pause(str(error), BUDGET, error.task)

    def _use_all(self, attempt: Attempt, turn: int, calls: list[Block], broken: dict[str, str], tree: str) -> Json:
        """Run the turn's calls, side by side where their order can't matter, from the snapshot the turn began with."""
        cut_off = self.calls.ledger.begin(f"tools:{attempt.key}/{turn}")
        if cut_off:
            self.repository.restore(attempt.worktree, tree)
        if cut_off > MOST_CUT_OFFS:
            why = f"this turn's calls were cut off {cut_off} times, together with what ran them, and are not run again"
            return {"results": [error_result(call, why) for call in calls], "tree": tree}
        sound = [call for call in calls if call["id"] not in broken]
        found = dict(zip((call["id"] for call in sound), self._side_by_side(attempt, sound), strict=True))
        found |= {call["id"]: error_result(call, broken[call["id"]]) for call in calls if call["id"] in broken}
        changed = any(call["name"] not in tools.LOOKS for call in sound)
        tree = self.repository.snapshot(attempt.worktree) if changed else tree
        return {"results": [found[call["id"]] for call in calls], "tree": tree}

    def _side_by_side(self, attempt: Attempt, calls: list[Block]) -> list[Block]:
        wanted = [(call["name"], call["input"]) for call in calls]
        results = tools.call_all(wanted, self._metered(attempt), attempt.allowed)
        return [
            {"type": "tool_result", "tool_use_id": call["id"], "content": result.content}
            | ({"is_error": True} if result.is_error else {})
            for call, result in zip(calls, results, strict=True)
        ]

    def _metered(self, attempt: Attempt) -> ToolContext:
        """The attempt's reach, with its commands on its own account."""
        account = (self.calls.ledger, attempt.run, attempt.task, attempt.node, "tools")
        return replace(attempt.tools, sandbox=MeteredSandbox(attempt.tools.sandbox, *account))

    async def _hand_over(self, attempt: Attempt, turn: int, talk: list[Message]) -> list[Message]:
        """A fresh conversation that can read the old one in a file."""
        name = f"conversation-{attempt.helper.replace('/', '-')}{turn}.md"

        async def keep() -> str:
            attempt.tools.outputs.mkdir(parents=True, exist_ok=True)
            (attempt.tools.outputs / name).write_text(written_out(talk), errors="replace")
            return name

        await self.durable.step(f"{attempt.node} hand over {turn}", keep)
        return [user(handed_over(attempt.brief, f"@outputs/{name}", talk))]


def _stopped(reply: Reply) -> str:
    """Why an attempt ended without the agent ending it, in words for the next one and for a person."""
    known = {
        "max_tokens": f"an answer was still cut off at {MOST_ROOM} tokens: the task is too large for one",
        "refusal": "the model refused",
        "stopped": "the procedure stopped",
        FAILED: "the call failed",
        "model_context_window_exceeded": "the task's brief alone is too long for the model",
    }
    why = known.get(reply.stop_reason, f"stopped for an unknown reason, `{reply.stop_reason}`")
    more = " ".join(filter(None, (reply.detail, reply.text)))
    return f"{why}: {more}" if more else why
