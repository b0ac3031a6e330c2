"""A recorded run played again: a clone at the recorded commit, the recording in the model's place, the same ending.

The clone gets one commit of its own, which makes the gate's tests those of `tests`: a demonstration has a minute. Its
author and date are fixed, so that recording and replay stand on the same commit. What plays it is the clone's own
orchestrator, as old as the recording: tools of a later one may answer otherwise, and that is a difference.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from orchestrator.errors import GitError, InputError
from orchestrator.house import State
from orchestrator.providers.replay import read
from orchestrator.workspace import git

TRAILER = "Odyssey-Demo-Of"
WHEN = {"GIT_AUTHOR_DATE": "2026-11-24T00:00:00Z", "GIT_COMMITTER_DATE": "2026-11-24T00:00:00Z"}
TABLE = re.compile(r"^\[tool\.odyssey\.tests\].*?(?=^\[|\Z)", re.MULTILINE | re.DOTALL)


def prepare(source: Path, commit: str, folder: Path, tests: tuple[str, ...]) -> str:
    """A clone of `source` at `commit` in a new folder, its gate's tests narrowed; the commit on which a run begins."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a folder that isn't there yet")
    try:
        full = git(source, "rev-parse", "--verify", f"{commit}^{{commit}}")
    except GitError as error:
        raise InputError(f"commit {commit[:12]} is not in this clone; fetch the whole history first") from error
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main", ".")
    git(folder, "fetch", "--quiet", "--no-tags", "--", str(source), f"{full}:refs/remotes/source/main")
    git(folder, "reset", "--quiet", "--hard", full)
    project = folder / "pyproject.toml"
    listed = ", ".join(f'"{path}"' for path in tests)
    table = "[tool.odyssey.tests]\n" + "".join(f"{level} = [{listed}]\n" for level in ("low", "medium", "high"))
    text = project.read_text()
    project.write_text(TABLE.sub(lambda _: table, text) if TABLE.search(text) else f"{text.rstrip()}\n\n{table}")
    who = ("-c", "user.name=Odyssey demo", "-c", "user.email=demo@odyssey.invalid", "-c", "commit.gpgsign=false")
    git(folder, "config", "user.name", "Odyssey demo")
    git(folder, "config", "user.email", "demo@odyssey.invalid")
    message = f"Narrow the gate's tests for a demonstration\n\n{TRAILER}: {full}\nOdyssey-Demo-Tests: {' '.join(tests)}"
    git(folder, *who, "commit", "--quiet", "--all", "--message", message, env=WHEN)
    return git(folder, "rev-parse", "HEAD")


def trailers(folder: Path, commit: str) -> dict[str, str]:
    """What a prepared clone's own commit says of where it comes from; empty for any other commit."""
    body = git(folder, "show", "--no-patch", "--format=%B", commit, "--")
    found = re.findall(r"^Odyssey-Demo-(Of|Tests): (.*)$", body, re.MULTILINE)
    return {name.lower(): value for name, value in found}


def play(recording: Path, source: Path, folder: Path) -> list[str]:
    """Replay a recording in `folder`; what differs from the recorded pull requests, one line each."""
    head, _ = read(recording)
    if not head.get("demo"):
        raise InputError(f"{recording} was not recorded in a prepared clone; use --provider replay:{recording} instead")
    prepare(source, head["demo"]["of"], folder, tuple(head["demo"]["tests"].split()))
    # without -P: `orchestrator` is the one in the folder, where there is one
    argv = [sys.executable, "-m", "orchestrator.cli"]
    argv += ["run", head["plan"], "--provider", f"replay:{recording.resolve()}"]
    subprocess.run(argv, cwd=folder, check=False)
    state = State.of(folder)
    made = pulls(state, state.ledger.runs()[-1]["id"]) if state.ledger.runs() else []
    return differences(made, head["pulls"])


def pulls(state: State, run_id: str) -> list[dict[str, object]]:
    """The run's pull requests as far as two runs share them: titles, and what they make of each file but the plan."""
    found: list[dict[str, object]] = []
    for pull in state.ledger.pulls(run_id):
        changed = state.repository.changed(pull.base_commit, pull.commit)
        files = {file.path: _blob(state, pull.commit, file.path) for file in changed if file.path != pull.plan}
        found.append({"task": pull.task, "title": pull.title, "author": pull.author, "files": files})
    return found


def differences(made: list[dict[str, object]], recorded: list[dict[str, object]]) -> list[str]:
    if len(made) != len(recorded):
        return [f"{len(made)} pull requests instead of {len(recorded)}"]
    return [
        f"{was['task']}: {key} is {now[key]!r} instead of {was[key]!r}"
        for now, was in zip(made, recorded, strict=True)
        for key in was
        if now[key] != was[key]
    ]


def _blob(state: State, commit: str, path: str) -> str:
    try:
        return git(state.repository.folder, "rev-parse", "--verify", f"{commit}:{path}")
    except GitError:  # deleted
        return ""
