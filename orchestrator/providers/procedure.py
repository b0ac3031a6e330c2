"""Tier 0: a skill's own fixed steps, answered in the shape of a language model's turns.

A procedure is a TOML file beside the skill. Each `[[step]]` is one assistant turn: what it says and the tool it calls,
as templates over the task. Where it stands is read off the conversation, so a resumed one goes on by itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, ValidationError

from orchestrator.errors import InputError, Problem
from orchestrator.providers.base import Message, Reply, Request
from orchestrator.records import Record

_TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
_compiled = lru_cache(maxsize=256)(_TEMPLATES.from_string)


class Step(Record):
    say: str = Field(min_length=1)
    tool: str
    input: dict[str, Any] = Field(default_factory=dict)
    on_error: Literal["stop", "continue"] = "stop"


class Finish(Record):
    say: str = Field(min_length=1)


class Procedure(Record):
    step: tuple[Step, ...] = Field(min_length=1)
    finish: Finish


@lru_cache(maxsize=64)
def parse(path: str, text: str) -> Procedure:
    """A procedure from its TOML, its templates compiled. Raises InputError with every problem found."""
    try:
        procedure = Procedure.model_validate(tomllib.loads(text))
    except ValidationError as error:
        fix = "see another procedure.toml"
        raise InputError(
            [Problem(path, 0, f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}", fix) for item in error.errors()]
        ) from error
    except (ValueError, RecursionError) as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise InputError([Problem(path, line, f"TOML: {error}", "mend the file")]) from error
    problems = [
        Problem(path, 0, f"template {template[:80]!r}: {wrong}", "mend the template")
        for template in _templates(procedure.model_dump())
        if (wrong := _syntax_error(template))
    ]
    if problems:
        raise InputError(problems)
    return procedure


def _templates(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _templates(item)


def _syntax_error(template: str) -> str:
    try:
        _TEMPLATES.from_string(template)
    except (TemplateError, SyntaxError, ValueError, RecursionError) as error:
        return str(error)
    return ""


class ProcedureProvider:
    """Plays one procedure for one task. `variables` are what its templates may name."""

    name = "procedure"
    billed = False

    def __init__(self, procedure: Procedure, variables: dict[str, Any]) -> None:
        self._procedure = procedure
        self._variables = variables

    async def reply(self, request: Request) -> Reply:
        turn = sum(message["role"] == "assistant" for message in request.messages)
        last, failed = _last_result(request.messages)
        variables = {**self._variables, "last": last}
        steps = self._procedure.step
        if failed and turn and steps[min(turn, len(steps)) - 1].on_error == "stop":
            return _text(f"I stop here:\n{last}", "stopped")
        if turn >= len(steps):
            return _text(_render(self._procedure.finish.say, variables))
        return _turn(turn, steps[turn], variables)


def _turn(turn: int, step: Step, variables: dict[str, Any]) -> Reply:
    say = {"type": "text", "text": _render(step.say, variables)}
    call = {
        "type": "tool_use",
        "id": f"step_{turn + 1}",
        "name": step.tool,
        "input": _render_all(step.input, variables),
    }
    return Reply(content=(say, call), stop_reason="tool_use")


def _text(text: str, stop_reason: str = "end_turn") -> Reply:
    return Reply(content=({"type": "text", "text": text},), stop_reason=stop_reason)


def _render_all(value: Any, variables: dict[str, Any]) -> Any:
    """Templates wherever there is text; an item of a list that renders to nothing is left out."""
    if isinstance(value, str):
        return _render(value, variables)
    if isinstance(value, list):
        rendered = [_render_all(item, variables) for item in value]
        return [item for item in rendered if item != ""]
    if isinstance(value, dict):
        return {key: _render_all(item, variables) for key, item in value.items()}
    return value


def _render(template: str, variables: dict[str, Any]) -> str:
    try:
        return _compiled(template).render(variables)
    except Exception as error:  # a template raises whatever its filters and operators do
        fix = "name it in the task's `options:`, as in `options: dataset=mnist`, or give the plan a target"
        raise InputError(f"the procedure needs what the plan doesn't say: {error} in {template!r}; {fix}") from error


def _last_result(messages: tuple[Message, ...]) -> tuple[str, bool]:
    content = messages[-1]["content"]
    if isinstance(content, str):
        return "", False
    results = [block for block in content if block["type"] == "tool_result"]
    return "\n".join(block["content"] for block in results), any(block.get("is_error") for block in results)
