"""Budgets of seconds, side by side and one after the other: nobody overspends. Whole runs: test_budgets_in_runs.py.

Commands that take hours are played by a sandbox that says so; those that a real sandbox stops take less than a second.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import measure
from orchestrator.calls import Calls, Pace, Place
from orchestrator.errors import BudgetExhausted
from orchestrator.ledger import Ledger
from orchestrator.meter import FIRST_S, LONGEST_S, MeteredSandbox
from orchestrator.providers.anthropic import MessagesApi
from orchestrator.providers.base import CallFailed
from orchestrator.providers.mailbox import ByMail, Mailbox
from orchestrator.records import Budget, TaskBudget
from orchestrator.sandbox.base import Command, Completed, Limits
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from tests.orchestrator import helpers
from tests.orchestrator.fakeapi import FakeApi, Fault, Turn, serving
from tests.orchestrator.helpers import KEY, PausedHere, ledger
from tests.orchestrator.test_calls import REQUEST
from tests.orchestrator.test_loop import House, append, house, reply, text
from tests.orchestrator.test_measure import Played, always
from tests.orchestrator.test_measure import run as run_trial

HOUR = 3600.0


@dataclass
class Takes:
    """A sandbox whose commands take so many seconds, none of them real. `during`: what happens at each slice's end."""

    seconds: float
    during: Callable[[float], object] = lambda used_s: None
    ran: list[float] = field(default_factory=list)
    tier: str = "fake"

    def run(self, command: Command, on_output: Any = None) -> Completed:
        given = command.limits.wall_s
        while given < self.seconds:
            self.during(given)
            more = command.more() if command.more else 0.0
            if more <= 0:
                break
            given += more
        used = min(given, self.seconds)
        self.ran.append(used)
        return Completed(-9 if given < self.seconds else 0, "", "", False, given < self.seconds, used, used, None)


def command(wall_s: float = HOUR) -> Command:
    return Command(("train",), Path("/"), limits=Limits(wall_s=wall_s))


def metered(made: Ledger, sandbox: Any, node: str = "a/1") -> MeteredSandbox:
    return MeteredSandbox(sandbox, made, "r-1", node.partition("/")[0], node, "tools")


# One command and its slices


def test_a_command_is_stopped_where_the_tightest_budget_above_it_ends(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(minutes=10))
    made.limit("r-1", "a", TaskBudget(minutes=3))
    made.limit("r-1", "a/1/junior", TaskBudget(minutes=5))
    sandbox = Takes(5 * HOUR)
    with pytest.raises(BudgetExhausted) as caught:
        metered(made, sandbox, "a/1/junior").run(command(6 * HOUR))
    words = "the budget of `a` of 3 minutes is used up (3.00 spent)"
    assert (str(caught.value), caught.value.task) == (words, "a")
    assert sandbox.ran == [180]
    with pytest.raises(BudgetExhausted, match="of `a` of 3 minutes"):
        metered(made, sandbox).run(command())
    assert sandbox.ran == [180], "without a second left nothing is started"
    with pytest.raises(BudgetExhausted, match="the budget of 10 minutes"):
        metered(made, sandbox, "b/1").run(command())
    assert sandbox.ran == [180, 420]
    assert made.spent("r-1")["seconds"] == 600


def test_a_commands_own_limit_ends_it_as_ever_and_only_what_was_used_is_charged(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(minutes=10))
    assert metered(made, Takes(HOUR)).run(command(wall_s=30)).timed_out
    assert made.spent("r-1")["seconds"] == pytest.approx(30)
    assert not metered(made, Takes(25.5)).run(command()).timed_out
    assert made.spent("r-1")["seconds"] == pytest.approx(55.5)
    assert not metered(made, Takes(0.01)).run(command(wall_s=0.2)).timed_out
    assert made.spent("r-1")["seconds"] == pytest.approx(55.51)


def test_every_second_is_charged_before_it_is_used_and_few_are_in_advance(tmp_path: Path) -> None:
    made, slices = ledger(tmp_path, budget=Budget(minutes=600)), list[float]()

    def charged(used_s: float) -> None:
        assert made.spent("r-1")["seconds"] == pytest.approx(used_s)
        slices.append(used_s - sum(slices))

    metered(made, Takes(HOUR, charged)).run(command())
    assert slices[:7] == [0.5, 0.5, 1, 2, 4, 8, LONGEST_S]
    assert set(slices[7:]) == {LONGEST_S}


def test_commands_side_by_side_use_what_is_left_together_and_no_second_twice(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(minutes=1))
    side_by_side = threading.Barrier(4)

    def refused(number: int) -> float:
        sandbox = Takes(HOUR)
        side_by_side.wait()
        with pytest.raises(BudgetExhausted, match="the budget of 1 minutes is used up"):
            metered(made, sandbox, f"a/{number}").run(command())
        return sum(sandbox.ran)

    with ThreadPoolExecutor(4) as pool:
        used = list(pool.map(refused, range(4)))
    assert sum(used) == pytest.approx(60)
    assert made.spent("r-1")["seconds"] == pytest.approx(60)


def test_a_command_that_dies_with_its_process_costs_what_it_used_and_at_most_a_slice_and_blocks_nobody(
    tmp_path: Path,
) -> None:
    made = ledger(tmp_path, budget=Budget(minutes=10))

    def dies(used_s: float) -> None:
        if used_s >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        metered(made, Takes(HOUR, dies)).run(command())
    again = Ledger(tmp_path / "ledger.db", KEY)  # a fresh process
    charged = again.spent("r-1")["seconds"]
    assert 60 <= charged <= 60 + LONGEST_S
    metered(again, Takes(600 - charged)).run(command())
    assert again.spent("r-1")["seconds"] == pytest.approx(600)


def test_a_real_command_is_given_slice_after_slice_and_stopped_soon_after_the_last(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(minutes=0.02))
    whole = replace(command(), argv=("sleep", "0.7"))
    assert metered(made, UnsandboxedSandbox()).run(whole).exit_code == 0
    with pytest.raises(BudgetExhausted, match=r"the budget of 0\.02 minutes is used up"):
        metered(made, UnsandboxedSandbox()).run(replace(command(), argv=("sleep", "60")))
    assert 1.2 <= made.spent("r-1")["seconds"] < 6


# The warning


def test_four_fifths_of_the_minutes_are_told_while_a_command_runs_and_once_over_refunds_and_resumes(
    tmp_path: Path,
) -> None:
    made, told = ledger(tmp_path, budget=Budget(minutes=10)), list[tuple[str, float]]()

    def listen(to: Ledger) -> None:
        to.on_warning = lambda run, task, words: told.append((words, to.spent("r-1")["seconds"]))

    listen(made)
    metered(made, Takes(479.9)).run(command())  # a slice went over the mark, and most of it came back
    assert made.spent("r-1")["seconds"] < 480
    metered(made, Takes(5)).run(command())
    again = Ledger(tmp_path / "ledger.db", KEY)
    listen(again)
    with pytest.raises(BudgetExhausted):
        metered(again, Takes(HOUR)).run(command())
    assert len(told) == 1
    assert told[0][0].endswith("% of the budget in minutes is used")
    assert 480 <= told[0][1] <= 480 + LONGEST_S, "said at the mark, not when the command ended"
    again.set_run("r-1", budget=Budget(minutes=20).model_dump_json())
    metered(again, Takes(400)).run(command())
    assert len(told) == 2, "a larger budget has four fifths of its own"
    assert [event["kind"] for event in again.events("r-1")] == ["budget", "budget"]


# In the loop


def slow_house(folder: Path, budget: Budget, helper: str = "") -> tuple[House, Takes]:
    """An attempt whose one command takes 90 seconds."""
    made = house(folder, reply(append("one")), reply(text("Done.")), budget=budget)
    sandbox = Takes(90)
    made.attempt = replace(made.attempt, helper=helper, tools=replace(made.attempt.tools, sandbox=sandbox))
    return made, sandbox


def test_a_command_that_the_budget_stopped_is_no_failed_one_and_is_run_again_when_there_is_more(tmp_path: Path) -> None:
    made, sandbox = slow_house(tmp_path, Budget(usd=1, tokens=100_000, minutes=1))
    for _ in range(2):
        with pytest.raises(PausedHere, match=r"the budget of 1 minutes is used up \(1.00 spent\)"):
            made.work()
    assert len(made.script.asked) == 1, "the agent hears nothing of it"
    made.ledger.set_run("r-1", budget=Budget(usd=1, tokens=100_000, minutes=3).model_dump_json())
    assert made.work().finished
    assert sandbox.ran == pytest.approx([60, 90], abs=0.1)  # the script's own time is counted as well
    (result,) = made.script.asked[-1].messages[-1]["content"]
    assert "is_error" not in result
    assert made.ledger.spent("r-1")["seconds"] == pytest.approx(150, abs=0.1)


def test_a_sub_agents_minutes_bind_its_commands_and_stay_used_up(tmp_path: Path) -> None:
    made, sandbox = slow_house(tmp_path, Budget(usd=1, tokens=100_000, minutes=10), helper="0-x-junior")
    for minutes in (0.5, 5, 5):  # each resume works out a share of its own, and the first one stays
        made.ledger.limit("r-1", made.attempt.node, TaskBudget(minutes=minutes))
        with pytest.raises(PausedHere, match=r"the budget of `a/1/0-x-junior` of 0\.5 minutes is used up"):
            made.work()
    assert sandbox.ran == pytest.approx([30], abs=0.1)
    made.ledger.set_run("r-1", budget=Budget(usd=1, tokens=100_000, minutes=60).model_dump_json())
    with pytest.raises(PausedHere):
        made.work()  # more for the run is none for the sub-agent
    made.ledger.raise_limits("r-1", "a", minutes=5)
    assert made.work().finished
    assert sandbox.ran == pytest.approx([30, 90], abs=0.1)


# Trainings


class Training(Played):
    """A training of 90 seconds that leaves a checkpoint, and needs 30 where it finds one."""

    def __init__(self, made: Ledger) -> None:
        super().__init__(always(0))
        self.found: list[bool] = []
        self.metered = MeteredSandbox(self, made, "r-1", "a", "a", "gate")

    def run(self, command: Command, on_output: Any = None) -> Completed:
        if command.argv[0] != "mlcore":
            return super().run(command)
        out = next(mount.source for mount in command.mounts if mount.target == measure.OUT)
        self.found.append((out / "checkpoint").exists())
        (out / "checkpoint").touch()
        assert "--continue" in command.argv
        done = Takes(30 if self.found[-1] else 90).run(command)
        return replace(super().run(command), timed_out=done.timed_out, wall_s=done.wall_s)


def test_a_training_that_the_budget_stopped_gives_no_receipt_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    made = ledger(tmp_path / "ledger", budget=Budget(minutes=1))
    training = Training(made)
    with pytest.raises(BudgetExhausted):
        run_trial(tmp_path, training.metered)
    made.set_run("r-1", budget=Budget(minutes=9).model_dump_json())
    found = run_trial(tmp_path, training.metered)
    assert (found.passed, training.found) == (True, [False, True])
    assert "train_wall_s" not in found.values, "the time of a part says nothing of the whole"


# Whose time is counted


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now: float = 0.0

    def pace(self) -> Pace:
        return Pace(clock=lambda: self.now)


def test_days_of_waiting_for_a_persons_reply_cost_nothing(tmp_path: Path) -> None:
    made, clock, box = ledger(tmp_path / "ledger", budget=Budget(minutes=1)), Clock(), Mailbox(tmp_path / "mail")

    async def sleep(_: float) -> None:
        clock.now += 24 * HOUR
        if clock.now > 7 * 24 * HOUR:
            box.answer(box.open()[0], '{"text": "Done."}')

    by_mail = ByMail(box, "r-1", lambda *_: None, sleep)
    bought = Calls(by_mail, made, helpers.Journal(), pace=clock.pace())
    assert asyncio.run(bought.reply(Place("r-1", "a", "a/1"), REQUEST)).text == "Done."
    assert clock.now > 7 * 24 * HOUR
    assert made.spent("r-1") == {"usd": 0, "tokens": 0, "seconds": 0}
    assert made.take_seconds("r-1", "a", "tools", 99) == 60


def test_a_paid_services_own_time_counts_failed_sends_too_and_the_waits_between_do_not(tmp_path: Path) -> None:
    made, clock = ledger(tmp_path, budget=Budget(usd=1, tokens=10**6)), Clock()

    class Slow(MessagesApi):
        async def reply(self, request: Any) -> Any:
            clock.now += 20
            return await super().reply(request)

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    faults = [Fault(status=529, kind="overloaded_error"), Fault(cut=700)]
    with serving(FakeApi(scripts={"go": [Turn("Fine.")]}, faults=faults)) as api:
        bought = Calls(Slow("k", api.url), made, helpers.Journal(), pace=replace(clock.pace(), sleep=sleep))
        asyncio.run(bought.reply(Place("r-1", "a", "a/1"), REQUEST))
    assert clock.now > 60
    assert made.spent("r-1")["seconds"] == pytest.approx(60)


# A paid model's answers


@dataclass
class NoAnswer:
    """A service that is paid and says nothing. `dies`: what a send comes to instead."""

    dies: BaseException | None = None
    asked: int = 0
    name: str = "none"
    billed: bool = True

    async def reply(self, request: Any) -> Any:
        self.asked += 1
        if self.dies:
            raise self.dies
        await asyncio.sleep(30)
        raise AssertionError("it was waited for to the end")

    async def asked_by(self, made: Ledger, *nodes: str) -> list[Any]:
        """What came of a call from each of these places, side by side."""
        bought = Calls(self, made, Pauses())
        each = (bought.reply(Place("r-1", "a", node), REQUEST.model_copy(update={"who": node})) for node in nodes)
        return await asyncio.gather(*each, return_exceptions=True)


class Pauses(helpers.Journal):
    """Steps side by side, each with the name of its own."""

    async def step(self, name: str, do: Any) -> Any:
        return await do()


def test_answers_side_by_side_use_what_is_left_together_and_none_goes_on_beyond_it(tmp_path: Path) -> None:
    made, service = ledger(tmp_path, budget=Budget(usd=1, tokens=10**6, minutes=0.05)), NoAnswer()
    found = asyncio.run(service.asked_by(made, *[f"a/{number}" for number in range(4)]))
    assert [type(each) for each in found] == [PausedHere] * 4
    assert "the budget of 0.05 minutes is used up" in str(found[0])
    assert service.asked == 4
    assert 3 <= made.spent("r-1")["seconds"] < 40, "not the 120 that they would have taken"
    calls = made.calls("r-1")
    assert [call["state"] for call in calls] == ["failed"] * 4, "nothing is under way any more"
    assert made.spent("r-1")["usd"] == pytest.approx(sum(call["max_usd"] for call in calls)), "each may have been paid"
    assert [str(each) for each in asyncio.run(service.asked_by(made, "b/1"))] == [str(found[0])]
    assert service.asked == 4, "without a second left nothing is sent"


def test_an_answers_seconds_are_charged_before_they_are_used_and_a_dead_processs_stay_so(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(usd=1, tokens=10**6, minutes=1))
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(NoAnswer(dies=KeyboardInterrupt()).asked_by(made, "a/1"))
    again = Ledger(tmp_path / "ledger.db", KEY)
    assert again.spent("r-1", "a/1")["seconds"] == FIRST_S
    asyncio.run(NoAnswer(dies=CallFailed("no", "no")).asked_by(again, "a/1"))
    assert FIRST_S < again.spent("r-1")["seconds"] < 2 * FIRST_S, "the second send gave back what it did not use"
    (call,) = again.calls("r-1")
    assert again.spent("r-1")["usd"] == call["max_usd"], "the first is in doubt"
