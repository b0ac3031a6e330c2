"""Conversations as data: their messages, when they turn in circles, and how they are handed over through a file."""

from __future__ import annotations

import json

from orchestrator import prompts
from orchestrator.providers.base import Block, Message, Reply

SAME_FAILURES = 3  # of the same calls in a row
CHARS_PER_TOKEN = 4
LAST_WORDS = 4000
CONTENT_SHOWN = 200


def user(content: str | list[Block]) -> Message:
    return {"role": "user", "content": content}


def assistant(reply: Reply) -> Message:
    return {"role": "assistant", "content": list(reply.content)}


def error_result(call: Block, why: str) -> Block:
    return {"type": "tool_result", "tool_use_id": call["id"], "content": why, "is_error": True}


def stuck(talk: list[Message]) -> str:
    """Why going on is no use: the same calls failed in the same way, three turns in a row. Empty when it is."""
    turns = [_failure(before, after) for before, after in zip(talk[-6::2], talk[-5::2], strict=False)]
    if len(turns) < SAME_FAILURES or not turns[0] or any(turn != turns[0] for turn in turns):
        return ""
    return f"the same call failed {SAME_FAILURES} times in a row: {turns[0][:1000]}"


def _failure(before: Message, after: Message) -> str:
    """What a turn called and how all of it failed, without the ids; empty when any of it went well."""
    if not isinstance(before["content"], list) or not isinstance(after["content"], list):
        return ""
    calls = [[block["name"], block["input"]] for block in before["content"] if block["type"] == "tool_use"]
    results = [block for block in after["content"] if block["type"] == "tool_result"]
    if not results or not all(block.get("is_error") for block in results):
        return ""
    return json.dumps([calls, [_first_line(block["content"]) for block in results]], sort_keys=True)


def too_long(reply: Reply, talk: list[Message], window: int) -> bool:
    """Whether the next call would be over the window, by the last one's count or, where there is none, by size."""
    counted = reply.usage.total or len(json.dumps(talk)) // CHARS_PER_TOKEN
    return len(talk) > 1 and counted > window


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
