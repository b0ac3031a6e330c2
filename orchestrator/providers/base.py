"""What a brain is: one method that takes a conversation and gives the next turn.

Messages and replies have the shape of Anthropic's Messages API (content blocks `text`, `tool_use`, `tool_result`), for
every provider: what works with one works with all.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from pydantic import Field

from orchestrator.errors import OrchestratorError
from orchestrator.prices import Usage
from orchestrator.records import Record, Tier

Block = dict[str, Any]
Message = dict[str, Any]
Json = Any
FENCED = re.compile(r"```(?:json)?[^\S\n]*\n(.*?)```", re.DOTALL)


class Request(Record):
    """One call. `who` and `turn`: whose conversation, unique in its run, and where in it.

    `answer_schema` asks for an answer in JSON of that shape, whole: a provider whose service takes less sends less.
    """

    who: str
    turn: int
    tier: Tier
    model: str
    system: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    max_tokens: int = 8192
    answer_schema: dict[str, Any] | None = None


class Reply(Record):
    """The next assistant turn.

    `stop_reason` is the API's own word, known to us or not; `detail` says more (a refusal's category, what was wrong).
    `broken`: calls whose arguments were no JSON, by id, with the reason: they are answered with it and never run.
    """

    content: tuple[Block, ...]
    stop_reason: str
    usage: Usage = Usage()
    detail: str = ""
    broken: dict[str, str] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join(block["text"] for block in self.content if block["type"] == "text")

    @property
    def tool_calls(self) -> tuple[Block, ...]:
        return tuple(block for block in self.content if block["type"] == "tool_use")

    @property
    def answer(self) -> Json:
        """The JSON that the text is, or holds in its last fenced block. Raises ValueError when there is none."""
        return json_in(self.text)


class CallFailed(OrchestratorError):
    """A call that gave no reply.

    kind: in a word, the same for the same failure. passing: trying again may help. doubtful: it may have been paid
    for. retry_after_s: what the service asked for. remedy: what a person can do.
    """

    exit_code = 6

    def __init__(
        self,
        kind: str,
        what: str,
        passing: bool = False,
        doubtful: bool = False,
        retry_after_s: float | None = None,
        remedy: str = "",
    ) -> None:
        self.kind = kind
        self.passing = passing
        self.doubtful = doubtful
        self.retry_after_s = retry_after_s
        self.remedy = remedy
        super().__init__(what)


class Provider(Protocol):
    """`billed`: whether a reply costs money, and its time counts; a person's does not."""

    name: str
    billed: bool

    async def reply(self, request: Request) -> Reply:
        """The next assistant turn. Raises CallFailed; it never retries by itself."""
        ...


def json_in(text: str) -> Json:
    """The JSON that a text is, or that its last fenced block holds. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        fenced = FENCED.findall(text)
        if not fenced:
            raise ValueError("holds no JSON: neither the whole text nor a fenced block") from None
        return json.loads(fenced[-1])
