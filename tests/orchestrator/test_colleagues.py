"""Sub-agents and blockers: work handed on within an attempt, and what stops it taken one level up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.house import State
from orchestrator.tools.base import CONTENT_CHARS
from tests.orchestrator import brains, helpers
from tests.orchestrator.brains import hand_out, said
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, Turn, serving
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
    assert results[0]["content"].split("\n\n") == [
        "junior says: The file stands.",
        "It changed these files; you answer for them, so read them before you end your turn:\n"
        "- added notes/a.md (+1 -0)",
    ]
    (spec,) = [tool for tool in api.requests[1]["tools"] if tool["name"] == "delegate"]
    assert spec["description"].endswith("then you go on, and answer for what it changed.")
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
    assert tools == {"read", "write", "edit", "run", "escalate"}


def test_a_helpers_long_answer_is_cut_as_long_outputs_are_and_can_be_read_whole(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    worker = api.scripts["# Task `a`"]
    ask = Turn("I hand it on.", (("delegate", {"agent": "junior", "brief": "Look around, junior."}),))
    api.scripts["# Task `a`"] = [ask, *worker[1:]]
    api.scripts["Look around, junior."] = [Turn("much " * 10_000 + "THE MIDDLE" + " more" * 10_000)]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    told = next(body for body in api.requests if "junior says" in json.dumps(body))["messages"][-1]["content"][0]
    assert len(told["content"]) < CONTENT_CHARS + 200
    assert told["content"].startswith("junior says: much much")
    assert told["content"].endswith("more\n\nIt changed no file.")
    name = told["content"].partition("the whole is in @outputs/")[2].partition(":")[0]
    whole = (State.of(repo).path("outputs", "p-1", "a", "1") / name).read_text()
    assert "THE MIDDLE" in whole


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


# Sub-agents


HANDED = "Write the file, junior."
ASK = Turn("I hand it on.", (("delegate", {"agent": "junior", "brief": HANDED}),))
STUCK = Turn("I am stuck.", (("escalate", {"what": "which words?", "needs": "a word"}),))
BLOCKED = "is blocked at task `a`"
LOOK = Turn("I look.", (("read", {"path": "notes/a.md"}),))


def writes(path: str, content: str) -> Turn:
    return Turn("I write.", (("write", {"path": path, "content": content}),))


def by_agent(api: FakeApi) -> None:
    """Scripts may be kept for one agent alone: under `its name, its key`."""

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        key, turn = brains.place(api, body)
        own = f"{asked(body)}, {key}"
        return f"{own}{turn}", api.scripts.get(own, api.scripts[key])[turn]

    api.choose = choose


def asked(body: dict[str, Any]) -> str:
    """Whose words a request begins with."""
    return str(body["system"][0]["text"]).partition("You are the ")[2].partition(".")[0]


def blockers(repo: Path) -> list[tuple[str, str, str]]:
    """From whom, at whose desk, what became of it; in order."""
    events = [json.loads(each["body"]) for each in State.of(repo).ledger.events("p-1") if each["kind"] == "blocker"]
    return [(each["source"], each["target"], each["decision"]) for each in events]


def last_result(api: FakeApi, first: str) -> str:
    """What the latest turn of the conversation that began with these words was given."""
    talk = [body["messages"] for body in api.requests if first in json.dumps(body["messages"][0])][-1]
    return str(talk[-1]["content"][0]["content"])


def test_a_helper_is_shown_its_other_skills_and_opens_one_though_its_superior_has_none(
    tmp_path: Path, warm: Forks
) -> None:
    made = brains.files(1)
    made["agents/junior.md"] = made["agents/junior.md"].replace("[note]", "[note, spell]")
    made["skills/spell/SKILL.md"] = brains.skill("spell", "read run", "docs/**", "rm *")
    helpers.repository(tmp_path, made)
    api = brains.api(1)
    wrong = Turn("I try.", (("run", {"argv": ["rm", "notes/old.md"]}), *writes("docs/b.md", "b").calls))
    api.scripts["# Task `a`"] = [ASK, Turn("Written.")]
    api.scripts[HANDED] = [
        Turn("How?", (("skill", {"name": "spell"}),)), wrong, writes("notes/a.md", "a"), Turn("It stands."),
    ]  # fmt: skip
    code, err = run(warm, tmp_path, api, *RUN)
    assert code == 0, err
    worker, junior = (next(body for body in api.requests if asked(body) == name) for name in ("worker", "junior"))
    assert "- `spell`: spells things" in junior["system"][0]["text"]
    assert "How to spell" not in junior["system"][0]["text"]
    assert "spell" not in worker["system"][0]["text"]
    assert {tool["name"] for tool in junior["tools"]} == {"read", "write", "edit", "run", "skill", "escalate"}
    talk = [body["messages"] for body in api.requests if HANDED in json.dumps(body["messages"][0])][-1]
    opened, (removed, written) = talk[2]["content"][0], talk[4]["content"]
    assert opened["content"] == "How to spell: carefully."
    assert removed["is_error"]
    assert written["is_error"]  # reading how gives no leave to do


def test_what_a_helper_changed_is_listed_against_what_its_superior_had_done(tmp_path: Path, warm: Forks) -> None:
    made = brains.files(1)
    made["plans/p.md"] = made["plans/p.md"].replace("writes: notes/a.md", "writes: notes/*.md")
    helpers.repository(tmp_path, made)
    api = brains.api(1)
    api.scripts["# Task `a`"] = [writes("notes/a.md", "a one\n"), ASK, Turn("Written.")]
    api.scripts[HANDED] = [LOOK, writes("notes/old.md", "new\nwords\n"), Turn("It stands.")]
    code, err = run(warm, tmp_path, api, *RUN)
    assert code == 0, err
    assert last_result(api, "# Task `a`").splitlines()[3:] == ["- modified notes/old.md (+2 -1)"]


def test_a_helper_that_changes_nothing_is_said_to(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.scripts["# Task `a`"] = [writes("notes/a.md", "a one\n"), ASK, Turn("Written.")]
    api.scripts[HANDED] = [LOOK, Turn("It stands.")]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert last_result(api, "# Task `a`") == "junior says: It stands.\n\nIt changed no file."


def test_a_helper_killed_in_its_first_tool_leaves_its_superiors_work_standing(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.scripts["# Task `a`"] = [writes("notes/a.md", "a one\n"), ASK, Turn("Written.")]
    api.scripts[HANDED] = [LOOK, Turn("It stands.")]
    with serving(api):
        made = replace(warm, url=api.url)
        passed = made.run(brains.repository(tmp_path / "whole", 1), RUN)["passed"]
        helpers_first = [number for number, name in enumerate(passed) if name.startswith("after tool ")][2]
        assert made.run(repo, RUN, helpers_first)["code"] == -9
        done = made.run(repo, ["resume", "p-1"])
    assert done["code"] == 0, done["err"]
    (task,) = State.of(repo).ledger.tasks("p-1")
    assert (task["status"], task["attempt"]) == ("accepted", 1)


# Further up


def test_a_helpers_blocker_goes_to_whoever_handed_the_work_down_and_its_answer_comes_back(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.scripts["# Task `a`"] = [ASK, Turn("Written.")]
    api.scripts[HANDED] = [STUCK, writes("notes/a.md", "a\n"), Turn("It stands.")]
    api.scripts = {BLOCKED: [said({"decision": "answer", "text": "Use the word a."})], **api.scripts}
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert blockers(repo) == [("junior", "worker", "answer")]
    (decided,) = [body for body in api.requests if BLOCKED in json.dumps(body["messages"])]
    shown = decided["messages"][0]["content"]
    assert asked(decided) == "worker"
    assert HANDED in shown
    assert "`up` to pass it to `chief`" in shown
    talk = next(
        b["messages"] for b in api.requests if HANDED in b["messages"][0]["content"] and len(b["messages"]) == 3
    )
    assert talk[-1]["content"][0]["content"] == "worker decides (answer): Use the word a."
    (call,) = [call for call in State.of(repo).ledger.calls("p-1") if "blocker" in call["node"]]
    assert call["node"].startswith("a/1/0-")  # on the sub-agent's account


def test_an_attempt_and_its_helpers_have_one_budget_of_blockers(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    twice = Turn("I am stuck.", STUCK.calls * 2)
    api.scripts["# Task `a`"] = [STUCK, ASK, STUCK, Turn("Written.")]
    api.scripts[HANDED] = [twice, writes("notes/a.md", "a\n"), Turn("It stands.")]
    api.scripts = {BLOCKED: [said({"decision": "answer", "text": "Use the word a."})], **api.scripts}
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert blockers(repo) == [("worker", "chief", "answer"), ("junior", "worker", "answer")]
    talk = [body["messages"] for body in api.requests if HANDED in body["messages"][0]["content"]][-1]
    assert [block.get("is_error", False) for block in talk[2]["content"]] == [False, True]
    assert last_result(api, "# Task `a`").startswith("escalate: 2 blockers were raised")


def up_to(level: str) -> FakeApi:
    """The chief, the lead, the worker and its helper, who is stuck; everybody below `level` passes it on."""
    api = brains.api(1)
    api.scripts["chief, # The tasks to hand out"] = [hand_out("a", to="lead")]
    api.scripts["# Task `a`"] = [ASK, Turn("Written.")]
    api.scripts[HANDED] = [STUCK, writes("notes/a.md", "a\n"), Turn("It stands.")]
    api.scripts = {BLOCKED: [said({"decision": "answer", "text": "Use the word a."})], **api.scripts}
    for name in ("worker", "lead", "chief"):
        if name == level:
            break
        api.scripts[f"{name}, {BLOCKED}"] = [said({"decision": "up", "text": f"Beyond the {name}."})]
    by_agent(api)
    return api


def test_a_blocker_that_is_passed_on_goes_up_level_by_level_with_what_was_said_of_it(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.repository(tmp_path, 1), up_to("chief")
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert blockers(repo) == [("junior", "worker", "up"), ("junior", "lead", "up"), ("junior", "chief", "answer")]
    decided = [body for body in api.requests if BLOCKED in json.dumps(body["messages"])]
    worker, lead, chief = (body["messages"][0]["content"] for body in decided)
    assert [asked(body) for body in decided] == ["worker", "lead", "chief"]
    assert "Passed on" not in worker
    assert "> - worker: Beyond the worker." in lead
    assert "> - worker: Beyond the worker.\n> - lead: Beyond the lead." in chief
    assert "`up` to pass it to `chief`" in lead
    assert "`up`" not in chief
    talk = next(
        b["messages"] for b in api.requests if HANDED in b["messages"][0]["content"] and len(b["messages"]) == 3
    )
    assert talk[-1]["content"][0]["content"] == "chief decides (answer): Use the word a."


def test_a_blocker_that_everybody_passes_on_ends_at_a_person_who_reads_what_all_of_them_said(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.repository(tmp_path, 1), up_to("a person")
    code, err = run(warm, repo, api, *RUN)
    assert code == 3, err
    assert [(who, what) for _, who, what in blockers(repo)] == [
        ("worker", "up"), ("lead", "up"), ("chief", "up"), ("a person", "person"),
    ]  # fmt: skip
    assert brains.statuses(repo) == {"a": "blocked"}
    (row,) = State.of(repo).ledger.tasks("p-1")
    assert row["detail"].splitlines() == [
        "a person has to decide: worker: Beyond the worker.; lead: Beyond the lead.; chief: Beyond the chief.",
        "junior was stopped by: which words?",
        "it would need: a word",
    ]


def test_killed_while_a_blocker_goes_up_a_run_asks_nobody_twice_and_notes_each_level_once(
    tmp_path: Path, warm: Forks
) -> None:
    api = up_to("chief")
    with serving(api):
        made = replace(warm, url=api.url)
        passed = made.run(brains.repository(tmp_path / "whole", 1), RUN)["passed"]
        whole, api.requests = len(api.requests), []
        repo = brains.repository(tmp_path / "cut", 1)
        lead = [number for number, name in enumerate(passed) if name == "before send"][5]
        assert made.run(repo, RUN, lead)["code"] == -9
        assert blockers(repo) == [("junior", "worker", "up")]
        done = made.run(repo, ["resume", "p-1"])
    assert done["code"] == 0, done["err"]
    assert len(api.requests) == whole
    assert blockers(repo) == [("junior", "worker", "up"), ("junior", "lead", "up"), ("junior", "chief", "answer")]
