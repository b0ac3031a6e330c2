"""One field on two sides: what each made of it since they last agreed, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.issues.issue import Take, mark


@dataclass(frozen=True)
class Merged:
    """`base` is the mark of what both sides agree on from now on; the old one while they don't."""

    value: str
    base: str
    conflict: bool = False


def merge(ours: str, theirs: str, base: str, take: Take = "") -> Merged:
    """`ours` is the plan's, `theirs` the issue's, `base` the mark of what they last agreed on ("" if never)."""
    if ours == theirs:
        return Merged(ours, mark(ours))
    if mark(theirs) == base:
        return Merged(ours, base)
    if mark(ours) == base or take == "issues":
        return Merged(theirs, mark(theirs))
    if take == "plan":
        return Merged(ours, mark(theirs))
    return Merged(ours, base, conflict=True)
