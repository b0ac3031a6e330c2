"""A repository with one layer taken off, as changed files: what is left runs through the very same machinery.

hierarchy: one generalist under the chief holds every skill; nobody in between, nobody pinned.
skills:    a skill is its name, its files and its commands; no instructions, no procedure. Reviewers keep theirs: a
           change must not be easier to get accepted than with the layer on.
tiers:     every task is pinned to the dearest tier of its ladder: no procedure, nothing cheaper first, no escalation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from orchestrator.library import WRITING_TOOLS, Library
from orchestrator.records import TIERS, Agent, Assignment, Plan, Skill

Layer = Literal["hierarchy", "skills", "tiers"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
Files = dict[str, str | None]  # path -> new text; None takes the file away
Read = Callable[[str], str]
PROCEDURE_LINE = re.compile(r"^  procedure:.*\n", re.MULTILINE)
AGENT_LINE = re.compile(r"^ {2,}- agent:.*\n", re.MULTILINE)
GENERALIST = """---
name: generalist
description: Does any task by the skill that it names.
tools: [{tools}]
model: {model}
skills: [{skills}]
level: 1
---
You do the task that you are given, by its skill, and nothing else.
"""
CHIEF = """---
name: {name}
description: Hands every task to the generalist.
tools: [{tools}]
model: {model}
level: 0
delegates_to: [{below}]
---
{prompt}
"""


def without(layer: Layer, plan: Plan, library: Library, assignments: Mapping[str, Assignment], read: Read) -> Files:
    """The files to write over the repository's. `read` gives a file's text."""
    match layer:
        case "hierarchy":
            return _without_hierarchy(plan, library, read)
        case "skills":
            return {skill.path: _bare(read(skill.path)) for skill in _working_skills(library)}
        case "tiers":
            return {plan.path: _pinned(plan, assignments)}


def _without_hierarchy(plan: Plan, library: Library, read: Read) -> Files:
    """Each skill's floor becomes that of the cheapest agent who held it, as in the planner's own assignment.

    A chief who is a language model may have chosen a dearer one: then this side begins on a cheaper tier.
    """
    reviewers = [agent for agent in library.agents.values() if _reads_only(agent)]
    skills = _working_skills(library)
    files: Files = {agent.path: None for agent in library.agents.values() if agent not in reviewers}
    files |= {agent.path: re.sub(r"(?m)^level:.*$", "level: 1", read(agent.path)) for agent in reviewers}
    files["agents/generalist.md"] = GENERALIST.format(
        tools=", ".join(sorted({tool for agent in library.agents.values() for tool in agent.tools} - {"delegate"})),
        model=TIERS[1],
        skills=", ".join(skill.name for skill in skills),
    )
    chief = library.chief
    below = ["generalist", *(agent.name for agent in reviewers)]
    files[chief.path] = CHIEF.format(
        name=chief.name, tools=", ".join(chief.tools), model=chief.model, below=", ".join(below), prompt=chief.prompt
    )
    files |= {skill.path: _floored(read(skill.path), _floor(library, skill)) for skill in skills}
    return files | {plan.path: AGENT_LINE.sub("", plan.text)}


def _reads_only(agent: Agent) -> bool:
    return bool(agent.skills) and not ({*WRITING_TOOLS, "run"} & set(agent.tools)) and not agent.delegates_to


def _working_skills(library: Library) -> list[Skill]:
    held = {name for agent in library.agents.values() if _reads_only(agent) for name in agent.skills}
    return [skill for skill in library.skills.values() if skill.name not in held]


def _floor(library: Library, skill: Skill) -> str:
    holders = [agent.model for agent in library.agents.values() if skill.name in agent.skills]
    return skill.floor or min(holders, key=TIERS.index)


def _floored(text: str, floor: str) -> str:
    if re.search(r"(?m)^  floor:", text):
        return text
    if re.search(r"(?m)^metadata:\s*$", text):
        return re.sub(r"(?m)^metadata:\s*$", f"metadata:\n  floor: {floor}", text, count=1)
    return text.replace("\n---\n", f"\nmetadata:\n  floor: {floor}\n---\n", 1)


def _bare(text: str) -> str:
    front, _, _ = text.removeprefix("---\n").partition("\n---\n")
    return f"---\n{PROCEDURE_LINE.sub('', front + chr(10))}---\nDo the task as it is described.\n"


def _pinned(plan: Plan, assignments: Mapping[str, Assignment]) -> str:
    lines = plan.text.split("\n")
    for task in sorted(plan.tasks, key=lambda task: -task.line):
        if not task.tier:
            lines.insert(task.line, f"  - tier: {assignments[task.id].tiers[-1]}")
    return "\n".join(lines)
