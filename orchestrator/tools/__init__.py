"""What an agent can do. Each call happens inside the sandbox; adding a tool is a line in TOOLS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import ToolRefused
from orchestrator.tools import files, shell
from orchestrator.tools.base import Tool, ToolContext, ToolResult, cut

__all__ = ["TOOLS", "Tool", "ToolContext", "ToolResult", "call", "specs"]

TOOLS: dict[str, Tool] = {
    tool.name: tool for tool in (files.READ, files.LIST, files.WRITE, files.EDIT, files.SEARCH, shell.RUN)
}


def specs(allowed: Iterable[str]) -> list[dict[str, Any]]:
    """The allowed tools as Anthropic's Messages API takes them, in TOOLS' order; unknown names are left out."""
    wanted = set(allowed)
    return [tool.spec() for name, tool in TOOLS.items() if name in wanted]


def call(name: str, arguments: Mapping[str, Any], context: ToolContext, allowed: frozenset[str]) -> ToolResult:
    """Do what the model asked, or say in an error result why not and what to do instead.

    Raises only what a model can't cause: SandboxUnavailable, and OSError for the harness's own folders.
    """
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
    content = result.content.encode("utf-8", "replace").decode()
    return cut(ToolResult(content, result.is_error), name, context)


def _explained(name: str, error: ValidationError) -> str:
    wrong = (f"{'.'.join(map(str, item['loc'])) or 'arguments'}: {item['msg']}" for item in error.errors())
    return f"{name}: {'; '.join(wrong)}"[:2000]


def _refused(reason: str) -> ToolResult:
    return ToolResult(reason.encode("utf-8", "replace").decode(), is_error=True)
