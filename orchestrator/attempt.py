"""What an attempt begins with: the agent's words, its tools' reach, and the brain that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator import config, prompts, sections
from orchestrator.globs import narrows
from orchestrator.house import Run, State
from orchestrator.library import PEOPLE_TOOLS
from orchestrator.loop import Attempt
from orchestrator.prices import price_of
from orchestrator.providers import procedure
from orchestrator.providers.anthropic import MessagesApi
from orchestrator.providers.base import Provider
from orchestrator.providers.mailbox import ByMail, Mailbox
from orchestrator.providers.replay import Recording, Replay
from orchestrator.records import Agent, Skill, Target, Task, Tier
from orchestrator.sandbox.base import Mount
from orchestrator.tools.base import ToolContext

DATA_INSIDE = Path("/data")


def prepare(run: Run, task: Task, number: int, tier: Tier, worktree: Path, feedback: str) -> Attempt:
    """The agent's tools are the intersection of what it, its skill and its task allow."""
    assignment = run.assignments[task.id]
    agent, skill = run.library.agents[assignment.agent], run.skill(task.id)
    most = run.settings.max_turns
    words = {"agent": agent, "skill": skill, "task": task, "plan": run.plan, "feedback": feedback}
    words |= {"writes": task.writes, "commands": skill.commands, "targets": run.plan.targets_of(task)}
    words |= {"others": others(run, agent, skill), "advice": assignment.brief, "prose": sections.prose(run.plan, task)}
    return Attempt(
        run=run.id,
        task=task.id,
        number=number,
        tier=tier,
        model=run.settings.models.get(tier, tier),
        system=prompts.render("system.md.j2", words),
        brief=prompts.render("brief.md.j2", words),
        allowed=allowed(agent, skill),
        tools=reach(run, task, skill, number, worktree),
        worktree=worktree,
        max_turns=most if tier == "procedure" else agent.turns(most),  # a procedure has its own end
        chain=assignment.chain,
    )


def allowed(agent: Agent, skill: Skill) -> frozenset[str]:
    """An agent's tools, as far as the skill that it works by has them; and a look at its other skills."""
    tools = frozenset(agent.tools) & frozenset(skill.tools) if skill.tools else frozenset(agent.tools)
    return (tools - PEOPLE_TOOLS) | ({"skill"} if {*agent.skills} - {skill.name} else frozenset())


def others(run: Run, agent: Agent, skill: Skill) -> tuple[Skill, ...]:
    """An agent's skills beside the one that it works by: in context by name and description, their body on request."""
    return tuple(run.library.skills[name] for name in agent.skills if name != skill.name)


def bodies(skills: Iterable[Skill]) -> dict[str, str]:
    return {each.name: each.body for each in skills}


def brain(run: Run, task: Task, number: int, tier: Tier, feedback: str) -> Provider | None:
    """Who answers on this tier; None when nobody can, and the task is then blocked."""
    skill = run.skill(task.id)
    if tier == "procedure":
        if not skill.procedure:
            return None
        text = (run.base_folder / skill.procedure).read_text()
        return procedure.ProcedureProvider(
            procedure.parse(skill.procedure, text), _variables(run, task, number, feedback)
        )
    return model(run, partial(run.say, task.id))


def model(run: Run, tell: Any) -> Provider | None:
    """The language model that the operator chose, or None."""
    return chosen(run.settings, run.state, run.id, tell)


def chosen(settings: config.Settings, state: State, run_id: str, tell: Any) -> Provider | None:
    kind, _, rest = settings.provider.partition(":")
    if kind == "anthropic":
        endpoint = config.endpoint()
        return MessagesApi(endpoint.key, endpoint.base_url)
    if kind == "mailbox":
        return ByMail(Mailbox(state.path("mailbox")), run_id, tell)
    if kind == "replay":
        return Replay(Recording(Path(rest)), tell)
    return None


def check_recording(settings: config.Settings) -> None:
    """Raises InputError when a recording shall answer that can't be read."""
    kind, _, path = settings.provider.partition(":")
    if kind == "replay":
        Recording(Path(path))


def check_models(settings: config.Settings, state: State) -> list[str]:
    """Before anything is recorded: every tier has a model that is there and a price, or the recording can be read.
    What to tell the operator.

    Raises InputError. Also says so when the repository would have the calls go elsewhere, which is never heeded.
    """
    check_recording(settings)
    notes = []
    file = state.folder.parent / ".env"
    if file.is_file() and "ANTHROPIC_" in file.read_text(errors="replace"):
        notes.append("the repository's .env is not read: key and endpoint come from your own environment")
    if settings.provider != "anthropic":
        return notes
    endpoint = config.endpoint()
    models: dict[str, str] = {tier: name for tier, name in settings.models.items() if tier != "procedure"}
    for name in models.values():
        price_of(name, settings.prices)
    return notes + asyncio.run(MessagesApi(endpoint.key, endpoint.base_url).check(models))


def reach(run: Run, task: Task, skill: Skill, number: int, worktree: Path) -> ToolContext:
    settings = run.settings
    agent = run.library.agents[run.assignments[task.id].agent]
    return ToolContext(
        worktree=worktree,
        writes=tuple(glob for glob in task.writes if narrows(glob, skill.writes)),
        commands=skill.commands,
        sandbox=run.sandbox,
        mounts=(Mount(run.state.path("data"), DATA_INSIDE),),
        env={"MLCORE_DATA": str(DATA_INSIDE), "MLCORE_THREADS": str(settings.threads)},
        outputs=run.state.path("outputs", run.id, task.id, str(number)),
        limits=run.limits,
        on_output=lambda text: run.say(task.id, "output", text),
        skills=bodies(others(run, agent, skill)),
    )


def _variables(run: Run, task: Task, number: int, feedback: str) -> dict[str, Any]:
    """What a procedure's templates may name. A plan without targets names none, and its tasks their own dataset."""
    targets = run.plan.targets_of(task) or run.plan.targets
    found = {
        "task": task.model_dump(),
        "plan": {"title": run.plan.title, "path": run.plan.path},
        "targets": [each.model_dump(mode="json") for each in targets],
        "writes": list(task.writes),
        "attempt": number,
        "feedback": feedback,
        "data": str(DATA_INSIDE),
    }
    if targets:
        target = _chosen(targets, task)
        written = next((recipe for recipe in target.recipes if recipe in task.writes), target.recipe)
        found |= {"target": target.model_dump(mode="json"), "recipe": written, "dataset": target.dataset}
    return found | {key: task.options[key] for key in ("dataset", "recipe") if key in task.options}


def _chosen(targets: tuple[Target, ...], task: Task) -> Target:
    """The target one of whose recipes the task writes, else the first."""
    return next((target for target in targets if set(target.recipes) & set(task.writes)), targets[0])
