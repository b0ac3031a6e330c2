"""Plan -> tree of tasks, walked down the hierarchy of agents: who does what, with which skill, on which tiers.

The chief hands each section to the agent one step below that reaches every skill the section needs; from there each
task goes down the shortest chain to an agent that holds its skill, and among equals to the most junior. In a small plan
(SMALL) the chief hands each task to that same agent at once. Nothing here calls a model: the same plan and library give
the same tree, and executors never plan again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator import risk, router
from orchestrator.errors import InputError, Problem
from orchestrator.library import Library
from orchestrator.records import Agent, Assignment, Plan, Skill, Task

# A plan within all of these has two levels; over any of them, leads stand between the chief and those who do the tasks.
SMALL = {"task": 4, "section": 3, "level of risk": 2}


@dataclass(frozen=True)
class Depth:
    """How deep a plan is handed down without a model, and why, with its numbers."""

    small: bool
    why: str


@dataclass(frozen=True)
class Estimate:
    """What a task will cost if its first tier does it. `minutes_from` says where the figure comes from."""

    usd: float
    minutes: float
    minutes_from: str


def assign(plan: Plan, library: Library) -> tuple[Assignment, ...]:
    """One Assignment a task, in the plan's order. Raises InputError for a task that no agent can be given."""
    leads = {section: _lead(library, _of_section(plan, section)) for section in plan.sections}
    problems, assignments, deep = [], [], depth(plan, library)
    for task in plan.tasks:
        chain = _chain(library, leads[task.section], task)
        if chain is None:
            who = f"agent `{task.agent}`" if task.agent else f"an agent with the skill `{task.skill}`"
            problems.append(
                Problem(plan.path, task.line, f"{who} can't be reached from level 0", "mend `delegates_to`")
            )
        else:
            chain = chain[:1] + chain[1:][-1:] if deep.small else chain
            assignments.append(_assignment(task, chain, library, deep.why))
    if problems:
        raise InputError(problems)
    return tuple(assignments)


def depth(plan: Plan, library: Library) -> Depth:
    """Two levels for a small plan; as many as it takes to go by a lead for a larger one."""
    risks = {risk.expected(task.writes, library.skills[task.skill].risk) for task in plan.tasks}
    sizes = {"task": len(plan.tasks), "section": len(plan.sections), "level of risk": len(risks)}
    numbers, limits = _counted(sizes), _counted(SMALL)
    over = _counted({name: most for name, most in SMALL.items() if sizes[name] > most})
    if over:
        return Depth(False, f"leads between the chief and those who do the tasks: {numbers}; over {over}")
    return Depth(True, f"two levels, the chief and those who do the tasks: {numbers}; small is up to {limits}")


def _counted(sizes: Mapping[str, int]) -> str:
    plurals = {name: re.sub(r"^\w+", r"\g<0>s", name) for name in sizes}
    return ", ".join(f"{size} {name if size == 1 else plurals[name]}" for name, size in sizes.items())


def handed(task: Task, chain: tuple[str, ...], library: Library, brief: str) -> Assignment:
    """An assignment that the hierarchy made, with the words of whoever handed it down."""
    why = f"handed down by {chain[-2]}"
    return _assignment(task, chain, library, "").model_copy(update={"brief": brief, "why": why})


def tree(plan: Plan, assignments: Iterable[Assignment]) -> str:
    """The hierarchy at work, as an indented list in Markdown."""
    titles = {task.id: task.title for task in plan.tasks}
    lines: list[str] = []
    shown: tuple[str, ...] = ()
    for each in assignments:
        common = 0
        while common < min(len(shown), len(each.chain)) and shown[common] == each.chain[common]:
            common += 1
        lines += [f"{'  ' * depth}- {each.chain[depth]}" for depth in range(common, len(each.chain))]
        what = f"`{each.task}` {titles[each.task]} ({each.skill}; {', then '.join(each.tiers)})"
        lines.append(f"{'  ' * len(each.chain)}- {what}")
        shown = each.chain
    return "\n".join(lines)


def estimate(
    assignment: Assignment, skill: Skill, measured_minutes: Mapping[str, float], review_minutes: float = 0.0
) -> Estimate:
    """A procedure costs no dollars; minutes come from earlier runs where there were any, else from the skills.

    review_minutes: of all who will read the change. What earlier runs took holds theirs already.
    """
    usd = 0.0 if assignment.tiers[0] == "procedure" else float("nan")
    if skill.name in measured_minutes:
        return Estimate(usd, measured_minutes[skill.name], "earlier runs")
    where = "the skill's own figure" + (" and its reviews'" if review_minutes else "")
    return Estimate(usd, skill.minutes + review_minutes, where)


def _of_section(plan: Plan, section: str) -> list[Task]:
    return [task for task in plan.tasks if task.section == section]


def _assignment(task: Task, chain: tuple[str, ...], library: Library, deep: str) -> Assignment:
    skill, agent = library.skills[task.skill], library.agents[chain[-1]]
    why = "pinned in the plan" if task.agent else f"the most junior agent with `{skill.name}` on the shortest chain"
    return Assignment(
        task=task.id,
        section=task.section,
        chain=chain,
        skill=skill.name,
        tiers=router.permitted(task, skill, agent),
        writes=task.writes,
        why=f"{why}; {deep}",
    )


def _lead(library: Library, tasks: list[Task]) -> str:
    """Who takes a section: the first of the chief's delegates that reaches the most of its tasks."""
    chief = library.chief
    reach = {name: sum(_path(library, name, task) is not None for task in tasks) for name in chief.delegates_to}
    best = max(reach.values(), default=0)
    return next((name for name, count in reach.items() if count == best and count), chief.name)


def _chain(library: Library, lead: str, task: Task) -> tuple[str, ...] | None:
    chief = library.chief.name
    for start in dict.fromkeys([lead, *library.chief.delegates_to, chief]):
        path = _path(library, start, task)
        if path:
            return path if start == chief else (chief, *path)
    return None


def _path(library: Library, start: str, task: Task) -> tuple[str, ...] | None:
    """The shortest chain from `start` to an agent that may do the task; the most junior among equals."""
    paths: list[tuple[str, ...]] = [(start,)]
    seen = {start}
    while paths:
        found = [path for path in paths if _may_do(library.agents[path[-1]], task)]
        if found:
            return max(found, key=lambda path: library.agents[path[-1]].level)
        longer: dict[str, tuple[str, ...]] = {}  # one a new agent: the first chain to it is as short as any other
        for path in paths:
            for name in library.agents[path[-1]].delegates_to:
                if name not in seen:
                    longer.setdefault(name, (*path, name))
        seen |= longer.keys()
        paths = list(longer.values())
    return None


def _may_do(agent: Agent, task: Task) -> bool:
    return task.skill in agent.skills and (task.agent is None or agent.name == task.agent)
