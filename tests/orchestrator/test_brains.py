"""Plans that need language models, from the command line to pull requests: a real socket, the real SDK, the sandbox."""

from __future__ import annotations

import json
import sqlite3
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
from tests.orchestrator.fakeapi import NO_CREDIT, FakeApi, Fault, Turn
from tests.orchestrator.forks import RUN, Forks, run

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


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
    brief = api.requests[1]["messages"][0]["content"]
    assert "From the agent above you:\n\nWrite a, and nothing else." in brief
    assert "section First.\n\nThe plan says of this section:\n\nA note holds its name.\n\nAccepted when:" in brief
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
    "odyssey-8": [
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


def handed_out(api: FakeApi) -> list[str]:
    """The list of tasks that each request for a delegation shows."""
    firsts, mark = [body["messages"][0]["content"] for body in api.requests], "# The tasks to hand out"
    return [first.partition(mark)[2].strip() for first in firsts if mark in first]


def test_only_the_runs_own_tasks_are_handed_out(tmp_path: Path, warm: Forks) -> None:
    made, api = brains.files(2), brains.api(2)
    made |= {"notes/a.md": "a\n", "plans/p.md": made["plans/p.md"].replace("- [ ] `a`", "- [x] `a`")}
    helpers.repository(tmp_path, made)
    api.scripts["# The tasks to hand out"] = [hand_out("b")]
    code, err = run(warm, tmp_path, api, *RUN)
    assert code == 0, err
    api.scripts["# The tasks to hand out"] = [hand_out("a", "b")]
    run(warm, tmp_path, api, *RUN, "--again")
    assert [("`a` Write" in shown, "`b` Write" in shown) for shown in handed_out(api)] == [(False, True), (True, True)]


def test_where_only_a_procedures_task_is_left_the_chief_is_not_asked(tmp_path: Path, warm: Forks) -> None:
    made, api = with_a_clerk(1), brains.api(1)
    clerks = brains.TASK.format(id="b", needs="a").replace("skill: note", "skill: stamp")
    made |= {"notes/a.md": "a\n", "plans/p.md": made["plans/p.md"].replace("- [ ] `a`", "- [x] `a`") + clerks}
    helpers.repository(tmp_path, made)
    code, err = run(warm, tmp_path, api, *RUN)
    assert code == 0, err
    assert api.requests == []


def test_a_delegation_that_failed_is_not_kept_for_another_run(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.faults = [Fault(status=400, kind="invalid_request_error")] * 2
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    assert "so the planner's stands" in err
    asked = len(handed_out(api))
    for _ in range(2):  # and the one that was made is
        code, err = run(warm, repo, api, *RUN, "--again")
        assert code == 0, err
        assert len(handed_out(api)) == asked + 1
    kept = State.of(repo).ledger._rows("SELECT body FROM delegations ORDER BY at")
    assert [len(json.loads(row["body"])) for row in kept] == [0, 1]


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
    assert brains.statuses(repo) == {"a": "blocked", "b": "blocked", "after-b": "blocked"} | done
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


def test_a_task_that_one_model_refuses_is_tried_afresh_by_the_next_tiers_and_both_are_paid_for(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.scripts["# The tasks to hand out"] = [hand_out("a")]

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        key, turn = brains.place(api, body)
        if body["model"] == "claude-haiku-5-5" and turn == 1:
            details = {"type": "refusal", "category": "cyber", "explanation": "no exploits"}
            return "refused", Turn("I won't.", stop="refusal", details=details)
        return f"{key}{turn}", api.scripts[key][turn]

    api.choose = choose
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    state = State.of(repo)
    (task,) = state.ledger.tasks("p-1")
    assert (task["status"], task["attempt"], task["tier"]) == ("accepted", 2, "sonnet")
    assert "the model refused: cyber no exploits I won't." in err
    (first,) = next(body for body in api.requests if body["model"] == "claude-sonnet-5-5")["messages"]
    assert "The attempt before this one was not accepted." in first["content"]
    assert "the model refused: cyber no exploits" in first["content"]
    spent_by = {row["attempt"]: row["usd"] for row in state.ledger.attempts("p-1")}
    assert set(spent_by) == {1, 2}
    assert all(spent_by.values())


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


def test_a_task_whose_own_budget_is_used_up_is_paused_and_the_rest_of_the_plan_goes_on(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.two_apart(tmp_path, "usd=0.02"), brains.api(2)
    code, err = run(warm, repo, api, *RUN)
    assert code == 5, err
    assert brains.statuses(repo) == {"a": "paused", "b": "accepted"}
    line = (repo / "plans/p.md").read_text().split("\n").index("  - budget: usd=0.02") + 1
    assert "the budget of `a` of 0.02 dollars is used up (0.00 spent, " in err
    assert f" asked for); it is set in plans/p.md:{line}" in err
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
    assert brains.statuses(repo) == {"a": "accepted", "b": "accepted"}
    assert len(api.requests) == 1 + 2 * 6


def test_what_waits_for_a_paused_task_is_neither_done_nor_given_up(tmp_path: Path, warm: Forks) -> None:
    made = brains.files(2)
    made["plans/p.md"] = made["plans/p.md"].replace("  - writes: notes/a", "  - budget: tokens=10\n  - writes: notes/a")
    helpers.repository(tmp_path, made)
    code, err = run(warm, tmp_path, brains.api(2), *RUN)
    assert code == 5, err
    assert brains.statuses(tmp_path) == {"a": "paused", "b": "waiting"}
    code, err = run(warm, tmp_path, brains.api(2), "resume", "p-1", "--task", "a", "--tokens", "2000000")
    assert code == 0, err
    assert brains.statuses(tmp_path) == {"a": "accepted", "b": "accepted"}


@pytest.mark.parametrize("fault", [Fault(status=429, code="enforced_spend_limit_reached"), NO_CREDIT])
def test_a_service_that_cannot_be_had_pauses_with_its_own_code(tmp_path: Path, warm: Forks, fault: Fault) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    api.faults = [fault]
    code, err = run(warm, repo, api, *RUN)
    assert code == 6
    assert "raise the limit in the console" in err
    assert run(warm, repo, api, "resume", "p-1")[0] == 0


def test_a_service_that_will_not_answer_blocks_the_task_and_neither_climbs_nor_teaches_the_router(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    wrong = Fault(status=400, kind="invalid_request_error", message="tools: too many")

    def answer(body: dict[str, Any]) -> tuple[str, Turn | Fault]:
        key, turn = brains.place(api, body)
        return (key, wrong) if (key, turn) == ("# Task `a`", 1) else (f"{key}{turn}", api.scripts[key][turn])

    api.choose = answer
    code, err = run(warm, repo, api, *RUN)
    assert code == 3, err
    (task,) = State.of(repo).ledger.tasks("p-1")
    assert (task["status"], task["attempt"], task["tier"]) == ("blocked", 1, "haiku")
    assert "tools: too many" in task["detail"]
    assert "mend what is named" in task["detail"]
    assert [request["model"] for request in api.requests] == ["claude-opus-5-5"] + ["claude-haiku-5-5"] * 2
    assert outcomes.history(State.of(repo)).trials == ()


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
    first, second, other, reviewed = (brains.repository(tmp_path / str(number), 2) for number in range(4))
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
    lines = recording.read_text().split("\n")
    changed = [line.replace("+a two", "+a three") if "# Review task `a`" in line else line for line in lines]
    recording.write_text("\n".join(changed))
    code, err = run(warm, reviewed, None, *replayed)
    assert code == 3
    assert "call 1 of a/1/review is the first that differs from the recording: '+a two' instead of '+a three'" in err


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
    assert run(warm, repo, api, *RUN, "--only", "a")[0] == 0
    assert [row["id"] for row in State.of(repo).ledger.tasks("p-3")] == ["a"], "ticked, but it was named"
