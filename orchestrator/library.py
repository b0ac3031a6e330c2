"""agents/ and skills/ -> records, and the graph that they form.

An agent file is Claude Code's subagent format with `level` and `delegates_to`, without the keys that nothing heeds; a
skill is an Agent Skills folder whose `metadata` carries what we enforce: `writes`, `commands`, `risk`, `procedure`,
`minutes`, and `floor` and `ceiling`, the cheapest and the dearest model that may use it. Our own library loads
strictly: a bad file stops the run before any money is spent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from orchestrator.errors import InputError, Problem
from orchestrator.frontmatter import Document, did_you_mean, parse, read_text, validate
from orchestrator.globs import matches, narrows
from orchestrator.planfile import inside, stands
from orchestrator.records import TIERS, Agent, Plan, Record, RiskLevel, Skill, Tier
from orchestrator.router import between

NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
TOOL_NAMES = ("read", "list", "write", "edit", "search", "run", "skill", "delegate")
PEOPLE_TOOLS = frozenset({"skill", "delegate"})  # an agent's own; no skill takes them away
MODELS = TIERS[1:]  # the tiers that are language models
WRITING_TOOLS = frozenset({"write", "edit"})
METADATA_KEYS = ("writes", "commands", "risk", "procedure", "minutes", "floor", "ceiling")
MAX_BODY_LINES = 500


@dataclass(frozen=True)
class Library:
    agents: dict[str, Agent]
    skills: dict[str, Skill]

    @property
    def chief(self) -> Agent:
        return next(agent for agent in self.agents.values() if agent.level == 0)


class AgentFront(Record):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(pattern=NAME, max_length=64)
    description: str = Field(min_length=1, max_length=1024)
    tools: tuple[str, ...] = ()
    disallowed_tools: tuple[str, ...] = Field(default=(), alias="disallowedTools")
    model: Literal["haiku", "sonnet", "opus"]
    permission_mode: Literal["default"] = Field(default="default", alias="permissionMode")
    max_turns: int | None = Field(default=None, ge=1, le=1000, alias="maxTurns")
    skills: tuple[str, ...] = ()
    isolation: Literal["worktree"] = "worktree"
    color: str = ""
    level: int = Field(ge=0, le=5)
    delegates_to: tuple[str, ...] = ()
    ceiling: Literal["haiku", "sonnet", "opus"] | None = None

    @field_validator("tools", "disallowed_tools", "skills", "delegates_to", mode="before")
    @classmethod
    def _comma_string_or_list(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class SkillFront(Record):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(pattern=NAME, max_length=64)
    description: str = Field(min_length=1, max_length=1024)
    license: str = ""
    compatibility: str = Field(default="", max_length=500)
    metadata: dict[str, str] = Field(default_factory=dict)
    allowed_tools: str = Field(default="", alias="allowed-tools")


def load(root: Path) -> Library:
    """Everything in `root/agents` and `root/skills`. Raises InputError with every problem found."""
    library, problems = read(root)
    if problems:
        raise InputError(problems)
    return library


def read(root: Path) -> tuple[Library, list[Problem]]:
    """What could be loaded, and every problem: of each file, then of the graph."""
    problems: list[Problem] = []
    agents, skills = {}, {}
    for path in sorted(root.glob("agents/*.md")):
        agent, found = read_agent(root, path.relative_to(root).as_posix())
        problems += found
        if agent:
            agents[agent.name] = agent
    for path in sorted(root.glob("skills/*/SKILL.md")):
        skill, found = read_skill(root, path.relative_to(root).as_posix())
        problems += found
        if skill:
            skills[skill.name] = skill
    library = Library(agents, skills)
    if not problems:
        problems = list(check_graph(library))
    return library, problems


def read_agent(root: Path, path: str) -> tuple[Agent | None, list[Problem]]:
    text, problems = read_text(root, path)
    return (None, problems) if problems else parse_agent(path, text)


def parse_agent(path: str, text: str) -> tuple[Agent | None, list[Problem]]:
    document, problems = parse(path, text)
    front, complaints = validate(document, AgentFront, document.data)
    problems += complaints
    if front is None:
        return None, problems
    if front.name != Path(path).stem:
        problems.append(
            Problem(path, document.line("name"), f"name `{front.name}` differs from the file's", "rename one")
        )
    problems += _unknown_tools(document, "tools", front.tools)
    if not document.body.strip():
        problems.append(Problem(path, document.body_line, "has no system prompt", "write it below the front matter"))
    agent = Agent(
        name=front.name,
        description=front.description,
        level=front.level,
        model=front.model,
        tools=tuple(tool for tool in front.tools if tool not in front.disallowed_tools),
        skills=front.skills,
        delegates_to=front.delegates_to,
        prompt=document.body.strip(),
        path=path,
        ceiling=front.ceiling,
        max_turns=front.max_turns,
    )
    return agent, problems


def read_skill(root: Path, path: str) -> tuple[Skill | None, list[Problem]]:
    text, problems = read_text(root, path)
    if problems:
        return None, problems
    skill, problems = parse_skill(path, text)
    if skill and skill.procedure and not stands(root, skill.procedure):
        problems.append(Problem(path, 0, f"procedure `{skill.procedure}` does not exist", "write it or drop the key"))
    return skill, problems


def parse_skill(path: str, text: str) -> tuple[Skill | None, list[Problem]]:
    document, problems = parse(path, text)
    front, complaints = validate(document, SkillFront, document.data)
    problems += complaints
    if front is None:
        return None, problems
    problems += _check_skill(document, front)
    if problems:
        return None, problems
    meta = front.metadata
    folder = str(Path(path).parent.as_posix())
    risk: RiskLevel = meta.get("risk", "medium")  # type: ignore[assignment]  # checked above
    skill = Skill(
        name=front.name,
        description=front.description,
        writes=_words(meta.get("writes", "")),
        commands=tuple(word.strip() for word in re.split(r"[;\n]", meta.get("commands", "")) if word.strip()),
        tools=_words(front.allowed_tools),
        risk=risk,
        minutes=float(meta.get("minutes", "5")),
        procedure=f"{folder}/{meta['procedure']}" if "procedure" in meta else None,
        body=document.body.strip(),
        path=path,
        floor=_model(meta, "floor"),
        ceiling=_model(meta, "ceiling"),
    )
    return skill, []


def _words(text: str) -> tuple[str, ...]:
    """By blanks, commas or both, as people write lists."""
    return tuple(text.replace(",", " ").split())


def _unknown_tools(document: Document, key: str, tools: Iterable[str]) -> Iterator[Problem]:
    for tool in tools:
        if tool not in TOOL_NAMES:
            fix = did_you_mean(tool, TOOL_NAMES) or f"tools: {', '.join(TOOL_NAMES)}"
            yield Problem(document.path, document.line(key), f"unknown tool `{tool}`", fix)


def _model(meta: dict[str, str], key: str) -> Tier | None:
    return next((tier for tier in MODELS if tier == meta.get(key)), None)


def _check_skill(document: Document, front: SkillFront) -> Iterator[Problem]:
    path, meta = document.path, front.metadata
    if front.name != Path(path).parent.name:
        yield Problem(path, document.line("name"), f"name `{front.name}` differs from its folder's", "rename one")
    for key in meta:
        if key not in METADATA_KEYS:
            fix = did_you_mean(key, METADATA_KEYS) or f"known: {', '.join(METADATA_KEYS)}"
            yield Problem(path, document.line("metadata", key), f"unknown metadata `{key}`", fix)
    yield from _unknown_tools(document, "allowed-tools", _words(front.allowed_tools))
    for written in _words(meta.get("writes", "")):
        if not inside(written):
            fix = "use globs relative to the repository's root"
            yield Problem(path, document.line("metadata", "writes"), f"`{written}` is outside the repository", fix)
    if meta.get("risk", "medium") not in ("low", "medium", "high"):
        what = f"unknown risk `{meta['risk']}`"
        yield Problem(path, document.line("metadata", "risk"), what, "low, medium or high")
    for key in ("floor", "ceiling"):
        if meta.get(key, MODELS[0]) not in MODELS:
            yield Problem(path, document.line("metadata", key), f"unknown model `{meta[key]}`", ", ".join(MODELS))
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", meta.get("minutes", "5")):
        yield Problem(
            path, document.line("metadata", "minutes"), "minutes is not a number", "for example `minutes: '5'`"
        )
    if "procedure" in meta and not inside(meta["procedure"]):
        fix = "for example `procedure: scripts/procedure.toml`"
        yield Problem(path, document.line("metadata", "procedure"), "procedure is outside the skill's folder", fix)
    if document.body.count("\n") >= MAX_BODY_LINES:
        yield Problem(path, document.body_line, f"body is over {MAX_BODY_LINES} lines", "move detail to references/")
    if not document.body.strip():
        yield Problem(path, document.body_line, "has no instructions", "write them below the front matter")


# The graph: one check a function, all listed in GRAPH_RULES


def check_graph(library: Library) -> Iterator[Problem]:
    for rule in GRAPH_RULES:
        yield from rule(library)


def _one_chief(library: Library) -> Iterator[Problem]:
    chiefs = [agent.name for agent in library.agents.values() if agent.level == 0]
    if len(chiefs) != 1:
        found = ", ".join(chiefs) or "none"
        yield Problem("agents", 0, f"exactly one agent must have level 0, found: {found}", "set `level`")


def _names_exist(library: Library) -> Iterator[Problem]:
    for agent in library.agents.values():
        for name in agent.skills:
            if name not in library.skills:
                fix = did_you_mean(name, library.skills) or f"skills/ has {', '.join(library.skills)}"
                yield Problem(agent.path, 0, f"unknown skill `{name}`", fix)
        for name in agent.delegates_to:
            if name not in library.agents:
                fix = did_you_mean(name, library.agents) or f"agents/ has {', '.join(library.agents)}"
                yield Problem(agent.path, 0, f"delegates to unknown agent `{name}`", fix)


def _delegation_goes_down(library: Library) -> Iterator[Problem]:
    """Strictly down and at most one level skipped: so the graph has no cycle."""
    for agent in library.agents.values():
        for name in agent.delegates_to:
            below = library.agents.get(name)
            if below and not 1 <= below.level - agent.level <= 2:
                what = f"level {agent.level} delegates to `{name}` of level {below.level}"
                yield Problem(agent.path, 0, what, "delegation goes one or two levels down")


def _delegates_have_the_tool(library: Library) -> Iterator[Problem]:
    for agent in library.agents.values():
        if agent.delegates_to and "delegate" not in agent.tools:
            yield Problem(agent.path, 0, "delegates but lacks the tool for it", "add `delegate` to `tools`")


def _runners_have_a_shell(library: Library) -> Iterator[Problem]:
    for agent in library.agents.values():
        needing = [name for name in agent.skills if name in library.skills and library.skills[name].commands]
        if needing and "run" not in agent.tools:
            yield Problem(agent.path, 0, f"must run commands for {', '.join(needing)}", "add `run` to `tools`")


def _reviewers_cannot_write(library: Library) -> Iterator[Problem]:
    for agent in library.agents.values():
        if "review-change" in agent.skills and WRITING_TOOLS & set(agent.tools):
            yield Problem(agent.path, 0, "reviews but can write", "take `write` and `edit` away")


def _all_reachable(library: Library) -> Iterator[Problem]:
    chiefs = [agent.name for agent in library.agents.values() if agent.level == 0]
    seen, queue = set(chiefs), list(chiefs)
    while queue:
        for name in library.agents[queue.pop()].delegates_to:
            if name in library.agents and name not in seen:
                seen.add(name)
                queue.append(name)
    for agent in library.agents.values():
        if agent.name not in seen:
            fix = "let an agent above delegate to it, or delete it"
            yield Problem(agent.path, 0, f"`{agent.name}` is not reachable from level 0", fix)


def _tiers_are_left(library: Library) -> Iterator[Problem]:
    """Floors and ceilings of an agent and each skill that it holds must leave a tier that can do the work."""
    for agent in library.agents.values():
        for skill in (library.skills[name] for name in agent.skills if name in library.skills):
            if not between(skill, agent):
                what = f"model `{agent.model}` and `{skill.name}` leave no tier between their floors and ceilings"
                yield Problem(agent.path, 0, what, "lower a `floor`, raise a `ceiling`, or take the skill away")


def _skills_are_held(library: Library) -> Iterator[Problem]:
    held = {name for agent in library.agents.values() for name in agent.skills}
    for skill in library.skills.values():
        if skill.name not in held:
            yield Problem(skill.path, 0, "no agent holds this skill", "add it to an agent's `skills`")


GRAPH_RULES = (
    _one_chief,
    _names_exist,
    _delegation_goes_down,
    _delegates_have_the_tool,
    _runners_have_a_shell,
    _reviewers_cannot_write,
    _all_reachable,
    _tiers_are_left,
    _skills_are_held,
)


def check_plan(plan: Plan, library: Library, root: Path) -> Iterator[Problem]:
    """A plan against the library and the repository: names that exist, writes that the skill allows, drift."""
    for task in plan.tasks:
        skill = library.skills.get(task.skill)
        if skill is None:
            fix = did_you_mean(task.skill, library.skills) or f"skills/ has {', '.join(library.skills)}"
            yield Problem(plan.path, task.line, f"unknown skill `{task.skill}`", fix)
        else:
            for written in task.writes:
                if not narrows(written, skill.writes):
                    fix = f"`{skill.name}` may write {', '.join(skill.writes) or 'nothing'}"
                    yield Problem(plan.path, task.line, f"`{written}` is beyond what the skill may write", fix)
            if task.tier == "procedure" and not skill.procedure:
                what = f"tier `procedure` is pinned, but `{skill.name}` carries none"
                yield Problem(plan.path, task.line, what, "drop the `tier:` line, or name a model's tier")
        yield from _check_agent(plan, library, task.agent, task.skill, task.line)
    for target in plan.targets:
        for recipe in target.recipes if target.quantity.kind != "untrained" else ():
            file = recipe.partition("::")[0]  # behind it, a test's name
            if not stands(root, file) and not _will_be_written(plan, file):
                fix = "write it, or let a task list it under `writes`"
                yield Problem(plan.path, 0, f"recipe `{recipe}` of `{target.id}` does not exist", fix)
    for task in plan.tasks:
        for written in task.writes if task.done else ():
            if "*" not in written and not stands(root, written):
                fix = "untick the task or bring the file back"
                yield Problem(plan.path, task.line, f"drift: `{task.id}` is ticked but `{written}` is missing", fix)


def _check_agent(plan: Plan, library: Library, name: str | None, skill: str, line: int) -> Iterator[Problem]:
    if name is None:
        return
    agent = library.agents.get(name)
    if agent is None:
        fix = did_you_mean(name, library.agents) or f"agents/ has {', '.join(library.agents)}"
        yield Problem(plan.path, line, f"unknown agent `{name}`", fix)
    elif skill in library.skills and skill not in agent.skills:
        yield Problem(plan.path, line, f"agent `{name}` lacks the skill `{skill}`", "choose another, or drop the line")


def _will_be_written(plan: Plan, path: str) -> bool:
    return any(matches(path, task.writes) for task in plan.tasks)
