"""What an attempt begins with: the agent's words, its tools' reach, and the brain that answers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.config import MODELS
from orchestrator.globs import narrows
from orchestrator.house import Run
from orchestrator.loop import Attempt
from orchestrator.providers import procedure
from orchestrator.providers.base import Provider
from orchestrator.records import Skill, Target, Task, Tier
from orchestrator.sandbox.base import Limits, Mount
from orchestrator.tools.base import ToolContext

DATA_INSIDE = Path("/data")


def prepare(run: Run, task: Task, number: int, tier: Tier, worktree: Path, feedback: str) -> Attempt:
    """The agent's tools are the intersection of what it, its skill and its task allow."""
    agent, skill = run.library.agents[run.assignments[task.id].agent], run.skill(task.id)
    words = {"agent": agent, "skill": skill, "task": task, "plan": run.plan, "feedback": feedback}
    words |= {"writes": task.writes, "commands": skill.commands, "targets": run.plan.targets_of(task)}
    return Attempt(
        run=run.id,
        task=task.id,
        number=number,
        tier=tier,
        model=MODELS.get(tier, tier),
        system=_prompt("system.md.j2", words),
        brief=_prompt("brief.md.j2", words),
        allowed=frozenset(agent.tools) - {"delegate"},
        tools=_reach(run, task, skill, number, worktree),
        worktree=worktree,
        max_turns=run.settings.max_turns,
    )


def brain(run: Run, task: Task, number: int, tier: Tier, feedback: str) -> Provider | None:
    """Who answers on this tier; None when nobody can, and the task is then blocked."""
    skill = run.skill(task.id)
    if tier == "procedure" and skill.procedure:
        text = (run.base_folder / skill.procedure).read_text()
        return procedure.ProcedureProvider(
            procedure.parse(skill.procedure, text), _variables(run, task, number, feedback)
        )
    return None


def _reach(run: Run, task: Task, skill: Skill, number: int, worktree: Path) -> ToolContext:
    settings = run.settings
    return ToolContext(
        worktree=worktree,
        writes=tuple(glob for glob in task.writes if narrows(glob, skill.writes)),
        commands=skill.commands,
        sandbox=run.sandbox,
        mounts=(Mount(run.state.path("data"), DATA_INSIDE),),
        env={"MLCORE_DATA": str(DATA_INSIDE), "MLCORE_THREADS": str(settings.threads)},
        outputs=run.state.path("outputs", run.id, task.id, str(number)),
        limits=Limits(wall_s=settings.command_minutes * 60, memory_bytes=int(settings.memory_gb * 2**30)),
        on_output=lambda text: run.say(task.id, "output", text),
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
        found |= {"target": target.model_dump(mode="json"), "recipe": target.recipe, "dataset": target.dataset}
    return found | {key: task.options[key] for key in ("dataset", "recipe") if key in task.options}


def _chosen(targets: tuple[Target, ...], task: Task) -> Target:
    """The target whose recipe the task writes, else the first."""
    return next((target for target in targets if target.recipe in task.writes), targets[0])


def _prompt(name: str, words: dict[str, Any]) -> str:
    return _prompts().get_template(name).render(words)


@lru_cache(maxsize=1)
def _prompts() -> Environment:
    folder = Path(__file__).with_name("prompts")
    return Environment(loader=FileSystemLoader(folder), undefined=StrictUndefined, autoescape=False, trim_blocks=True)
