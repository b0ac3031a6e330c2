"""Calls side by side in one budget: one that others only reserve is waited for, and a pause loses no answer."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.calls import Calls, Place
from orchestrator.engine import DATABASE, Engine, Paused
from orchestrator.ledger import Ledger
from orchestrator.prices import Usage
from orchestrator.providers.base import CallFailed, Reply, Request
from orchestrator.records import Budget, TaskBudget
from tests.orchestrator.helpers import KEY, PausedHere, ledger
from tests.orchestrator.test_budgets import Pauses
from tests.orchestrator.test_calls import HAIKU, REQUEST, most_usd

FINE = Reply(content=({"type": "text", "text": "Fine."},), stop_reason="end_turn", usage=Usage(input_tokens=100))
PRICE = HAIKU.usd(FINE.usage)
SOON_S = 60  # for what comes at once, on a busy machine too


@dataclass
class Service:
    """A paid service that is silent until it is let go on: then it answers, or fails as `how` says."""

    how: list[BaseException] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = "service"
    billed: bool = True

    async def reply(self, request: Request) -> Reply:
        self.asked.append(request.who)
        self.heard.set()
        await self.go_on.wait()
        if self.how:
            raise self.how.pop(0)
        return FINE


@dataclass
class House:
    """Two tasks, `a` and `b`, on one ledger. Task `b` waits: `waits` is set when it says so."""

    ledger: Ledger
    service: Service = field(default_factory=Service)
    told: list[str] = field(default_factory=list)
    waits: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, kind: str, text: str) -> None:
        self.told.append(f"{kind}: {text}")
        self.waits.set()

    def buy(self, node: str, durable: Any = None) -> asyncio.Task[Reply]:
        bought = Calls(self.service, self.ledger, durable or Pauses(), tell=self.tell)
        place = Place("r-1", node.partition("/")[0], node)
        return asyncio.create_task(bought.reply(place, REQUEST.model_copy(update={"who": node})))

    async def two(self, first: str = "a/1", second: str = "b/1") -> tuple[asyncio.Task[Reply], asyncio.Task[Reply]]:
        """A call on its way, and one that waits for it."""
        one = self.buy(first)
        await self.service.heard.wait()
        other = self.buy(second)
        await self.waits.wait()
        assert self.service.asked == [first], "nothing is sent before there is room"
        return one, other

    def doubts(self) -> int:
        return len(self.ledger._rows("SELECT 1 FROM spending WHERE kind = 'in doubt'"))


def house(folder: Path, maxima: float) -> House:
    return House(ledger(folder, budget=Budget(usd=maxima * most_usd(), tokens=10**6)))


def soon(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, SOON_S))


# Where only reservations stand in the way


def test_two_tasks_on_a_budget_of_one_and_a_half_maxima_both_end_without_doubt_and_without_a_pause(
    tmp_path: Path,
) -> None:
    async def both() -> None:
        made = house(tmp_path, 1.5)
        one, other = await made.two()
        made.service.go_on.set()
        assert [(await each).text for each in (one, other)] == ["Fine.", "Fine."]
        assert made.ledger.spent("r-1")["usd"] == pytest.approx(2 * PRICE)
        assert made.ledger.spent("r-1")["seconds"] < SOON_S
        assert made.doubts() == 0
        (words,) = made.told
        assert words.startswith("waits: the budget of ")
        assert "(0.00 spent, 0.00 under way, 0.00 asked for)" in words

    soon(both())


@pytest.mark.parametrize("doubtful", [False, True])
def test_one_that_waits_is_woken_by_a_send_that_fails_too_and_pauses_when_its_maximum_is_spent(
    tmp_path: Path, doubtful: bool
) -> None:
    async def both() -> None:
        made = house(tmp_path, 1.5)
        made.service.how.append(CallFailed("cut", "gone", doubtful=doubtful))
        one, other = await made.two()
        made.service.go_on.set()
        assert (await one).stop_reason == "failed"
        if doubtful:
            with pytest.raises(PausedHere, match="dollars is used up"):
                await other
        else:
            assert (await other).text == "Fine."

    soon(both())


@pytest.mark.parametrize("broken", [ValueError("a defect"), asyncio.CancelledError()])
def test_a_send_that_breaks_leaves_nobody_waiting_and_stays_reserved(tmp_path: Path, broken: BaseException) -> None:
    async def both() -> None:
        made = house(tmp_path, 1.5)
        made.service.how.append(broken)
        one, other = await made.two()
        made.service.go_on.set()
        with pytest.raises(type(broken)):
            await one
        with pytest.raises(PausedHere, match="dollars is used up"):
            await other
        assert [call["state"] for call in made.ledger.calls("r-1")] == ["started"], "it may have been paid for"

    soon(both())


def test_what_will_never_fit_is_not_waited_for(tmp_path: Path) -> None:
    async def both() -> None:
        made = house(tmp_path, 1.5)  # there, it could be waited for
        made.ledger.limit("r-1", "b", TaskBudget(usd=0.5 * most_usd()))
        one = made.buy("a/1")
        await made.service.heard.wait()
        with pytest.raises(PausedHere, match="budget of `b`"):
            await made.buy("b/1")
        assert made.told == []
        made.service.go_on.set()
        await one

    soon(both())


def test_one_that_stops_waiting_leaves_the_others_waiting(tmp_path: Path) -> None:
    async def three() -> None:
        made = house(tmp_path, 1.5)
        one, other = await made.two()
        made.waits.clear()
        third = made.buy("c/1")
        await made.waits.wait()
        other.cancel()
        await asyncio.wait({other})
        made.service.go_on.set()
        assert [(await each).text for each in (one, third)] == ["Fine.", "Fine."]

    soon(three())


def test_calls_of_one_task_wait_for_each_other_in_the_tasks_own_budget(tmp_path: Path) -> None:
    async def both() -> None:
        made = house(tmp_path, 9)
        made.ledger.limit("r-1", "a", TaskBudget(usd=1.5 * most_usd()))
        one, other = await made.two("a/1/x-junior", "a/1/y-junior")
        assert "budget of `a`" in made.told[0]
        made.service.go_on.set()
        assert [(await each).text for each in (one, other)] == ["Fine.", "Fine."]

    soon(both())


def test_many_in_one_budget_go_one_after_the_other_in_several_loops_and_none_overspends(tmp_path: Path) -> None:
    made, most = ledger(tmp_path, budget=Budget(usd=2.5 * most_usd(), tokens=10**6)), [0]

    class Counts(Service):
        async def reply(self, request: Request) -> Reply:
            most.append(len([call for call in made.calls("r-1") if call["state"] == "started"]))
            await asyncio.sleep(0)
            return FINE

    async def ten(worker: int) -> None:
        at = House(made, Counts())
        for each in [at.buy(f"a/{worker}-{number}") for number in range(10)]:
            assert (await each).text == "Fine."

    threads = [threading.Thread(target=lambda worker=worker: soon(ten(worker))) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call["state"] for call in made.calls("r-1")] == ["done"] * 30
    assert max(most) <= 2


# What a dead process left


def test_a_dead_processs_calls_hold_nobody_up_once_they_are_charged_and_are_charged_once(tmp_path: Path) -> None:
    made = house(tmp_path, 2.5)
    made.ledger.begin_call("dead", most_usd(), "r-1", "b", node="b/1")
    made.ledger.open_run("r-2", budget=Budget(usd=1, tokens=10**6).model_dump_json())
    made.ledger.begin_call("another run's", most_usd(), "r-2", "b")
    again = Ledger(tmp_path / "ledger.db", KEY)
    again.settle("r-1")
    again.settle("r-1")
    assert again.spent("r-1", "b")["usd"] == pytest.approx(most_usd())
    assert [call["state"] for call in again.calls("r-1") + again.calls("r-2")] == ["failed", "started"]
    (send,) = again.sends("dead")
    assert send["kind"] == "died"
    assert again.begin_call("dead", most_usd(), "r-1", "b", node="b/1") is None
    assert again.spent("r-1")["usd"] == pytest.approx(most_usd()), "the next send is in no doubt yet"


def test_what_a_dead_process_reserved_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody would ever wake it."""

    async def one() -> None:
        made = house(tmp_path, 1.5)
        made.ledger.begin_call("dead", most_usd(), "r-1", "b", node="b/1")
        with pytest.raises(PausedHere, match="dollars is used up"):
            await made.buy("a/1")

    soon(one())


# A pause


def test_a_pause_lets_the_answer_on_its_way_end_and_begins_nothing_else(tmp_path: Path) -> None:
    made = house(tmp_path, 9)
    begun, answered = list[str](), asyncio.Event()

    async def asks(task: str) -> str:
        reply = await made.buy(f"{task}/1", engine)
        answered.set()
        await engine.step("after", lambda: note(task))
        return reply.text

    async def pauses(task: str) -> str:
        await made.service.heard.wait()
        await engine.pause("enough")
        return ""

    async def note(task: str) -> str:
        begun.append(task)
        return ""

    async def leave() -> None:
        made.service.go_on.set()
        await made.ledger.under_way.let_end()
        await answered.wait()
        await asyncio.sleep(0.3)  # in which the next step would begin

    async def plan() -> None:
        await engine.spawn("asks", "r-1/a", "a")
        await engine.spawn("pauses", "r-1/b", "b")
        await asyncio.Event().wait()

    engine = Engine(tmp_path / DATABASE, {"asks": asks, "pauses": pauses}, leave=leave)
    with engine, pytest.raises(Paused, match="enough"):
        soon(engine.drive(plan()))
    assert [call["state"] for call in made.ledger.calls("r-1")] == ["done"]
    assert begun == [], "nothing is begun once the run is being left"


def test_nothing_is_sent_any_more_once_answers_are_only_waited_for(tmp_path: Path) -> None:
    """Neither one that waited for room, nor one that was to be sent again."""

    async def both() -> None:
        made = house(tmp_path, 1.5)
        one, other = await made.two()
        leaving = asyncio.create_task(made.ledger.under_way.let_end())
        await asyncio.sleep(0)
        assert not leaving.done()
        made.service.go_on.set()
        await leaving
        assert (await one).text == "Fine."
        assert made.service.asked == ["a/1"]
        assert [call["state"] for call in made.ledger.calls("r-1")] == ["done"]
        assert not other.done()
        other.cancel()

    soon(both())
