"""Messages as Markdown that people read."""

from __future__ import annotations

import json

from orchestrator.prompts import fenced
from orchestrator.providers.base import Block, Message


def message(each: Message) -> str:
    content = each["content"]
    return content if isinstance(content, str) else "\n\n".join(_block(block) for block in content)


def written_out(talk: list[Message]) -> str:
    """A conversation, whole."""
    return "\n\n".join(f"## {each['role']}\n\n{message(each)}" for each in talk) + "\n"


def _block(block: Block) -> str:
    if block["type"] == "text":
        return str(block["text"])
    if block["type"] == "tool_use":
        return f"Call `{block['id']}` of `{block['name']}`:\n\n```json\n{json.dumps(block['input'], indent=2)}\n```"
    if block["type"] == "tool_result":
        failed = " (failed)" if block.get("is_error") else ""
        return f"Result of `{block['tool_use_id']}`{failed}:\n\n{fenced(block['content'])}"
    return f"[{block['type']}]"
