"""What a task depends on: its own promise, its skill and procedure, its targets, whatever it needs, and their recipes;
and what it is given to work with: its agent's prompt, the files beside the skill, the prose of its section.

A ticked task is done again only when one of them changed since it was done, and with it what depends on it; a part that
its record lacks, because the orchestrator of then didn't know of it, says nothing. All but the recipes are hashed when
a run begins. Recipes may be written by the run itself, so that the commits are compared: one has changed when the new
base has it neither as the task's accepted change had it, which is what the gate measured, nor as a later change of the
same run left it, which the plan wanted after the measurement. So may prose: what a run said in the plan is no change.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from orchestrator import planfile, planner, sections
from orchestrator.house import State
from orchestrator.library import Library
from orchestrator.records import Agent, Plan, Task

Hashes = dict[str, str]  # part -> sha256
WORDS = "the words of section `{}`"


def of_plan(plan: Plan, library: Library, root: Path) -> dict[str, Hashes]:
    """The hashes of every task's inputs."""
    agents = {each.task: library.agents[each.agent] for each in planner.assign(plan, library)}
    own = {task.id: _own(task, plan, library, root) for task in plan.tasks}
    given = {task.id: _given(task, agents[task.id], library, root) for task in plan.tasks}
    # Apart, so that what a task needs has the digest that older records have of it.
    own, given = _with_needs(plan, own, "task `{}`"), _with_needs(plan, given, "what task `{}` was given")
    around, said = _gathered(plan, {task.id: [task.section] for task in plan.tasks}), words(plan)
    told = {task.id: {WORDS.format(name): said[name] for name in around[task.id]} for task in plan.tasks}
    return {task.id: {**own[task.id], **given[task.id], **told[task.id]} for task in plan.tasks}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The parts of before that differ now, by name; empty when none does. A new need also changes the task itself."""
    return [name for name in before if before[name] != now.get(name)]


def recipes(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The recipes of each task's targets, and of what it needs. Not files of tests: these hold others, too."""
    own = {
        task.id: [name for each in plan.targets_of(task) if each.quantity.kind != "tests" for name in each.recipes]
        for task in plan.tasks
    }
    return _gathered(plan, own)


def words(plan: Plan) -> Hashes:
    """What each section's prose comes to."""
    found: dict[str, list[str]] = {}
    for task in plan.tasks:  # sections may share a name
        found.setdefault(task.section, []).append(sections.prose(plan, task))
    return {name: _digest(list(dict.fromkeys(texts))) for name, texts in found.items()}


def stale(state: State, plan: Plan, now: Mapping[str, Hashes], base: str) -> dict[str, list[str]]:
    """Ticked tasks of which something changed since they were accepted here, and what; one without record stands."""
    before, named, found = state.ledger.accepted(plan.path), recipes(plan), {}
    for task in plan.tasks:
        if task.done and task.id in before:
            run, then = before[task.id]["run"], json.loads(before[task.id]["inputs"])
            parts = changed(then, now[task.id])
            parts = [part for part in parts if not _said_by_its_run(state, run, task.id, part, now[task.id], plan)]
            parts += [f"recipe `{path}`" for path in named[task.id] if _rewritten(state, run, task.id, path, base)]
            if parts:
                found[task.id] = parts
    return found


def _rewritten(state: State, run: str, task: str, path: str, base: str) -> bool:
    """Whether a file of this base is neither the accepted change's nor a later one's of its run; no if that is gone."""
    commits = _left(state, run, task)
    own = next(commits, None)
    if own is None:
        return False
    text = state.repository.read(base, path)
    return all(state.repository.read(commit, path) != text for commit in itertools.chain([own], commits))


def _said_by_its_run(state: State, run: str, task: str, part: str, now: Hashes, plan: Plan) -> bool:
    """Whether a part is a section's prose, and as the accepted change or a later one of its run left it."""
    name = next((name for name in plan.sections if part == WORDS.format(name)), None)
    if name is None:
        return False
    texts = (state.repository.read(commit, plan.path) for commit in _left(state, run, task))
    return any(_words_in(plan.path, text or "").get(name) == now[part] for text in texts)


@lru_cache(maxsize=8)
def _words_in(path: str, text: str) -> Hashes:
    plan, _ = planfile.read(path, text)
    return words(plan) if plan else {}


def _left(state: State, run: str, task: str) -> Iterator[str]:
    """The commits of a task's accepted change and of its run's later ones; none if it is gone."""
    own = state.ledger.pull_of(run, task)
    if own is not None and state.repository.resolve(own.commit) is not None:
        yield own.commit
        yield from (pull.commit for pull in state.ledger.each_pull(run) if pull.number > own.number)


def _gathered(plan: Plan, own: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Each task's own, and that of all it needs."""
    found: dict[str, tuple[str, ...]] = {}

    def of(task: Task) -> tuple[str, ...]:
        if task.id not in found:
            needed = [of(plan.task(need)) for need in task.needs]
            found[task.id] = tuple(dict.fromkeys(itertools.chain(own[task.id], *needed)))
        return found[task.id]

    return {task.id: of(task) for task in plan.tasks}


def _with_needs(plan: Plan, parts: Mapping[str, Hashes], name: str) -> dict[str, Hashes]:
    """Each task's parts, and one for each task that it needs: a digest of all that one's, its needs' included."""
    found: dict[str, Hashes] = {}

    def of(task: Task) -> Hashes:
        if task.id not in found:
            needs = {name.format(need): _digest(of(plan.task(need))) for need in task.needs}
            found[task.id] = {**parts[task.id], **needs}
        return found[task.id]

    for task in plan.tasks:
        of(task)
    return found


def _own(task: Task, plan: Plan, library: Library, root: Path) -> Hashes:
    skill = library.skills[task.skill]
    procedure = (root / skill.procedure).read_text() if skill.procedure else ""
    promise = task.model_dump(mode="json", exclude={"done", "line", "agent", "section", "budget"})
    return {
        "the task itself": _digest(promise),
        f"skill `{skill.name}`": _digest([skill.model_dump(mode="json", exclude={"path"}), procedure]),
        "targets": _digest([target.model_dump(mode="json", exclude_defaults=True) for target in plan.targets_of(task)]),
    }


def _given(task: Task, agent: Agent, library: Library, root: Path) -> Hashes:
    skill = library.skills[task.skill]
    beside = [path for path in sorted((root / skill.path).parent.rglob("*")) if path.is_file()]
    files = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in beside}
    files = {name: digest for name, digest in files.items() if name not in (skill.path, skill.procedure)}
    return {
        f"files of skill `{skill.name}`": _digest(files),
        f"agent `{agent.name}`": _digest(agent.prompt),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
