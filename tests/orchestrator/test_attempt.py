"""What an agent may use: its own tools as far as its skill has them, and its other skills as something to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator import planfile, prompts, review
from orchestrator.attempt import allowed, prepare, reach
from orchestrator.colleagues import Delegate, Team
from orchestrator.config import Settings
from orchestrator.house import Run, State
from orchestrator.library import Library, load
from orchestrator.planner import assign
from orchestrator.records import Agent, Skill
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from orchestrator.tools import call
from tests.orchestrator.helpers import ROOT, plan, skill, small_library, task
from tests.orchestrator.sandbox_helpers import context_for, worktree_at

LIBRARY = load(ROOT)
PAIRS = [(agent, LIBRARY.skills[name]) for agent in LIBRARY.agents.values() for name in agent.skills]


def one(tools: tuple[str, ...], skills: tuple[str, ...] = ("s",)) -> Agent:
    return next(iter(LIBRARY.agents.values())).model_copy(update={"tools": tools, "skills": skills})


def needing(tools: tuple[str, ...]) -> Skill:
    return next(iter(LIBRARY.skills.values())).model_copy(update={"name": "s", "tools": tools})


def test_neither_the_agents_tools_nor_the_skills_are_enough() -> None:
    agent = one(("read", "write", "run"))
    assert allowed(agent, needing(("read", "edit"))) == {"read"}
    assert allowed(agent, needing(())) == {"read", "write", "run"}  # a skill that names none leaves the agent's own


def test_an_agent_with_other_skills_may_read_them() -> None:
    assert allowed(one(("read",), ("s", "t")), needing(("read",))) == {"read", "skill"}


@pytest.mark.parametrize(("agent", "skill"), PAIRS, ids=lambda each: each.name)
def test_nobody_in_the_library_has_more_than_both_allow(agent: Agent, skill: Skill) -> None:
    own = set(agent.tools) & set(skill.tools or agent.tools)
    assert allowed(agent, skill) - {"skill"} <= own


def test_other_skills_are_in_context_by_name_and_description_alone() -> None:
    agent = next(each for each in LIBRARY.agents.values() if len(each.skills) > 1)
    own, *others = (LIBRARY.skills[name] for name in agent.skills)
    shown = prompts.render(
        "system.md.j2", {"agent": agent, "skill": own, "others": others, "writes": (), "commands": ()}
    )
    assert own.body in shown
    for each in others:
        assert f"`{each.name}`: {each.description}" in shown
        assert each.body not in shown


@pytest.mark.parametrize(
    ("writes", "may", "ending"),
    [
        (
            ("a.py", "b.py"),
            "You may write only: a.py, b.py.",
            "- When the task is done, end your turn with a few plain",
        ),
        ((), "You may write nothing.", "- When you have seen enough, answer in the form that you are asked for"),
    ],
)
def test_whoever_only_looks_is_not_told_to_report_a_task(writes: tuple[str, ...], may: str, ending: str) -> None:
    words = {"agent": one(()), "skill": needing(()), "others": (), "writes": writes, "commands": ()}
    shown = prompts.render("system.md.j2", words)
    assert may in shown
    assert ending in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("accept", "words"),
    [
        (("x", "y"), "Accepted when: x; y. The gate runs this, also what is not among your commands."),
        ((), "Accepted when: the gate's checks pass."),
    ],
)
def test_a_brief_says_who_runs_what_a_task_is_accepted_by(accept: tuple[str, ...], words: str) -> None:
    plan, advice = planfile.load(ROOT, "plans/ablation.md"), "Be quick."
    task = plan.tasks[0].model_copy(update={"accept": accept})
    said = {"task": task, "plan": plan, "targets": (), "advice": advice, "feedback": "", "prose": ""}
    assert f"\n{words}\n\nFrom the agent above you:\n\n{advice}\n" in prompts.render("brief.md.j2", said)


def run_with(tmp_path: Path, made: Library) -> Run:
    loaded = plan()
    return Run(
        id="r-1", state=State.of(tmp_path), settings=Settings(), sandbox=UnsandboxedSandbox(), plan=loaded,
        library=made, assignments={each.task: each for each in assign(loaded, made)}, base_commit="", base_branch="",
        base_folder=tmp_path, datasets={}, hear=lambda *_: None,
    )  # fmt: skip


@pytest.mark.parametrize(("own", "turns"), [(None, [50, 50, 50, 20]), (3, [50, 3, 3, 3]), (60, [50, 50, 50, 20])])
def test_an_agents_own_limit_of_turns_binds_its_models_wherever_they_work(
    tmp_path: Path, own: int | None, turns: list[int]
) -> None:
    """By a procedure, by a model, as a sub-agent and as a reviewer."""
    made = small_library()
    limited = {name: each.model_copy(update={"max_turns": own}) for name, each in made.agents.items()}
    run, asked = run_with(tmp_path, replace(made, agents=limited)), task("a")
    free, paid = (prepare(run, asked, 1, tier, tmp_path, "") for tier in ("procedure", "sonnet"))
    wanted = Delegate(agent="junior", brief="b")
    below = Team(run, asked, lambda: cast(Any, None))._sub_attempt(paid, 0, {"id": "c"}, wanted)
    asked_of = review.Reviewing(run.plan, asked, "", "worker", "", "", "accepted")
    above = review.attempt(asked_of, limited["left"], skill("review-change"), paid, "m", 1)
    assert [each.max_turns for each in (free, paid, below, above)] == turns


def test_an_agents_commands_have_the_runs_limits(tmp_path: Path) -> None:
    run = run_with(tmp_path, small_library())
    limits = reach(run, task("a"), skill("tune"), 1, tmp_path).limits
    assert limits == run.limits
    assert (limits.file_bytes, limits.processes) == (16 << 30, 4096)


def test_a_skill_gives_its_body_when_it_is_opened(tmp_path: Path) -> None:
    context = context_for(worktree_at(tmp_path, {"a": "a"}), sandbox=UnsandboxedSandbox())
    context = replace(context, skills={"note": "How to note: carefully."})
    assert call("skill", {"name": "note"}, context, frozenset({"skill"})).content == "How to note: carefully."
    refused = call("skill", {"name": "other"}, context, frozenset({"skill"}))
    assert refused.is_error
    assert "there are note" in refused.content
