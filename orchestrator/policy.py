"""What a change may not do, whoever wrote it and whatever its tests say: read from the diff and the base commit."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator import planfile
from orchestrator.globs import matches
from orchestrator.records import Change, FileChange, Plan, Skill, Task
from orchestrator.workspace import Repository

MAX_FILE_BYTES = 1 << 20
SYMLINK, GITLINK = "120000", "160000"
SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bsk-ant-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bAKIA[0-9A-Z]{16}\b"
)
TEST = re.compile(r"^[ \t]*(?:async )?def test_", re.MULTILINE)
ASSERTION = re.compile(r"^[ \t]*assert\b|\bpytest\.raises\b|\.assert\w+\(", re.MULTILINE)


def violations(change: Change, task: Task, skill: Skill, plan: Plan, repository: Repository) -> list[str]:
    """Why the change can't be taken, one line each; empty when it can.

    Texts are read only of files that it may write and that are not too large.
    """
    found = [*_paths(change, task, skill), *_contents(change, repository)]
    if found:
        return found
    plans = (line for file in change.files for line in _plans(file, change, plan, repository))
    return [*_tests(change, repository), *plans]


def _paths(change: Change, task: Task, skill: Skill) -> Iterator[str]:
    for file in change.files:
        if not file.path.isprintable() or "`" in file.path:
            yield f"{file.path!a}: such a name could pass for words of the harness"
        elif not planfile.inside(file.path):
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
        if repository.size(change.commit, file.path) > MAX_FILE_BYTES:
            yield f"{file.path}: larger than {MAX_FILE_BYTES} bytes"
        elif SECRETS.search(repository.read(change.commit, file.path) or ""):
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


def _plans(file: FileChange, change: Change, plan: Plan, repository: Repository) -> Iterator[str]:
    """A plan's promises (targets, margins, budget, paper, tasks) are for people to change, in this plan or another.

    A run's own plan is held against the one that it began with; another, and all records, against the change's base.
    """
    if not file.path.endswith(".md"):
        return
    before = repository.read(change.base, file.path) or ""
    promised = plan if file.path == plan.path else planfile.read(file.path, before)[0]
    if promised is None:
        return
    text = repository.read(change.commit, file.path) or ""
    if not text.isascii() and any("\ud800" <= character < "\ue000" for character in text):
        yield f"{file.path}: is not UTF-8 text"
        return
    changed, problems = planfile.read(file.path, text)
    yield from (str(problem) for problem in problems)
    if changed and not problems:
        yield from _broken_promises(promised, changed)
        yield from _overwritten(file.path, planfile.written_back(before), planfile.written_back(text))


def _broken_promises(promised: Plan, changed: Plan) -> Iterator[str]:
    for name in ("title", "paper", "targets", "budget"):
        if getattr(changed, name) != getattr(promised, name):
            yield f"{promised.path}: `{name}` was changed"
    if _promises(changed) != _promises(promised):
        yield f"{promised.path}: tasks were changed; an agent may edit the prose around them"


def _promises(plan: Plan) -> list[dict[str, object]]:
    return [task.model_dump(exclude={"line", "section", "agent", "done"}) for task in plan.tasks]


def _overwritten(path: str, before: dict[str, object], after: dict[str, object]) -> Iterator[str]:
    """Ticks, status lines and what stands between markers are the harness's: an agent may not write a result."""
    for name in before:
        if after[name] != before[name]:
            yield f"{path}: the harness's own record was changed ({name})"
