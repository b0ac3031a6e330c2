"""Each level reviews the one below: whoever handed a task down reads the change, and reports findings with evidence.

Reviews climb the chain of agents as far as the change's risk deserves. Each level after the first is also shown what
those below it found, so that it reviews their reading and not the code alone.

A reviewer only reads. A blocker, whoever finds it, sends the change back to its author; nothing that a reviewer says
makes a change less risky than the rules do, and a review that can't be used makes it a person's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, ValidationError

from orchestrator import prompts, sections
from orchestrator import risk as risks
from orchestrator.library import Library
from orchestrator.loop import Attempt, Loop
from orchestrator.providers.base import json_in
from orchestrator.providers.shape import closed
from orchestrator.records import RISK_LEVELS, Agent, Assignment, Judgement, Plan, Record, Risk, RiskLevel, Skill, Task
from orchestrator.terminal import one_line
from orchestrator.tools.base import cut_text

LOOKS = frozenset({"read", "list", "search"})
DIFF, DIFF_CHARS = "review.diff", 60_000
TURNS = 20
SKILL = "review-change"
AGAIN = "\n\n# Your answer before this one could not be used\n\n- {why}\n"
NAME = "review"  # of a reviewer's conversation, or its beginning
# How many of the levels above its author read a change of this risk, from whoever handed it down; None: all of them.
LEVELS: dict[RiskLevel, int | None] = {"low": 1, "medium": 2, "high": None}
Severity = Literal["blocker", "major", "minor", "none"]


class Finding(Record):
    severity: Severity
    path: str = ""
    line: int = 0
    what: str = Field(min_length=1, max_length=2000)
    evidence: str = Field(min_length=1, max_length=4000)
    consequence: str = Field(default="", max_length=2000)
    fix: str = Field(default="", max_length=2000)

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}: " if self.path else ""
        return f"{self.severity}: {place}{self.what} ({self.evidence})" + (f"; {self.fix}" if self.fix else "")


class Review(Record):
    findings: tuple[Finding, ...] = Field(min_length=1)

    @property
    def blockers(self) -> list[Finding]:
        return [each for each in self.findings if each.severity == "blocker"]


@dataclass(frozen=True)
class Reviewing:
    """What a reviewer is shown. `found`: what the levels below it said, a line a finding."""

    plan: Plan
    task: Task
    brief: str
    author: str
    words: str
    diff: str
    outcome: str  # what the gate said of it
    found: tuple[str, ...] = ()


def is_review(helper: str) -> bool:
    """Whether a conversation beneath an attempt is a reviewer's."""
    return helper.startswith(NAME)


def readers(chain: tuple[str, ...], risk: RiskLevel) -> tuple[str, ...]:
    """Who reads a change of the last one of the chain, in order: from whoever handed it down up to the chief."""
    return chain[-2::-1][: LEVELS[risk]]


def expected(task: Task, assignment: Assignment, library: Library) -> int:
    """How many will read the task's change, by the risk of what it may write; a procedure's change nobody does."""
    if assignment.tiers[0] == "procedure" or SKILL not in library.skills:
        return 0
    return len(readers(assignment.chain, risks.expected(task.writes, library.skills[assignment.skill].risk)))


def attempt(asked: Reviewing, reviewer: Agent, skill: Skill, worked: Attempt, model: str, level: int) -> Attempt:
    """The reviewer's own conversation, beneath the attempt that it reads, with tools that look and nothing else.

    level: 1 for whoever handed the task down.
    """
    diff = cut_text(asked.diff, worked.tools.outputs / DIFF, DIFF_CHARS)
    words = {
        "agent": reviewer, "skill": skill, "others": (), "writes": (), "commands": (),
    }  # fmt: skip
    shown = {
        "task": asked.task, "plan": asked.plan, "brief": asked.brief, "author": asked.author,
        "words": asked.words, "diff": diff, "whole": diff == asked.diff, "found": asked.found,
        "outcome": asked.outcome,
        "prose": sections.prose(asked.plan, asked.task),
    }  # fmt: skip
    return replace(
        worked,
        tier=reviewer.model,
        model=model,
        system=prompts.render("system.md.j2", words),
        brief=prompts.render("review.md.j2", shown),
        allowed=LOOKS & frozenset(reviewer.tools),
        tools=replace(worked.tools, writes=(), commands=(), skills={}),
        max_turns=reviewer.turns(TURNS),
        chain=(reviewer.name,),
        helper=NAME if level == 1 else f"{NAME}-{level}",
        answer_schema=closed(Review.model_json_schema()),
    )


async def read(loop: Loop, reviewing: Attempt) -> Review | str:
    """The findings, or why there are none to be had. Asked for twice, the second time with what was wrong."""
    why = ""
    again = f"{reviewing.helper}-again"
    for helper in (reviewing.helper, again):
        brief = reviewing.brief + (AGAIN.format(why=why) if helper == again else "")
        outcome = await loop.work(replace(reviewing, helper=helper, brief=brief))
        if not outcome.finished:
            return outcome.text
        try:
            return Review.model_validate(json_in(outcome.text))
        except (ValueError, ValidationError) as error:
            why = str(error)[:500]
    return why


def judged(judgement: Judgement, found: Review | str, reviewer: str) -> Judgement:
    """The judgement with this level's review in it: refused for a blocker, a person's when there was no review."""
    if isinstance(found, str):
        risk = _raised(judgement.risk, f"high: `{reviewer}` gave no review that can be used")
        review = (*judgement.review, f"{reviewer}: none could be had: {one_line(found)}")
        return judgement.model_copy(update={"risk": risk, "review": review})
    review = (*judgement.review, *(f"{reviewer}: {each}" for each in found.findings))
    if found.blockers:
        risk = _raised(judgement.risk, f"high: {reviewer} reports a blocker")
        feedback = "review:\n" + "\n".join(f"- {line}" for line in review)
        return judgement.model_copy(update={"outcome": "refused", "risk": risk, "feedback": feedback, "review": review})
    return judgement.model_copy(update={"review": review})


def kept(before: Judgement, now: Judgement) -> Judgement:
    """A judgement on another base of a change that was read before: with what was found, and no less risky for it."""
    risk = max(before.risk, now.risk, key=lambda each: (RISK_LEVELS.index(each.level), each.guarded))
    return now.model_copy(update={"review": before.review, "risk": risk})


def _raised(risk: Risk, reason: str) -> Risk:
    return Risk(level="high", guarded=True, reasons=(reason, *risk.reasons))
