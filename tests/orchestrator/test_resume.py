"""What `orchestrate resume` says, and does to a run, where it can't simply go on."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import session
from orchestrator.engine import APPLICATION_VERSION, DATABASE
from orchestrator.house import State
from orchestrator.workspace import find_checkout
from tests.orchestrator import brains
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, serving
from tests.orchestrator.forks import RUN, Forks, run

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


ASKS, USES_TOOLS = 6, 12  # boundaries of the task's first turn, after the six of the chief's call


def killed(warm: Forks, repo: Path, api: FakeApi, at: int, then: str) -> None:
    """A run that died at this boundary."""
    with serving(api):
        done = replace(warm, url=api.url).run(repo, RUN, kill=at)
    assert (done["code"], done["passed"][-1]) == (-9, then), done["err"]


def change_journal(repo: Path, sql: str) -> None:
    with closing(sqlite3.connect(State.of(repo).path("runs", "p-1") / DATABASE)) as journal, journal:
        journal.execute(sql)


def test_a_run_that_another_version_left_under_way_is_not_waited_for(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    killed(warm, repo, api, USES_TOOLS, "before tools")
    change_journal(repo, "UPDATE workflow_status SET application_version = 'odyssey-1' WHERE status = 'PENDING'")
    code, err = run(warm, repo, api, "resume", "p-1")
    assert code == 2, err
    assert f"run `p-1` was begun by odyssey-1, and this is {APPLICATION_VERSION}" in err
    assert "start a new run with `orchestrate run plans/p.md`, or resume with the version that began it" in err
    assert "go on with" not in err


@pytest.mark.parametrize(("at", "then"), [(ASKS, "before intent"), (USES_TOOLS, "before tools")])
def test_what_a_model_began_is_paused_without_one_and_goes_on_with_one(
    tmp_path: Path, warm: Forks, at: int, then: str
) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    killed(warm, repo, api, at, then)
    code, err = run(warm, repo, None, "resume", "p-1", "--provider", "none")
    assert code == 6, err
    assert "is under way with a language model, and the run's provider is now `none`" in err
    assert "go on with: orchestrate resume p-1 --provider anthropic" in err
    code, err = run(warm, repo, api, "resume", "p-1", "--provider", "anthropic")
    assert code == 0, err
    assert brains.statuses(repo) == {"a": "accepted"}


def test_a_task_whose_journal_is_broken_ends_the_process_with_words(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    killed(warm, repo, api, USES_TOOLS, "before tools")
    change_journal(repo, "UPDATE operation_outputs SET function_name = 'other' WHERE function_name = 'begin'")
    for _ in ("broken", "was broken"):
        code, err = run(warm, repo, api, "resume", "p-1")
        assert code == 1, err
        assert "`p-1/a` broke off and can't go on: " in err
        assert "go on with: a new run: orchestrate run plans/p.md; `orchestrate resume p-1` would end here again" in err


def test_a_larger_budget_is_given_once_everything_else_is_sound(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    killed(warm, repo, api, ASKS, "before intent")

    def usd() -> float:
        return float(json.loads(State.of(repo).ledger.run("p-1")["budget"])["usd"])

    before, unknown = usd(), replace(api, models=("claude-haiku-5-5",))
    code, err = run(replace(warm, service=True), repo, unknown, "resume", "p-1", "--usd", "1")
    assert code == 2, err
    assert usd() == before
    assert run(warm, repo, api, "resume", "p-1", "--usd", "1")[0] == 0
    assert usd() == before + 1


def test_a_comparison_is_held_against_the_budget_of_the_committed_plan(tmp_path: Path, warm: Forks) -> None:
    repo = brains.repository(tmp_path, 1, budget="{usd: 10, tokens: 2000000, minutes: 20}")
    plan = repo / "plans/p.md"
    plan.write_text(plan.read_text().replace("usd: 10", "usd: 0.01"))
    argv = ("compare", "plans/p.md", "--without", "skills", "--seeds", "1", "--usd", "5", "--provider", "anthropic")
    code, err = run(warm, repo, None, *argv)
    assert code == 2, err
    assert "2 runs may cost $20.00 by the plan's budget, over the limit of $5.00" in err
    plan.rename(repo / "plans/new.md")
    code, err = run(warm, repo, None, "compare", "plans/new.md", *argv[2:])
    assert code == 2, err
    assert "plans/new.md: is not in commit" in err


def test_a_run_is_on_record_with_its_tasks_or_not_at_all_and_one_without_tasks_did_not_end_well(
    tmp_path: Path, warm: Forks
) -> None:
    repo = brains.repository(tmp_path, 1)
    state = State.of(repo)
    begun = session.start(find_checkout(repo), state, "plans/p.md", {}, lambda *_: None, again=False)
    with pytest.raises(KeyError):
        session._record(replace(begun, id="cut-off"), {"a"}, {})  # after the run's own row
    assert [row["id"] for row in state.ledger.runs()] == ["p-1"]
    session._record(replace(begun, id="p-2"), set(), {})  # as older versions left them
    code, err = run(warm, repo, None, "resume", "p-2")
    assert code == 3, err
    assert state.ledger.run("p-2")["status"] == "incomplete"
