"""What a change may not do, whoever wrote it and whatever its tests say: read from the diff and the base commit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator import planfile
from orchestrator.globs import matches
from orchestrator.records import Change, Plan, Skill, Task
from orchestrator.workspace import Repository

MAX_FILE_BYTES = 1 << 20
SYMLINK, GITLINK = "120000", "160000"
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bsk-ant-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b"
)
TEST = re.compile(r"^\s*(?:async )?def test_", re.MULTILINE)
ASSERTION = re.compile(r"^\s*assert\b|\bpytest\.raises\b|\.assert_", re.MULTILINE)


def violations(change: Change, task: Task, skill: Skill, plan: Plan, repository: Repository) -> list[str]:
    """Why the change can't be taken, one line each; empty when it can."""
    found = [*_paths(change, task, skill), *_contents(change, repository), *_tests(change, repository)]
    return found + list(_targets(change, plan, repository))


def _paths(change: Change, task: Task, skill: Skill) -> Iterator[str]:
    for file in change.files:
        if not planfile.inside(file.path):
            yield f"{file.path}: outside the repository"
        elif not (matches(file.path, task.writes) and matches(file.path, skill.writes)):
            yield f"{file.path}: the task may write only {', '.join(task.writes)}"
        if file.mode == SYMLINK:
            yield f"{file.path}: symbolic links are not taken"
        if file.mode == GITLINK:
            yield f"{file.path}: nested repositories are not taken"


def _contents(change: Change, repository: Repository) -> Iterator[str]:
    for file in change.files:
        if file.status == "deleted" or file.mode in (SYMLINK, GITLINK):
            continue
        text = repository.read(change.commit, file.path) or ""
        if len(text) > MAX_FILE_BYTES:
            yield f"{file.path}: larger than {MAX_FILE_BYTES} bytes"
        if SECRETS.search(text):
            yield f"{file.path}: holds what looks like a secret"


def _tests(change: Change, repository: Repository) -> Iterator[str]:
    """Fewer tests or assertions in a test file than at the base: a failing test is mended, not taken away."""
    for file in change.files:
        if not matches(file.path, ("tests/**/*.py", "tests/*.py")):
            continue
        before = repository.read(change.base, file.path) or ""
        after = repository.read(change.commit, file.path) or ""
        for what, pattern in (("tests", TEST), ("assertions", ASSERTION)):
            had, has = len(pattern.findall(before)), len(pattern.findall(after))
            if has < had:
                yield f"{file.path}: {had} {what} became {has}"


def _targets(change: Change, plan: Plan, repository: Repository) -> Iterator[str]:
    """The plan's promises (targets, margins, budget, paper) are for people to change."""
    if plan.path not in {file.path for file in change.files}:
        return
    text = repository.read(change.commit, plan.path) or ""
    changed, problems = planfile.read(plan.path, text)
    yield from (str(problem) for problem in problems)
    if changed and not problems:
        for name in ("title", "paper", "targets", "budget"):
            if getattr(changed, name) != getattr(plan, name):
                yield f"{plan.path}: `{name}` was changed"
        if _promises(changed) != _promises(plan):
            yield f"{plan.path}: tasks were changed; an agent may edit the prose around them"
        yield from _blocks(change, plan, repository, text)


def _promises(plan: Plan) -> list[dict[str, object]]:
    return [task.model_dump(exclude={"line", "section", "agent", "done"}) for task in plan.tasks]


def _blocks(change: Change, plan: Plan, repository: Repository, text: str) -> Iterator[str]:
    """What stands between markers was written by the harness: an agent may not write a result."""
    before = repository.read(change.base, plan.path) or ""
    for name in planfile.BLOCKS:
        if planfile.block(text, name) != planfile.block(before, name):
            yield f"{plan.path}: the harness's block `{name}` was changed"
