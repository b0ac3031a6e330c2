"""The Messages API through the real SDK and a real socket: what comes back, and each way in which nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from orchestrator.errors import InputError
from orchestrator.prices import Usage
from orchestrator.providers.anthropic import TOO_LONG, MessagesApi
from orchestrator.providers.base import CallFailed, Reply, Request
from tests.orchestrator.fakeapi import NO_CREDIT, FakeApi, Fault, Turn, serving

READ = {"name": "read", "description": "Read.", "input_schema": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi(scripts={"go": [Turn("Fine.")]})) as made:
        yield made


def request(**changed: Any) -> Request:
    fields: dict[str, Any] = {
        "who": "a/1", "turn": 0, "tier": "haiku", "model": "m", "system": "Be good.",
        "messages": ({"role": "user", "content": "go"},), "tools": (READ,),
    }  # fmt: skip
    return Request(**{**fields, **changed})


def ask(api: FakeApi, wanted: Request | None = None, plain: bool = True, **options: Any) -> Reply:
    provider = MessagesApi("key-1", api.url, **options)
    provider.plain = plain
    return asyncio.run(provider.reply(wanted or request()))


def failure(api: FakeApi, fault: Fault, **options: Any) -> CallFailed:
    api.faults.append(fault)
    with pytest.raises(CallFailed) as caught:
        ask(api, **options)
    return caught.value


# What comes back


def test_a_streamed_turn_comes_back_whole_with_its_calls_and_every_kind_of_token(api: FakeApi) -> None:
    cache = {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 5}
    used = {"input_tokens": 3, "output_tokens": 9, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 12}
    api.scripts["go"] = [
        Turn("I look.", (("read", {"path": "ä"}), ("read", {})), usage={**used, "cache_creation": cache})
    ]
    reply = ask(api)
    assert reply.text == "I look."
    assert [(call["name"], call["input"]) for call in reply.tool_calls] == [("read", {"path": "ä"}), ("read", {})]
    assert reply.stop_reason == "tool_use"
    assert reply.usage == Usage(input_tokens=3, output_tokens=9, cache_read=40, cache_write_5m=7, cache_write_1h=5)
    assert reply.usage.prompt == 55


def test_a_turn_that_goes_back_is_accepted_as_it_came(api: FakeApi) -> None:
    api.scripts["go"] = [Turn("I look.", (("read", {}),)), Turn("Done.")]
    first = ask(api)
    result = {"type": "tool_result", "tool_use_id": first.tool_calls[0]["id"], "content": "x"}
    talk = (
        *request().messages,
        {"role": "assistant", "content": list(first.content)},
        {"role": "user", "content": [result]},
    )
    assert ask(api, request(messages=talk, turn=1)).text == "Done."
    assert api.requests[1]["messages"][1]["content"] == list(first.content)


def test_the_service_gets_cache_marks_and_schemas_and_a_local_server_gets_neither(api: FakeApi) -> None:
    bounded = {**SCHEMA, "properties": {"n": {"type": "integer", "minimum": 1}}}
    ask(api, request(answer_schema=bounded), plain=False)
    ask(api, request(answer_schema=bounded), plain=True)
    service, local = api.requests
    assert service["cache_control"] == service["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert service["output_config"]["format"] == {"type": "json_schema", "schema": SCHEMA}
    assert "cache_control" not in local
    assert "cache_control" not in local["system"][0]
    assert "output_config" not in local
    assert '"minimum": 1' in local["system"][1]["text"]
    assert "temperature" not in service
    assert service["stream"]


def test_the_key_is_sent_and_nothing_is_sent_twice(api: FakeApi) -> None:
    assert failure(api, Fault(status=500)).passing
    (sent,) = api.headers
    assert "key-1" in (sent.get("x-api-key", "") + sent.get("authorization", ""))
    assert sent["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize(
    "stop", ["max_tokens", "pause_turn", "compaction", "model_context_window_exceeded", "brand_new"]
)
def test_every_stop_reason_is_handed_on_in_the_services_own_word(api: FakeApi, stop: str) -> None:
    api.scripts["go"] = [Turn("So far", stop=stop)]
    assert ask(api).stop_reason == stop


def test_a_refusal_says_its_category(api: FakeApi) -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "no exploits"}
    api.scripts["go"] = [Turn(stop="refusal", details=details)]
    reply = ask(api)
    assert (reply.stop_reason, reply.detail) == ("refusal", "cyber no exploits")


@pytest.mark.parametrize("raw", ['{"path": "a', '{"path": "a"} and more', "[1]", "nonsense", '{"path": }'])
def test_arguments_that_are_no_json_object_are_kept_from_running(api: FakeApi, raw: str) -> None:
    api.scripts["go"] = [Turn("I look.", (("read", raw), ("read", {"path": "b"})))]
    if raw == "nonsense" or raw == '{"path": }':  # the SDK's own reading breaks on these: the turn is lost
        with pytest.raises(CallFailed, match="stream broke"):
            ask(api)
        return
    reply = ask(api)
    broken, sound = reply.tool_calls
    assert set(reply.broken) == {broken["id"]}
    assert broken["input"] == {}
    assert sound["input"] == {"path": "b"}


@dataclass(frozen=True)
class OneName(Turn):
    """A turn of a server that gives all calls the same id."""

    def _blocks(self, name: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        for block, deltas in super()._blocks(name):
            yield {**block, "id": "call"}, deltas


def test_calls_of_one_turn_with_one_id_are_told_apart(api: FakeApi) -> None:
    api.scripts["go"] = [OneName(calls=(("read", {"path": "a"}), ("read", "[1]"), ("read", {"path": "c"})))]
    reply = ask(api)
    assert [(call["id"], call["input"].get("path")) for call in reply.tool_calls] == [
        ("call", "a"), ("call-1", None), ("call-2", "c"),
    ]  # fmt: skip
    assert [*reply.broken] == ["call-1"]


def test_a_server_that_counts_less_than_nothing_gives_no_budget_back(api: FakeApi) -> None:
    plain = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    written = dict.fromkeys(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"), -5)
    api.scripts["go"] = [Turn("Fine.", usage={**dict.fromkeys(plain, -5000), "cache_creation": written})]
    assert ask(api).usage == Usage()


# Ways in which nothing comes back


@pytest.mark.parametrize(
    ("fault", "kind", "passing", "doubtful"),
    [
        (Fault(status=429, kind="rate_limit_error"), "rate_limit_error", True, False),
        (Fault(status=500), "api_error", True, False),
        (Fault(status=529, kind="overloaded_error"), "overloaded_error", True, False),
        (Fault(status=408, kind="timeout_error"), "timeout_error", True, False),
        (Fault(status=409, kind="conflict_error"), "conflict_error", True, False),
        (Fault(status=400, kind="invalid_request_error"), "invalid_request_error", False, False),
        (Fault(status=401, kind="authentication_error"), "authentication_error", False, False),
        (Fault(event="overloaded_error"), "overloaded_error", True, True),
        (Fault(event="invalid_request_error"), "invalid_request_error", False, True),
        (Fault(reset=True), "connection", True, True),
        (Fault(cut=900), "cut", True, True),
        (Fault(cut=900, reset=True), "cut", True, True),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_failure_says_whether_to_try_again_and_whether_it_may_have_cost(
    api: FakeApi, fault: Fault, kind: str, passing: bool, doubtful: bool
) -> None:
    found = failure(api, fault)
    assert (found.kind, found.passing, found.doubtful) == (kind, passing, doubtful)
    assert len(api.requests) == 1


def test_silence_is_a_timeout_and_in_doubt(api: FakeApi) -> None:
    found = failure(api, Fault(silent=60), silence_s=0.5)
    assert (found.kind, found.passing, found.doubtful) == ("timeout", True, True)


def test_an_answer_that_comes_byte_by_byte_without_end_is_a_timeout_of_the_whole_call(api: FakeApi) -> None:
    """No silence is ever long: only the limit of the whole call ends it."""
    drip = Fault(drips=0.05, of=Turn("x" * 2000))  # two minutes
    found = failure(api, drip, call_s=0.5, silence_s=60)
    assert (found.kind, found.passing, found.doubtful) == ("timeout", True, True)
    assert "no answer within 0.5 s" in str(found)


def test_a_server_that_is_not_there_costs_nothing() -> None:
    with pytest.raises(CallFailed) as caught:
        asyncio.run(MessagesApi("k", "http://127.0.0.1:9").reply(request()))
    assert (caught.value.kind, caught.value.passing, caught.value.doubtful) == ("connection", True, False)


@pytest.mark.parametrize(
    ("broke", "doubtful"),
    [
        (httpx2.ConnectTimeout, False),
        (httpx2.PoolTimeout, False),
        (httpx2.WriteTimeout, True),
        (httpx2.ReadTimeout, True),
    ],
)
def test_a_timeout_before_there_was_a_connection_costs_nothing(
    api: FakeApi, broke: type[Exception], doubtful: bool
) -> None:
    """As when a firewall drops what is sent."""

    def drop(_: httpx2.Request) -> httpx2.Response:
        raise broke("timed out")

    async def asked() -> Reply:
        provider = MessagesApi("k", api.url)
        provider._client()._client = httpx2.AsyncClient(transport=httpx2.MockTransport(drop))
        return await provider.reply(request())

    with pytest.raises(CallFailed) as caught:
        asyncio.run(asked())
    assert (caught.value.kind, caught.value.passing, caught.value.doubtful) == ("timeout", True, doubtful)


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"retry-after": "7"}, 7.0), ({}, None), ({"retry-after": "soon"}, None)]
)
def test_what_the_service_asks_to_wait_is_handed_on(
    api: FakeApi, headers: dict[str, str], seconds: float | None
) -> None:
    assert failure(api, Fault(status=429, headers=headers)).retry_after_s == seconds


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, kind="rate_limit_error", code="enforced_spend_limit_reached", headers={"retry-after": "1"}),
        Fault(status=429, kind="rate_limit_error", code="contract_spend_limit_reached"),
        Fault(status=402, kind="billing_error"),
        NO_CREDIT,
        Fault(status=400, kind="invalid_request_error", message="You have reached your specified API usage limits."),
    ],
)
def test_a_spend_cap_is_not_tried_again(api: FakeApi, fault: Fault) -> None:
    found = failure(api, fault)
    assert (found.kind, found.passing) == ("spend cap", False)
    assert "raise the limit" in found.remedy


@pytest.mark.parametrize(
    "words", ["prompt is too long: 210000 tokens > 200000 maximum", "exceeds the maximum context window"]
)
def test_a_prompt_that_is_too_long_is_a_stop_reason_and_no_failure(api: FakeApi, words: str) -> None:
    api.faults.append(Fault(status=400, kind="invalid_request_error", message=words))
    assert ask(api).stop_reason == TOO_LONG


# A stream that is cut


TRANSCRIPTS = [
    Turn("Fine."), Turn("ü" * 9), Turn(""), Turn("", (("read", {}),)), Turn("", (("read", {"path": "a/b"}),)),
    Turn("Both.", (("read", {"path": "a"}), ("read", {"path": "b"}))), Turn("x", stop="max_tokens"),
    Turn("x", stop="refusal"), Turn("x", stop="pause_turn"), Turn("x", stop="brand_new"), Turn("line\nline\n\nline"),
    Turn('{"a": 1}'), Turn("data: [DONE]\n\nevent: message_stop"), Turn("", (("run", {"argv": ["rm", "-rf", "x"]}),)),
    Turn("", (("write", {"path": "a", "content": "1\n2\n"}),)), Turn("t", (("edit", {"old": "{", "new": "}"}),)),
    Turn("", (("read", '{"path": "a'),)), Turn("", (("read", {"deep": {"er": [1, 2, {"x": None}]}}),)),
    Turn("", (("search", {"pattern": "\\w+\"'"}),)), Turn("e", (("a", {}), ("b", {}), ("c", {}))),
]  # fmt: skip


def whole_at(api: FakeApi, turn: Turn, cuts: list[int]) -> list[int]:
    """At which of these bytes a cut stream gave a reply, or a failure that is not to be tried again."""

    async def all_of_them() -> list[int]:
        provider, found = MessagesApi("k", api.url), []
        for cut in cuts:
            api.faults.append(Fault(cut=cut, of=turn))
            try:
                await provider.reply(request())
            except CallFailed as error:
                found += [] if error.passing and error.doubtful else [cut]
            else:
                found.append(cut)
        return found

    return asyncio.run(all_of_them())


def last_event(turn: Turn) -> int:
    """Bytes after which the last event is complete, up to its closing empty line."""
    return len(turn.stream("f").rstrip(b"\n"))


def sample(turn: Turn) -> list[int]:
    """In the middle of each event, around its end, and every 41st byte."""
    found, begin = set(range(0, last_event(turn), 41)), 0
    for event in events_of(turn):
        end = begin + len(event)
        found |= {begin + len(event) // 2, end, end + 1, end + 2}
        begin = end + 2
    return sorted(found)


def events_of(turn: Turn) -> list[bytes]:
    return turn.stream("f").split(b"\n\n")[:-1]


def test_the_sample_reaches_into_every_event_of_twenty_transcripts() -> None:
    assert len({turn.stream("f") for turn in TRANSCRIPTS}) == 20
    for turn in TRANSCRIPTS:
        cuts, begin = sample(turn), 0
        for event in events_of(turn):
            assert any(begin < cut < begin + len(event) for cut in cuts), event
            begin += len(event) + 2


@pytest.mark.parametrize("turn", TRANSCRIPTS, ids=range(len(TRANSCRIPTS)))
def test_half_a_stream_is_never_a_reply(api: FakeApi, turn: Turn) -> None:
    """Cut where the sample says; every single byte is in the slow test below."""
    end = last_event(turn)
    assert [cut for cut in whole_at(api, turn, sample(turn)) if cut < end] == []


@pytest.mark.slow
@pytest.mark.parametrize("turn", TRANSCRIPTS, ids=range(len(TRANSCRIPTS)))
def test_a_stream_cut_at_any_byte_is_never_a_reply(api: FakeApi, turn: Turn) -> None:
    end = last_event(turn)
    assert [cut for cut in whole_at(api, turn, list(range(end))) if cut < end] == []


# Before any money is spent


def test_model_ids_are_held_against_what_the_service_has(api: FakeApi) -> None:
    provider = MessagesApi("k", api.url)
    assert asyncio.run(provider.check({"haiku": "claude-haiku-5-5"})) == []
    with pytest.raises(
        InputError, match=r"no model `claude-haiku-5`; set models.haiku .* the service has claude-haiku-5-5"
    ):
        asyncio.run(provider.check({"haiku": "claude-haiku-5"}))


def test_a_retired_model_is_as_good_as_none(api: FakeApi) -> None:
    api.models, api.retired = ("claude-haiku-5-5",), ("claude-haiku-4-5",)
    words = r"tier `haiku`: the service has no model `claude-haiku-4-5`; set models.haiku .* has claude-haiku-5-5"
    with pytest.raises(InputError, match=words):
        asyncio.run(MessagesApi("k", api.url).check({"haiku": "claude-haiku-4-5"}))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the service refuses the key (401): check ANTHROPIC_API_KEY"),
        (403, "the service refuses the key (403): check ANTHROPIC_API_KEY"),
    ],
)
def test_a_key_that_is_refused_is_told_before_anything_is_asked(api: FakeApi, status: int, words: str) -> None:
    api.listing = (status, b'{"type": "error", "error": {"type": "permission_error", "message": "no"}}')
    with pytest.raises(InputError) as caught:
        asyncio.run(MessagesApi("k", api.url).check({"haiku": "x"}))
    assert str(caught.value) == words


LISTS = {
    "no such page": (404, b'{"detail": "Not Found"}'),
    "a page for people": (404, b"<html>404</html>"),
    "no list": (200, b"{}"),
    "another form": (200, b'{"object": "list", "models": []}'),
    "no JSON": (200, b"ok"),
    "an error of its own": (500, b""),
}


@pytest.mark.parametrize("listing", LISTS)
def test_a_server_without_a_list_of_models_is_told_and_not_refused(api: FakeApi, listing: str) -> None:
    api.listing = LISTS[listing]
    (note,) = asyncio.run(MessagesApi("k", api.url).check({"haiku": "x"}))
    assert note.startswith("model ids were not checked")


def test_a_local_servers_list_needs_no_more_than_names(api: FakeApi) -> None:
    """As vLLM and llama.cpp give it, in OpenAI's form."""
    api.listing = (200, b'{"object": "list", "data": [{"id": "llama", "object": "model", "created": 1}]}')
    provider = MessagesApi("k", api.url)
    assert asyncio.run(provider.check({"haiku": "llama"})) == []
    with pytest.raises(InputError, match=r"no model `claude-haiku-5-5`; set models.haiku .* the service has llama"):
        asyncio.run(provider.check({"haiku": "claude-haiku-5-5"}))


def test_a_server_that_is_not_there_is_told_when_models_are_checked() -> None:
    (note,) = asyncio.run(MessagesApi("k", "http://127.0.0.1:9").check({"haiku": "x"}))
    assert note.startswith("model ids were not checked")
