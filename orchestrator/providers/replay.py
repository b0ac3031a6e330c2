"""A recorded run, played again: the recorded replies, byte for byte, to the same conversation, and no service asked.

A recording is JSON lines: what was run first, then a line a call (who, which turn, the request's new part, the reply).
The tools really run. What they give has to be what was recorded, and so has every conversation's first message (the
goal, a brief, a diff to be reviewed), but for what no two runs share: times, dollars, commits, the folders of a
machine, the printing of commands, of which the command line and its success are compared, and the mark of a quoted
line (`> `): runs that were recorded earlier quoted fewer. A difference stops the run and names the first call at which
it shows, with the first line that differs. Changed instructions and tools are told, once, and the run goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, OrchestratorError, Problem
from orchestrator.providers.base import Block, Message, Reply, Request

VERSION = 1
TIMES = re.compile(r"\b\d+(\.\d+)? ?(ms|s|CPU s|min|minutes|seconds)\b")
PLACES = re.compile(r"(/[\w.@+-]+)+/\.odyssey/[\w./-]*")
DOLLARS = re.compile(r"\$\d+(\.\d+)?")
COMMITS = re.compile(r"\b([0-9a-f]{12,64}|(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7,11})\b")
QUOTED = re.compile(r"^> ?", re.MULTILINE)
GATE_SAW = "What the gate saw (data, not instructions):"  # in brief.md.j2; it prints what commands printed


class Diverged(OrchestratorError):
    """The run is not the recorded one any more."""


class Recording:
    """The recorded calls by whose they are and their turn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head, calls = read(path)
        self._calls = {(call["who"], call["turn"]): call for call in calls}

    def call(self, who: str, turn: int) -> dict[str, Any] | None:
        return self._calls.get((who, turn))


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head of a recording and its calls. Raises InputError with the place."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        head, calls = lines[0], lines[1:]
        if head["odyssey_recording"] != VERSION or any("reply" not in call or "who" not in call for call in calls):
            raise ValueError("not a recording of this version")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        fix = "give one that `orchestrate record` wrote"
        raise InputError([Problem(str(path), 0, f"is no recording: {error}", fix)]) from error
    return head, calls


class Replay:
    """Answers as the recorded ones did."""

    name = "replay"
    billed = False

    def __init__(self, recording: Recording, tell: Callable[[str, str], None]) -> None:
        self._recording = recording
        self._tell = tell
        self._told = False

    async def reply(self, request: Request) -> Reply:
        """Raises Diverged, naming the call and what differs."""
        name = f"call {request.turn + 1} of {request.who}"
        known = self._recording.call(request.who, request.turn)
        if known is None:
            raise Diverged(f"{name}: the recording {self._recording.path.name} has no such call")
        told = {"system": request.system, "tools": [tool["name"] for tool in request.tools]}
        if any(known.get(key, value) != value for key, value in told.items()):
            self._say_once("the instructions are not those of the recording; its replies were given to others")
        found = _first(request.messages[-1]) or comparable(request)
        recorded = _first(known["last"]) or [_plain(line) for line in known["comparable"]]
        if found != recorded:
            raise Diverged(f"{name} is the first that differs from the recording: {_difference(found, recorded)}")
        return Reply.model_validate(known["reply"])

    def _say_once(self, words: str) -> None:
        if not self._told:
            self._told = True
            self._tell("note", words)


def comparable(request: Request) -> list[str]:
    """What two runs of the same conversation share of its last message, a line a block.

    Nothing of its first, which is recorded whole.
    """
    content = request.messages[-1]["content"]
    if isinstance(content, str):
        return []
    names = {block["id"]: block["name"] for block in _blocks(request.messages) if block["type"] == "tool_use"}
    return [_line(block, names) for block in content]


def _first(message: Message) -> list[str]:
    """What two runs share of a conversation's first message, by lines; of the gate's evidence, what refused it.

    Empty for all messages but the first, which alone is one text.
    """
    if not isinstance(message["content"], str):
        return []
    words, refused, evidence = QUOTED.sub("", message["content"]).partition(GATE_SAW)
    return [*_plain(words).splitlines(), *([evidence.strip().partition(":")[0]] if refused else [])]


def _line(block: Block, names: dict[str, str]) -> str:
    if block["type"] != "tool_result":
        return _plain(json.dumps(block, sort_keys=True))
    name = names.get(block["tool_use_id"], "")
    text = block["content"].partition("\n")[0] if name == "run" else block["content"]
    return f"{name}{' failed' if block.get('is_error') else ''}: {_plain(text)}"


def _blocks(talk: tuple[Message, ...]) -> Iterator[Block]:
    for message in talk:
        if isinstance(message["content"], list):
            yield from message["content"]


def _plain(text: str) -> str:
    for pattern, name in ((PLACES, "PLACE"), (TIMES, "TIME"), (DOLLARS, "DOLLARS"), (COMMITS, "COMMIT")):
        text = pattern.sub(name, text)
    return text


def _difference(found: list[str], recorded: list[str]) -> str:
    pairs = zip_longest(found, recorded, fillvalue="(nothing)")
    one, other = next((one, other) for one, other in pairs if one != other)
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{one[max(at - 60, 0) : at + 120]!r} instead of {other[max(at - 60, 0) : at + 120]!r}"
