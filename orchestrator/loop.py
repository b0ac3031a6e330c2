"""The agent loop: one agent, one task, one conversation. The assistant turn is kept before its tools run.

Every turn is two steps of the durable workflow: the reply (paid once, by its key in the ledger) and the tools. The worktree
is snapshotted after each tool step; one that was cut off starts again from the snapshot before it, so its effects
happen once.
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


async def work(
    attempt: Attempt, provider: Provider, ledger: Ledger, repository: Repository, durable: Durable
) -> Outcome:
    """Let the provider and the tools take turns until the agent ends its turn."""
    messages: list[Message] = [{"role": "user", "content": attempt.brief}]
    tree = await durable.step("snapshot", _async(lambda: repository.snapshot(attempt.worktree)))
    for turn in range(attempt.max_turns):
        request = _request(attempt, messages)
        reply = Reply.model_validate(
            await durable.step(
                f"reply {turn}", lambda r=request, t=turn: _ask(attempt, provider, ledger, durable, r, t)
            )
        )
        messages.append({"role": "assistant", "content": list(reply.content)})
        if reply.stop_reason != "tool_use":
            return Outcome(reply.stop_reason == "end_turn", reply.text, turn + 1)
        done = await durable.step(
            f"tools {turn}",
            lambda r=reply, t=turn, at=tree: _use_tools(attempt, ledger, repository, durable, r.tool_calls, t, at),
        )
        tree = done["tree"]
        messages.append({"role": "user", "content": done["results"]})
    return Outcome(False, f"no end after {attempt.max_turns} turns", attempt.max_turns)


def _request(attempt: Attempt, messages: list[Message]) -> Request:
    return Request(
        tier=attempt.tier,
        model=attempt.model,
        system=attempt.system,
        messages=tuple(messages),
        tools=tuple(tools.specs(attempt.allowed)),
    )


async def _ask(
    attempt: Attempt, provider: Provider, ledger: Ledger, durable: Durable, request: Request, turn: int
) -> Json:
    """One reply, paid once: its key is on record before it is sent, its price after."""
    key = call_key(attempt, request, turn)
    dearest = price_usd(request.tier, len(request.model_dump_json()) // 3, request.max_tokens)
    try:
        ledger.reserve(attempt.run, usd=dearest)
    except BudgetExhausted as error:
        return await durable.pause(str(error))
    who = {"run": attempt.run, "task": attempt.task, "attempt": attempt.number, "turn": turn, "tier": attempt.tier}
    known = ledger.begin_call(key, dearest, **who)
    if known:
        return json.loads(known["reply"])
    reply = await provider.reply(request)
    usd = price_usd(request.tier, reply.usage.input_tokens, reply.usage.output_tokens)
    ledger.end_call(key, reply.model_dump(mode="json"), reply.usage.total, usd)
    return reply.model_dump(mode="json")


async def _use_tools(
    attempt: Attempt,
    ledger: Ledger,
    repository: Repository,
    durable: Durable,
    calls: tuple[Block, ...],
    turn: int,
    tree: str,
) -> Json:
    """Run the turn's calls in order, from the snapshot that the turn began with."""
    try:
        ledger.reserve(attempt.run)
    except BudgetExhausted as error:
        return await durable.pause(str(error))

    def run_all() -> Json:
        repository.restore(attempt.worktree, tree)
        started = time.monotonic()
        results = [_use(attempt, call) for call in calls]
        seconds = time.monotonic() - started
        ledger.charge_seconds(f"tools:{attempt.key}/{turn}", attempt.run, attempt.task, "tools", seconds)
        return {"results": results, "tree": repository.snapshot(attempt.worktree)}

    return await asyncio.to_thread(run_all)


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


def _async(do: Callable[[], Json]) -> Callable[[], Awaitable[Json]]:
    async def run() -> Json:
        return await asyncio.to_thread(do)

    return run
