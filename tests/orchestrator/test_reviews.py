"""Reviews: who reads a change, how far up, what each level is shown, and what becomes of what it finds."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import outcomes, review
from orchestrator.house import State
from tests.orchestrator import brains, helpers
from tests.orchestrator.brains import hand_out, said
from tests.orchestrator.endtoend import has_bubblewrap
from tests.orchestrator.fakeapi import FakeApi, Turn, serving
from tests.orchestrator.forks import RUN, Forks, run

pytestmark = pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")


def test_a_reviewers_blocker_goes_to_the_next_attempt_as_evidence(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    blocker = {"severity": "blocker", "path": "notes/a.md", "line": 1, "what": "says two", "evidence": "`a two`"}
    reading = api.scripts["# Review task `a`"]
    second = [*reading[:1], said({"findings": [blocker]})]
    asked: list[int] = []

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        key, turn = brains.place(api, body)
        if key == "# Review task `a`" and turn == 1:
            asked.append(1)
            return f"{key}{turn}", second[1] if len(asked) == 1 else reading[1]
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
        key, turn = brains.place(api, body)
        own = f"{key} {WHO[body['model']]}"
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
    assert all("below is the whole diff. What" in shown for _, shown in read)
    assert all("The plan says of this section:\n\nA note holds its name." in shown for _, shown in read)
    assert "a dull word" not in read[0][1]
    assert "You had said: Write a, and nothing else." in read[0][1]
    section = pull.body.partition("## Review")[2].partition("##")[0]
    assert "> - lead: minor: a dull word (`one`)" in section
    conversations = {call["node"].rpartition("/")[2] for call in State.of(repo).ledger.calls("p-1")}
    assert sum(review.is_review(name) for name in conversations) == len(who)
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
    (_, first), (_, second), _ = read = reviews(api)
    assert [name for name, _ in read] == ["lead", "lead", "chief"]
    assert second.startswith(first)
    assert "could not be used\n\n- holds no JSON" in second.removeprefix(first)
    (pull,) = State.of(repo).ledger.pulls()
    assert (pull.risk, pull.guarded) == ("high", True)
    assert "> - lead: none could be had: holds no JSON" in pull.body


def test_a_diff_that_is_too_long_is_shown_by_its_ends_and_can_be_read_whole(tmp_path: Path, warm: Forks) -> None:
    repo, api = brains.repository(tmp_path, 1), brains.api(1)
    lines = [f"line {number} of a long note about a" for number in range(4000)]
    write = Turn("I write.", (("write", {"path": "notes/a.md", "content": "\n".join(lines)}),))
    api.scripts["# Task `a`"] = [write, Turn("Written.")]
    look = Turn("I read on.", (("read", {"path": "@outputs/review.diff", "offset": 2000}),))
    api.scripts[REVIEW] = [look, said(brains.FINE)]
    code, err = run(warm, repo, api, *RUN)
    assert code == 0, err
    ((_, shown),) = reviews(api)
    assert "below is the whole diff" not in shown
    assert "characters left out; the whole is in @outputs/review.diff" in shown
    assert [f"+{lines[number]}\n" in shown for number in (0, 2000, 3999)] == [True, False, True]
    assert lines[2000] in api.requests[-1]["messages"][-1]["content"][0]["content"]


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


def test_a_change_that_is_judged_again_on_another_base_is_published_with_its_reviews(
    tmp_path: Path, warm: Forks
) -> None:
    repo, api = brains.two_apart(tmp_path, "usd=5"), brains.api(2)
    begun = threading.Barrier(2)  # both on the same base, so that the second to end stands on a stale one

    def choose(body: dict[str, Any]) -> tuple[str, Turn]:
        key, turn = brains.place(api, body)
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
