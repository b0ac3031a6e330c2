"""The loop: tools' results go back, nothing is bought twice, and a turn that was cut off starts from its snapshot."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import calls, config
from orchestrator.calls import Calls
from orchestrator.conversation import AGAIN, CHARS_PER_TOKEN, Failures, assistant, too_long, user
from orchestrator.ledger import Ledger
from orchestrator.loop import MOST_CUT_OFFS, Attempt, Loop, Outcome
from orchestrator.prices import PRICES, Price, Usage
from orchestrator.providers.base import Block, Reply, Request
from orchestrator.records import Budget, Tier
from orchestrator.sandbox.base import Command, Completed
from orchestrator.tools.base import ToolContext
from orchestrator.workspace import Repository
from tests.orchestrator.helpers import Journal, PausedHere, ledger, repository

HAIKU = PRICES["claude-haiku-5-5"]


def text(words: str) -> Block:
    return {"type": "text", "text": words}


def append(words: str, name: str = "run") -> Block:
    return {"type": "tool_use", "id": f"id-{words}", "name": name, "input": {"argv": ["append", words]}}


def reply(*content: Block, stop: str | None = None, tokens: int = 10) -> Reply:
    uses = any(block["type"] == "tool_use" for block in content)
    usage = Usage(input_tokens=tokens, output_tokens=tokens)
    return Reply(content=content, stop_reason=stop or ("tool_use" if uses else "end_turn"), usage=usage)


@dataclass
class Script:
    """A brain that says what is written, and remembers what it was asked."""

    replies: list[Reply]
    asked: list[Request] = field(default_factory=list)
    name: str = "script"
    billed: bool = True
    dies: bool = False
    by_count: bool = False  # the next one a turn, and not by what was said

    async def reply(self, request: Request) -> Reply:
        self.asked.append(request)
        if self.dies:
            self.dies = False
            raise KeyboardInterrupt
        turn = sum(message["role"] == "assistant" for message in request.messages)
        return self.replies[request.turn if self.by_count else turn]


@dataclass
class Appender:
    """A sandbox whose only command appends a line to the word's own log in the worktree; `broken` makes it fail."""

    tier: str = "fake"
    ran: list[str] = field(default_factory=list)

    def run(self, command: Command, on_output: Any = None) -> Completed:
        worktree = next(mount.source for mount in command.mounts if mount.writable)
        words = command.argv[-1]
        self.ran.append(words)
        with (worktree / f"log-{words}").open("a") as file:
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
        bought = Calls(self.script, self.ledger, self.journal, {"m": HAIKU})
        return asyncio.run(Loop(bought, self.repository, self.journal).work(self.attempt))

    @property
    def log(self) -> list[str]:
        """What was appended, in the order of the alphabet: commands of one turn run side by side."""
        return sorted(line for path in self.attempt.worktree.glob("log-*") for line in path.read_text().splitlines())


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
    book = ledger(folder / "state", budget=budget or Budget(usd=1, tokens=100_000))
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


@dataclass
class Meeting:
    """A sandbox in which a command goes on only once another one is at it, and `one` ends after `two`."""

    tier: str = "fake"
    both: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    ended: threading.Event = field(default_factory=threading.Event)
    order: list[str] = field(default_factory=list)

    def run(self, command: Command, on_output: Any = None) -> Completed:
        word = json.loads(command.stdin)["path"][-1] if command.stdin else command.argv[-1]
        self.both.wait()
        if word == "one":
            assert self.ended.wait(timeout=20)
        self.order.append(word)
        self.ended.set()
        answer = json.dumps({"ok": {"text": f"this is {word}", "lines": 1}})
        return Completed(0, answer, "", False, False, 0.01, 0.01, None)


@pytest.mark.parametrize("tool", ["run", "read"])
def test_tools_of_one_turn_overlap_and_their_results_are_one_message_in_the_order_of_the_calls(
    tmp_path: Path, tool: str
) -> None:
    """Each waits for the other: one after the other they would wait in vain."""
    inputs: dict[str, list[dict[str, Any]]] = {
        "run": [{"argv": ["append", "one"]}, {"argv": ["append", "two"]}],
        "read": [{"path": "one"}, {"path": "two"}],
    }
    turn = [{"type": "tool_use", "id": f"id-{n}", "name": tool, "input": each} for n, each in enumerate(inputs[tool])]
    made, meeting = house(tmp_path, reply(*turn), reply(text("Done."))), Meeting()
    context = replace(made.attempt.tools, sandbox=meeting)
    made.attempt = replace(made.attempt, tools=context, allowed=frozenset({"run", "read"}))
    assert made.work() == Outcome(True, "Done.", 2)
    assert meeting.order == ["two", "one"]
    _, _, results = made.script.asked[1].messages
    assert [block["tool_use_id"] for block in results["content"]] == ["id-0", "id-1"]
    assert ["this is one" in block["content"] for block in results["content"]] == [True, False]
    assert ["this is two" in block["content"] for block in results["content"]] == [False, True]


def test_errors_of_tools_are_told_and_the_conversation_goes_on(tmp_path: Path) -> None:
    calls = (append("broken"), append("x", name="write"), {**append("y"), "input": {"argv": ["rm", "-rf"]}})
    made = house(tmp_path, reply(*calls), reply(text("I see.")))
    assert made.work().finished
    results = made.script.asked[1].messages[-1]["content"]
    assert [block.get("is_error", False) for block in results] == [True, True, True]
    assert "no such tool for you; there are run" in results[1]["content"]
    assert made.sandbox.ran == ["broken"]


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ("refusal", "the model refused: I ca"),
        ("stopped", "the procedure stopped: I ca"),
        ("brand_new", "stopped for an unknown reason, `brand_new`: I ca"),
        ("tool_use", "stopped for an unknown reason, `tool_use`: I ca"),  # without a call
    ],
)
def test_a_reply_that_stopped_for_another_reason_ends_the_attempt_and_says_so(
    tmp_path: Path, stop: str, words: str
) -> None:
    made = house(tmp_path, reply(text("I ca"), stop=stop))
    assert made.work() == Outcome(False, words, 1)


@pytest.mark.parametrize("stop", ["end_turn", "stop_sequence"])
def test_calls_are_answered_whatever_word_a_local_server_stops_with(tmp_path: Path, stop: str) -> None:
    made = house(tmp_path, reply(append("one"), stop=stop), reply(text("Done.")))
    assert made.work() == Outcome(True, "Done.", 2)
    assert made.sandbox.ran == ["one"]


def test_a_reply_that_was_cut_off_is_asked_for_again_with_more_room_and_its_calls_never_run(tmp_path: Path) -> None:
    made = house(tmp_path, reply(append("half"), stop="max_tokens"), budget=Budget(usd=9, tokens=10**6))
    outcome = made.work()
    assert (outcome.finished, outcome.turns) == (False, 4)
    assert "still cut off at 65536 tokens" in outcome.text
    assert [asked.max_tokens for asked in made.script.asked] == [8192, 16384, 32768, 65536]
    assert made.sandbox.ran == []


def test_a_paused_turn_is_sent_on_unchanged(tmp_path: Path) -> None:
    made = house(tmp_path, reply(text("I look"), stop="pause_turn"), reply(text("Done.")))
    assert made.work() == Outcome(True, "Done.", 2)
    assert made.script.asked[1].messages[1:] == ({"role": "assistant", "content": [text("I look")]},)


def test_arguments_that_were_no_json_are_answered_and_never_run(tmp_path: Path) -> None:
    call = {**append("x"), "input": {}}
    half = Reply(content=(call, append("fine")), stop_reason="tool_use", broken={"id-x": "its arguments are not JSON"})
    made = house(tmp_path, half, reply(text("Done.")))
    assert made.work().finished
    first, second = made.script.asked[1].messages[-1]["content"]
    assert (first["is_error"], first["content"]) == (True, "its arguments are not JSON")
    assert "is_error" not in second
    assert made.sandbox.ran == ["fine"]


def test_the_same_failure_is_told_the_second_time_and_ends_the_attempt_the_third(tmp_path: Path) -> None:
    made = house(tmp_path, *[reply(append("broken")) for _ in range(9)])
    outcome = made.work()
    assert (outcome.finished, outcome.turns) == (False, 3)
    assert "the same call failed 3 times in the same way" in outcome.text
    told = [AGAIN in asked.messages[-1]["content"][0]["content"] for asked in made.script.asked[1:]]
    assert told == [False, True]


def test_a_failure_after_a_change_that_went_well_is_a_new_one(tmp_path: Path) -> None:
    broken = reply(append("broken"))
    made = house(tmp_path, broken, broken, reply(append("one")), broken, broken, reply(text("Done.")))
    assert made.work().finished


READ: Block = {"type": "tool_use", "id": "r", "name": "read", "input": {"path": "no"}}
LOOK: Block = {"type": "tool_use", "id": "l", "name": "list", "input": {"path": "."}}
GONE: Block = {"type": "tool_result", "tool_use_id": "r", "content": "no: is not there", "is_error": True}
SEEN: Block = {"type": "tool_result", "tool_use_id": "l", "content": "a.txt"}


def test_a_look_beside_or_between_does_not_make_a_repeated_failure_another() -> None:
    failures = Failures()
    for turn in range(3):
        assert not failures.stuck
        first, second = failures.told((READ, LOOK), [GONE, SEEN], changed=False)
        assert (AGAIN in first["content"], second) == (turn > 0, SEEN)
        failures.told((LOOK,), [SEEN], changed=False)
    assert failures.stuck.endswith('["read", {"path": "no"}, "no: is not there"]')


def test_three_of_one_failure_in_one_turn_are_one_and_other_failures_are_others() -> None:
    failures = Failures()
    failures.told((READ,) * 3, [GONE] * 3, changed=False)
    for number in range(9):
        failures.told((READ,), [{**GONE, "content": f"failure {number}"}], changed=False)
    assert not failures.stuck


def test_of_two_commands_that_change_one_file_in_a_turn_the_second_is_told(tmp_path: Path) -> None:
    again = {**append("one"), "id": "again"}
    made = house(tmp_path, reply(append("one"), again), reply(text("Done.")))
    made.work()
    first, second = made.script.asked[1].messages[-1]["content"]
    assert ("is_error" in first, second["is_error"]) == (False, True)
    assert "log-one: a command beside this one changed it too" in second["content"]
    assert made.log == ["one"]


@pytest.mark.parametrize(("tier", "handed_over"), [("haiku", True), ("sonnet", False)])
def test_whoever_takes_an_attempt_over_on_another_tier_has_that_tiers_window(
    tmp_path: Path, tier: Tier, handed_over: bool
) -> None:
    over_haikus = reply(append("one"), tokens=config.WINDOWS["haiku"] // 2 + 1)  # so many in, so many out
    made = house(tmp_path, over_haikus, reply(text("Done.")), tier="opus", budget=Budget(usd=9, tokens=10**6))
    made.script.by_count = True
    made.attempt = replace(made.attempt, tier=tier)  # as a sub-agent's and a reviewer's is made
    assert made.work().finished
    assert (len(made.script.asked[1].messages) == 1) == handed_over


@pytest.mark.parametrize("how", ["counted", "refused"])
def test_a_full_window_is_handed_over_to_a_fresh_conversation_that_can_read_the_old_one(
    tmp_path: Path, how: str
) -> None:
    full = {"counted": [], "refused": [reply(stop="model_context_window_exceeded")]}[how]
    tokens = 200 if how == "counted" else 10
    script = [reply(text("First."), append("one"), tokens=tokens), *full, reply(text("Done."), tokens=1)]
    made = house(tmp_path, *script)
    made.script.by_count = True
    made.attempt = replace(made.attempt, window=300)
    assert made.work() == Outcome(True, "Done.", len(script))
    (fresh,) = made.script.asked[-1].messages
    name = "conversation-0.md" if how == "counted" else "conversation-1.md"
    assert fresh["content"].startswith("Do it.")
    assert f"@outputs/{name}" in fresh["content"]
    assert 'run {"argv": ["append", "one"]}: $ append one' in fresh["content"]
    kept = (made.attempt.tools.outputs / name).read_text()
    assert "First." in kept
    assert "appended one" in kept


def test_results_that_no_call_has_counted_yet_fill_the_window_too() -> None:
    asks, window = reply(append("x"), tokens=100), 1000
    results = user([{"type": "tool_result", "tool_use_id": "id-x", "content": "r" * 900 * CHARS_PER_TOKEN}])
    talk = [user("Do it."), assistant(asks), results]
    assert too_long(asks, talk, window)
    assert not too_long(asks, talk, window + 200)
    assert not too_long(reply(text("I am cu"), stop="max_tokens", tokens=100), talk, window)  # its prompt held them


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
STEPS = ("a/1 snapshot", "a/1 reply 0", "a/1 tools 0", "a/1 reply 1", "a/1 tools 1", "a/1 reply 2")


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
    crash(made, "a/1 tools 1")
    (made.attempt.worktree / "debris").write_text("half written")
    assert made.log == ["one", "three", "two"]
    made.work()
    assert made.log == ["one", "three", "two"]
    assert sorted(made.sandbox.ran) == ["one", "three", "three", "two", "two"]
    assert not (made.attempt.worktree / "debris").exists()


def test_a_turn_that_was_cut_off_too_often_is_answered_and_not_run_again(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    for _ in range(MOST_CUT_OFFS + 1):
        crash(made, "a/1 tools 0")
    assert made.sandbox.ran == ["one"] * (MOST_CUT_OFFS + 1)
    assert made.work().finished
    assert made.log == ["three", "two"]  # of the first turn nothing is left: it begins from its snapshot
    (result,) = made.script.asked[-1].messages[2]["content"]
    assert result["is_error"]
    assert "cut off 21 times" in result["content"]


def test_a_crash_while_a_reply_was_on_its_way_charges_its_maximum_and_asks_again(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    made.script.dies = True
    with pytest.raises(KeyboardInterrupt):
        made.work()
    (call,) = made.ledger.calls("r-1")
    assert (call["state"], call["max_usd"] > 0) == ("started", True)
    assert made.work().finished
    prices = [HAIKU.usd(Usage(input_tokens=10, output_tokens=10))] * 3
    assert made.ledger.spent("r-1")["usd"] == pytest.approx(sum(prices) + call["max_usd"])
    assert [row["state"] for row in made.ledger.calls("r-1")] == ["done"] * 3


def test_a_reply_on_record_is_used_even_when_the_journal_lost_it(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    first = made.work()
    made.journal.kept = {key: value for key, value in made.journal.kept.items() if "reply" not in key}
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
    made.ledger.set_run("r-1", budget=Budget(usd=1, tokens=100_000).model_dump_json())
    assert made.work().finished


def test_tokens_and_minutes_pause_a_run_too(tmp_path: Path) -> None:
    made = house(tmp_path, reply(append("one"), tokens=500), *REPLIES[1:], budget=Budget(usd=1, tokens=9500))
    with pytest.raises(PausedHere, match="tokens is used up"):
        made.work()
    assert len(made.script.asked) == 1  # the second one's maximum did not fit
    assert made.ledger.spent("r-1")["tokens"] == 1000
    made.ledger.set_run("r-1", budget=Budget(usd=1, tokens=99999, minutes=1).model_dump_json())
    made.ledger.take_seconds("r-1", "a", "gate", 61)
    with pytest.raises(PausedHere, match="minutes is used up"):
        made.work()


def test_a_procedure_needs_no_dollars(tmp_path: Path) -> None:
    made = house(
        tmp_path, reply(append("one"), tokens=0), reply(text("Done."), tokens=0), budget=Budget(), tier="procedure"
    )
    made.script.billed = False
    assert made.work().finished
    assert made.ledger.spent("r-1")["usd"] == 0
    assert made.ledger.spent("r-1")["seconds"] > 0


def test_a_key_follows_from_the_request_and_its_place_and_not_from_the_order_of_keys(tmp_path: Path) -> None:
    made = house(tmp_path, *REPLIES)
    made.work()
    request = made.script.asked[0]
    key = calls.call_key("r-1", request)
    shuffled = json.loads(json.dumps(request.model_dump(mode="json")))
    assert calls.call_key("r-1", Request.model_validate(dict(reversed(shuffled.items())))) == key
    changes = ({"turn": 1}, {"who": "a/2"}, {"system": "Be bad."}, {"model": "n"})
    others = {calls.call_key("r-1", request.model_copy(update=change)) for change in changes}
    assert key not in others | {calls.call_key("r-2", request)}
    assert len({row["key"] for row in made.ledger.calls("r-1")}) == 3


def test_every_kind_of_token_has_its_own_price() -> None:
    price = Price(input=4.0, output=20.0, cache_read=0.5)
    used = Usage(input_tokens=10**6, output_tokens=10**6, cache_read=10**6, cache_write_5m=10**6, cache_write_1h=10**6)
    assert price.usd(used) == pytest.approx(4 + 20 + 0.5 + 4 * 1.25 + 4 * 2)


def test_a_read_whose_price_is_not_published_costs_as_much_as_input() -> None:
    assert PRICES["claude-opus-5-5"].usd(Usage(cache_read=10**6)) == 4.0


def test_the_cheapest_tier_costs_five_times_as_much_above_100_000_tokens_of_prompt() -> None:
    below, above = Usage(input_tokens=60_000, cache_read=40_000), Usage(input_tokens=60_001, cache_read=40_000)
    assert HAIKU.usd(below) == pytest.approx(0.06 * 0.10 + 0.04 * 0.01)
    assert HAIKU.usd(above) == pytest.approx(0.060001 * 0.50 + 0.04 * 0.05)
