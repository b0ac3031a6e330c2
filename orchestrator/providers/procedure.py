"""Tier 0: a skill's own fixed steps, answered in the shape of a language model's turns.

A procedure is a TOML file beside the skill. Each `[[step]]` is one assistant turn: what it says and the tool it calls,
as templates over the task. Where it stands is read off the conversation, so a resumed one goes on by itself.
"""

from __future__ import annotations

import tomllib
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field, ValidationError

from orchestrator.errors import InputError, Problem
from orchestrator.providers.base import Message, Reply, Request
from orchestrator.records import Record

_TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


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


def parse(path: str, text: str) -> Procedure:
    """A procedure from its TOML. Raises InputError naming the file."""
    try:
        procedure = Procedure.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError([Problem(path, 0, f"TOML: {error}", "mend the file")]) from error
    except ValidationError as error:
        raise InputError(
            [
                Problem(path, 0, f"`{'.'.join(map(str, item['loc']))}`: {item['msg']}", "see another procedure.toml")
                for item in error.errors()
            ]
        ) from error
    return procedure


class ProcedureProvider:
    """Plays one procedure for one task. `variables` are what its templates may name."""

    name = "procedure"

    def __init__(self, procedure: Procedure, variables: dict[str, Any]) -> None:
        self._procedure = procedure
        self._variables = variables

    async def reply(self, request: Request) -> Reply:
        turn = sum(message["role"] == "assistant" for message in request.messages)
        last, failed = _last_result(request.messages)
        variables = {**self._variables, "last": last}
        steps = self._procedure.step
        if failed and turn and steps[min(turn, len(steps)) - 1].on_error == "stop":
            return _text(f"I stop here: {_first_line(last)}")
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


def _text(text: str) -> Reply:
    return Reply(content=({"type": "text", "text": text},), stop_reason="end_turn")


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
        return _TEMPLATES.from_string(template).render(variables)
    except TemplateError as error:
        raise InputError(f"procedure template {template!r}: {error}") from error


def _last_result(messages: tuple[Message, ...]) -> tuple[str, bool]:
    content = messages[-1]["content"]
    if isinstance(content, str):
        return "", False
    results = [block for block in content if block["type"] == "tool_result"]
    return "\n".join(block["content"] for block in results), any(block.get("is_error") for block in results)


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "the last step failed")
