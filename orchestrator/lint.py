"""Everything a person wrote, checked together before anything runs: plans, agents, skills and their procedures."""

from __future__ import annotations

from pathlib import Path

from orchestrator import library, planfile, planner
from orchestrator.errors import InputError, Problem
from orchestrator.frontmatter import did_you_mean, read_text
from orchestrator.library import Library
from orchestrator.providers import procedure
from orchestrator.records import Assignment, Plan

NOT_PLANS = ("LOG.md",)


def lint(root: Path, paths: list[str]) -> tuple[dict[str, int], list[Problem]]:
    """How much was read, and every problem of the library and of these plans; all of plans/*.md when none is named."""
    loaded, problems = _read_library(root)
    paths = paths or [
        path.relative_to(root).as_posix() for path in sorted(root.glob("plans/*.md")) if path.name not in NOT_PLANS
    ]
    for path in paths:
        problems += _check_plan(root, path, loaded)[1]
    counts = {"agents": len(loaded.agents), "skills": len(loaded.skills), "plans": len(paths)}
    return counts, sorted(set(problems))


def read_plan(root: Path, path: str, begun: bool = False) -> tuple[Plan, Library, dict[str, Assignment]]:
    """Plan, library and who does what, checked against each other. Raises InputError with every problem.

    begun: of a run of before, whose plan an earlier version took.
    """
    loaded, problems = _read_library(root)
    plan, found = (planfile.begun(root, path), []) if begun else _check_plan(root, path, loaded)
    problems += found
    if problems or plan is None:
        raise InputError(problems)
    return plan, loaded, {each.task: each for each in planner.assign(plan, loaded)}


def _check_plan(root: Path, path: str, loaded: Library) -> tuple[Plan | None, list[Problem]]:
    """The plan's own problems, and with them those of what could be read of it."""
    text, problems = read_text(root, path)
    plan, found = planfile.read(path, text) if not problems else (None, [])
    problems += found
    return plan, problems + (list(library.check_plan(plan, loaded, root)) if plan else [])


def _read_library(root: Path) -> tuple[Library, list[Problem]]:
    loaded, problems = library.read(root)
    return loaded, problems + check_procedures(loaded, root)


def check_procedures(loaded: Library, root: Path) -> list[Problem]:
    """Procedures are read, their templates compiled, before anything runs and not when their turn has come."""
    problems = []
    for path in (skill.procedure for skill in loaded.skills.values() if skill.procedure):
        text, found = read_text(root, path)
        problems += found or _check_procedure(path, text)
    return problems


def _check_procedure(path: str, text: str) -> list[Problem]:
    try:
        steps = procedure.parse(path, text).step
    except InputError as error:
        return error.problems
    unknown = [step.tool for step in steps if step.tool not in library.TOOL_NAMES]
    known = f"tools: {', '.join(library.TOOL_NAMES)}"
    return [
        Problem(path, 0, f"unknown tool `{tool}`", did_you_mean(tool, library.TOOL_NAMES) or known) for tool in unknown
    ]
