"""What a task depends on, as hashes: its own promise, its skill and procedure, its targets, and whatever it needs.

A ticked task is done again only when one of them changed since it was done, and with it what depends on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.library import Library
from orchestrator.records import Plan, Task

Hashes = dict[str, str]  # part -> sha256


def of_plan(plan: Plan, library: Library, root: Path) -> dict[str, Hashes]:
    """The hashes of every task's inputs, in an order in which needs come first."""
    found: dict[str, Hashes] = {}

    def of(task: Task) -> Hashes:
        if task.id not in found:
            needs = {f"task `{need}`": _digest(of(plan.task(need))) for need in task.needs}
            found[task.id] = {**_own(task, plan, library, root), **needs}
        return found[task.id]

    for task in plan.tasks:
        of(task)
    return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts that differ, by name; empty when nothing does."""
    return [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]


def _own(task: Task, plan: Plan, library: Library, root: Path) -> Hashes:
    skill = library.skills[task.skill]
    procedure = (root / skill.procedure).read_text() if skill.procedure else ""
    promise = task.model_dump(mode="json", exclude={"done", "line", "agent", "section", "budget"})
    return {
        "the task itself": _digest(promise),
        f"skill `{skill.name}`": _digest([skill.model_dump(mode="json", exclude={"path"}), procedure]),
        "targets": _digest([target.model_dump(mode="json", exclude_defaults=True) for target in plan.targets_of(task)]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
