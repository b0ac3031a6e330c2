"""Plans that need language models, from the command line to pull requests: a real socket, the real SDK, the sandbox."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anthropic import transform_schema

from orchestrator import outcomes
from orchestrator.engine import APPLICATION_VERSION
from orchestrator.house import State
from tests.orchestrator import brains, helpers
from tests.orchestrator.brains import hand_out, said
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, Fault, Turn, serving
from tests.orchestrator.forks import Forks, forks

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
RUN = ["run", "plans/p.md", "--provider", "anthropic"]


@pytest.fixture(scope="module")
def warm() -> Iterator[Forks]:
    with forks() as made:
        yield made


def run(warm: Forks, repo: Path, api: FakeApi | None, *argv: str) -> tuple[int, str]:
    """Exit code and what was said, with this server behind ANTHROPIC_BASE_URL."""
    if api is None:
        done = replace(warm, url="http://127.0.0.1:9").run(repo, argv)
    else:
        with serving(api):
            done = replace(warm, url=api.url).run(repo, argv)
    return done["code"], done["err"]


def tasks(repo: Path) -> dict[str, str]:
    return {row["id"]: row["status"] for row in State.of(repo).ledger.tasks("p-1")}


def spent(repo: Path) -> dict[str, Any]:
    return State.of(repo).ledger.spent("p-1")


def test_a_plan_ends_with_reviewed_pull_requests_and_what_they_cost(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    (pull,) = State.of(repo).ledger.pulls()
    assert "nothing (I read all of it)" in pull.body.partition("## Review")[2]
    assert "> The note a is written." in pull.body
    assert spent(repo)["tokens"] == 7 * 120
    models = [request["model"] for request in api.requests]
    assert models == ["claude-opus-5-5"] + ["claude-haiku-5-5"] * 4 + ["claude-opus-5-5"] * 2
    assert "Write a, and nothing else." in json.dumps(api.requests[1]["messages"])
    assert "look" in api.requests[2]["messages"][1]["content"][0]["text"]


def asked_for_json(api: FakeApi) -> dict[str, list[Any]]:
    """The output formats on the wire, by whose conversation: the chief's, a reviewer's, a superior's, anyone else's."""
    marks = {"delegation": "The tasks to hand out", "review": "# Review task", "decision": "is blocked at task"}
    found: dict[str, list[Any]] = {name: [] for name in (*marks, "work")}
    for body in api.requests:
        first = json.dumps(body["messages"][0])
        name = next((name for name, mark in marks.items() if mark in first), "work")
        found[name].append(body.get("output_config", {}).get("format"))
    return found


def test_delegations_reviews_and_decisions_are_asked_of_the_service_as_structured_outputs(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    escalate = Turn("I am stuck.", (("escalate", {"what": "which words?", "needs": "a word"}),))
    api.scripts["# Task `a`"] = [escalate, *api.scripts["# Task `a`"][1:]]
    api.scripts["is blocked at task `a`"] = [said({"decision": "answer", "text": "Use the word a."})]
    code, err = run(replace(warm, service=True), repo, api, *RUN)
    assert code == 0, err
    found = asked_for_json(api)
    assert {name: len(formats) for name, formats in found.items()} == {
        "delegation": 1, "review": 2, "decision": 1, "work": 4,
    }  # fmt: skip
    assert found.pop("work") == [None] * 4
    fields = {"delegation": ["tasks", "why"], "review": ["findings"], "decision": ["decision", "text"]}
    for name, formats in found.items():
        for each in formats:
            assert each["type"] == "json_schema"
            assert sorted(each["schema"]["required"]) == fields[name]
            # the SDK closes every object, and moves what the API does not take into descriptions: there is nothing left
            assert "description" not in json.dumps(transform_schema(each["schema"]))
            assert all(part["additionalProperties"] is False for part in objects(each["schema"]))


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)


STEPS = {
    "odyssey-5": [
        "@plan/chief reply 0", "begin",
        "a/1 reply 0", "a/1 tools 0", "a/1 reply 1", "a/1 tools 1", "a/1 reply 2", "a/1 tools 2", "a/1 reply 3",
        "freeze",
        "a/1/review snapshot", "a/1/review reply 0", "a/1/review tools 0", "a/1/review reply 1", "publish",
    ],
}  # fmt: skip


def test_the_journals_steps_are_those_of_their_version(tmp_path: Path, warm: Forks) -> None:
    """Where a step was added, dropped, renamed or moved, raise APPLICATION_VERSION, and name them anew here."""
    repo = brains.repository(tmp_path, 1)
    assert run(warm, repo, brains.api(1), *RUN)[0] == 0
    with closing(sqlite3.connect(State.of(repo).path("runs", "p-1") / "workflows.db")) as journal:
        sql = "SELECT function_name FROM operation_outputs ORDER BY workflow_uuid, function_id"
        assert {APPLICATION_VERSION: [name for (name,) in journal.execute(sql)]} == STEPS


def test_a_plan_is_handed_out_once_even_by_another_run(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    run(warm, repo, api, *RUN)
    code, err = run(warm, repo, api, *RUN, "--again")
    assert code == 0, err
    assert sum("The tasks to hand out" in json.dumps(request) for request in api.requests) == 1


STAMP = """
[[step]]
say = "I stamp."
tool = "write"
input = {path = "{{ writes[0] }}", content = "{{ task.id }}"}
[finish]
say = "Stamped."
"""


def with_a_clerk(tasks: int) -> dict[str, str]:
    """And an agent whose skill has a procedure."""
    made = brains.files(tasks)
    made["agents/clerk.md"] = brains.agent("clerk", "haiku", 3, "read, write, run", "skills: [stamp]\n")
    made["agents/lead.md"] = made["agents/lead.md"].replace("[worker, ", "[worker, clerk, ")
    stamp = brains.skill("stamp", "read write run", "notes/**", "grep *")
    made["skills/stamp/SKILL.md"] = stamp.replace("  risk:", "  procedure: scripts/procedure.toml\n  risk:")
    made["skills/stamp/scripts/procedure.toml"] = STAMP
    return made


def test_without_a_model_everything_that_can_be_done_is_and_the_rest_says_what_to_do(
    tmp_path: Path, warm: Forks
) -> None:
    made = with_a_clerk(2)
    for task, needs in (("alone", ""), ("after-alone", "alone"), ("after-b", "b")):
        text = brains.TASK.format(id=task, needs=needs).replace("  - needs: \n", "")
        made["plans/p.md"] += text.replace("skill: note", "skill: stamp")
    helpers.repository(tmp_path, made)
    repo = tmp_path
    code, err = run(warm, repo, None, "run", "plans/p.md")
    assert code == 3, err
    done = {"alone": "accepted", "after-alone": "accepted"}
    assert tasks(repo) == {"a": "blocked", "b": "blocked", "after-b": "blocked"} | done
    details = {row["id"]: row["detail"] for row in State.of(repo).ledger.tasks("p-1")}
    assert details["after-b"] == "it needs `b`, which is blocked"
    assert "alone: router procedure" in err  # why this tier, in one line
    assert "start it with --provider anthropic and ANTHROPIC_API_KEY set, or with --provider mailbox" in details["a"]
    assert details["b"] == "it needs `a`, which is blocked"


def test_a_change_that_the_gate_refuses_is_tried_afresh_on_the_next_tier_with_the_failure_as_evidence(
    tmp_path: Path, warm: Forks
) -> None:
    """Procedure, then haiku, then sonnet: each begins with one message, which holds why the last one was refused."""
    made = with_a_clerk(0)
    text = brains.TASK.format(id="zz", needs="").replace("  - needs: \n", "")
    made["plans/p.md"] += text.replace("skill: note", "skill: stamp")
    stamped = STAMP.replace("{{ task.id }}", "procedural nonsense").replace("I stamp.", "I stamp as ever.")
    made["skills/stamp/scripts/procedure.toml"] = stamped
    helpers.repository(tmp_path, made)
    writes = {
        "claude-haiku-5-5": Turn("Haiku writes.", (("write", {"path": "notes/zz.md", "content": "17 syllables\n"}),)),
        "claude-sonnet-5-5": Turn("Sonnet writes.", (("write", {"path": "notes/zz.md", "content": "zz, at last\n"}),)),
    }

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        if "# Review task" in json.dumps(body["messages"][0]):
            return "review", said(brains.FINE)
        first = len(body["messages"]) == 1
        return body["model"], writes[body["model"]] if first else Turn("Written.")

    api = FakeApi(choose=choose)
    code, err = run(warm, tmp_path, api, *RUN)
    assert code == 0, err
    state = State.of(tmp_path)
    (task,) = state.ledger.tasks("p-1")
    assert (task["status"], task["attempt"], task["tier"]) == ("accepted", 3, "sonnet")
    gate = [(each.attempt, each.kind, each.passed) for each in state.ledger.receipts("p-1") if each.kind == "accept"]
    assert gate == [(1, "accept", False), (2, "accept", False), (3, "accept", True)]
    haiku, sonnet = api.requests[0], api.requests[2]
    assert [haiku["model"], sonnet["model"]] == [*writes]
    for body in (haiku, sonnet):
        (only,) = body["messages"]
        assert "The attempt before this one was not accepted." in only["content"]
        assert "accept: `grep -q zz notes/zz.md` ended with 1" in only["content"]
    for words in ("I stamp as ever.", "procedural nonsense", "Stamped.", "step_1"):
        assert words not in json.dumps([haiku, sonnet])
    for words in ("Haiku writes.", "17 syllables", "Written.", "toolu_"):
        assert words not in json.dumps(sonnet)


def test_a_reviewers_blocker_goes_to_the_next_attempt_as_evidence(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    blocker = {"severity": "blocker", "path": "notes/a.md", "line": 1, "what": "says two", "evidence": "`a two`"}
    review = api.scripts["# Review task `a`"]
    second = [*review[:1], said({"findings": [blocker]})]
    asked: list[int] = []

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        first = json.dumps(body["messages"][0])
        key = next(key for key in api.scripts if key in first)
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        if key == "# Review task `a`" and turn == 1:
            asked.append(1)
            return f"{key}{turn}", second[1] if len(asked) == 1 else review[1]
        return f"{key}{turn}", api.scripts[key][turn]

    api.choose = choose
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    (task,) = State.of(repo).ledger.tasks("p-1")
    assert (task["attempt"], task["tier"]) == (2, "sonnet")
    briefs = [json.dumps(request["messages"][0]) for request in api.requests if request["model"] == "claude-sonnet-5-5"]
    assert "blocker: notes/a.md:1: says two" in briefs[0]


WHO = {"claude-opus-5-5": "chief", "claude-sonnet-5-5": "lead", "claude-haiku-5-5": "worker"}
MINOR = {"findings": [{"severity": "minor", "what": "a dull word", "evidence": "`one`"}]}
BLOCKER = {"findings": [{"severity": "blocker", "what": "the lead missed it", "evidence": "`a one`"}]}
REVIEW = "# Review task `a`"


def three_levels(folder: Path, path: str = "notes/a.md") -> tuple[Path, FakeApi]:
    """The chief hands task `a` to the lead, who hands it to the worker, who writes `path`; each reads what comes up."""
    made = {name: text.replace("notes/a.md", path) for name, text in brains.files(1).items()}
    made["skills/note/SKILL.md"] = made["skills/note/SKILL.md"].replace("notes/**", f"{path.partition('/')[0]}/**")
    helpers.repository(folder, made)
    api, hands = FakeApi(), "# The tasks to hand out"
    write = Turn("I write.", (("write", {"path": path, "content": "a one\n"}),))
    api.scripts = {"# Task `a`": [write, Turn("Written.")], f"{hands} chief": [hand_out("a", to="lead")]}
    api.scripts |= {hands: [hand_out("a")], f"{REVIEW} lead": [said(MINOR)], REVIEW: [said(brains.FINE)]}

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        first = json.dumps(body["messages"][0])
        key = next(key for key in api.scripts if key in first)
        own = f"{key} {WHO[body['model']]}"
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        return f"{own}{turn}", api.scripts.get(own, api.scripts[key])[turn]

    api.choose = choose
    return folder, api


def reviews(api: FakeApi) -> list[tuple[str, str]]:
    """Who was asked to read, in order, and what was shown."""
    asked = [(WHO[body["model"]], body["messages"]) for body in api.requests]
    return [(who, talk[0]["content"]) for who, talk in asked if REVIEW in talk[0]["content"] and len(talk) == 1]


@pytest.mark.parametrize(
    ("path", "risk", "who"),
    [
        ("docs/a.md", "low", ["lead"]),
        ("mlcore/a.md", "medium", ["lead", "chief"]),
        ("notes/a.md", "high", ["lead", "chief"]),
    ],
)
def test_each_level_reads_the_change_and_the_reading_of_the_one_below_as_far_up_as_the_risk_deserves(
    tmp_path: Path, warm: Forks, path: str, risk: str, who: list[str]
) -> None:
    repo, api = three_levels(tmp_path, path)
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    read, (pull,) = reviews(api), State.of(repo).ledger.pulls()
    assert ([name for name, _ in read], pull.risk) == (who, risk)
    assert all("+a one" in shown for _, shown in read)
    assert "a dull word" not in read[0][1]
    assert "You had said: Write a, and nothing else." in read[0][1]
    section = pull.body.partition("## Review")[2].partition("##")[0]
    assert "> - lead: minor: a dull word (`one`)" in section
    if "chief" in who:
        assert "> - lead: minor: a dull word (`one`)" in read[1][1]
        assert "You had said" not in read[1][1]
        assert section.index("> - chief: none: nothing") > section.index("> - lead: minor")
    assert State.of(repo).ledger.spent("p-1", "a")["tokens"] == (2 + len(who)) * 120
    nodes = [call["node"] for call in State.of(repo).ledger.calls("p-1") if "review" in call["node"]]
    assert nodes == ["a/1/review", "a/1/review-2"][: len(who)]  # conversations apart, which a recording tells by these


def test_a_blocker_by_the_top_level_sends_the_change_back_with_what_every_level_found(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = three_levels(tmp_path)
    api.scripts |= {f"{REVIEW} chief": [said(BLOCKER)]}
    code, err = run(warm, repo, api, *RUN)
    assert code == 3, err
    assert State.of(repo).ledger.pulls() == []
    assert [name for name, _ in reviews(api)] == ["lead", "chief"] * 3  # an attempt on each tier
    begun = [body["messages"][0]["content"] for body in api.requests if len(body["messages"]) == 1]
    brief = [first for first in begun if first.startswith("# Task `a`")][1]
    assert "- lead: minor: a dull word" in brief
    assert "- chief: blocker: the lead missed it" in brief


def test_a_blocker_below_is_not_read_by_those_above(tmp_path: Path, warm: Forks) -> None:
    repo, api = three_levels(tmp_path)
    api.scripts |= {f"{REVIEW} lead": [said(BLOCKER)]}
    assert run(warm, repo, api, *RUN)[0] == 3
    assert [name for name, _ in reviews(api)] == ["lead"] * 3


def test_a_review_that_cannot_be_used_makes_the_risk_high_so_that_everybody_above_reads_the_change(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = three_levels(tmp_path, "docs/a.md")
    api.scripts |= {f"{REVIEW} lead": [Turn("looks good")]}
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert [name for name, _ in reviews(api)] == ["lead", "lead", "chief"]
    (pull,) = State.of(repo).ledger.pulls()
    assert (pull.risk, pull.guarded) == ("high", True)
    assert "> - lead: none could be had: holds no JSON" in pull.body


def test_killed_between_two_reviews_a_run_buys_neither_again_and_the_routers_line_stays(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = three_levels(tmp_path)
    with serving(api):
        made = replace(warm, url=api.url)
        passed = made.run(three_levels(tmp_path / "whole")[0], RUN)["passed"]
        kill = [number for number, name in enumerate(passed) if name == "before send"][5]  # the chief's review
        whole, api.requests = len(api.requests), []
        assert made.run(repo, RUN, kill)["code"] == -9
        assert [name for name, _ in reviews(api)] == ["lead"]
        before = _finished_meanwhile(repo)
        done = made.run(repo, ["resume", "p-1"])
    assert done["code"] == 0, done["err"]
    assert [name for name, _ in reviews(api)] == ["lead", "chief"]
    assert len(api.requests) == whole
    (pull,) = State.of(repo).ledger.pulls()
    assert f"haiku, attempt 1. The router: {before}" in pull.body
    assert State.of(repo).ledger.why_tier("p-1", "a") == before
    plan = State.of(repo).repository.read(pull.commit, "plans/p.md") or ""
    assert f"; router: {before.partition(', then')[0]}\n" in plan


def _finished_meanwhile(repo: Path) -> str:
    """The router's line of the run that was killed; another run ends before it goes on, and would change it."""
    state = State.of(repo)
    plan, base = (state.ledger.run("p-1")[key] for key in ("plan", "base_commit"))
    state.ledger.open_run("q-1", plan=plan, base_commit=base, budget="{}")
    state.ledger.open_task("q-1", "a", position=0)
    state.ledger.set_task("q-1", "a", status="accepted", attempt=1, tier="haiku")
    state.ledger.set_run("q-1", status="accepted", finished_at=state.ledger.time())
    assert len(outcomes.history(state).past) == 1
    return state.ledger.why_tier("p-1", "a")


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
    assert tasks(repo) == {"a": status, "b": "blocked"}
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
    assert tasks(tmp_path) == {"a": "blocked"}


def test_a_used_up_budget_pauses_with_its_own_code_and_a_larger_one_goes_on(tmp_path: Path, warm: Forks) -> None:
    repo = brains.repository(tmp_path, 1, budget="{usd: 0.2, tokens: 2000000, minutes: 20}")
    api = brains.api(1)
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err  # seven calls fit, one after the other
    tight = brains.repository(tmp_path / "tight", 1, budget="{usd: 0.01, tokens: 2000000, minutes: 20}")
    code, err = run(warm, tight, api, *RUN)
    assert code == 5
    assert "budget of 0.01 dollars is used up" in err
    assert "go on with: orchestrate resume p-1 --usd 1" in err
    assert run(warm, tight, api, "resume", "p-1", "--usd", "1")[0] == 0


def two_apart(folder: Path, limit: str) -> Path:
    """Tasks `a`, with a budget of its own, and `b`, which does not need it."""
    made = brains.files(2)
    plan = made["plans/p.md"].replace("  - needs: a\n", "")
    made["plans/p.md"] = plan.replace("  - writes: notes/a.md\n", f"  - writes: notes/a.md\n  - budget: {limit}\n")
    helpers.repository(folder, made)
    return folder


def test_a_task_whose_own_budget_is_used_up_is_paused_and_the_rest_of_the_plan_goes_on(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = two_apart(tmp_path, "usd=0.02"), brains.api(2)
    code, err = run(warm, repo, api, *RUN)
    assert code == 5, err
    assert tasks(repo) == {"a": "paused", "b": "accepted"}
    line = (repo / "plans/p.md").read_text().split("\n").index("  - budget: usd=0.02") + 1
    assert f"the budget of `a` of 0.02 dollars is used up (0.00 spent); it is set in plans/p.md:{line}" in err
    assert "go on with: orchestrate resume p-1 --task a --usd 1" in err
    assert spent(repo)["usd"] < 1
    asked = len(api.requests)
    code, err = run(warm, repo, api, "resume", "p-1")
    assert (code, len(api.requests)) == (5, asked), err  # kept across resume: nobody gets a fresh budget
    code, err = run(warm, repo, api, "resume", "p-1", "--task", "b", "--usd", "1")
    assert code == 2
    assert "task `b` of run `p-1` has no budget of its own" in err
    code, err = run(warm, repo, api, "resume", "p-1", "--task", "a", "--usd", "1")
    assert code == 0, err
    assert tasks(repo) == {"a": "accepted", "b": "accepted"}
    assert len(api.requests) == 1 + 2 * 6


def test_what_waits_for_a_paused_task_is_neither_done_nor_given_up(tmp_path: Path, warm: Forks) -> None:
    made = brains.files(2)
    made["plans/p.md"] = made["plans/p.md"].replace("  - writes: notes/a", "  - budget: tokens=10\n  - writes: notes/a")
    helpers.repository(tmp_path, made)
    code, err = run(warm, tmp_path, brains.api(2), *RUN)
    assert code == 5, err
    assert tasks(tmp_path) == {"a": "paused", "b": "waiting"}
    code, err = run(warm, tmp_path, brains.api(2), "resume", "p-1", "--task", "a", "--tokens", "2000000")
    assert code == 0, err
    assert tasks(tmp_path) == {"a": "accepted", "b": "accepted"}


def test_a_change_that_is_judged_again_on_another_base_is_published_with_its_reviews(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = two_apart(tmp_path, "usd=5"), brains.api(2)
    begun = threading.Barrier(2)  # both on the same base, so that the second to end stands on a stale one

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        first = body["messages"][0]["content"]
        key = next(key for key in api.scripts if key in first)
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        if key.startswith("# Task") and turn == 0:
            begun.wait(60)
        return f"{key}{turn}", api.scripts[key][turn]

    api.choose = choose
    code, err = run(warm, repo, api, *RUN, "--parallel", "2")
    assert code == 0, err
    state = State.of(repo)
    judged = [(receipt.task, receipt.commit) for receipt in state.ledger.receipts("p-1") if receipt.kind == "accept"]
    assert len({*judged}) == 3  # one of the two was judged twice
    assert all("> - chief: none: nothing (I read all of it)" in pull.body for pull in state.ledger.pulls())


def test_a_service_that_cannot_be_had_pauses_with_its_own_code(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.faults = [Fault(status=429, code="enforced_spend_limit_reached")]
    code, err = run(warm, repo, api, *RUN)
    assert code == 6
    assert "raise the limit in the console" in err
    assert run(warm, repo, api, "resume", "p-1")[0] == 0


DENIED = b'{"type": "error", "error": {"type": "permission_error", "message": "no"}}'
UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"models": ("claude-haiku-5-5", "claude-sonnet-5-5")}, "tier `opus`: the service has no model"),
    "retired": ({"models": ("claude-haiku-5-5", "claude-sonnet-5-5"), "retired": ("claude-opus-5-5",)},
                "tier `opus`: the service has no model `claude-opus-5-5`; set models.opus in your own config.toml"),
    "401": ({"listing": (401, DENIED)}, "the service refuses the key (401): check ANTHROPIC_API_KEY"),
    "403": ({"listing": (403, DENIED)}, "the service refuses the key (403): check ANTHROPIC_API_KEY"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_models_or_a_key_that_cannot_be_used_stop_a_run_before_it_begins(
    tmp_path: Path, warm: Forks, case: str
) -> None:
    served, words = UNUSABLE[case]
    repo, api = brains.repository(tmp_path, 1), replace(brains.api(1), **served)
    code, err = run(replace(warm, service=True), repo, api, *RUN)
    assert (code, api.requests) == (2, [])
    assert words in err
    assert "Traceback" not in err
    assert State.of(repo).ledger.runs() == []
    code, err = run(replace(warm, service=True), repo, brains.api(1), *RUN)
    assert code == 0, err


def test_a_local_server_without_a_list_of_models_is_used_all_the_same(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), replace(brains.api(1), listing=(404, b"404 page not found"))
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert "note model ids were not checked: " in err
    assert asked_for_json(api)["delegation"] == [None]  # and is spoken to plainly
    assert "Answer with one JSON value of this schema" in api.requests[0]["system"][1]["text"]


def test_a_recorded_run_replays_to_the_same_pull_request_without_any_service(tmp_path: Path, warm: Forks) -> None:
    first, second, other = (brains.repository(tmp_path / name, 2) for name in ("one", "two", "three"))
    api = brains.api()
    places = {"argv": ["grep", "-m1", "worktrees", "/proc/self/mountinfo"]}  # prints where the worktree is
    api.scripts["# Task `a`"].insert(3, Turn("Where am I?", (("run", places),)))
    assert run(warm, first, api, *RUN)[0] == 0
    recording = tmp_path / "run.jsonl"
    state = State.of(first)
    from orchestrator import demo
    from orchestrator import recording as recordings

    recording.write_text("".join(line + "\n" for line in recordings.lines(state, "p-1", "by a script")))
    assert "/repository/.odyssey/worktrees/" in recording.read_text()
    assert str(tmp_path) not in recording.read_text()
    replayed = ("run", "plans/p.md", "--provider", f"replay:{recording}")
    code, err = run(warm, second, None, *replayed)
    assert code == 0, err
    assert demo.differences(demo.pulls(State.of(second), "p-1"), demo.pulls(state, "p-1")) == []
    assert spent(second)["usd"] == 0
    (other / "notes/old.md").write_text("newer\n")
    brains.helpers.commit(other, {})
    code, err = run(warm, other, None, *replayed)
    assert code == 3
    assert "call 2 of a/1 is the first that differs from the recording" in err
    assert "newer" in err


def test_a_task_may_not_be_handed_to_somebody_who_cannot_do_it(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.scripts["# The tasks to hand out"] = [hand_out("a", to="reader")]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert State.of(repo).ledger.tasks("p-1")[0]["agent"] == "worker"
    assert "so the planner's stands: `reader` has not the skill `note`" in err


def test_the_record_names_whom_a_task_was_handed_to(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.scripts["# The tasks to hand out"] = [hand_out("a", to="junior")]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert State.of(repo).ledger.tasks("p-1")[0]["agent"] == "junior"


def test_a_plan_that_changed_does_again_only_what_depends_on_it(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 2), brains.api(2)
    assert run(warm, repo, api, *RUN)[0] == 0
    for command in (["approve", "1"], ["approve", "2"], ["merge", "2"]):
        done = warm.run(repo, ["pr", *command])
        assert done["code"] == 0, done["err"]
    plan = repo / "plans/p.md"
    code, err = run(warm, repo, api, *RUN)
    assert (code, "every task is ticked" in err) == (0, True)
    plan.write_text(plan.read_text().replace("Write the note b", "Write the other note b"))
    brains.helpers.commit(repo, {})
    code, err = run(warm, repo, api, *RUN)
    assert "b: stale is done again: changed since it was done: the task itself" in err
    assert [row["id"] for row in State.of(repo).ledger.tasks("p-2")] == ["b"]
