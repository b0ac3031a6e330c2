"""Sub-agents and blockers: work handed on within an attempt, and what stops it taken one level up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.house import State
from tests.orchestrator import brains, helpers
from tests.orchestrator.brains import said
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, Turn
from tests.orchestrator.forks import RUN, Forks, run

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


def test_a_helper_works_in_the_same_copy_on_a_share_of_the_budget(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    worker = api.scripts["# Task `a`"]
    ask = Turn("I hand it on.", (("delegate", {"agent": "junior", "brief": "Write the file, junior."}),))
    api.scripts["# Task `a`"] = [ask, worker[2], worker[3]]
    api.scripts["Write the file, junior."] = [worker[1], Turn("The file stands.")]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    results = next(body for body in api.requests if "junior says" in json.dumps(body))["messages"][-1]["content"]
    assert results[0]["content"] == "junior says: The file stands."
    ledger = State.of(repo).ledger
    (limit,) = ledger._rows("SELECT node, budget FROM limits")
    assert limit["node"].startswith("a/1/0-")
    assert json.loads(limit["budget"])["tokens"] < 1_000_000
    assert ledger.spent("p-1", limit["node"])["tokens"] == 240
    assert ledger.spent("p-1", "a")["tokens"] == (3 + 2 + 2) * 120
    tools = {
        tool["name"]
        for tool in next(b for b in api.requests if "Write the file, junior." in json.dumps(b["messages"][0]))["tools"]
    }
    assert tools == {"read", "write", "edit", "run"}


def test_a_blocker_goes_one_level_up_and_its_answer_comes_back(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    escalate = Turn("I am stuck.", (("escalate", {"what": "which words?", "needs": "a word"}),))
    api.scripts["# Task `a`"] = [escalate, escalate, escalate, *api.scripts["# Task `a`"][1:]]
    api.scripts["is blocked at task `a`"] = [said({"decision": "answer", "text": "Use the word a."})]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    talk = api.requests[-3]["messages"]
    results = [
        block
        for message in talk
        if message["role"] == "user"
        for block in message["content"]
        if isinstance(block, dict)
    ]
    assert [block["content"].partition(":")[0] for block in results[:3]] == ["chief decides (answer)"] * 2 + [
        "escalate"
    ]
    events = [event for event in State.of(repo).ledger.events("p-1") if event["kind"] == "blocker"]
    assert json.loads(events[0]["body"])["target"] == "chief"
    assert len(events) == 2


@pytest.mark.parametrize(
    ("decision", "status", "words"),
    [
        ("person", "blocked", "a person has to decide: Ask Ada."),
        ("stop", "failed", "chief stops the task: Ask Ada."),
        ("perhaps", "blocked", "a person has to decide: chief gave no answer that can be used"),
    ],
)
def test_a_blocker_that_is_not_cleared_up_ends_the_task_and_no_dearer_tier_is_tried(
    tmp_path: Path, warm: Forks, decision: str, status: str, words: str
) -> None:
    repo, api = brains.repository(tmp_path, 2), brains.api(2)
    escalate = Turn("I am stuck.", (("escalate", {"what": "which words?", "needs": "a word"}),))
    api.scripts["# Task `a`"] = [escalate, Turn("This stops the task.")]
    api.scripts["is blocked at task `a`"] = [said({"decision": decision, "text": "Ask Ada."})]
    code, err = run(warm, repo, api, *RUN)
    assert code == 3, err
    assert brains.statuses(repo) == {"a": status, "b": "blocked"}
    details = {row["id"]: row["detail"] for row in State.of(repo).ledger.tasks("p-1")}
    assert details["a"] == f"{words}\nworker was stopped by: which words?\nit would need: a word"
    assert details["b"] == f"it needs `a`, which is {status}"
    (event,) = [event for event in State.of(repo).ledger.events("p-1") if event["kind"] == "blocker"]
    assert json.loads(event["body"])["decision"] == (decision if decision != "perhaps" else "person")
    assert len(api.requests) == 3  # handed out, asked, decided
    assert State.of(repo).ledger.pulls() == []
    assert "what failed or is blocked: mend it, commit, and orchestrate run plans/p.md again" in err


def test_above_the_chief_is_a_person(tmp_path: Path, warm: Forks) -> None:
    made = brains.files(1)
    made["agents/chief.md"] = brains.agent("chief", "haiku", 0, brains.ALL, "skills: [note]\ndelegates_to: [lead]\n")
    made["plans/p.md"] = made["plans/p.md"].replace("skill: note", "skill: note\n  - agent: chief")
    helpers.repository(tmp_path, made)
    escalate = Turn("I am stuck.", (("escalate", {"what": "which words?", "needs": "a word"}),))
    api = FakeApi(scripts={"# Task `a`": [escalate]})
    code, err = run(warm, tmp_path, api, *RUN)
    assert code == 3, err
    (asked,) = api.requests
    (spec,) = [tool for tool in asked["tools"] if tool["name"] == "escalate"]
    assert spec["description"].startswith("Tell a person, who is above you")
    (event,) = [event for event in State.of(tmp_path).ledger.events("p-1") if event["kind"] == "blocker"]
    assert json.loads(event["body"])["target"] == "a person"
    assert brains.statuses(tmp_path) == {"a": "blocked"}
