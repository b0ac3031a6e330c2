"""`report --verify`: a verdict that doesn't follow from what was measured is found, whoever wrote it there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator import audit, verdicts
from orchestrator.datasets import Dataset
from orchestrator.formats import FORMATS
from orchestrator.house import State
from orchestrator.records import PullRequest, Receipt, Verdict
from tests.orchestrator.helpers import PLAN, commit, repository, target
from tests.orchestrator.test_measure import control, seeds

FILES = dict(FORMATS["mnist"].official)
REAL = Dataset("mnist", Path("/data/mnist"), FILES, official=True, surrogate=False)
JUDGED = "1" * 40
MET, MISSED = (1.0, 1.0, 1.0), (1.0, 1.0, 4.0)


def place(root: Path, measured: list[Receipt], dataset: Dataset = REAL, plan: str = PLAN) -> State:
    """A run that ended with what these receipts give; they are signed in the reverse of the order of their trials."""
    base = repository(root, {"plans/p.md": plan})
    state = State.of(root)
    state.repository.bring_in(root, base)
    described = json.dumps([{**asdict(dataset), "folder": str(dataset.folder)}])
    state.ledger.open_run("r-1", plan="plans/p.md", base_commit=base, dataset=described)
    state.ledger.open_task("r-1", "b", position=0)
    known = {"task": "b", "commit": JUDGED, "target": "t1", "data": dataset.sha256}
    signed = [
        state.ledger.add_receipt(str(at), each.model_copy(update=known)) for at, each in enumerate(reversed(measured))
    ]
    claim(state, verdicts.verdict(target(), dataset, JUDGED, signed[::-1]))
    return state


def claim(state: State, *made: Verdict, status: str = "accepted") -> None:
    text = json.dumps([each.model_dump(mode="json") for each in made])
    state.ledger.set_task("r-1", "b", verdicts=text, status=status)


def standing(state: State) -> Verdict:
    (row,) = state.ledger.tasks("r-1")
    return Verdict.model_validate(json.loads(row["verdicts"])[0])


def without(state: State, unwanted: Callable[[Receipt], bool]) -> None:
    """The verdict as it would be, had some of the receipts not been."""
    kept = [each for each in state.ledger.receipts("r-1") if not unwanted(each)]
    claim(state, verdicts.verdict(target(seeds=2), REAL, JUDGED, kept).model_copy(update={"asked": target()}))


def wrong(state: State) -> str:
    return "\n".join(audit.wrong(state))


@pytest.mark.parametrize("errors", [MET, MISSED, (1.0, None, 1.0)])
def test_what_the_harness_made_verifies_in_whatever_order_trials_came_to_an_end(tmp_path: Path, errors: Any) -> None:
    assert audit.wrong(place(tmp_path, seeds(*errors))) == []


def test_targets_of_one_task_on_two_datasets_are_each_held_against_their_own(tmp_path: Path) -> None:
    other = Dataset("cifar10", Path("/data/cifar10"), dict(FORMATS["cifar10"].official), official=True, surrogate=False)
    (line,) = [line for line in PLAN.splitlines() if "id: t1," in line]
    second = (
        line.replace("id: t1,", "id: t9,").replace("dataset: mnist", "dataset: cifar10").replace("r.toml", "s.toml")
    )
    text = PLAN.replace(line, f"{line}\n{second}").replace("targets: t1", "targets: t1, t9")
    state = place(tmp_path, seeds(*MET), plan=text)
    more = {"task": "b", "commit": JUDGED, "target": "t9", "data": other.sha256}
    made = [
        state.ledger.add_receipt(f"more-{at}", each.model_copy(update=more))
        for at, each in enumerate(seeds(*MISSED, recipe="s.toml"))
    ]
    described = json.dumps([{**asdict(each), "folder": str(each.folder)} for each in (REAL, other)])
    state.ledger.set_run("r-1", dataset=described)
    asked = target(id="t9", dataset="cifar10", recipe="s.toml")
    claim(state, standing(state), verdicts.verdict(asked, other, JUDGED, made))
    assert audit.wrong(state) == []


def test_receipts_that_a_verdict_leaves_out_are_missed(tmp_path: Path) -> None:
    """A control that failed and a seed that spoils the mean."""
    state = place(tmp_path, [control(False, "changed-labels"), *seeds(*MISSED)])
    without(state, lambda each: not each.passed or each.values.get("test_error_pct") == 4.0)
    assert standing(state).outcome == "reproduced"
    found = wrong(state)
    assert "verdict of t1 in r-1: receipt " in found
    assert " is left out" in found
    assert "its outcome is 'reproduced', but 'not measured' follows from the receipts" in found


def test_what_a_verdict_was_held_against_is_what_the_base_commits_plan_asks(tmp_path: Path) -> None:
    state = place(tmp_path, seeds(*MISSED))
    lenient = target(value=9.0)
    claim(state, verdicts.verdict(lenient, REAL, JUDGED, state.ledger.receipts("r-1")))
    assert standing(state).outcome == "reproduced"
    assert "what was asked is not what the plan asks" in wrong(state)
    assert "its outcome is 'reproduced', but 'not reproduced' follows" in wrong(state)


def test_another_base_commit_is_no_way_to_another_plan(tmp_path: Path) -> None:
    state = place(tmp_path, seeds(*MISSED))
    base = state.ledger.run("r-1")["base_commit"]
    state.ledger.add_pull(lambda number: pull(number, base), "r-1", "b")
    other = commit(tmp_path, {"plans/p.md": PLAN.replace("value: 1.0", "value: 9.0")})
    state.repository.bring_in(tmp_path, other)
    state.ledger.set_run("r-1", base_commit=other)
    claim(state, verdicts.verdict(target(value=9.0), REAL, JUDGED, state.ledger.receipts("r-1")))
    assert audit.wrong(state) == ["r-1: its base commit is not the one below its first pull request"]


def pull(number: int, base: str) -> PullRequest:
    return PullRequest(
        number=number, run="r-1", task="b", plan="plans/p.md", title="t", body="b", head="h", commit=base, base="main",
        base_commit=base, below=None, risk="low", guarded=False, author="a", status="open",
    )  # fmt: skip


def test_data_that_no_receipt_names_does_not_become_official(tmp_path: Path) -> None:
    state = place(tmp_path, seeds(*MET), dataclasses.replace(REAL, sha256={"x": "0"}, official=False))
    assert audit.wrong(state) == []
    state.ledger.set_run("r-1", dataset=json.dumps([{**asdict(REAL), "folder": "/"}]))
    claim(state, verdicts.verdict(target(), REAL, JUDGED, state.ledger.receipts("r-1")))
    assert standing(state).outcome == "reproduced"
    assert "but 'not measured' follows from the receipts" in wrong(state)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mean": 0.5}, "its mean is 0.5, but 2.0 follows"),
        ({"spread": 0.5}, "its spread is 0.5, but 1.73"),
        ({"values": {"0": 1.0}}, "its values is {'0': 1.0}"),
        ({"dataset": "another"}, "its dataset is 'another', but 'mnist' follows"),
        ({"low": 1.9, "high": 2.1}, "its interval is not that of its values"),
        ({"receipts": ("f" * 64,)}, f"receipt {'f' * 12} is missing"),
        ({"commit": "2" * 40}, "but 'not measured' follows"),
        ({"target": "t2"}, "verdict of t2 in r-1: no target of it"),
    ],
)
def test_each_part_of_a_verdict_has_to_follow(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    state = place(tmp_path, seeds(*MISSED))
    claim(state, standing(state).model_copy(update=changed))
    assert words in wrong(state)


def test_intervals_of_before_they_were_students_stand_and_so_do_other_words(tmp_path: Path) -> None:
    state = place(tmp_path, seeds(*MISSED))
    claim(state, standing(state).model_copy(update={"low": 1.0, "high": 4.0, "reason": "other words"}))
    assert audit.wrong(state) == []


def test_a_verdict_that_was_taken_away_is_missed_once_its_task_was_judged(tmp_path: Path) -> None:
    state = place(tmp_path, seeds(*MISSED))
    claim(state)
    assert audit.wrong(state) == ["verdict of t1 in r-1: missing, though `b` was judged"]
    claim(state, status="failed")
    assert audit.wrong(state) == []


def test_a_run_whose_base_commit_is_gone_is_told_apart_from_a_forgery(tmp_path: Path) -> None:
    """Its verdicts are still held against their own words."""
    state = place(tmp_path, seeds(*MISSED))
    base = state.ledger.run("r-1")["base_commit"]
    state.ledger.add_pull(lambda number: pull(number, base), "r-1", "b")
    shutil.rmtree(state.folder / "repo.git")
    state = State.of(tmp_path)
    words = "verdicts of r-1 can't be checked against the plan: its base commit "
    gone, pull_gone = audit.wrong(state)
    assert gone.startswith(words)
    assert pull_gone.startswith("pull request 1 can't be checked against its commit: ")
    claim(state, standing(state).model_copy(update={"outcome": "reproduced"}))
    assert "its outcome is 'reproduced', but 'not reproduced' follows" in wrong(state)
