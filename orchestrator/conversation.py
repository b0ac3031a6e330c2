"""Conversations as data: their messages, when they turn in circles, and how they are handed over through a file."""

from __future__ import annotations

import json
from collections import Counter

from orchestrator import prompts
from orchestrator.providers.base import Block, Message, Reply

SAME_FAILURES = 3  # of one call, while nothing moves
AGAIN = "\n[This very call failed in the same way before, and nothing was mended since. Do something else.]"
CHARS_PER_TOKEN = 4
LAST_WORDS = 4000
CONTENT_SHOWN = 200


def user(content: str | list[Block]) -> Message:
    return {"role": "user", "content": content}


def assistant(reply: Reply) -> Message:
    return {"role": "assistant", "content": list(reply.content)}


def error_result(call: Block, why: str) -> Block:
    return {"type": "tool_result", "tool_use_id": call["id"], "content": why, "is_error": True}


class Failures:
    """Calls of an attempt that failed: how often each did in the same way since the work last moved.

    A turn moves it when it changed a file and something in it went well; looking around does not. `stuck` says why
    going on is no use; it is empty when it is.
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self.stuck = ""

    def told(self, calls: tuple[Block, ...], results: list[Block], changed: bool) -> list[Block]:
        """A turn's results, counted; where a call failed as it did before, its result says so."""
        if changed and not all(result.get("is_error") for result in results):
            self._seen.clear()
        names = [_failure(call, result) for call, result in zip(calls, results, strict=True)]
        self._seen.update({name for name in names if name})
        worst = max(names, key=lambda name: self._seen[name], default="")
        if self._seen[worst] >= SAME_FAILURES:
            self.stuck = f"the same call failed {SAME_FAILURES} times in the same way: {worst[:1000]}"
        again = [self._seen[name] > 1 for name in names]
        return [
            {**result, "content": result["content"] + AGAIN} if twice else result
            for result, twice in zip(results, again, strict=True)
        ]


def _failure(call: Block, result: Block) -> str:
    """What was called and how it failed; empty when it went well."""
    if not result.get("is_error"):
        return ""
    return json.dumps([call["name"], call["input"], _first_line(result["content"])], sort_keys=True)


def too_long(reply: Reply, talk: list[Message], window: int) -> bool:
    """Whether the next call would be over the window: by the last one's count and the size of what came after it."""
    results = talk[-1:] if talk[-2:-1] == [assistant(reply)] else []
    uncounted = results if reply.usage.total else talk
    return len(talk) > 1 and reply.usage.total + len(json.dumps(uncounted)) // CHARS_PER_TOKEN > window


def handed_over(brief: str, path: str, talk: list[Message]) -> str:
    """The first message of the conversation that goes on: the brief, what was done, where the rest can be read."""
    said = [_text(message) for message in talk if message["role"] == "assistant"]
    words = {"brief": brief, "path": path, "calls": _calls(talk), "last": "\n".join(said)[-LAST_WORDS:]}
    return prompts.render("handover.md.j2", words)


def _calls(talk: list[Message]) -> list[str]:
    """One line a call, with how it ended."""
    blocks = [block for message in talk if isinstance(message["content"], list) for block in message["content"]]
    ends = {block["tool_use_id"]: block for block in blocks if block["type"] == "tool_result"}
    return [
        f"{block['name']} {json.dumps(block['input'])[:CONTENT_SHOWN]}: {_end(ends.get(block['id']))}"
        for block in blocks
        if block["type"] == "tool_use"
    ]


def _end(result: Block | None) -> str:
    if result is None:
        return "no result"
    return ("failed: " if result.get("is_error") else "") + _first_line(result["content"])[:CONTENT_SHOWN]


def _text(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if block["type"] == "text")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
