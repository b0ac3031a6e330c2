"""The tool that opens a skill: agents are shown names and descriptions, and read the body when they need it."""

from __future__ import annotations

from orchestrator.errors import ToolRefused
from orchestrator.tools.base import Arguments, Tool, ToolContext, ToolResult


class Skill(Arguments):
    name: str


def skill(arguments: Skill, context: ToolContext) -> ToolResult:
    body = context.skills.get(arguments.name)
    if body is None:
        raise ToolRefused(
            f"{arguments.name[:80]!r}: no such skill of yours; there are {', '.join(context.skills) or 'none'}"
        )
    return ToolResult(body)


SKILL = Tool("skill", "Read a skill's instructions. What you may write and run stays that of your task.", Skill, skill)
