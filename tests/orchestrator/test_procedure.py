"""Tier 0: a procedure's steps as turns of a conversation, and malformed procedures refused before anything runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings

from orchestrator.errors import InputError
from orchestrator.providers.base import Message, Reply, Request
from orchestrator.providers.procedure import ProcedureProvider, parse
from tests.orchestrator.fuzz import malformed
from tests.orchestrator.helpers import ROOT

PATH = "skills/x/scripts/procedure.toml"
TEXT = """
[[step]]
say = "First {{ recipe }}."
tool = "run"
[step.input]
argv = ["tune", "{{ recipe }}", "{{ task.options.minutes | default('10') }}", "{{ '--again' if attempt > 1 }}"]
timeout_s = 60
deep = {a = ["{{ recipe }}", {b = "{{ attempt }}"}]}

[[step]]
say = "Second, after: {{ last }}"
tool = "read"
on_error = "continue"
input = {path = "{{ writes[0] }}"}

[[step]]
say = "Third"
tool = "list"

[finish]
say = "Done: {{ last }}"
"""
WORLD = {"recipe": "r.toml", "attempt": 1, "task": {"options": {}}, "writes": ["a.md"]}
PROCEDURES = [path.read_text() for path in sorted(ROOT.glob("skills/*/scripts/procedure.toml"))]


def talk(results: list[tuple[str, bool]], text: str = TEXT, **world: Any) -> list[Reply]:
    """The conversation, each tool call answered by the next result: its text, and whether it is an error."""
    provider = ProcedureProvider(parse(PATH, text), {**WORLD, **world})
    messages: list[Message] = [{"role": "user", "content": "Do it."}]
    replies = []
    for content, failed in [*results, ("", False)]:
        request = Request(
            who="a/1", turn=len(replies), tier="procedure", model="procedure", system="", messages=tuple(messages)
        )
        reply = asyncio.run(provider.reply(request))
        replies.append(reply)
        if reply.stop_reason != "tool_use":
            break
        messages.append({"role": "assistant", "content": list(reply.content)})
        call = reply.tool_calls[0]
        block = {"type": "tool_result", "tool_use_id": call["id"], "content": content, "is_error": failed}
        messages.append({"role": "user", "content": [block]})
    return replies


def test_steps_are_turns_with_a_tool_call_each_and_then_the_last_word() -> None:
    replies = talk([("one", False), ("two", False), ("three", False)])
    assert [reply.stop_reason for reply in replies] == ["tool_use"] * 3 + ["end_turn"]
    assert [reply.text for reply in replies] == ["First r.toml.", "Second, after: one", "Third", "Done: three"]
    assert [reply.tool_calls[0]["name"] for reply in replies[:3]] == ["run", "read", "list"]
    assert [reply.tool_calls[0]["id"] for reply in replies[:3]] == ["step_1", "step_2", "step_3"]
    assert all(reply.usage.total == 0 for reply in replies)


def test_templates_are_rendered_wherever_there_is_text_and_empty_items_are_left_out() -> None:
    first = talk([])[0].tool_calls[0]["input"]
    assert first == {"argv": ["tune", "r.toml", "10"], "timeout_s": 60, "deep": {"a": ["r.toml", {"b": "1"}]}}
    again = talk([], attempt=2, task={"options": {"minutes": "3"}})[0].tool_calls[0]["input"]
    assert again["argv"] == ["tune", "r.toml", "3", "--again"]


def test_a_failed_step_ends_the_attempt_with_the_words_of_the_tool() -> None:
    replies = talk([("it broke\nhere", True)])
    assert (replies[-1].stop_reason, replies[-1].text) == ("stopped", "I stop here:\nit broke\nhere")
    assert len(replies) == 2


def test_a_step_that_may_fail_is_followed_by_the_next() -> None:
    replies = talk([("ok", False), ("no such file", True), ("ok", False)])
    assert [reply.text for reply in replies][2:] == ["Third", "Done: ok"]


def test_the_last_steps_failure_is_no_success() -> None:
    last = talk([("", False), ("", False), ("too bad", True)])[-1]
    assert (last.stop_reason, last.text) == ("stopped", "I stop here:\ntoo bad")


def test_where_it_stands_is_read_off_the_conversation() -> None:
    whole = talk([("one", False), ("two", False), ("three", False)])
    assert talk([("one", False), ("two", False), ("three", False)]) == whole


def test_the_preflight_of_a_target_that_needs_no_dataset_runs() -> None:
    """An item that renders to nothing is left out: once, `--dataset` was then given the next option as its value."""
    target = {"id": "alexnet-parameters", "seeds": 1, "metric": "parameters"}
    text = (ROOT / "skills/measure-reproduction/scripts/procedure.toml").read_text()
    argv = talk([], text, target=target, recipe="alexnet", dataset="")[0].tool_calls[0]["input"]["argv"]
    done = subprocess.run([sys.executable, *argv[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, '"ready": true' in done.stdout) == (0, True), done.stderr


def one(template: str) -> str:
    return f"[[step]]\nsay = {template!r}\ntool = 'run'\n[finish]\nsay = 'x'\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ unknown }}",
        "{{ task.options.nothing.more }}",
        "{{ writes[9] }}",
        "{{ 1 / 0 }}",
        "{{ recipe + 1 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for x in 3 %}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_rendered_is_an_input_error_that_quotes_it(template: str) -> None:
    with pytest.raises(InputError) as caught:
        talk([], one(template))
    assert template in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[step]]\nsay = \n", f"{PATH}:2: TOML: Invalid value (at line 2, column 7); mend the file"),
        ("[[step", f"{PATH}:1: TOML: "),
        ("\n\na = " + "[" * 9000, f"{PATH}:3: TOML: "),
        ("a = " + "9" * 5000, f"{PATH}:1: TOML: "),
        ("[finish]\nsay = 'x'", f"{PATH}: `step`: Field required; see another procedure.toml"),
        ("step = []\n[finish]\nsay = 'x'", f"{PATH}: `step`: Tuple should have at least 1 item"),
        (one("x").replace("tool", "tol"), f"{PATH}: `step.0.tool`: Field required; see another procedure.toml"),
        (one("x").replace("tool", "on_error = 'retry'\ntool"), f"{PATH}: `step.0.on_error`: Input should be 'stop' or"),
        (one("{{ x"), f"{PATH}: template '{{{{ x': "),
        (one("{% if %}"), f"{PATH}: template '{{% if %}}': "),
        (one("{{ x | nofilter }}"), f"{PATH}: template '{{{{ x | nofilter }}}}': No filter named 'nofilter'"),
    ],
)
def test_each_error_of_a_procedure_names_its_place_and_the_fix(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(PATH, text)
    assert [line for line in str(caught.value).splitlines() if line.startswith(expected)], str(caught.value)


def test_all_errors_of_a_procedure_come_in_one_go() -> None:
    with pytest.raises(InputError) as caught:
        parse(PATH, one("{{ x").replace("[finish]\nsay = 'x'", "[finish]\nsay = '{% if %}'"))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("text", PROCEDURES)
def test_the_repositorys_own_procedures_are_read(text: str) -> None:
    assert parse(PATH, text).step


@settings(max_examples=2000, deadline=None)
@given(malformed(TEXT, *PROCEDURES[:2]))
def test_malformed_procedures_are_input_errors_and_nothing_else(text: str) -> None:
    found, problems = None, []
    try:
        found = parse(PATH, text)
    except InputError as wrong:
        problems = wrong.problems
    assert (found is None) == bool(problems)
    assert all(problem.path == PATH and problem.what for problem in problems)
