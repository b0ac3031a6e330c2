"""The agent loop: one agent, one task, one conversation. The assistant turn is kept before its tools run.

Every turn is two steps of the durable workflow: the reply (paid once, by its key in the ledger) and the tools. The
worktree is snapshotted after each tool step; one that was cut off starts again from the snapshot before it, so that
its effects happen once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator import tools
from orchestrator.config import PRICES_USD_PER_MTOK
from orchestrator.errors import BudgetExhausted
from orchestrator.ledger import Ledger
from orchestrator.providers.base import Block, Message, Provider, Reply, Request
from orchestrator.records import Tier
from orchestrator.tools.base import ToolContext
from orchestrator.workspace import Repository

Json = Any


class Durable(Protocol):
    """What the loop and the gate need of the engine."""

    async def step(self, name: str, do: Callable[[], Awaitable[Json]]) -> Json:
        """Run once; after a crash give back what it returned, or run it again if it never returned."""
        ...

    async def pause(self, reason: str) -> Json:
        """Stop the whole run where it is, resumable. Does not return."""
        ...


@dataclass(frozen=True)
class Attempt:
    """One try at a task: who answers, with which tools, where."""

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

    @property
    def key(self) -> str:
        return f"{self.run}/{self.task}/{self.number}"


@dataclass(frozen=True)
class Outcome:
    finished: bool  # the agent says that it is done; the gate decides whether that is so
    text: str
    turns: int


@dataclass(frozen=True)
class Loop:
    """A brain, and the rooms that its turns pass through."""

    provider: Provider
    ledger: Ledger
    repository: Repository
    durable: Durable

    async def work(self, attempt: Attempt) -> Outcome:
        """Let the provider and the tools take turns until the agent ends its turn."""
        messages: list[Message] = [{"role": "user", "content": attempt.brief}]
        tree = await self.durable.step("snapshot", lambda: self._snapshot(attempt))
        for turn in range(attempt.max_turns):
            reply = await self._reply(attempt, turn, messages)
            messages.append({"role": "assistant", "content": list(reply.content)})
            if reply.stop_reason != "tool_use":
                return Outcome(reply.stop_reason == "end_turn", reply.text, turn + 1)
            results, tree = await self._results(attempt, turn, reply.tool_calls, tree)
            messages.append({"role": "user", "content": results})
        return Outcome(False, f"no end after {attempt.max_turns} turns", attempt.max_turns)

    async def _snapshot(self, attempt: Attempt) -> str:
        return await asyncio.to_thread(self.repository.snapshot, attempt.worktree)

    async def _reply(self, attempt: Attempt, turn: int, messages: list[Message]) -> Reply:
        specs = tuple(tools.specs(attempt.allowed))
        request = Request(
            tier=attempt.tier, model=attempt.model, system=attempt.system, messages=tuple(messages), tools=specs
        )
        return Reply.model_validate(await self.durable.step(f"reply {turn}", lambda: self._ask(attempt, turn, request)))

    async def _ask(self, attempt: Attempt, turn: int, request: Request) -> Json:
        """One reply, paid once: its key is on record before it is sent, its price after."""
        key = call_key(attempt, request, turn)
        dearest = price_usd(request.tier, len(request.model_dump_json()) // 3, request.max_tokens)
        place = {"attempt": attempt.number, "turn": turn, "tier": attempt.tier}
        try:
            known = self.ledger.begin_call(key, dearest, attempt.run, attempt.task, **place)
        except BudgetExhausted as error:
            return await self.durable.pause(str(error))
        if known:
            return json.loads(known["reply"])
        reply = await self.provider.reply(request)
        usd = price_usd(request.tier, reply.usage.input_tokens, reply.usage.output_tokens)
        self.ledger.end_call(key, reply.model_dump(mode="json"), reply.usage.total, usd)
        return reply.model_dump(mode="json")

    async def _results(
        self, attempt: Attempt, turn: int, calls: tuple[Block, ...], tree: str
    ) -> tuple[list[Block], str]:
        done = await self.durable.step(f"tools {turn}", lambda: self._use_tools(attempt, turn, calls, tree))
        return done["results"], done["tree"]

    async def _use_tools(self, attempt: Attempt, turn: int, calls: tuple[Block, ...], tree: str) -> Json:
        """Run the turn's calls in order, from the snapshot that the turn began with."""
        try:
            self.ledger.reserve(attempt.run)
        except BudgetExhausted as error:
            return await self.durable.pause(str(error))
        return await asyncio.to_thread(self._use_all, attempt, turn, calls, tree)

    def _use_all(self, attempt: Attempt, turn: int, calls: tuple[Block, ...], tree: str) -> Json:
        self.repository.restore(attempt.worktree, tree)
        started = time.monotonic()
        results = [_use(attempt, call) for call in calls]
        seconds = time.monotonic() - started
        self.ledger.charge_seconds(f"tools:{attempt.key}/{turn}", attempt.run, attempt.task, "tools", seconds)
        return {"results": results, "tree": self.repository.snapshot(attempt.worktree)}


def _use(attempt: Attempt, call: Block) -> Block:
    result = tools.call(call["name"], call["input"], attempt.tools, attempt.allowed)
    block = {"type": "tool_result", "tool_use_id": call["id"], "content": result.content}
    return {**block, "is_error": True} if result.is_error else block


def call_key(attempt: Attempt, request: Request, turn: int) -> str:
    """Content-addressed: the canonical request with the task's and the turn's identity."""
    canonical = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(f"{attempt.key}/{turn}\n{canonical}".encode()).hexdigest()


def price_usd(tier: Tier, input_tokens: int, output_tokens: int) -> float:
    per_input, per_output = PRICES_USD_PER_MTOK[tier]
    return (input_tokens * per_input + output_tokens * per_output) / 1e6
