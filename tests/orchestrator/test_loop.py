"""The loop: tools' results go back, nothing is bought twice, and a turn that was cut off starts from its snapshot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator import loop as loops
from orchestrator.ledger import Ledger
from orchestrator.loop import Attempt, Loop, Outcome
from orchestrator.providers.base import Block, Reply, Request, StopReason, Usage
from orchestrator.records import Budget
from orchestrator.sandbox.base import Command, Completed
from orchestrator.tools.base import ToolContext
from orchestrator.workspace import Repository
from tests.orchestrator.helpers import Journal, PausedHere, ledger, repository


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def append(words: str, name: str = "run") -> Block:
    return {"type": "tool_use", "id": f"id-{words}", "name": name, "input": {"argv": ["append", words]}}


def reply(*content: Block, stop: StopReason | None = None, tokens: int = 10) -> Reply:
    uses = any(block["type"] == "tool_use" for block in content)
    usage = Usage(input_tokens=tokens, output_tokens=tokens)
    return Reply(content=content, stop_reason=stop or ("tool_use" if uses else "end_turn"), usage=usage)


@dataclass
class Script:
    """A brain that says what is written, and remembers what it was asked."""

    replies: list[Reply]
    asked: list[Request] = field(default_factory=list)
    name: str = "script"
    dies: bool = False

    async def reply(self, request: Request) -> Reply:
        self.asked.append(request)
        if self.dies:
            self.dies = False
            raise KeyboardInterrupt
        turn = sum(message["role"] == "assistant" for message in request.messages)
        return self.replies[turn]


@dataclass
class Appender:
    """A sandbox whose only command appends a line to `log` in the worktree; `broken` makes it fail."""

    tier: str = "fake"
    ran: list[str] = field(default_factory=list)

    def run(self, command: Command, on_output: Any = None) -> Completed:
        worktree = next(mount.source for mount in command.mounts if mount.writable)
        words = command.argv[-1]
        self.ran.append(words)
        with (worktree / "log").open("a") as file:
            file.write(f"{words}\n")
        failed = words == "broken"
        return Completed(int(failed), f"appended {words}", "", False, False, 0.01, 0.01, None)


@dataclass
class House:
    """Everything that one attempt needs, in a folder."""

    attempt: Attempt
    script: Script
    ledger: Ledger
    repository: Repository
    sandbox: Appender
    journal: Journal = field(default_factory=Journal)

    def work(self) -> Outcome:
        return asyncio.run(Loop(self.script, self.ledger, self.repository, self.journal).work(self.attempt))

    @property
    def log(self) -> list[str]:
        path = self.attempt.worktree / "log"
        return path.read_text().splitlines() if path.exists() else []


def house(
    folder: Path, *replies: Reply, budget: Budget | None = None, max_turns: int = 9, tier: Any = "haiku"
) -> House:
    first = repository(folder / "user", {"a.txt": "a"})
    made = Repository(folder / "repo.git", folder / "worktrees")
    made.bring_in(folder / "user", first)
    worktree, _ = made.open("odyssey/r-1/attempts/a/1", first)
    sandbox = Appender()
    context = ToolContext(
        worktree=worktree, writes=("**",), commands=("append *",), sandbox=sandbox, outputs=folder / "outputs"
    )
    attempt = Attempt(
        run="r-1", task="a", number=1, tier=tier, model="m", system="Be good.", brief="Do it.",
        allowed=frozenset({"run"}), tools=context, worktree=worktree, max_turns=max_turns,
    )  # fmt: skip
    book = ledger(folder / "state", budget=budget or Budget(usd=1, tokens=10_000))
    return House(attempt, Script(list(replies)), book, made, sandbox)


def test_an_attempt_without_tools_is_one_turn(tmp_path: Path) -> None:
    made = house(tmp_path, reply(text("Done.")))
    assert made.work() == Outcome(finished=True, text="Done.", turns=1)
    (asked,) = made.script.asked
    assert (asked.system, asked.messages) == ("Be good.", ({"role": "user", "content": "Do it."},))
    assert [tool["name"] for tool in asked.tools] == ["run"]


def test_results_of_tools_go_back_in_the_order_of_the_calls(tmp_path: Path) -> None:
    made = house(tmp_path, reply(text("Now."), append("one"), append("two")), reply(text("Done.")))
    assert made.work() == Outcome(True, "Done.", 2)
    assert made.log == ["one", "two"]
    user, assistant, results = made.script.asked[1].messages
    assert (user["role"], assistant["role"], results["role"]) == ("user", "assistant", "user")
    assert assistant["content"] == [text("Now."), append("one"), append("two")]
    assert [block["tool_use_id"] for block in results["content"]] == ["id-one", "id-two"]
    assert all(block["type"] == "tool_result" and "is_error" not in block for block in results["content"])
    assert "appended one" in results["content"][0]["content"]


def test_errors_of_tools_are_told_and_the_conversation_goes_on(tmp_path: Path) -> None:
    calls = (append("broken"), append("x", name="write"), {**append("y"), "input": {"argv": ["rm", "-rf"]}})
    made = house(tmp_path, reply(*calls), reply(text("I see.")))
    assert made.work().finished
    results = made.script.asked[1].messages[-1]["content"]
    assert [block.get("is_error", False) for block in results] == [True, True, True]
    assert "no such tool for you; there are run" in results[1]["content"]
    assert made.sandbox.ran == ["broken"]


@pytest.mark.parametrize("stop", ["max_tokens", "refusal"])
def test_a_reply_that_was_cut_off_or_refused_is_no_finished_attempt(tmp_path: Path, stop: StopReason) -> None:
    made = house(tmp_path, reply(text("I ca"), stop=stop))
    assert made.work() == Outcome(False, "I ca", 1)


def test_tool_calls_of_a_reply_that_was_cut_off_are_not_run(tmp_path: Path) -> None:
    made = house(tmp_path, reply(append("half"), stop="max_tokens"))
    assert not made.work().finished
    assert made.log == []


def test_turns_are_bounded(tmp_path: Path) -> None:
    made = house(tmp_path, *[reply(append(str(number))) for number in range(9)], max_turns=3)
    assert made.work() == Outcome(False, "no end after 3 turns", 3)
    assert made.log == ["0", "1", "2"]


# Crashes: the same attempt again, in a fresh process, with the journal of the first


def crash(made: House, step: str) -> None:
    made.journal.cut = step
    with pytest.raises(KeyboardInterrupt):
        made.work()


REPLIES = (reply(append("one")), reply(append("two"), append("three")), reply(text("Done.")))
STEPS = ("snapshot", "reply 0", "tools 0", "reply 1", "tools 1", "reply 2")


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_repeats_no_effect_and_buys_nothing_twice(tmp_path: Path, step: str) -> None:
    whole = house(tmp_path / "whole", *REPLIES)
    expected = (whole.work(), whole.log, whole.ledger.spent("r-1")["usd"])
    made = house(tmp_path / "cut", *REPLIES)
    crash(made, step)
    assert (made.work(), made.log, made.ledger.spent("r-1")["usd"]) == expected
    assert len(made.script.asked) == 3
    assert made.journal.ran.count(step) == 2
    tree = made.repository.snapshot(made.attempt.worktree)
    assert tree == whole.repository.snapshot(whole.attempt.worktree)


def test_a_tools_step_that_was_cut_off_begins_at_its_snapshot_with_ignored_files_kept(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    crash(made, "tools 1")
    (made.attempt.worktree / "debris").write_text("half written")
    assert made.log == ["one", "two", "three"]
    made.work()
    assert made.log == ["one", "two", "three"]
    assert made.sandbox.ran == ["one", "two", "three", "two", "three"]
    assert not (made.attempt.worktree / "debris").exists()


def test_a_crash_while_a_reply_was_on_its_way_charges_its_maximum_and_asks_again(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    made.script.dies = True
    with pytest.raises(KeyboardInterrupt):
        made.work()
    (call,) = made.ledger.calls("r-1")
    assert (call["state"], call["max_usd"] > 0) == ("started", True)
    assert made.work().finished
    prices = [loops.price_usd("haiku", 10, 10)] * 3
    assert made.ledger.spent("r-1")["usd"] == pytest.approx(sum(prices) + call["max_usd"])
    assert [row["state"] for row in made.ledger.calls("r-1")] == ["done"] * 3


def test_a_reply_on_record_is_used_even_when_the_journal_lost_it(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    first = made.work()
    made.journal.kept = {key: value for key, value in made.journal.kept.items() if not key.startswith("reply")}
    assert made.work() == first
    assert len(made.script.asked) == 3


# Budgets, keys, prices


@pytest.mark.parametrize("budget", [Budget(usd=0.0001), Budget(usd=0)])
def test_a_call_that_the_budget_cannot_bear_is_not_sent_and_the_run_pauses(tmp_path: Path, budget: Budget) -> None:
    made = house(tmp_path, *REPLIES, budget=budget)
    with pytest.raises(PausedHere, match="dollars is used up"):
        made.work()
    assert made.script.asked == []
    assert made.ledger.calls("r-1") == []
    made.ledger.set_run("r-1", budget=Budget(usd=1, tokens=10_000).model_dump_json())
    assert made.work().finished


def test_tokens_and_minutes_pause_a_run_too(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES, budget=Budget(usd=1, tokens=30))
    with pytest.raises(PausedHere, match="tokens is used up"):
        made.work()
    assert len(made.script.asked) == 2  # overspent by one call
    made.ledger.set_run("r-1", budget=Budget(usd=1, tokens=9999, minutes=1).model_dump_json())
    made.ledger.charge_seconds("x", "r-1", "a", "gate", 61)
    with pytest.raises(PausedHere, match="minutes is used up"):
        made.work()


def test_a_procedure_needs_no_dollars(tmp_path: Path) -> None:
    made = house(
        tmp_path, reply(append("one"), tokens=0), reply(text("Done."), tokens=0), budget=Budget(), tier="procedure"
    )
    assert made.work().finished
    assert made.ledger.spent("r-1")["usd"] == 0
    assert made.ledger.spent("r-1")["seconds"] > 0


def test_a_key_follows_from_request_and_place_and_not_from_the_order_of_keys(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    made.work()
    request, attempt = made.script.asked[0], made.attempt
    key = loops.call_key(attempt, request, 0)
    shuffled = json.loads(json.dumps(request.model_dump(mode="json")))
    assert loops.call_key(attempt, Request.model_validate(dict(reversed(shuffled.items()))), 0) == key
    others: list[Callable[[], str]] = [
        lambda: loops.call_key(attempt, request, 1),
        lambda: loops.call_key(attempt, request.model_copy(update={"system": "Be bad."}), 0),
        lambda: loops.call_key(attempt, request.model_copy(update={"model": "n"}), 0),
    ]
    assert key not in {other() for other in others}
    assert len({row["key"] for row in made.ledger.calls("r-1")}) == 3


def test_a_price_is_that_of_the_table() -> None:
    assert loops.price_usd("procedure", 10**9, 10**9) == 0
    per_input, per_output = loops.PRICES_USD_PER_MTOK["opus"]
    assert loops.price_usd("opus", 1_000_000, 2_000_000) == per_input + 2 * per_output
