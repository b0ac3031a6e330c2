"""A recording gives the same replies to the same conversation, and names the first call at which it is another."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InputError
from orchestrator.providers.base import Reply, Request
from orchestrator.providers.replay import Diverged, Recording, Replay, comparable


def talk(*results: tuple[str, str, bool]) -> tuple[dict[str, Any], ...]:
    """A conversation: one call a turn, as (tool, what it gave, whether it failed)."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Mend it."}]
    for number, (tool, content, failed) in enumerate(results):
        call = {"type": "tool_use", "id": f"c{number}", "name": tool, "input": {}}
        result = {"type": "tool_result", "tool_use_id": f"c{number}", "content": content, "is_error": failed}
        messages += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return tuple(messages)


def request(*results: tuple[str, str, bool], system: str = "Be good.") -> Request:
    turn = len(results)
    return Request(who="a/1", turn=turn, tier="haiku", model="m", system=system, messages=talk(*results))


def recording(folder: Path, *results: tuple[str, str, bool]) -> Recording:
    lines: list[dict[str, Any]] = [{"odyssey_recording": 1, "plan": "plans/p.md"}]
    for turn in range(len(results) + 1):
        asked = request(*results[:turn])
        reply = Reply(content=({"type": "text", "text": f"turn {turn}"},), stop_reason="end_turn")
        first = {"system": asked.system} if turn == 0 else {}
        call = {"who": "a/1", "turn": turn, **first, "comparable": comparable(asked)}
        lines.append({**call, "reply": reply.model_dump(mode="json")})
    path = folder / "run.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Recording(path)


def replies(made: Recording, *asked: Request) -> tuple[list[str], list[str]]:
    """What was answered, and what was told."""
    told: list[str] = []
    provider = Replay(made, lambda kind, words: told.append(words))
    return [asyncio.run(provider.reply(each)).text for each in asked], told


def test_the_same_conversation_gets_the_same_replies(tmp_path: Path) -> None:
    made = recording(tmp_path, ("read", "text", False))
    assert replies(made, request(), request(("read", "text", False))) == (["turn 0", "turn 1"], [])


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        (
            ("run", "$ pytest\n[exit code 0 after 1.2 s]\n3 passed in 0.3s", False),
            ("run", "$ pytest\n[after 9 s]", False),
        ),
        (("search", "took 12 ms", False), ("search", "took 7 ms", False)),
        (("read", "at /a/b/.odyssey/worktrees/x--1/f.py", False), ("read", "at /c/.odyssey/worktrees/y/f.py", False)),
    ],
    ids=["what commands print", "times", "places"],
)
def test_what_no_two_runs_share_is_no_difference(tmp_path: Path, recorded: Any, found: Any) -> None:
    assert replies(recording(tmp_path, recorded), request(found))[0] == ["turn 1"]


@pytest.mark.parametrize(
    ("recorded", "found", "words"),
    [
        (("read", "old text", False), ("read", "new text", False), "'read: new text' instead of 'read: old text'"),
        (("run", "$ pytest", False), ("run", "$ pytest", True), "'run failed: $ pytest' instead of"),
        (("run", "$ pytest a", False), ("run", "$ pytest b", False), "pytest b"),
    ],
)
def test_a_difference_names_the_first_call_at_which_it_shows(
    tmp_path: Path, recorded: Any, found: Any, words: str
) -> None:
    made = recording(tmp_path, ("read", "same", False), recorded)
    with pytest.raises(Diverged) as caught:
        replies(made, request(("read", "same", False)), request(("read", "same", False), found))
    assert "call 3 of a/1 is the first that differs from the recording" in str(caught.value)
    assert words in str(caught.value)


def test_a_call_that_was_never_made_is_named(tmp_path: Path) -> None:
    made = recording(tmp_path)
    with pytest.raises(Diverged, match=r"call 2 of a/1: the recording run.jsonl has no such call"):
        replies(made, request(("read", "x", False)))


def test_other_instructions_are_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    made = recording(tmp_path)
    found, told = replies(made, request(system="Be bad."), request(system="Be bad."))
    assert (found, len(told)) == (["turn 0", "turn 0"], 1)


@pytest.mark.parametrize(
    "text", ["", "{}", "no", '{"odyssey_recording": 2}\n', '{"odyssey_recording": 1}\n{"who": "a"}\n']
)
def test_a_file_that_is_no_recording_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x.jsonl: is no recording"):
        Recording(path)
