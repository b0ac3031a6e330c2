"""Anthropic's Messages API, and every local server that speaks it: the SDK's async client, streaming, one send a call.

The SDK's own retries are off: a send is on record before it leaves, so whoever sends again has to know (`calls.py`).
A stream counts only when its last event came, and a tool's arguments only when they are JSON to the last brace: the
SDK's own snapshot takes half of either for the whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from orchestrator.errors import InputError
from orchestrator.prices import Usage
from orchestrator.providers.base import Block, CallFailed, Reply, Request
from orchestrator.providers.shape import unlimited

if TYPE_CHECKING:
    from anthropic import APIStatusError, AsyncAnthropic

SERVICE = "https://api.anthropic.com"
CACHED = {"type": "ephemeral"}  # five minutes: longer than a turn's tools usually take
CALL_S = 900.0
SILENCE_S = 180.0  # between two events of a stream; pings come in between
PASSING_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
PASSING_TYPES = frozenset({"overloaded_error", "api_error", "rate_limit_error", "timeout_error"})
TOO_LONG = "model_context_window_exceeded"
TOO_LONG_WORDS = ("prompt is too long", "context window", "context limit", "exceeds the maximum")
UNPAID_WORDS = ("credit balance", "usage limits")  # the service gives these no code of their own, only a 400


class MessagesApi:
    """One operator's key at one endpoint. `plain`: a local server, spoken to without caching and output formats."""

    name = "anthropic"
    billed = True

    def __init__(
        self, key: str, base_url: str | None = None, call_s: float = CALL_S, silence_s: float = SILENCE_S
    ) -> None:
        self.plain = base_url is not None
        self._key = key
        self._base_url = base_url or SERVICE
        self._call_s = call_s
        self._silence_s = silence_s
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncAnthropic] = WeakKeyDictionary()

    def _client(self) -> AsyncAnthropic:
        """One client an event loop: making it takes longer than a turn of ours may."""
        from anthropic import AsyncAnthropic, Timeout

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            timeout = Timeout(self._silence_s, connect=min(20.0, self._silence_s))
            self._clients[loop] = AsyncAnthropic(
                api_key=self._key, base_url=self._base_url, max_retries=0, timeout=timeout, open_telemetry=False
            )
        return self._clients[loop]

    async def reply(self, request: Request) -> Reply:
        """One send. Raises CallFailed with what is known of it."""
        from anthropic import AnthropicError, APIConnectionError, APIStatusError, APITimeoutError

        heard = _Stream()
        try:
            async with asyncio.timeout(self._call_s):
                async with self._client().messages.stream(**self._arguments(request)) as stream:
                    heard.begun = True
                    async for event in stream:
                        heard.hear(event)
            return heard.reply()
        except TimeoutError as error:
            raise CallFailed("timeout", f"no answer within {self._call_s:g} s", passing=True, doubtful=True) from error
        except APITimeoutError as error:
            what = f"silent for too long ({error})"
            raise CallFailed("timeout", what, passing=True, doubtful=not _unsent(error)) from error
        except APIStatusError as error:
            return self._refused(error, heard.begun)
        except APIConnectionError as error:
            what = f"the connection to {self._base_url} failed: {error.__cause__ or error}"
            raise CallFailed("connection", what, passing=True, doubtful=not _unsent(error)) from error
        except AnthropicError as error:
            raise CallFailed(type(error).__name__, str(error), remedy="see the message") from error
        except CallFailed:
            raise
        except Exception as error:  # httpx's errors and half a line of JSON, in the middle of a stream
            raise CallFailed("cut", f"the stream broke: {error!r}"[:500], passing=True, doubtful=True) from error

    def _arguments(self, request: Request) -> dict[str, Any]:
        found: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_tokens,
            "system": [{"type": "text", "text": request.system}],
            "messages": [*request.messages],
        }
        if request.tools:
            found["tools"] = [*request.tools]
        if self.plain:
            if request.answer_schema:
                words = (
                    f"Answer with one JSON value of this schema and nothing else:\n{json.dumps(request.answer_schema)}"
                )
                found["system"].append({"type": "text", "text": words})
            return found
        found["system"][0]["cache_control"] = CACHED  # tools and system stay the same all through an attempt
        found["cache_control"] = CACHED  # and the conversation up to its last message until the next turn
        if request.answer_schema:
            found["output_config"] = {"format": {"type": "json_schema", "schema": unlimited(request.answer_schema)}}
        return found

    def _refused(self, error: APIStatusError, begun: bool) -> Reply:
        """An error status, or an `error` event in a stream that had begun (then it may have cost something)."""
        status, kind, code = error.status_code, str(error.type or ""), error.error_code or ""
        what = f"{status} {code or kind}: {error.api_message or error.message}"[:1000]
        if status == 413 or (status == 400 and _says(TOO_LONG_WORDS, what)):
            return Reply(content=(), stop_reason=TOO_LONG, detail=what)
        unpaid = status == 402 or (status == 400 and _says(UNPAID_WORDS, what))
        if unpaid or "spend_limit" in code or kind == "billing_error":
            remedy = "raise the limit in the console of whoever pays, or add credit there, then resume"
            raise CallFailed("spend cap", what, remedy=remedy) from error
        if begun or status in PASSING_STATUS:
            passing = status in PASSING_STATUS or kind in PASSING_TYPES
            label = f"{kind or status}"
            raise CallFailed(label, what, passing, begun, retry_after(error.response.headers)) from error
        remedies = {401: "set ANTHROPIC_API_KEY to a valid key", 403: "the key may not do this; use another"}
        raise CallFailed(f"{kind or status}", what, remedy=remedies.get(status, "")) from error

    async def check(self, models: Mapping[str, str]) -> list[str]:
        """Hold the tiers' model ids against what the service has; what to tell the operator.

        Raises InputError for an id that is not there or is retired. A local server without a list is told, not refused.
        """
        from anthropic import APIConnectionError, APIStatusError

        try:
            found = {each.id: each async for each in self._client().models.list()}
        except (APIStatusError, APIConnectionError, ValueError) as error:  # ValueError: a page that is no JSON
            if isinstance(error, APIStatusError) and error.status_code in (401, 403):
                raise InputError(
                    f"the service refuses the key ({error.status_code}): check ANTHROPIC_API_KEY"
                ) from error
            return [f"model ids were not checked: {error}"]
        if not found:
            return ["model ids were not checked: the server names none"]
        usable = [name for name, each in found.items() if each.lifecycle != "retired"]
        notes = []
        for tier, model in models.items():
            if model not in usable:
                near = get_close_matches(model, usable, n=1) or usable[:5]
                fix = f"set models.{tier} in your own config.toml; the service has {', '.join(near) or 'none'}"
                raise InputError(f"tier `{tier}`: the service has no model `{model}`; {fix}")
            if found[model].retires_at:
                notes.append(f"tier `{tier}`: {model} retires at {found[model].retires_at:%Y-%m-%d}")
        return notes


class _Stream:
    """What a stream has said so far. Only `message_stop` makes it a reply."""

    def __init__(self) -> None:
        self.begun = False
        self._ended = False
        self._message: Any = None
        self._stop: Any = None
        self._arguments: dict[int, str] = {}

    def hear(self, event: Any) -> None:
        if event.type == "message_start":
            self._message = event.message
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            self._arguments[event.index] = self._arguments.get(event.index, "") + event.delta.partial_json
        elif event.type == "message_stop":
            self._message, self._ended = event.message, True

    def reply(self) -> Reply:
        if not self._ended or not self._message.stop_reason:
            raise CallFailed("cut", "the stream ended before its last event", passing=True, doubtful=True)
        content: list[Block] = []
        broken: dict[str, str] = {}
        for index, block in enumerate(self._message.content):
            content.append(_block(block))
            if block.type == "tool_use":
                if any(each.get("id") == block.id for each in content[:-1]):  # results are told apart by it
                    content[-1]["id"] = f"{block.id}-{index}"
                content[-1]["input"], reason = _object(self._arguments.get(index, ""), block.input)
                broken |= {content[-1]["id"]: reason} if reason else {}
        return Reply(
            content=tuple(content),
            stop_reason=self._message.stop_reason,
            usage=_usage(self._message.usage),
            detail=_detail(self._message.stop_details),
            broken=broken,
        )


def _block(block: Any) -> Block:
    """A block as it goes back to the API: thinking and its signature too, but none of the SDK's own fields."""
    found: Block = block.to_dict(mode="json", warnings=False)  # an input that is no object is refused where it is read
    return {key: value for key, value in found.items() if key != "parsed_output" and value is not None}


def _object(text: str, whole: Any) -> tuple[dict[str, Any], str]:
    """A call's arguments, and what is wrong with them. Servers that send them whole send no pieces."""
    if not text:
        return (whole, "") if isinstance(whole, dict) else ({}, f"its arguments are no object: {whole!r}"[:300])
    try:
        found = json.loads(text)
    except ValueError as error:
        return {}, f"its arguments are not JSON ({error}): {text[:200]}"
    return (found, "") if isinstance(found, dict) else ({}, f"its arguments are no object: {text[:200]}")


def _usage(usage: Any) -> Usage:
    """Less than nothing, as a broken server may count, would give the budget back: it is nothing."""
    written, split = usage.cache_creation_input_tokens or 0, usage.cache_creation
    hour = max(split.ephemeral_1h_input_tokens, 0) if split else 0
    return Usage(
        input_tokens=max(usage.input_tokens or 0, 0),
        output_tokens=max(usage.output_tokens or 0, 0),
        cache_read=max(usage.cache_read_input_tokens or 0, 0),
        cache_write_5m=max(written - hour, 0),
        cache_write_1h=hour,
    )


def _detail(details: Any) -> str:
    return " ".join(filter(None, (details.category, details.explanation))) if details else ""


def _unsent(error: Exception) -> bool:
    """A connection that was never made, or never to be had, can't have been paid for; one that broke can."""
    return type(error.__cause__).__name__.startswith(("Connect", "Pool"))


def _says(words: Iterable[str], what: str) -> bool:
    return any(each in what.lower() for each in words)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the service asks to wait; a date, or nonsense, is none."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
