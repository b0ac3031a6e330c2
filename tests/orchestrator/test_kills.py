"""Killed at any boundary (before and after each send, tool, commit, merge and record), a run goes on where it was, and
so does a merge.

The server counts what it is asked. No call whose reply was on record is bought again; one that was on its way when the
process died is, and is charged. What comes out is, to the id of its tree, what an undisturbed run makes; only the
dollars and minutes that the plan tells of a task are left out: a run that was killed has spent more of them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from orchestrator.house import State
from tests.orchestrator import brains, helpers
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, Turn, serving
from tests.orchestrator.forks import RUN, Forks, forks
from tests.orchestrator.zygote import boundaries

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
# How many boundaries the nth process may pass: after some that get nowhere (a call has six, two tools too) one that
# does. Each dies earlier at a boundary of a name at which none has died yet.
AFTER = (4, 13, 1, 16, 2, 11, 0, 21, 7)
TOOLS = {f"tool {name}" for name in ("read", "list", "write", "search", "edit", "run")}
BOUNDARIES = {name for _, _, name in boundaries()} - {"tool", "git", "status"} | TOOLS  # git and status: see MERGING
ON_ITS_WAY = ("after intent", "before send", "after send", "before paid")
MERGE = ("pr", "merge", "2")
MERGING = ("git fetch", "git merge", "status")
COST = re.compile(r"\$[\d.]+, [\d.]+ min")


def run(made: Forks, repo: Path, kill: int = -1, at: Collection[str] = ()) -> dict[str, Any]:
    """Start the run, or go on with it; what the fork came to."""
    begun = (repo / ".odyssey/ledger.db").exists() and State.of(repo).ledger.runs()
    return made.run(repo, ["resume", "p-1"] if begun else RUN, kill, at)


def outcome(repo: Path) -> dict[str, Any]:
    """What a run leaves behind: the files of its stack, its pull requests, its tasks; without what it cost."""
    state = State.of(repo)
    stack = state.repository.resolve("refs/heads/odyssey/p-1/stack")
    assert stack is not None
    names = [file.path for file in state.repository.changed(state.ledger.run("p-1")["base_commit"], stack)]
    texts = {name: COST.sub("COST", state.repository.read(stack, name) or "") for name in names}
    pulls = [(pull.number, pull.task, pull.title, pull.status) for pull in state.ledger.pulls()]
    tasks = [(task["id"], task["status"], task["attempt"], task["tier"]) for task in state.ledger.tasks("p-1")]
    status = state.ledger.run("p-1")["status"]
    return {"files": texts, "tree": tree(state, stack, texts), "pulls": pulls, "tasks": tasks, "run": status}


def tree(state: State, commit: str, texts: dict[str, str]) -> str:
    """Git's id of the whole tree, every name, mode and byte, with these texts in the place of those that tell costs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        state.repository.export(commit, root)
        for name, text in texts.items():
            if state.repository.read(commit, name) != text:
                (root / name).write_text(text)
        helpers.git(root, "init", "--quiet")
        helpers.git(root, "add", "--all", "--force")
        return helpers.git(root, "write-tree")


def doubts(repo: Path) -> int:
    rows = State.of(repo).ledger._rows("SELECT COUNT(*) n FROM spending WHERE kind = 'in doubt'")
    return int(rows[0]["n"])


def bought_again(api: FakeApi) -> int:
    return sum(count - 1 for count in Counter(json.dumps(each, sort_keys=True) for each in api.requests).values())


def scripted() -> FakeApi:
    """What brains.py says, but that the last tools of a task begin with an edit that shows if it was done twice."""
    api = brains.api()
    for name in "ab":
        said = api.scripts[f"# Task `{name}`"]
        write, run = said[1].calls[0], said[2].calls[0]
        edit = ("edit", {"path": f"notes/{name}.md", "old": "\n", "new": "!\n"})
        said[1:3] = [Turn("I write.", (write, ("search", {"pattern": name}))), Turn("I check.", (edit, run))]
    return api


def undisturbed(made: Forks, folder: Path) -> tuple[dict[str, Any], list[str]]:
    done = run(made, brains.repository(folder))
    assert done["code"] == 0, done["err"]
    return outcome(folder), done["passed"]


def test_killed_at_forty_boundaries_one_after_the_other_a_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    api = scripted()
    with serving(api), forks() as made:
        made.url = api.url
        expected, passed = undisturbed(made, tmp_path / "whole")
        api.requests.clear()
        repo = brains.repository(tmp_path / "cut")
        deaths: list[str] = []
        while (done := run(made, repo, AFTER[len(deaths) % len(AFTER)], set(passed) - {*deaths}))["code"] == -9:
            deaths.append(done["passed"][-1])

    assert len(deaths) >= 40, "the run was over before it could be killed often enough"
    assert set(deaths) == {f"{side} {name}" for side in ("before", "after") for name in BOUNDARIES}
    assert done["code"] == 0, done["err"]
    assert outcome(repo) == expected
    assert bought_again(api) == deaths.count("after send") + deaths.count("before paid") <= doubts(repo)
    assert len(api.requests) - bought_again(api) == passed.count("before send")


PARTS = 10  # of which each takes minutes, on a busy machine many


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_each_boundary_alone_a_run_buys_nothing_twice(tmp_path: Path, part: int) -> None:
    api = scripted()
    with serving(api), forks() as made:
        made.url = api.url
        expected, passed = undisturbed(made, tmp_path / "whole")
        for kill, name in [*enumerate(passed)][part::PARTS]:
            api.requests.clear()
            repo = brains.repository(tmp_path / "cut")
            assert run(made, repo, kill)["code"] == -9, name
            done = run(made, repo)
            assert done["code"] == 0, (kill, name, done["err"])
            assert outcome(repo) == expected, (kill, name)
            assert bought_again(api) <= doubts(repo) <= 1, (kill, name)
            if name not in ON_ITS_WAY:
                assert doubts(repo) == 0, (kill, name)
            shutil.rmtree(repo, ignore_errors=True)  # a ledger closed meanwhile takes its journal along
    assert len(passed) >= 40


def merged(repo: Path) -> dict[str, Any]:
    """What a merge leaves behind: the branch and what it came from, the checkout's files, every pull request."""
    history = helpers.git(repo, "log", "--first-parent", "--format=%P %T %s")
    pulls = State.of(repo).ledger.pulls()
    return {
        "history": history,
        "checkout": (helpers.git(repo, "symbolic-ref", "HEAD"), helpers.git(repo, "status", "--porcelain")),
        "pulls": [(pull.number, pull.status, pull.approved_by) for pull in pulls],
    }


def test_a_merge_killed_around_each_of_its_effects_lands_once_when_it_is_asked_for_again(tmp_path: Path) -> None:
    api, whole = brains.api(), brains.repository(tmp_path / "whole")
    with serving(api), forks() as made:
        made.url = api.url
        for argv in (RUN, ("pr", "approve", "1"), ("pr", "approve", "2")):
            assert (done := made.run(whole, argv))["code"] == 0, done["err"]
        shutil.copytree(whole, tmp_path / "before", symlinks=True)
        passed = made.run(whole, MERGE)["passed"]
        expected = merged(whole)
        effects = [number for number, name in enumerate(passed) if name.partition(" ")[2] in MERGING]
        assert [passed[number] for number in effects] == [
            "before git fetch", "after git fetch", "before git merge", "after git merge",
            "before status", "after status", "before status", "after status",
        ]  # fmt: skip
        for number in effects:
            cut = tmp_path / f"cut-{number}"
            shutil.copytree(tmp_path / "before", cut, symlinks=True)
            assert made.run(cut, MERGE, number)["code"] == -9
            done = made.run(cut, MERGE)
            assert done["code"] == (0 if number < effects[-1] else 2), done["err"]  # in the end it was merged already
            assert merged(cut) == expected, passed[number]
    assert [status for _, status, _ in expected["pulls"]] == ["merged", "merged"]
