"""Which task is next: the plan's order among all that may start, and what was interrupted before everything else."""

from __future__ import annotations

from orchestrator.schedule import Schedule
from tests.orchestrator.helpers import plan

TASKS = {"first": "", "long": "first", "other": "", "last": "long"}
FRONT = "---\ntitle: A plan\nbudget: {minutes: 5}\n---\n\n# A plan\n\n## All\n\n"
BODY = "".join(
    f"- [ ] `{name}` Do it\n  - skill: write\n" + f"  - needs: {need}\n" * bool(need) + f"  - writes: {name}.md\n"
    for name, need in TASKS.items()
)


def schedule(**status: str) -> Schedule:
    return Schedule(plan(FRONT + BODY), dict.fromkeys(TASKS, "waiting") | status)


def test_a_task_that_becomes_ready_goes_before_later_ones_that_were_ready_long_ago() -> None:
    made = schedule()
    assert made.take() == "first"
    made.end("first", "accepted")
    assert [made.take(), made.take(), made.take()] == ["long", "other", None]


def test_what_was_interrupted_goes_on_before_anything_else_starts() -> None:
    made = schedule(other="running")
    assert [made.take(), made.take(), made.take()] == ["other", "first", None]
