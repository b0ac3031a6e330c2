"""Past attempts out of the ledger, and `orchestrate tiers` over them: each once, with its tier, end and cost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import compare, outcomes, tiers
from orchestrator.house import State
from orchestrator.ledger import Ledger
from orchestrator.loop import Outcome
from orchestrator.records import Budget, Judgement, Risk
from orchestrator.router import Case
from orchestrator.runner import Runner, Tried
from tests.orchestrator import helpers
from tests.orchestrator.helpers import PLAN, change, small_library, write

COMMIT = "c" * 40


def finished(root: Path, *tasks: tuple[str, str, int, str], run: str = "p-1", plan: str = PLAN) -> State:
    """A state folder with a finished run whose tasks ended so: id, status, last attempt, its tier."""
    state = State.of(root)
    write(state.folder / "base" / COMMIT, {"plans/p.md": plan})
    ledger = state.ledger
    ledger.open_run(run, plan="plans/p.md", base_commit=COMMIT, budget=Budget(usd=9, tokens=900).model_dump_json())
    for position, (task, status, attempt, tier) in enumerate(tasks):
        ledger.open_task(run, task, position=position, agent="worker")
        ledger.set_task(run, task, status=status, attempt=attempt, tier=tier)
    ledger.set_run(run, status="incomplete", finished_at=ledger.time())
    return state


def call(ledger: Ledger, key: str, attempt: int, tier: str, usd: float | None, task: str = "a") -> None:
    """A call of an attempt; one without a price was begun and never ended."""
    ledger.begin_call(key, 0.5, "p-1", task, attempt=attempt, turn=0, tier=tier)
    if usd is not None:
        ledger.end_call(key, {}, 10, usd)


def test_attempts_before_the_last_were_refused_and_each_has_its_own_cost(tmp_path: Path) -> None:
    state = finished(tmp_path, ("a", "accepted", 3, "sonnet"))
    call(state.ledger, "k1", 1, "procedure", 0.0)
    call(state.ledger, "k2", 2, "haiku", 0.02)
    call(state.ledger, "k3", 2, "haiku", 0.03)
    call(state.ledger, "k4", 3, "sonnet", None)
    found = outcomes.history(state)
    assert [(t.number, t.tier, t.escalated, t.ended, round(t.usd, 3)) for t in found.trials] == [
        (1, "procedure", False, "refused", 0.0),
        (2, "haiku", True, "refused", 0.05),
        (3, "sonnet", True, "accepted", 0.5),
    ]
    assert {trial.case for trial in found.trials} == {Case("tune", ())}


@pytest.mark.parametrize(("status", "ended"), [("missed", False), ("failed", False), ("blocked", False)])
def test_what_fell_short_counts_as_refused(tmp_path: Path, status: str, ended: bool) -> None:
    state = finished(tmp_path, ("b", status, 1, "procedure"))
    (past,) = outcomes.history(state).past
    assert past.accepted is ended
    assert past.case == Case("tune", ("prose", "measured"))


@pytest.mark.parametrize("status", ["blocked", "failed"])
def test_a_model_whose_task_is_blocked_was_not_refused_but_those_before_it_were(tmp_path: Path, status: str) -> None:
    state = finished(tmp_path, ("a", status, 2, "haiku"))
    call(state.ledger, "k1", 1, "procedure", 0.0)
    call(state.ledger, "k2", 2, "haiku", 0.02)
    tried = [(past.tier, past.accepted) for past in outcomes.history(state).past]
    assert tried == [("procedure", False)] + [("haiku", False)] * (status == "failed")


@pytest.mark.parametrize(
    ("judged", "tried"),
    [
        (1, [(1, "procedure", 0.0)]),  # haiku was begun and had no answer
        (2, [(1, "procedure", 0.0), (2, "haiku", 0.4)]),
        (3, [(1, "procedure", 0.0), (2, "haiku", 0.4), (3, "sonnet", 2.1)]),
    ],
)
def test_after_a_miss_the_dearer_tiers_that_were_refused_count_and_one_without_an_answer_does_not(
    tmp_path: Path, judged: int, tried: list[Any]
) -> None:
    state = finished(tmp_path, ("a", "running", 3, "sonnet"))
    run = SimpleNamespace(
        state=state, ledger=state.ledger, id="p-1", repository=SimpleNamespace(close=print), say=print
    )
    runner = Runner.__new__(Runner)
    runner._run = cast(Any, run)
    runner._loop = None
    missed = Judgement(outcome="missed", risk=Risk(level="low", guarded=False, reasons=()))
    published = Tried(change(), missed, Outcome(True, "", 1), judged)
    runner._ended_as(helpers.task("a"), "missed", "", published)
    for number, tier, usd in ((1, "procedure", 0.0), (2, "haiku", 0.4), (3, "sonnet", 2.1)):
        call(state.ledger, tier, number, tier, usd)
    assert [(t.number, t.tier, t.usd) for t in outcomes.history(state).trials] == tried
    assert {t.ended for t in outcomes.history(state).trials} == {"refused"}
    assert compare.attempts(state.ledger, "p-1") == judged


def test_what_could_not_be_measured_and_what_nobody_tried_teach_nothing(tmp_path: Path) -> None:
    state = finished(tmp_path, ("a", "unmeasured", 1, "procedure"), ("b", "blocked", 0, ""))
    found = outcomes.history(state)
    assert [trial.ended for trial in found.trials] == ["unmeasured"]
    assert found.past == []


def test_a_run_that_goes_on_and_one_whose_plan_is_gone_are_left_out(tmp_path: Path) -> None:
    state = finished(tmp_path, ("a", "accepted", 1, "procedure"), plan="words")
    state.ledger.open_run("p-2", plan="plans/p.md", base_commit=COMMIT, budget=Budget().model_dump_json())
    found = outcomes.history(state)
    assert found.trials == ()
    assert found.unread == ("p-1",)


def test_the_table_and_the_document_say_what_was_tried_and_what_would_be_chosen_now(tmp_path: Path) -> None:
    state = finished(tmp_path, ("a", "accepted", 2, "haiku"), ("b", "unmeasured", 1, "procedure"))
    call(state.ledger, "k1", 1, "procedure", 0.0)
    call(state.ledger, "k2", 2, "haiku", 0.04)
    content = json.loads(json.dumps(tiers.document(small_library(), outcomes.history(state))))
    tune = next(skill for skill in content["skills"] if skill["skill"] == "tune")
    rows = {row["tier"]: (row["attempts"], row["accepted"], row["unmeasured"]) for row in tune["tiers"]}
    assert rows == {"procedure": (2, 0, 1), "haiku": (1, 1, 0), "sonnet": (0, 0, 0), "opus": (0, 0, 0)}
    assert next(row["usd_per_accepted"] for row in tune["tiers"] if row["tier"] == "haiku") == pytest.approx(0.04)
    assert [choice["tiers"][0] for choice in tune["now"]] == ["procedure", "procedure"]
    assert [choice["features"] for choice in tune["now"]] == [[], ["prose", "measured"]]
    shown = tiers.table(content)
    assert "tune                   haiku             1        1          0     $0.040" in shown
    assert "now: procedure (0 of 1 such attempts accepted" in shown


def test_reading_changes_nothing_in_the_ledger(tmp_path: Path) -> None:
    state = finished(tmp_path, ("a", "accepted", 1, "procedure"))
    before = [state.ledger.runs(), state.ledger.tasks("p-1"), state.ledger.calls("p-1"), state.ledger.events("p-1")]
    outcomes.history(state)
    after = [state.ledger.runs(), state.ledger.tasks("p-1"), state.ledger.calls("p-1"), state.ledger.events("p-1")]
    assert before == after
