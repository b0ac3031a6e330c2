"""By mail: requests that people can read, replies that are checked before they are taken, patience across restarts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.colleagues import Decision
from orchestrator.errors import InputError, NotFound
from orchestrator.hierarchy import Delegation
from orchestrator.providers.base import Reply, Request
from orchestrator.providers.mailbox import ByMail, Mailbox
from orchestrator.providers.shape import closed
from orchestrator.records import Record
from orchestrator.review import Review

READ = {
    "name": "read",
    "description": "Read a file.",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "offset": {"type": "integer", "minimum": 1}},
        "required": ["path"],
        "additionalProperties": False,
    },
}
VERDICT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
DONE = {"text": "Done."}


def request(**changed: Any) -> Request:
    fields: dict[str, Any] = {
        "who": "a/1", "turn": 0, "tier": "haiku", "model": "m", "system": "Be good.",
        "messages": ({"role": "user", "content": "Mend it."},), "tools": (READ,),
    }  # fmt: skip
    return Request(**{**fields, **changed})


def posted(folder: Path, wanted: Request | None = None) -> tuple[Mailbox, str]:
    box = Mailbox(folder)
    return box, box.post(wanted or request(), "r-1/a/1/0")


def waiting(box: Mailbox, wanted: Request, rounds: int, then: Any = None) -> tuple[Reply | None, list[str]]:
    """A provider that waits so many rounds; `then` happens in the last. The reply, and what was told."""
    told: list[str] = []
    left = [rounds]

    async def sleep(_: float) -> None:
        left[0] -= 1
        if left[0] == 0 and then:
            then()
        if left[0] < -1:
            raise TimeoutError

    provider = ByMail(box, "r-1", lambda kind, words: told.append(words), sleep)
    try:
        return asyncio.run(provider.reply(wanted)), told
    except TimeoutError:
        return None, told


def test_a_request_is_a_file_for_machines_and_one_for_people(tmp_path: Path) -> None:
    box, name = posted(tmp_path)
    assert json.loads((tmp_path / "outbox" / f"{name}.json").read_text())["system"] == "Be good."
    text = box.show(name)
    for words in ("Be good.", "Mend it.", "`read`: Read a file.", f"orchestrate mailbox answer {name}", '"calls"'):
        assert words in text
    assert name.startswith("r-1-a-1-0-")
    assert "new since" not in text


def test_whoever_answers_again_sees_where_the_new_part_begins(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Mend it."}, {"role": "assistant", "content": "How?"}]
    box, name = posted(tmp_path, request(turn=1, messages=(*talk, {"role": "user", "content": "Well."})))
    _, new = box.show(name).split("# user (new since the last reply)")
    assert "Well." in new
    assert "Mend it." not in new


def test_a_reply_is_awaited_taken_and_filed(tmp_path: Path) -> None:
    box = Mailbox(tmp_path)
    reply, told = waiting(box, request(), 3, lambda: box.answer(box.open()[0], json.dumps(DONE)))
    assert reply is not None
    assert (reply.text, reply.stop_reason, reply.usage.total) == ("Done.", "end_turn", 0)
    assert len(told) == 1
    assert box.open() == []
    assert sorted(path.suffix for path in (tmp_path / "done").iterdir()) == [".json", ".json", ".md"]


def test_a_reply_given_while_nobody_ran_is_found_by_the_next_process(tmp_path: Path) -> None:
    killed, _ = waiting(Mailbox(tmp_path), request(), 1)
    assert killed is None
    (name,) = Mailbox(tmp_path).open()
    Mailbox(tmp_path).answer(name, json.dumps(DONE))
    reply, told = waiting(Mailbox(tmp_path), request(), 1)
    assert reply is not None
    assert told == []


def test_a_reply_that_was_filed_just_before_a_crash_is_found_again(tmp_path: Path) -> None:
    box = Mailbox(tmp_path)
    first, _ = waiting(box, request(), 1, lambda: box.answer(box.open()[0], json.dumps(DONE)))
    again, told = waiting(Mailbox(tmp_path), request(), 1)
    assert again == first
    assert told == []


def test_another_run_asks_anew(tmp_path: Path) -> None:
    box, name = posted(tmp_path)
    assert box.post(request(), "r-2/a/1/0") != name


def test_calls_get_ids_of_their_own(tmp_path: Path) -> None:
    box, name = posted(tmp_path)
    calls = [{"tool": "read", "input": {"path": "a"}}, {"tool": "read", "input": {"path": "b"}}]
    reply = box.answer(name, json.dumps({"text": "I look.", "calls": calls}))
    assert reply.stop_reason == "tool_use"
    assert [(call["id"], call["input"]["path"]) for call in reply.tool_calls] == [("mail_0_0", "a"), ("mail_0_1", "b")]


def test_prose_around_a_fenced_block_is_no_hindrance(tmp_path: Path) -> None:
    box, name = posted(tmp_path)
    text = f"Sure! First an example:\n```json\n{{}}\n```\nand now\n```json\n{json.dumps(DONE)}\n```\nGood luck."
    assert box.answer(name, text).text == "Done."


def test_no_is_an_answer(tmp_path: Path) -> None:
    box, name = posted(tmp_path)
    reply = box.answer(name, '{"refuse": "too vague"}')
    assert (reply.stop_reason, reply.text) == ("refusal", "too vague")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Looks good to me", "the reply holds no JSON"),
        ('{"text": "x"', "the reply holds no JSON"),
        ('{"text": "  "}', "text: is empty"),
        ('{"txt": "x"}', "txt: Extra inputs are not permitted"),
        ('{"calls": [{"tool": "rm", "input": {}}]}', "calls[0].tool: there is no tool `rm`; there are read"),
        ('{"calls": [{"tool": "read", "input": {}}]}', "calls[0].input.path: is missing"),
        ('{"calls": [{"tool": "read", "input": {"path": 3}}]}', "calls[0].input.path: 3 is no string"),
        ('{"calls": [{"tool": "read", "input": {"path": "a", "x": 1}}]}', "calls[0].input.x: is unknown"),
        ('{"calls": [{"tool": "read", "input": {"path": "a", "offset": 0}}]}', "offset: 0 is not at least 1"),
        ('{"refuse": "no", "calls": [{"tool": "read", "input": {"path": "a"}}]}', "refuse: can't go with calls"),
    ],
)
def test_a_bad_reply_is_refused_with_the_reason_and_the_request_stays_open(
    tmp_path: Path, text: str, reason: str
) -> None:
    box, name = posted(tmp_path)
    with pytest.raises(InputError) as caught:
        box.answer(name, text)
    assert reason in str(caught.value)
    assert box.open() == [name]
    assert list((tmp_path / "inbox").iterdir()) == []


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (b'{"calls": [{"tool": "rm", "input": {}}]}', "no tool `rm`"),
        (b'{"content": [{"type": "text"}], "stop_reason": "end_turn"}', "content: Extra inputs are not permitted"),
        (b'{"text": "caf\xe9"}', "the reply is no text in UTF-8"),
        (b'{"text": "\\ud83d"}', "the reply holds half a character"),
    ],
)
def test_a_bad_reply_put_there_by_hand_is_moved_aside_with_the_reason(
    tmp_path: Path, written: bytes, reason: str
) -> None:
    box, name = posted(tmp_path)
    (tmp_path / "inbox" / f"{name}.json").write_bytes(written)
    assert box.taken(name) is None
    assert reason in (tmp_path / "inbox" / f"{name}.reason.txt").read_text()
    assert box.open() == [name]
    (tmp_path / "inbox" / f"{name}.json").write_text(json.dumps(DONE))
    taken = box.taken(name)
    assert taken is not None
    assert taken.text == "Done."


@pytest.mark.parametrize("text", ['{"n": 3}', '{"answer": {"n": 3}}', 'So:\n```json\n{"n": 3}\n```'])
def test_an_answer_of_a_shape_is_held_against_it(tmp_path: Path, text: str) -> None:
    box, name = posted(tmp_path, request(answer_schema=VERDICT, tools=()))
    assert '"integer"' in box.show(name)
    with pytest.raises(InputError, match=r"answer.n: 'three' is no integer"):
        box.answer(name, '{"n": "three"}')
    assert box.answer(name, text).answer == {"n": 3}


FINDING = {"severity": "none", "what": "nothing", "evidence": "I read it"}
HANDED = {"task": "a", "agent": "worker", "brief": "Do it."}


@pytest.mark.parametrize(
    ("shape", "answer", "reason"),
    [
        (Decision, {"decision": "answer", "text": "x" * 4001}, "answer.text: .* is not 4000 characters at most"),
        (Decision, {"decision": "answer", "text": ""}, "answer.text: '' is not 1 characters or more"),
        (Review, {"findings": []}, r"answer.findings: \[\] is not 1 items or more"),
        (Review, {"findings": [{**FINDING, "evidence": ""}]}, r"findings\[0\].evidence: '' is not 1 characters"),
        (Delegation, {"why": "w", "tasks": [{**HANDED, "brief": "x" * 4001}]}, r"tasks\[0\].brief: .* 4000 characters"),
    ],
)
def test_an_answer_whose_asker_could_not_use_it_is_refused_with_the_reason(
    tmp_path: Path, shape: type[Record], answer: Any, reason: str
) -> None:
    with pytest.raises(ValidationError):
        shape.model_validate(answer)
    box, name = posted(tmp_path, request(answer_schema=closed(shape.model_json_schema()), tools=()))
    with pytest.raises(InputError, match=reason):
        box.answer(name, json.dumps(answer))
    assert box.open() == [name]


def test_an_unknown_request_is_named_with_those_that_are_open(tmp_path: Path) -> None:
    box, name = posted(tmp_path)
    with pytest.raises(NotFound, match=f"no open request `x`; open are: {name}"):
        box.answer("x", "{}")
