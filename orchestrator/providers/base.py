"""What a brain is: one method that takes a conversation and gives the next turn.

Messages and replies have the shape of Anthropic's Messages API (content blocks `text`, `tool_use`, `tool_result`), for
every provider: what works with one works with all.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from orchestrator.records import Record, Tier

Block = dict[str, Any]
Message = dict[str, Any]
StopReason = Literal["end_turn", "tool_use", "max_tokens", "refusal"]


class Request(Record):
    tier: Tier
    model: str
    system: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    max_tokens: int = 8192


class Usage(Record):
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens


class Reply(Record):
    content: tuple[Block, ...]
    stop_reason: StopReason
    usage: Usage = Usage()

    @property
    def text(self) -> str:
        return "\n".join(block["text"] for block in self.content if block["type"] == "text")

    @property
    def tool_calls(self) -> tuple[Block, ...]:
        return tuple(block for block in self.content if block["type"] == "tool_use")


class Provider(Protocol):
    name: str

    async def reply(self, request: Request) -> Reply:
        """The next assistant turn. Raises ProviderUnavailable when this brain can't answer at all."""
        ...
