"""Who does what, decided by the hierarchy itself: the chief hands tasks out, leads hand them on, each with a brief.

Every level is one call with an answer of a fixed shape, checked against the library; what can't be used is asked for
once more, and then the planner's own assignment stands. Done once a plan and its open tasks, whose hash guards against
planning twice; one that failed somewhere holds for its own run only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from orchestrator import planner, prompts
from orchestrator.calls import Calls, Place
from orchestrator.frontmatter import parse
from orchestrator.library import Library
from orchestrator.providers.base import Request
from orchestrator.providers.shape import closed
from orchestrator.records import Agent, Assignment, Plan, Record, Task

GOAL_CHARS = 12_000
TRIES = 2
NODE = "@plan"  # where its cost is put; no task has such a name


class Handed(Record):
    """One task, handed to one agent below."""

    task: str
    agent: str
    brief: str = Field(min_length=1, max_length=4000)


class Delegation(Record):
    """What one level decided. `why`: how deep it went, and for which reason."""

    why: str = Field(min_length=1, max_length=2000)
    tasks: tuple[Handed, ...]


@dataclass(frozen=True)
class Hierarchy:
    """One plan's delegation. `tell` hears what each level decided."""

    plan: Plan
    library: Library
    calls: Calls
    run: str
    models: dict[Any, str]
    tell: Callable[[str], None]

    async def assign(self, tasks: list[Task]) -> list[Assignment]:
        """The chief's assignments of these tasks, level by level; none where no answer could be used."""
        found = await self._level(self.library.chief, (), {task.id: "" for task in tasks})
        return [
            planner.handed(task, found[task.id][0], self.library, found[task.id][1])
            for task in tasks
            if task.id in found
        ]

    async def _level(
        self, agent: Agent, above: tuple[str, ...], briefs: dict[str, str]
    ) -> dict[str, tuple[tuple[str, ...], str]]:
        """Chain and brief of each task, from this agent down."""
        if not briefs:
            return {}
        chain = (*above, agent.name)
        decided = await self._decide(agent, briefs)
        if decided is None:
            return {}
        self.tell(f"{agent.name}: {decided.why}")
        done: dict[str, tuple[tuple[str, ...], str]] = {}
        onward: dict[str, dict[str, str]] = {}
        for each in decided.tasks:
            if self._does(each):
                done[each.task] = ((*chain, each.agent), each.brief)
            else:
                onward.setdefault(each.agent, {})[each.task] = each.brief
        for name, tasks in onward.items():
            done |= await self._level(self.library.agents[name], chain, tasks)
        return done

    async def _decide(self, agent: Agent, briefs: dict[str, str]) -> Delegation | None:
        problems: list[str] = []
        for turn in range(TRIES):
            request = self._request(agent, briefs, problems, turn)
            reply = await self.calls.whole(Place(self.run, "", NODE), request)
            try:
                found = Delegation.model_validate(reply.answer)
            except (ValueError, ValidationError) as error:
                problems = [f"{reply.stop_reason} {reply.detail}".strip(), str(error)[:1000]]
                if reply.stop_reason == "max_tokens":
                    break  # more room there is not
                continue
            problems = self._problems(agent, found, briefs)
            if not problems:
                return found
        self.tell(f"{agent.name} gave no delegation that can be used, so the planner's stands: {'; '.join(problems)}")
        return None

    def _request(self, agent: Agent, briefs: dict[str, str], problems: list[str], turn: int) -> Request:
        tasks = [self.plan.task(name) for name in briefs]
        brief = "\n\n".join(f"`{name}`: {text}" for name, text in briefs.items() if text)
        goal = {"plan": self.plan, "goal": _prose(self.plan), "tasks": tasks, "brief": brief, "problems": problems}
        people = [self.library.agents[name] for name in sorted(below(self.library, agent))]
        return Request(
            who=f"{NODE}/{agent.name}",
            turn=turn,
            tier=agent.model,
            model=self.models[agent.model],
            system=prompts.render("delegate.md.j2", {"agent": agent, "people": people}),
            messages=({"role": "user", "content": prompts.render("goal.md.j2", goal)},),
            answer_schema=closed(Delegation.model_json_schema()),
        )

    def _problems(self, agent: Agent, found: Delegation, briefs: dict[str, str]) -> list[str]:
        handed, people = [each.task for each in found.tasks], below(self.library, agent)
        wrong = [f"task `{name}` is not one of yours" for name in handed if name not in briefs]
        wrong += [
            f"task `{name}` was handed out {handed.count(name)} times" for name in briefs if handed.count(name) != 1
        ]
        for each in found.tasks:
            if each.agent not in people:
                wrong.append(f"`{each.agent}` is not below you; there are {', '.join(sorted(people))}")
            elif each.task in briefs and not self._does(each) and not self._reaches(each):
                skill = self.plan.task(each.task).skill
                wrong.append(f"`{each.agent}` has not the skill `{skill}` of `{each.task}`, nor has anyone below")
        return wrong

    def _does(self, each: Handed) -> bool:
        return self.plan.task(each.task).skill in self.library.agents[each.agent].skills

    def _reaches(self, each: Handed) -> bool:
        skill, agent = self.plan.task(each.task).skill, self.library.agents[each.agent]
        return any(skill in self.library.agents[name].skills for name in below(self.library, agent))


def plan_key(plan: Plan, library: Library, tasks: list[Task]) -> str:
    """What a delegation depends on: the plan's text, the tasks that are handed out, and who there is to do them."""
    people = [agent.model_dump_json() for agent in library.agents.values()]
    skills = [skill.model_dump_json(exclude={"body"}) for skill in library.skills.values()]
    names = json.dumps([task.id for task in tasks])
    return hashlib.sha256("\n".join([plan.sha256, names, *sorted(people), *sorted(skills)]).encode()).hexdigest()


def below(library: Library, agent: Agent) -> set[str]:
    """Everybody whom an agent can reach by handing on."""
    found: set[str] = set()
    ahead = list(agent.delegates_to)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += library.agents[name].delegates_to
    return found - {agent.name}


def todo(plan: Plan, assignments: dict[str, Assignment], mine: Collection[str]) -> list[Task]:
    """A run's own tasks whose first try is a language model's: those that the hierarchy hands out."""
    free = [task for task in plan.tasks if task.id in mine and not task.agent]
    return [task for task in free if assignments[task.id].tiers[0] != "procedure"]


def _prose(plan: Plan) -> str:
    """The plan's body, without its front matter; where it is long, its beginning, which says so."""
    text = parse(plan.path, plan.text)[0].body.strip()
    if len(text) <= GOAL_CHARS:
        return text
    return f"{text[:GOAL_CHARS]}\n\n[... cut here: the plan's last {len(text) - GOAL_CHARS} characters are left out]"
