"""What a task depends on: its own promise, its skill and procedure, its targets, whatever it needs, and their recipes.

A ticked task is done again only when one of them changed since it was done, and with it what depends on it. All but the
recipes are hashed when a run begins. Recipes may be written by the run itself, so that the commits are compared: one
has changed when the new base has it neither as the task's accepted change had it, which is what the gate measured, nor
as a later change of the same run left it, which the plan wanted after the measurement.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.house import State
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


def recipes(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The recipes of each task's targets, and of what it needs. Not files of tests: these hold others, too."""
    found: dict[str, tuple[str, ...]] = {}

    def of(task: Task) -> tuple[str, ...]:
        if task.id not in found:
            own = [target.recipes for target in plan.targets_of(task) if target.quantity.kind != "tests"]
            needed = [of(plan.task(need)) for need in task.needs]
            found[task.id] = tuple(dict.fromkeys(itertools.chain(*own, *needed)))
        return found[task.id]

    return {task.id: of(task) for task in plan.tasks}


def stale(state: State, plan: Plan, now: Mapping[str, Hashes], base: str) -> dict[str, list[str]]:
    """Ticked tasks of which something changed since they were accepted here, and what; one without record stands."""
    before, named, found = state.ledger.accepted(plan.path), recipes(plan), {}
    for task in plan.tasks:
        if task.done and task.id in before:
            run, then = before[task.id]["run"], json.loads(before[task.id]["inputs"])
            parts = changed(then, now[task.id])
            parts += [f"recipe `{path}`" for path in named[task.id] if _rewritten(state, run, task.id, path, base)]
            if parts:
                found[task.id] = parts
    return found


def _rewritten(state: State, run: str, task: str, path: str, base: str) -> bool:
    """Whether a file of this base is neither the accepted change's nor a later one's of its run; no if that is gone."""
    own, repository = state.ledger.pull_of(run, task), state.repository
    if own is None or repository.resolve(own.commit) is None:
        return False
    text = repository.read(base, path)
    later = (pull for pull in state.ledger.each_pull(run) if pull.number > own.number)
    return all(repository.read(pull.commit, path) != text for pull in itertools.chain([own], later))


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
