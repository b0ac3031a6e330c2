"""Prompt caching: each turn can read what the one before it sent, and the share that people see is the service's."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.calls import Calls
from orchestrator.house import State
from orchestrator.loop import Loop
from orchestrator.providers.anthropic import MessagesApi
from tests.orchestrator import brains
from tests.orchestrator.endtoend import ORCHESTRATE, has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, Turn, serving
from tests.orchestrator.forks import forks
from tests.orchestrator.helpers import ledger
from tests.orchestrator.test_loop import HAIKU, House, house

Json = dict[str, Any]


@dataclass
class Cache:
    """What the service keeps: all that came before a mark, in the order of tools, system, messages; by the model.

    A token is a character here.
    """

    kept: set[str] = field(default_factory=set)
    usages: list[Json] = field(default_factory=list)

    def usage(self, body: Json) -> Json:
        blocks = list(self._blocks(body))
        starts = ["".join(text for text, _ in blocks[: end + 1]) for end in range(len(blocks))]
        marked = [start for start, (_, mark) in zip(starts, blocks, strict=True) if mark]
        read = max((len(start) for start in starts if start in self.kept), default=0)
        written = max([*map(len, marked), read]) - read
        self.kept |= set(marked)
        used = {"cache_read_input_tokens": read, "cache_creation_input_tokens": written}
        self.usages.append({"input_tokens": len(starts[-1]) - read - written, "output_tokens": 5, **used})
        return self.usages[-1]

    def _blocks(self, body: Json) -> Iterator[tuple[str, bool]]:
        """Each block's text, and whether it ends what is to be kept. A mark on the whole is one on the last block."""
        found = [*body.get("tools", []), *body["system"]]
        for message in body["messages"]:
            content = message["content"]
            found += [{"text": content}] if isinstance(content, str) else content
        for number, block in enumerate(found):
            mark = "cache_control" in block or ("cache_control" in body and number == len(found) - 1)
            text = json.dumps({key: value for key, value in block.items() if key != "cache_control"})
            yield body["model"] + text if number == 0 else text, mark


def conversation(made: House, turns: list[Turn], cache: Cache, plain: bool = False) -> None:
    """These turns said by a service that caches, to the real SDK over a real socket."""
    api = FakeApi()

    def choose(body: Json) -> tuple[str, Turn]:
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        return f"t{turn}", replace(turns[turn], usage=cache.usage(body))

    api.choose = choose
    with serving(api):
        provider = MessagesApi("k", api.url)
        provider.plain = plain
        bought = Calls(provider, made.ledger, made.journal, {"m": HAIKU})
        assert asyncio.run(Loop(bought, made.repository, made.journal).work(made.attempt)).finished


TURNS = [Turn("I look.", (("run", {"argv": ["append", word]}),)) for word in ("one", "two")] + [Turn("Done.")]


def test_each_turn_reads_from_the_cache_all_that_the_one_before_it_sent(tmp_path: Path) -> None:
    made, cache = house(tmp_path), Cache()
    conversation(made, TURNS, cache)
    first, second, third = cache.usages
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_read_input_tokens"] == first["cache_creation_input_tokens"] > 0
    assert third["cache_read_input_tokens"] == sum(second.values()) - second["output_tokens"]
    assert [each["input_tokens"] for each in (first, second, third)] == [0, 0, 0]
    prompts = made.ledger.prompts("r-1")
    assert prompts is not None
    assert prompts["cache_read"] == second["cache_read_input_tokens"] + third["cache_read_input_tokens"]


def test_another_conversation_of_the_same_agent_reads_its_tools_and_instructions_from_the_cache(tmp_path: Path) -> None:
    made, other, cache = house(tmp_path / "one"), house(tmp_path / "two"), Cache()
    conversation(made, [Turn("Done.")], cache)
    other.attempt = replace(other.attempt, brief="Do another.")
    conversation(other, [Turn("Done.")], cache)
    assert cache.usages[1]["cache_read_input_tokens"] > len(made.attempt.system)
    assert cache.usages[1]["cache_creation_input_tokens"] == len(json.dumps({"text": "Do another."}))


def test_a_local_server_is_sent_no_marks_and_its_share_is_none_of_what_was_sent(tmp_path: Path) -> None:
    made, cache = house(tmp_path), Cache()
    conversation(made, TURNS, cache, plain=True)
    assert cache.kept == set()
    prompts = made.ledger.prompts("r-1")
    assert prompts is not None
    assert (prompts["cache_read"], prompts["cached_share"]) == (0, 0.0)


def test_what_nobody_paid_for_has_no_share(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    said = {"usage": {"input_tokens": 1, "cache_read": 9, "cache_write_5m": 0, "cache_write_1h": 0}}
    book.keep_call("procedure", "r-1", "a", said)
    book.begin_call("by mail", 0.0, "r-1", "a")
    book.end_call("by mail", said, 0, 0.0)
    book.begin_call("on its way", 0.1, "r-1", "a")
    assert book.prompts("r-1") is None
    assert book.prompts("r-1", "a") is None


@pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
def test_people_see_the_share_that_the_service_measured_of_the_run_and_of_each_task(tmp_path: Path) -> None:
    repo, api = brains.repository(tmp_path / "repo", 1), brains.api(1)
    turns = [turn for script in api.scripts.values() for turn in script]
    used = [
        {"input_tokens": 11 + number, "output_tokens": 5, "cache_read_input_tokens": 97 * number,
         "cache_creation_input_tokens": 7}
        for number in range(len(turns))
    ]  # fmt: skip
    said = iter([replace(turn, usage=usage) for turn, usage in zip(turns, used, strict=True)])
    api.scripts = {key: [next(said) for _ in script] for key, script in api.scripts.items()}
    with serving(api), forks() as made:
        made.url = api.url
        done = made.run(repo, ["run", "plans/p.md", "--provider", "anthropic"])
    assert done["code"] == 0, done["err"]

    whole, task = sums(used), sums(used[1:])  # the first is the delegation, which is no task's
    shown = json.loads(orchestrate(repo, "status", "--json"))
    assert shown["run"]["prompts"] == whole
    assert f"\n{words(whole)}\n" in orchestrate(repo, "report")
    (pull,) = State.of(repo).ledger.pulls()
    assert f"minutes of commands. {words(task)}." in pull.body.partition("## Cost")[2].partition("##")[0]
    assert shown["tasks"][0]["why_tier"].startswith("haiku (no such attempt yet; ")
    assert f"haiku, attempt 1. The router: {shown['tasks'][0]['why_tier']}" in pull.body


def sums(used: list[Json]) -> Json:
    read = sum(each["cache_read_input_tokens"] for each in used)
    tokens = sum(each["input_tokens"] + each["cache_creation_input_tokens"] for each in used) + read
    return {"cache_read": read, "tokens": tokens, "cached_share": read / tokens}


def words(found: Json) -> str:
    share = f"{100 * found['cached_share']:.1f} %"
    return f"{found['cache_read']} of {found['tokens']} prompt tokens came from the cache ({share})"


def orchestrate(repo: Path, *argv: str) -> str:
    return subprocess.run([ORCHESTRATE, *argv], cwd=repo, check=True, capture_output=True, text=True).stdout
