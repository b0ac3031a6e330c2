"""A reply that is paid once: on record before it is sent, tried again within limits, its price on record after.

The SDK retries nothing. Each send that fails is written down with its kind, and costs the time that it took; what may
help when tried again is, after a wait that grows, is jittered, and is never shorter than what the service asks for.
When that leads nowhere the run pauses: nobody finds 1,149 retries on the bill. What no waiting and nobody's remedy can
help gives a reply that says `failed`; that says nothing about the model that was to be asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from orchestrator.errors import BudgetExhausted, NoRoom
from orchestrator.ledger import Ledger
from orchestrator.meter import Meter, in_slices
from orchestrator.prices import Price, most_tokens, most_usd, price_of
from orchestrator.providers.base import CallFailed, Provider, Reply, Request
from orchestrator.providers.replay import comparable

Json = Any
MOST_ROOM = 65_536  # tokens of one answer: its room is doubled up to this when it was cut off
SENDS = 6  # of one call in one process
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
PATIENCE_S = 900.0  # a service that asks for more is waited for by `resume`
BUDGET, NO_MODEL = 5, 6  # exit codes of a paused run
PROCEDURE = "procedure"
FAILED = "failed"  # the stop reason of a reply that there is not


class Durable(Protocol):
    """What the loop, the gate and the calls need of the engine."""

    async def step(self, name: str, do: Callable[[], Awaitable[Json]]) -> Json:
        """Run once; after a crash give back what it returned, or run it again if it never returned."""
        ...

    async def pause(self, reason: str, code: int = BUDGET, task: str = "") -> Json:
        """Stop the whole run, or one task of it, where it is, resumable, with this exit code. Does not return."""
        ...


@dataclass(frozen=True)
class Place:
    """Which part of a run bears a call: `node` is its place in the tree of budgets."""

    run: str
    task: str
    node: str
    attempt: int = 1


@dataclass(frozen=True)
class Pace:
    """Time and chance, so that tests have their own."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)

    def wait_s(self, failures: int, asked_s: float | None) -> float:
        """Doubling with full jitter above half; never less than what was asked for."""
        longest = min(FIRST_WAIT_S * 2**failures, LONGEST_WAIT_S)
        return max(self.rng.uniform(longest / 2, longest), asked_s or 0.0)


@dataclass(frozen=True)
class Calls:
    """Buys replies from one provider."""

    provider: Provider
    ledger: Ledger
    durable: Durable
    prices: Mapping[str, Price] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    tell: Callable[[str, str], None] = lambda kind, text: None

    async def reply(self, place: Place, request: Request) -> Reply:
        """The reply of this call, from the journal, from the ledger, or from the provider, in this order.

        A procedure's follows from the conversation and costs nothing: it is worked out again rather than journaled.
        """
        if self.provider.name == PROCEDURE:
            return await self._follow(place, request)
        done = await self.durable.step(f"{request.who} reply {request.turn}", lambda: self._buy(place, request))
        return Reply.model_validate(done)

    async def whole(self, place: Place, request: Request) -> Reply:
        """A reply to a lone question: one that was cut off is asked for again, with twice the room."""
        who, reply = request.who, await self.reply(place, request)
        while reply.stop_reason == "max_tokens" and request.max_tokens < MOST_ROOM:
            room = 2 * request.max_tokens
            request = request.model_copy(update={"who": f"{who}/{room}", "max_tokens": room})
            reply = await self.reply(place, request)
        return reply

    async def _follow(self, place: Place, request: Request) -> Reply:
        reply = await self.provider.reply(request)
        key, document = call_key(place.run, request), reply.model_dump(mode="json")
        about = {"attempt": place.attempt, "turn": request.turn, "tier": request.tier, "model": request.model}
        self.ledger.keep_call(key, place.run, place.task, document, node=place.node, provider=PROCEDURE, **about)
        return reply

    async def _buy(self, place: Place, request: Request) -> Json:
        try:
            return await self._send_until_it_answers(call_key(place.run, request), place, request)
        except BudgetExhausted as error:
            return await self.durable.pause(str(error), BUDGET, error.task)

    async def _send_until_it_answers(self, key: str, place: Place, request: Request) -> Json:
        for sends in range(SENDS):
            try:
                return await self._send_once(key, place, request)
            except CallFailed as failure:
                given_up = await self._failed(failure, sends)
                if given_up:
                    return given_up.model_dump(mode="json")
        raise AssertionError("the last failure pauses or gives up")

    async def _send_once(self, key: str, place: Place, request: Request) -> Json:
        """One send, under way until its end is on record. Raises CallFailed and BudgetExhausted."""
        meter = Meter(partial(self._seconds, place))
        known = await self._begin_in_turn(key, place, request, meter)
        if known is not None:
            return known
        started = self.pace.clock()
        try:
            reply = await self._send(request, meter)
            return self._end(key, request, reply, self._beyond(meter, started))
        except CallFailed as failure:
            self.ledger.fail_call(key, failure.kind, str(failure), failure.doubtful, self._beyond(meter, started))
            raise
        except BudgetExhausted as error:  # on its way: it may have been paid for
            self.ledger.fail_call(key, "budget", str(error), True, self._beyond(meter, started))
            raise
        finally:
            self.ledger.under_way.end(key)

    async def _send(self, request: Request, meter: Meter) -> Reply:
        sent = self.provider.reply(request)
        return await (in_slices(sent, meter) if self.provider.billed else sent)

    def _seconds(self, place: Place, seconds: float) -> float:
        return self.ledger.take_seconds(place.run, place.task, "call", seconds, place.node)

    def _beyond(self, meter: Meter, started: float) -> float:
        """Seconds that a send took beyond those that are charged already; waiting for a person costs none."""
        return self.pace.clock() - started - meter.taken_s if self.provider.billed else 0.0

    async def _begin_in_turn(self, key: str, place: Place, request: Request, meter: Meter) -> Json | None:
        """As `_begin`; where only calls under way stand in the way, once one of them has ended."""
        while True:
            next_end = self.ledger.under_way.next_end
            try:
                return self._begin(key, place, request, meter)
            except NoRoom as others:
                self.tell("waits", str(others))
                await asyncio.wrap_future(next_end)

    def _begin(self, key: str, place: Place, request: Request, meter: Meter) -> Json | None:
        """The reply on record; else the call is, with its maximum and its first seconds. Raises BudgetExhausted."""
        prompt = most_tokens(request.model_dump_json())
        billed = self.provider.billed
        with self.ledger.together():
            known = self.ledger.begin_call(
                key,
                most_usd(self._price(request), prompt, request.max_tokens) if billed else 0.0,
                place.run,
                place.task,
                max_tokens=prompt + request.max_tokens if billed else 0,
                node=place.node,
                attempt=place.attempt,
                turn=request.turn,
                tier=request.tier,
                model=request.model,
                provider=self.provider.name,
                request=json.dumps(recorded(request)),
            )
            if billed and not known:
                meter.first()
                if not self.ledger.under_way.begin(key):
                    raise NoRoom("nothing is sent any more: the run is being left")
        return json.loads(known["reply"]) if known else None

    def _end(self, key: str, request: Request, reply: Reply, seconds: float) -> Json:
        billed = self.provider.billed
        usd = self._price(request).usd(reply.usage) if billed else 0.0
        document = reply.model_dump(mode="json")
        self.ledger.end_call(key, document, reply.usage.total if billed else 0, usd, seconds)
        return document

    async def _failed(self, failure: CallFailed, sends: int) -> Reply | None:
        """Wait for the next send; or the reply that says why there is none. May pause the run instead."""
        words = f"{failure.kind}: {failure}" + (f"; {failure.remedy}" if failure.remedy else "")
        if not failure.passing and not failure.remedy:
            return Reply(content=(), stop_reason=FAILED, detail=words)
        wait_s = self.pace.wait_s(sends, failure.retry_after_s)
        if not failure.passing or sends + 1 == SENDS or wait_s > PATIENCE_S:
            await self.durable.pause(f"no reply after {sends + 1} tries: {words}", NO_MODEL)
        self.tell("retry", f"in {wait_s:.0f} s, after {failure.kind}: {failure}")
        await self.pace.sleep(wait_s)
        return None

    def _price(self, request: Request) -> Price:
        return price_of(request.model, self.prices)


def call_key(run: str, request: Request) -> str:
    """Content-addressed: the canonical request, which names its conversation and turn, with the run's identity."""
    return hashlib.sha256(f"{run}\n{_canonical(request)}".encode()).hexdigest()


def recorded(request: Request) -> Json:
    """What is kept of a request: its beginning whole, later only what is new; its size; what a replay compares."""
    first = {"system": request.system, "tools": [tool["name"] for tool in request.tools]} if request.turn == 0 else {}
    place = {"who": request.who, "turn": request.turn}
    return {
        **place,
        **first,
        "chars": len(_canonical(request)),
        "last": request.messages[-1],
        "comparable": comparable(request),
    }


def _canonical(request: Request) -> str:
    return json.dumps(request.model_dump(mode="json"), sort_keys=True)
