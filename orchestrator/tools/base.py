"""What a tool is: a name and a schema that a model sees, and an act inside the sandbox."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.sandbox.base import Limits, Mount, OnOutput, Sandbox
from orchestrator.tools.turns import Alone, Turn

CONTENT_CHARS = 24_000  # of one result: what a model reads is paid for at every later turn
SCRATCH = "runs"


class Arguments(BaseModel):
    """A tool's arguments, closed to typos."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True)
class ToolContext:
    """One agent's reach in one attempt.

    worktree: absolute; what it works on, and the working directory of its commands.
    writes: globs relative to the worktree; commands: patterns (see `commands.py`).
    mounts: read-only extras such as datasets. env: for its commands. outputs: where whole results are kept, outside.
    limits: of each command; `wall_s` is the most that a command may ask for. on_output: hears commands as they run.
    turn: this call's place among others that run at the same time. skills: name -> body, those that may be read.
    """

    worktree: Path
    writes: tuple[str, ...]
    commands: tuple[str, ...]
    sandbox: Sandbox
    outputs: Path
    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    on_output: OnOutput | None = None
    turn: Turn = field(default_factory=Alone)
    skills: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolResult:
    """The text that goes back to the model."""

    content: str
    is_error: bool = False


@dataclass(frozen=True)
class Tool:
    """`act` raises ToolRefused, with the reason and the fix, for what the agent may not do."""

    name: str
    description: str
    arguments: type[Arguments]
    act: Callable[[Any, ToolContext], ToolResult]

    def spec(self) -> dict[str, Any]:
        """The tool as Anthropic's Messages API takes it."""
        return {"name": self.name, "description": self.description, "input_schema": _schema(self.arguments)}


def cut(result: ToolResult, name: str, context: ToolContext) -> ToolResult:
    """A result that a model can afford: head and tail, the whole kept in a file that `read` opens as @outputs/..."""
    if len(result.content) <= CONTENT_CHARS:
        return result
    path = _kept(result.content, name, context.outputs)
    return ToolResult(_ends(result.content, path.name, CONTENT_CHARS), result.is_error)


def cut_text(text: str, file: Path, most: int = CONTENT_CHARS) -> str:
    """The same for a text that is no tool's, kept in this file of the outputs; writing it again changes nothing."""
    if len(text) <= most:
        return text
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", errors="replace")
    return _ends(text, file.name, most)


def _ends(text: str, name: str, most: int) -> str:
    half = most // 2
    left_out = len(text) - 2 * half
    notice = f"\n[... {left_out} characters left out; the whole is in @outputs/{name}: read it by offset ...]\n"
    return text[:half] + notice + text[-half:]


def _kept(content: str, name: str, outputs: Path) -> Path:
    outputs.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = outputs / f"{number:04d}-{name}.txt"
        try:
            with path.open("x", encoding="utf-8", errors="replace") as file:
                file.write(content)
        except FileExistsError:
            continue
        return path
    raise AssertionError("numbers don't end")


@lru_cache(maxsize=64)
def _schema(arguments: type[Arguments]) -> dict[str, Any]:
    found: dict[str, Any] = _without_titles(arguments.model_json_schema())
    return found


def _without_titles(schema: Any) -> Any:
    """A schema without pydantic's titles, which repeat the names: a model pays for each word, each turn."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # a title is a string; a property called "title" is a schema
    kept = {key: value for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    if "properties" in kept:
        kept.pop("description", None)  # the class's docstring is for us
    return {key: _without_titles(value) for key, value in kept.items()}
