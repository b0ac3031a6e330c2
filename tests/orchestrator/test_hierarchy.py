"""The hierarchy: tasks handed out and read by whoever is above, helpers on a share, blockers one level up."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import planner, review
from orchestrator.calls import Calls
from orchestrator.hierarchy import Hierarchy, plan_key, todo
from orchestrator.ledger import Ledger
from orchestrator.library import load
from orchestrator.prices import Usage
from orchestrator.providers.base import Reply, Request, json_in
from orchestrator.records import Assignment, Budget, Judgement, Risk
from tests.orchestrator import brains
from tests.orchestrator.helpers import ROOT, Journal, ledger, plan

MODELS = {"haiku": "claude-haiku-5-5", "sonnet": "claude-sonnet-5-5", "opus": "claude-opus-5-5"}


@dataclass
class Says:
    """A brain that gives these answers, one after the other."""

    answers: list[Any]
    asked: list[Request] = field(default_factory=list)
    name: str = "says"
    billed: bool = False

    async def reply(self, request: Request) -> Reply:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Reply):
            return answer
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Reply(content=({"type": "text", "text": text},), stop_reason="end_turn", usage=Usage())


def handed(why: str = "small", **tasks: str) -> dict[str, Any]:
    given = [{"task": task, "agent": agent, "brief": f"Do {task}."} for task, agent in tasks.items()]
    return {"why": why, "tasks": given}


@dataclass
class Office:
    says: Says
    told: list[str] = field(default_factory=list)
    assignments: dict[str, Assignment] = field(default_factory=dict)


def office(folder: Path, *answers: Any, text: str | None = None) -> Office:
    files = brains.files()
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    library, loaded = load(folder), plan(text or files["plans/p.md"])
    made = Office(Says(list(answers)))
    calls = Calls(made.says, book(folder), Journal())
    hierarchy = Hierarchy(loaded, library, calls, "r-1", MODELS, made.told.append)
    default = {each.task: each for each in planner.assign(loaded, library)}
    given = asyncio.run(hierarchy.assign(todo(loaded, default, default)))
    made.assignments = default | {each.task: each for each in given}
    return made


def book(folder: Path) -> Ledger:
    return ledger(folder / "state", budget=Budget(usd=1, tokens=10**6))


def test_a_small_plan_has_two_levels_and_the_reason_is_told(tmp_path: Path) -> None:
    made = office(tmp_path, handed("two clear notes", a="worker", b="worker"))
    assert [made.assignments[task].chain for task in "ab"] == [("chief", "worker")] * 2
    assert made.assignments["a"].brief == "Do a."
    assert made.told == ["chief: two clear notes"]


def test_a_lead_hands_on_what_it_is_handed_with_its_own_brief(tmp_path: Path) -> None:
    made = office(tmp_path, handed(a="lead", b="worker"), handed(a="junior"))
    assert made.assignments["a"].chain == ("chief", "lead", "junior")
    assert made.assignments["b"].chain == ("chief", "worker")
    chief, lead = made.says.asked
    assert (chief.who, lead.who, chief.tier, lead.tier) == ("@plan/chief", "@plan/lead", "opus", "sonnet")
    brief = lead.messages[0]["content"].partition("# The tasks to hand out")[2]
    assert "`a`: Do a." in brief
    assert "`b` Write" not in brief


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would rather not", "holds no JSON"),
        ({"why": "x"}, "tasks"),
        (handed(a="worker"), "task `b` was handed out 0 times"),
        (handed(a="worker", b="worker", c="worker"), "task `c` is not one of yours"),
        (handed(a="worker", b="chief"), "`chief` is not below you"),
        (handed(a="worker", b="reader"), "`reader` has not the skill `note` of `b`, nor has anyone below"),
    ],
)
def test_a_delegation_that_cannot_be_used_is_asked_for_once_more_and_then_the_planners_stands(
    tmp_path: Path, answer: Any, reason: str
) -> None:
    mended = office(tmp_path / "mended", answer, handed(a="worker", b="worker"))
    assert reason in mended.says.asked[1].messages[0]["content"]
    assert mended.assignments["b"].chain == ("chief", "worker")
    given_up = office(tmp_path / "given up", answer, answer)
    assert given_up.assignments["b"].chain == ("chief", "worker")
    assert given_up.assignments["b"].why.endswith("small is up to 4 tasks, 3 sections, 2 levels of risk")
    assert "the planner's stands" in given_up.told[0]


def test_a_delegation_that_was_cut_off_is_asked_for_again_with_more_room(tmp_path: Path) -> None:
    cut_off = Reply(content=(), stop_reason="max_tokens")
    made = office(tmp_path / "once", cut_off, handed(a="worker", b="worker"))
    first, second = made.says.asked
    assert (first.max_tokens, second.max_tokens) == (8192, 16384)
    assert first.messages == second.messages
    assert made.told == ["chief: small"]
    endless = office(tmp_path / "ever", *[cut_off] * 9)
    assert [each.max_tokens for each in endless.says.asked] == [8192, 16384, 32768, 65536]
    assert "the planner's stands: max_tokens" in endless.told[0]


def test_a_task_that_a_person_gave_to_somebody_is_not_handed_out(tmp_path: Path) -> None:
    text = brains.files()["plans/p.md"].replace("- writes: notes/a.md", "- writes: notes/a.md\n  - agent: junior")
    made = office(tmp_path, handed(b="worker"), text=text)
    assert made.assignments["a"].agent == "junior"
    assert "`a` Write" not in made.says.asked[0].messages[0]["content"].partition("# The tasks to hand out")[2]


def test_a_plan_that_is_too_long_for_the_chief_says_how_much_of_it_is_left_out(tmp_path: Path) -> None:
    text = brains.files()["plans/p.md"]
    long = text + "A line of prose.\n" * 1000
    given = handed(a="worker", b="worker")
    whole, cut = (
        office(tmp_path / name, given, text=each).says.asked[0].messages[0]["content"]
        for name, each in (("whole", text), ("cut", long))
    )
    assert "left out" not in whole
    shown, _, notice = cut.partition("# The plan: Notes\n\n")[2].partition("\n\n[... cut here: the plan's last ")
    left_out = len(long[long.index("# Notes") :].strip()) - len(shown)
    assert 0 < left_out < len(long) - 10_000
    assert notice.startswith(f"{left_out} characters are left out]\n\n# The tasks to hand out")


def test_the_chief_reads_a_plan_from_its_first_line_whatever_rules_are_drawn_across_it(tmp_path: Path) -> None:
    text = brains.files()["plans/p.md"].replace(
        "# Notes\n", "# Notes\n\nNever touch the loader.\n\n---\n\nMore.\n\n---\n"
    )
    made = office(tmp_path, handed(a="worker", b="worker"), text=text)
    shown = made.says.asked[0].messages[0]["content"].partition("# The plan: Notes\n\n")[2]
    assert shown.startswith("# Notes\n\nNever touch the loader.\n\n---\n\nMore.\n\n---\n")
    assert "title: Notes" not in shown


def test_the_hash_of_a_plan_changes_with_its_text_its_open_tasks_and_its_people(tmp_path: Path) -> None:
    office(tmp_path, handed(a="worker", b="worker"))
    library, text = load(tmp_path), brains.files()["plans/p.md"]
    tasks = list(plan(text).tasks)
    key = plan_key(plan(text), library, tasks)
    assert plan_key(plan(text), library, tasks) == key
    assert plan_key(plan(text), library, tasks[1:]) != key
    assert plan_key(plan(text + "\nMore.\n"), library, tasks) != key
    other = replace(library, agents={name: each for name, each in library.agents.items() if name != "junior"})
    assert plan_key(plan(text), other, tasks) != key


def test_the_first_delegation_of_a_plan_stays(tmp_path: Path) -> None:
    made = book(tmp_path)
    assert made.keep_delegation("k", "r-1", "[1]") == "[1]"
    assert made.keep_delegation("k", "r-2", "[2]") == "[1]"


# Reviews


LOW = Judgement(outcome="accepted", risk=Risk(level="low", guarded=False, reasons=("low: prose",)))


def finding(severity: str, what: str = "it is wrong") -> Any:
    return review.Finding.model_validate(
        {"severity": severity, "path": "a.py", "line": 3, "what": what, "evidence": "x = 1", "fix": "y"}
    )


def test_a_blocker_sends_the_change_back_with_every_finding(tmp_path: Path) -> None:
    found = review.judged(LOW, review.Review(findings=(finding("blocker"), finding("minor", "a name"))), "lead")
    assert (found.outcome, found.risk.level, found.risk.guarded) == ("refused", "high", True)
    assert "- lead: blocker: a.py:3: it is wrong (x = 1); y" in found.feedback
    assert "a name" in found.feedback


@pytest.mark.parametrize("severity", ["major", "minor", "none"])
def test_no_review_makes_a_change_less_risky_or_takes_it_by_itself(severity: str) -> None:
    high = LOW.model_copy(update={"risk": Risk(level="high", guarded=True, reasons=())})
    found = review.judged(high, review.Review(findings=(finding(severity),)), "lead")
    assert (found.outcome, found.risk) == ("accepted", high.risk)
    assert found.review == (f"lead: {finding(severity)}",)


def test_a_review_that_cannot_be_used_makes_the_change_a_persons_business() -> None:
    found = review.judged(LOW, "looks good", "lead")
    assert (found.outcome, found.risk.level, found.risk.guarded) == ("accepted", "high", True)
    assert "`lead` gave no review that can be used" in found.risk.reasons[0]


@pytest.mark.parametrize(("level", "who"), [("low", ["c"]), ("medium", ["c", "b"]), ("high", ["c", "b", "a", "chief"])])
def test_reviews_climb_from_whoever_handed_the_task_down_as_far_as_the_risk_deserves(
    level: Any, who: list[str]
) -> None:
    assert [*review.readers(("chief", "a", "b", "c", "author"), level)] == who
    assert review.readers(("chief", "author"), level) == ("chief",)
    assert review.readers(("chief",), level) == ()


def test_the_reviews_that_a_task_will_have_follow_from_what_it_may_write_and_who_is_above(tmp_path: Path) -> None:
    made = office(tmp_path, handed(a="lead", b="worker"), handed(a="worker"))
    library, tasks = load(tmp_path), plan(brains.files()["plans/p.md"]).tasks
    assert [review.expected(task, made.assignments[task.id], library) for task in tasks] == [2, 1]  # an unknown path
    prose = tasks[0].model_copy(update={"writes": ("docs/a.md",)})
    assert review.expected(prose, made.assignments["a"], library) == 1
    free = made.assignments["a"].model_copy(update={"tiers": ("procedure", "haiku")})
    assert review.expected(tasks[0], free, library) == 0
    nobody = replace(library, skills={"note": library.skills["note"]})
    assert review.expected(tasks[0], made.assignments["a"], nobody) == 0


def test_each_level_adds_its_findings_and_a_blocker_at_the_top_sends_all_of_them_back() -> None:
    low = review.judged(LOW, review.Review(findings=(finding("minor", "a name"),)), "lead")
    top = review.judged(low, review.Review(findings=(finding("blocker"),)), "chief")
    assert top.review == (f"lead: {finding('minor', 'a name')}", f"chief: {finding('blocker')}")
    assert top.outcome == "refused"
    assert top.feedback.splitlines() == ["review:", *(f"- {line}" for line in top.review)]


def test_a_change_judged_again_on_another_base_keeps_its_reviews_and_the_risk_that_they_raised() -> None:
    raised = review.judged(LOW, "looks good", "lead")
    found = review.kept(raised, LOW.model_copy(update={"outcome": "unmeasured"}))
    assert (found.outcome, found.review, found.risk) == ("unmeasured", raised.review, raised.risk)
    high = LOW.risk.model_copy(update={"level": "high"})
    assert review.kept(LOW, LOW.model_copy(update={"risk": high})).risk == high


def test_a_finding_without_evidence_is_none() -> None:
    with pytest.raises(ValueError, match="evidence"):
        review.Finding.model_validate({"severity": "blocker", "what": "smells", "evidence": ""})


def test_the_example_that_the_reviewers_skill_gives_is_a_review_that_is_taken() -> None:
    example = load(ROOT).skills["review-change"].body.partition("```json\n")[2].partition("```")[0]
    (finding,) = review.Review.model_validate(json_in(example)).findings
    assert finding.severity == "blocker"
