"""All budgets over pauses, kills and sub-agents, from the command line: nobody overspends, nobody gets a fresh one.

A real sandbox, a real socket, a fresh process for every resume.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.house import State
from orchestrator.ledger import Ledger
from orchestrator.records import TaskBudget
from tests.orchestrator import brains, helpers
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import NO_CREDIT, FakeApi, Fault, Turn
from tests.orchestrator.forks import RUN, Forks, run

needs_sandbox = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
ROOMY = "{usd: 10, tokens: 2000000, minutes: 20}"
CALL = ("before intent", "after intent", "before send", "after send", "before paid", "after paid")  # see zygote.py
UNTIL_JUNIOR = (*CALL, *CALL, "before tools", "after tools", *CALL)  # the chief hands out, the worker hands on
HANGS_ONCE = "test -e {0}/begun || { touch {0}/begun; sleep 20; exit 1; }"


def hang(where: str) -> list[str]:
    """A command that takes too long the first time, and no time the second: `where` outlives it."""
    return ["sh", "-c", HANGS_ONCE.replace("{0}", where)]


def hangs() -> Turn:
    return Turn("I try.", (("run", {"argv": hang("runs")}),))


def prepared(folder: Path, tasks: int, budget: str, api: FakeApi, **changes: tuple[str, str]) -> Path:
    """The repository of brains.py, whose skill may run `sh`; `plan` is a change of the plan's text."""
    made = brains.files(tasks, budget=budget)
    made[".gitignore"] = "runs/\n"
    made["skills/note/SKILL.md"] = made["skills/note/SKILL.md"].replace("commands: grep *", "commands: grep *; sh *")
    made["plans/p.md"] = made["plans/p.md"].replace(*changes.get("plan", ("", "")))
    for name in "ab"[:tasks]:
        say = api.scripts[f"# Task `{name}`"]
        api.scripts[f"# Task `{name}`"] = [say[1], say[3]]  # it writes, and is done
    helpers.repository(folder, made)
    return folder


def book(repo: Path) -> Ledger:
    return State.of(repo).ledger


def seconds(repo: Path, node: str = "") -> float:
    return float(book(repo).spent("p-1", node)["seconds"])


@needs_sandbox
def test_a_command_over_the_runs_budget_pauses_it_and_more_minutes_end_it_accepted(tmp_path: Path, warm: Forks) -> None:
    api = brains.api(1)
    repo = prepared(tmp_path, 1, "{usd: 10, tokens: 2000000, minutes: 0.05}", api)
    api.scripts["# Task `a`"].insert(0, hangs())
    code, err = run(warm, repo, api, *RUN)
    assert code == 5, err
    assert "the budget of 0.05 minutes is used up (0.05 spent)" in err
    assert "go on with: orchestrate resume p-1 --minutes 30" in err
    assert err.count("of the budget in minutes is used") == 1, err
    assert 3 <= seconds(repo) < 7
    used, asked = seconds(repo), len(api.requests)
    assert asked == 2, "stopped in the worker's first turn"
    code, err = run(warm, repo, api, "resume", "p-1")
    assert (code, seconds(repo), len(api.requests)) == (5, used, asked), "kept across resume"
    assert "of the budget in minutes is used" not in err
    code, err = run(warm, repo, api, "resume", "p-1", "--minutes", "30")
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted"}), err
    assert book(repo).tasks("p-1")[0]["attempt"] == 1, "a command that was stopped is no failed attempt"
    assert len(api.requests) == 1 + 3 + 2, "nothing was bought twice"
    assert "stopped by the time limit" not in json.dumps(api.requests), "nor a failed call of the agent's"


@needs_sandbox
def test_an_answer_over_the_runs_budget_pauses_it_and_more_minutes_end_it_accepted(tmp_path: Path, warm: Forks) -> None:
    api = brains.api(1)
    repo = prepared(tmp_path, 1, "{usd: 10, tokens: 2000000, minutes: 0.03}", api)
    api.faults = [Fault(silent=30)]
    code, err = run(warm, repo, api, *RUN)
    assert code == 5, err
    assert "the budget of 0.03 minutes is used up" in err
    assert 1.8 <= seconds(repo) < 20
    code, err = run(warm, repo, api, "resume", "p-1", "--minutes", "30")
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted"}), err
    assert len(api.requests) == 1 + 1 + 2 + 2, "the one that was cut off was sent again"


@needs_sandbox
def test_a_check_of_the_gate_over_a_tasks_budget_pauses_that_task_and_is_no_refusal(
    tmp_path: Path, warm: Forks
) -> None:
    api = brains.api(1)
    check = f"accept: sh -c '{hang('/cache')[-1]}'\n  - budget: minutes=0.05"
    repo = prepared(tmp_path, 1, ROOMY, api, plan=("accept: grep -q a notes/a.md", check))
    code, err = run(warm, repo, api, *RUN)
    assert (code, brains.statuses(repo)) == (5, {"a": "paused"}), err
    assert "the budget of `a` of 0.05 minutes is used up (0.05 spent); it is set in plans/p.md:" in err
    assert "go on with: orchestrate resume p-1 --task a --minutes 30" in err
    used = seconds(repo, "a")
    assert 3 <= used < 9
    assert [receipt.kind for receipt in book(repo).receipts("p-1", "a")] == ["policy"]
    assert run(warm, repo, api, "resume", "p-1", "--minutes", "60")[0] == 5, "more for the run is none for the task"
    assert seconds(repo, "a") == used
    code, err = run(warm, repo, api, "resume", "p-1", "--task", "a", "--minutes", "5")
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted"}), err
    assert [receipt.kind for receipt in book(repo).receipts("p-1", "a")] == ["policy", "accept"]


def delegating(api: FakeApi, *first: Turn) -> None:
    """Task `a` is handed on to a junior, who does `first` before it writes."""
    wrote, done = api.scripts["# Task `a`"]
    ask = Turn("I hand it on.", (("delegate", {"agent": "junior", "brief": "Write the file, junior."}),))
    api.scripts["# Task `a`"] = [ask, done]
    api.scripts["Write the file, junior."] = [*first, wrote, Turn("The file stands.")]


def share(repo: Path) -> tuple[str, dict[str, Any]]:
    """The one sub-agent's place and its budget."""
    (row,) = book(repo)._rows("SELECT node, budget FROM limits")
    return row["node"], json.loads(row["budget"])


@needs_sandbox
def test_a_sub_agents_used_up_minutes_pause_its_task_and_no_resume_gives_it_fresh_ones(
    tmp_path: Path, warm: Forks
) -> None:
    api = brains.api(1)
    repo = prepared(tmp_path, 1, "{usd: 10, tokens: 2000000, minutes: 0.1}", api)
    delegating(api, hangs())
    code, err = run(warm, repo, api, *RUN)
    assert (code, brains.statuses(repo)) == (5, {"a": "paused"}), err
    node, given = share(repo)
    assert f"the budget of `{node}` of {given['minutes']:g} minutes is used up" in err
    used, asked = seconds(repo), len(api.requests)
    assert given["minutes"] * 60 <= used < given["minutes"] * 60 + 4
    for more in ([], ["--minutes", "30"]):
        code, err = run(warm, repo, api, "resume", "p-1", *more)
        assert (code, share(repo), seconds(repo), len(api.requests)) == (5, (node, given), used, asked), err
    code, err = run(warm, repo, api, "resume", "p-1", "--task", "a", "--minutes", "5")
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted"}), err


@needs_sandbox
def test_a_sub_agent_killed_in_each_call_spends_its_dollars_once_and_is_given_no_others(
    tmp_path: Path, warm: Forks
) -> None:
    api = brains.api(1)
    repo = prepared(tmp_path, 1, ROOMY, api)
    delegating(api)
    sends = [number for number, name in enumerate(UNTIL_JUNIOR) if name == "after send"]
    code, err = run(warm, repo, api, *RUN, kill=sends[-1])
    assert code == -9, err
    node, _ = share(repo)
    (sent,) = [call for call in book(repo).calls("p-1") if call["node"] == node]
    given = TaskBudget(usd=2.5 * sent["max_usd"])  # less than its half of the run's, so that few deaths use it up
    book(repo)._update("limits", {"node": node}, {"budget": given.model_dump_json()})
    before = share(repo)
    for code in (-9, 5):  # the second death; then a third send does not fit
        found, err = run(warm, repo, api, "resume", "p-1", kill=CALL.index("after send"))
        assert (found, share(repo)) == (code, before), err
    assert f"the budget of `{node}` of {given.usd:g} dollars is used up" in err
    assert brains.statuses(repo) == {"a": "paused"}
    assert book(repo).spent("p-1", node)["usd"] == pytest.approx(2 * sent["max_usd"]), "each death is charged, and once"
    assert len(api.requests) == 2 + 2
    code, err = run(warm, repo, api, "resume", "p-1", "--usd", "5")
    assert (code, share(repo), len(api.requests)) == (5, before, 4), "more for the run is none for the sub-agent"
    code, err = run(warm, repo, api, "resume", "p-1", "--task", "a", "--usd", "5")
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted"}), err


# Two tasks side by side


def until(repo: Path, kind: str) -> None:
    """Until the run has said so, or is given up."""
    for _ in range(1200):
        if any(event["kind"] == kind for event in book(repo).events("p-1")):
            return
        time.sleep(0.05)


def side_by_side(folder: Path, budget: str, api: FakeApi, hold: dict[tuple[str, int], str]) -> Path:
    """Tasks `a` and `b`, neither needing the other. `hold`: script and turn whose answer waits for an event's kind."""
    made = brains.files(2, budget=budget)
    made["plans/p.md"] = made["plans/p.md"].replace("  - needs: a\n", "")
    helpers.repository(folder, made)

    def answer(body: dict[str, Any]) -> tuple[str, Turn | Fault]:
        key, turn = brains.place(api, body)
        if kind := hold.pop((key, turn), None):
            until(folder, kind)
        return f"{key}{turn}", api.scripts[key][turn]

    api.choose = answer
    return folder


def doubts(repo: Path) -> int:
    return len(book(repo)._rows("SELECT 1 FROM spending WHERE kind = 'in doubt'"))


@needs_sandbox
def test_two_tasks_whose_calls_fit_one_at_a_time_are_both_accepted_without_a_pause(tmp_path: Path, warm: Forks) -> None:
    roomy, api = brains.repository(tmp_path / "roomy", 1), brains.api(2)
    assert run(warm, roomy, brains.api(1), *RUN)[0] == 0
    most = max(call["max_usd"] for call in book(roomy).calls("p-1"))  # the chief's, who reads each change
    budget = f"{{usd: {1.5 * most}, tokens: 2000000, minutes: 20}}"
    repo = side_by_side(tmp_path / "tight", budget, api, {("# Review task `a`", 0): "waits"})
    code, err = run(warm, repo, api, *RUN)
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted", "b": "accepted"}), err
    assert "waits" in {event["kind"] for event in book(repo).events("p-1")}
    assert (len(api.requests), doubts(repo)) == (1 + 2 * 6, 0)


@needs_sandbox
def test_a_pause_waits_for_the_answer_that_another_task_is_about_to_get(tmp_path: Path, warm: Forks) -> None:
    api = brains.api(2)
    repo = side_by_side(tmp_path, "{usd: 10, tokens: 2000000, minutes: 20}", api, {("# Task `a`", 0): "leaving"})
    said = api.choose
    assert said

    def answer(body: dict[str, Any]) -> tuple[str, Turn | Fault]:
        if brains.place(api, body) == ("# Task `b`", 0) and not refused:
            refused.append(body)
            while not any(brains.place(api, each) == ("# Task `a`", 0) for each in api.requests):
                time.sleep(0.05)
            return "b", NO_CREDIT
        return said(body)

    refused: list[Any] = []
    api.choose = answer
    code, err = run(warm, repo, api, *RUN)
    assert code == 6, err
    assert "run: leaving 1 answers under way are waited for; nothing else begins" in err
    states = {call["task"]: call["state"] for call in book(repo).calls("p-1")}
    assert (states, doubts(repo)) == ({"": "done", "a": "done", "b": "failed"}, 0)
    assert len(api.requests) == 3
    code, err = run(warm, repo, api, "resume", "p-1")
    assert (code, brains.statuses(repo)) == (0, {"a": "accepted", "b": "accepted"}), err
    assert (len(api.requests), doubts(repo)) == (1 + 2 * 6 + 1, 0), "only the one that was refused was sent again"
