"""What an agent can do. Each call happens inside the sandbox; adding a tool is a line in TOOLS."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import ToolRefused
from orchestrator.tools import files, shell, skill
from orchestrator.tools.base import Tool, ToolContext, ToolResult, cut
from orchestrator.tools.turns import Turnstile

__all__ = ["LOOKS", "TOOLS", "Tool", "ToolContext", "ToolResult", "call", "call_all", "specs"]

TOOLS: dict[str, Tool] = {
    tool.name: tool for tool in (files.READ, files.LIST, files.WRITE, files.EDIT, files.SEARCH, shell.RUN, skill.SKILL)
}
LOOKS = frozenset({"read", "list", "search", "skill"})  # they change nothing


def specs(allowed: Iterable[str]) -> list[dict[str, Any]]:
    """The allowed tools as Anthropic's Messages API takes them, in TOOLS' order; unknown names are left out."""
    wanted = set(allowed)
    return [tool.spec() for name, tool in TOOLS.items() if name in wanted]


def call(name: str, arguments: Mapping[str, Any], context: ToolContext, allowed: frozenset[str]) -> ToolResult:
    """Do what the model asked, or say in an error result why not and what to do instead.

    Raises only what a model can't cause: SandboxUnavailable, and OSError for the harness's own folders.
    """
    return cut(_whole(name, arguments, context, allowed), name, context)


def _whole(name: str, arguments: Mapping[str, Any], context: ToolContext, allowed: frozenset[str]) -> ToolResult:
    known = [tool for tool in TOOLS if tool in allowed]
    if name not in known:
        return _refused(f"{name[:80]!r}: no such tool for you; there are {', '.join(known) or 'none'}")
    tool = TOOLS[name]
    try:
        parsed = tool.arguments.model_validate(arguments)
        result = tool.act(parsed, context)
    except ValidationError as error:
        return _refused(_explained(name, error))
    except ToolRefused as reason:
        return _refused(str(reason))
    # a file's name may hold bytes that are no character; what goes into a request must
    return ToolResult(result.content.encode("utf-8", "replace").decode(), result.is_error)


def call_all(
    calls: list[tuple[str, Mapping[str, Any]]], context: ToolContext, allowed: frozenset[str]
) -> list[ToolResult]:
    """The results of one turn's calls, in order. Neighbours that only look, or that run commands, go side by side."""
    results: list[ToolResult] = []
    for kind, group in itertools.groupby(calls, lambda each: _kind(each[0])):
        some = list(group)
        whole = _at_once(some, context, allowed) if kind else (_whole(*each, context, allowed) for each in some)
        results += [cut(result, each[0], context) for each, result in zip(some, whole, strict=True)]
    return results


def _kind(name: str) -> str:
    """`""`: writes to the worktree itself, and one such call may build on the other."""
    return "look" if name in LOOKS else "run" if name == shell.RUN.name else ""


def _at_once(
    calls: list[tuple[str, Mapping[str, Any]]], context: ToolContext, allowed: frozenset[str]
) -> list[ToolResult]:
    turnstile = Turnstile(len(calls))

    def one(number: int) -> ToolResult:
        try:
            return _whole(*calls[number], replace(context, turn=turnstile.place(number)), allowed)
        finally:
            turnstile.leave(number)

    if len(calls) == 1:
        return [one(0)]
    with ThreadPoolExecutor(len(calls)) as pool:  # all at once: a command waits for the others' copies
        return list(pool.map(one, range(len(calls))))


def _explained(name: str, error: ValidationError) -> str:
    wrong = (f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg']}" for item in error.errors())
    return f"{name}: {'; '.join(wrong)}"[:2000]


def _refused(reason: str) -> ToolResult:
    return ToolResult(reason.encode("utf-8", "replace").decode(), is_error=True)
