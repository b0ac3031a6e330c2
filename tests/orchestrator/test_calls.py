"""Buying a reply: once, within limits, everything on record. Time and chance are fakes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator import calls
from orchestrator.calls import Calls, Pace, Place
from orchestrator.ledger import Ledger
from orchestrator.prices import PRICES, Usage
from orchestrator.providers.anthropic import MessagesApi
from orchestrator.providers.base import Reply, Request
from orchestrator.records import Budget, TaskBudget
from tests.orchestrator.fakeapi import FakeApi, Fault, Turn, serving
from tests.orchestrator.helpers import Journal, PausedHere, ledger

HAIKU = PRICES["claude-haiku-5-5"]
REQUEST = Request(
    who="a/1", turn=0, tier="haiku", model="claude-haiku-5-5", system="s",
    messages=({"role": "user", "content": "go"},), max_tokens=1000,
)  # fmt: skip
PLACE = Place("r-1", "a", "a/1")
OVERLOADED = Fault(status=529, kind="overloaded_error")


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    slept: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def pace(self) -> Pace:
        return Pace(self.sleep, lambda: sum(self.slept), random.Random(7))


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi(scripts={"go": [Turn("Fine.")]})) as made:
        yield made


@dataclass
class Shop:
    api: FakeApi
    ledger: Ledger
    clock: Clock = field(default_factory=Clock)
    told: list[str] = field(default_factory=list)

    def buy(self, request: Request = REQUEST, place: Place = PLACE) -> Reply:
        provider = MessagesApi("k", self.api.url)
        bought = Calls(
            provider,
            self.ledger,
            Journal(),
            pace=self.clock.pace(),
            tell=lambda *words: self.told.append(": ".join(words)),
        )
        return asyncio.run(bought.reply(place, request))

    def spent(self) -> dict[str, Any]:
        return self.ledger.spent("r-1")


def shop(folder: Path, api: FakeApi, *faults: Fault, budget: Budget | None = None) -> Shop:
    api.faults += faults
    return Shop(api, ledger(folder, budget=budget or Budget(usd=1, tokens=10**6)))


def most_usd() -> float:
    prompt = len(REQUEST.model_dump_json()) // 2
    return HAIKU.usd(Usage(cache_write_5m=prompt, output_tokens=1000))


def test_what_passes_is_waited_out_with_growing_jittered_waits(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api, *[OVERLOADED] * 5)
    assert made.buy().text == "Fine."
    assert [lowest <= wait <= 2 * lowest for wait, lowest in zip(made.clock.slept, (0.5, 1, 2, 4, 8), strict=True)] == [
        True
    ] * 5
    assert len(set(made.clock.slept)) == 5
    assert made.spent()["usd"] == pytest.approx(HAIKU.usd(Usage(input_tokens=100, output_tokens=20)))
    assert len(made.told) == 5
    assert "overloaded_error: 529" in made.told[0]


def test_the_service_is_never_asked_sooner_than_it_said(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api, Fault(status=429, headers={"retry-after": "33"}), Fault(status=429))
    made.buy()
    assert made.clock.slept[0] == 33
    assert 1 <= made.clock.slept[1] <= 2


def test_a_service_that_asks_for_too_long_a_wait_pauses_the_run(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api, Fault(status=429, headers={"retry-after": "3600"}))
    with pytest.raises(PausedHere, match="no reply after 1 tries"):
        made.buy()
    assert made.clock.slept == []


def test_after_six_sends_the_run_pauses_and_a_resumed_one_tries_again(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api, *[OVERLOADED] * 6)
    with pytest.raises(PausedHere, match="no reply after 6 tries: overloaded_error"):
        made.buy()
    assert len(api.requests) == 6
    assert made.spent()["usd"] == 0
    assert made.buy().text == "Fine."


def test_an_outage_that_lasts_pauses_every_resumed_run_each_after_six_sends_of_its_own(
    tmp_path: Path, api: FakeApi
) -> None:
    made = shop(tmp_path, api, *[OVERLOADED] * 24)
    for resumed in range(4):
        with pytest.raises(PausedHere, match="no reply after 6 tries"):
            made.buy()
        assert len(api.requests) == calls.SENDS * (resumed + 1)
    (call,) = made.ledger.calls("r-1")
    assert len(made.ledger.sends(call["key"])) == 24
    assert {send["kind"] for send in made.ledger.sends(call["key"])} == {"overloaded_error"}
    assert made.buy().text == "Fine."


@pytest.mark.parametrize(
    "fault",
    [Fault(status=429, code="enforced_spend_limit_reached"), Fault(status=401, kind="authentication_error")],
)
def test_what_a_person_has_to_mend_pauses_the_run_at_once(tmp_path: Path, api: FakeApi, fault: Fault) -> None:
    made = shop(tmp_path, api, fault)
    with pytest.raises(PausedHere, match=r"raise the limit|set ANTHROPIC_API_KEY"):
        made.buy()
    assert len(api.requests) == 1
    assert made.buy().text == "Fine."


def test_a_request_that_is_wrong_ends_the_attempt_and_not_the_run(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api, Fault(status=400, kind="invalid_request_error", message="tools: too many"))
    reply = made.buy()
    assert (reply.stop_reason, made.spent()["usd"]) == ("failed", 0)
    assert "tools: too many" in reply.detail


@pytest.mark.parametrize("fault", [Fault(cut=700), Fault(reset=True), Fault(event="overloaded_error")])
def test_a_send_that_may_have_been_paid_for_is_charged_its_maximum(tmp_path: Path, api: FakeApi, fault: Fault) -> None:
    made = shop(tmp_path, api, fault)
    made.buy()
    price = HAIKU.usd(Usage(input_tokens=100, output_tokens=20))
    assert made.spent()["usd"] == pytest.approx(most_usd() + price)
    assert made.spent()["tokens"] > 1000


def test_a_doubtful_failure_is_sent_again_only_if_the_budget_bears_its_maximum_twice(
    tmp_path: Path, api: FakeApi
) -> None:
    budget = Budget(usd=1.5 * most_usd(), tokens=10**6)
    made = shop(tmp_path, api, Fault(cut=700), budget=budget)
    with pytest.raises(PausedHere, match="dollars is used up"):
        made.buy()
    assert len(api.requests) == 1
    assert made.spent()["usd"] <= budget.usd


def test_a_reply_on_record_is_never_bought_again(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api)
    assert made.buy() == made.buy()
    assert len(api.requests) == 1


def test_usage_is_on_record_with_model_and_provider(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api)
    made.buy()
    (call,) = made.ledger.calls("r-1")
    assert (call["model"], call["provider"], call["tokens"], call["state"]) == (
        "claude-haiku-5-5",
        "anthropic",
        120,
        "done",
    )
    assert call["usd"] == pytest.approx(HAIKU.usd(Usage(input_tokens=100, output_tokens=20)))


# Budgets of the tree


def test_a_node_is_bound_by_its_own_budget_and_by_every_one_above(tmp_path: Path, api: FakeApi) -> None:
    made = shop(tmp_path, api, budget=Budget(usd=1, tokens=10**6))
    made.ledger.limit("r-1", "a/1/junior", TaskBudget(usd=1.5 * most_usd(), tokens=10**6))
    made.ledger.limit("r-1", "a", TaskBudget(usd=2.0 * most_usd(), tokens=10**6))
    junior, senior = Place("r-1", "a", "a/1/junior"), Place("r-1", "a", "a/1")
    api.faults += [Fault(cut=700)]
    with pytest.raises(PausedHere, match="budget of `a/1/junior`"):
        made.buy(REQUEST, junior)  # the first send was cut and charged; a second doesn't fit
    with pytest.raises(PausedHere, match="budget of `a`"):
        made.buy(REQUEST.model_copy(update={"who": "a/1", "system": "s" * 500}), senior)
    elsewhere = REQUEST.model_copy(update={"who": "b/1"})
    assert made.buy(elsewhere, Place("r-1", "b", "b/1")).text == "Fine."
    assert made.ledger.spent("r-1", "a")["usd"] == pytest.approx(most_usd())
    assert made.ledger.spent("r-1", "a/1/junior") == made.ledger.spent("r-1", "a")


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_a_budget_of_three_calls_is_overspent_by_none_resumes_included(
    tmp_path: Path, api: FakeApi, allowed: int
) -> None:
    limit = (allowed + 0.5) * most_usd()
    made = shop(tmp_path, api, *[Fault(cut=700)] * 99, budget=Budget(usd=limit, tokens=10**6))
    for _ in range(5):  # each resume is a fresh process on the same ledger
        with pytest.raises(PausedHere):
            made.buy()
    assert len(api.requests) == allowed
    assert made.spent()["usd"] <= limit


def test_four_fifths_of_a_budget_are_told_once(tmp_path: Path) -> None:
    made, told = ledger(tmp_path, budget=Budget(usd=10, tokens=10**6)), list[str]()
    made.on_warning = lambda run, task, words: told.append(f"{run} {task}: {words}")
    for number in range(6):
        made.begin_call(f"k{number}", 0, "r-1", "a", node="a/1")
        made.end_call(f"k{number}", {}, tokens=1, usd=1.7)
    assert told == ["r-1 a: 85% of the budget in dollars is used"]
    assert [event["kind"] for event in made.events("r-1")] == ["budget"]


def test_a_ledger_of_before_the_totals_knows_what_was_spent(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    made.take_seconds("r-1", "a", "gate", 5)
    made._connection.execute("DELETE FROM totals")
    made.close()
    again = ledger(tmp_path)
    assert again.spent("r-1")["seconds"] == again.spent("r-1", "a")["seconds"] == 5
