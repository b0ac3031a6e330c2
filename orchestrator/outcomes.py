"""What finished runs say about tiers: the ledger's tasks and calls -> past attempts, for the router. Reads only.

The ledger knows which tier tried a task and how it ended; what kind of task it was stands in the plan at the run's base
commit. A run whose plan is gone, or can't be read any more, teaches nothing and is counted as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from orchestrator import planfile
from orchestrator.errors import InputError
from orchestrator.house import Run, State
from orchestrator.records import TIERS, Plan, Task, Tier
from orchestrator.router import Case, Decision, Estimates, PastAttempt, case_of, decide, estimate_all

Ended = Literal["accepted", "unmeasured", "refused"]
# How a task's end reads for the attempt that ended it. `missed` fell short: the next tier was tried, if any.
# `blocked` is a procedure's refusal where nobody could be asked next; a model's waits for a person or for the service.
LAST: dict[str, Ended] = {
    "accepted": "accepted",
    "unmeasured": "unmeasured",
    "missed": "refused",
    "failed": "refused",
    "blocked": "refused",
}


@dataclass(frozen=True)
class Trial:
    """One attempt of a finished task. `usd` counts calls in doubt at their maximum."""

    run: str
    task: str
    case: Case
    number: int
    tier: Tier
    escalated: bool
    ended: Ended
    usd: float


@dataclass(frozen=True)
class History:
    trials: tuple[Trial, ...]
    unread: tuple[str, ...]  # runs whose plan could not be read

    @property
    def past(self) -> list[PastAttempt]:
        """What the router learns from. An unmeasured change passed what could be checked on other data: no evidence."""
        judged = [trial for trial in self.trials if trial.ended != "unmeasured"]
        return [PastAttempt(t.case, t.tier, t.escalated, t.ended == "accepted", t.usd) for t in judged]


def history(state: State) -> History:
    """Every attempt of every ended task of every finished run, oldest first."""
    trials: list[Trial] = []
    unread = []
    for row in state.ledger.runs():
        if not row["finished_at"]:
            continue
        plan = _plan(state.folder / "base" / str(row["base_commit"]), str(row["plan"]))
        if plan is None:
            unread.append(str(row["id"]))
        else:
            trials += _of_run(state, str(row["id"]), plan)
    return History(tuple(trials), tuple(unread))


def route(run: Run, task: Task) -> Decision:
    """The ladder for a task of this run, from what finished runs came to. The run and the task seed the draws."""
    tiers = run.assignments[task.id].tiers
    return decide(tiers, _estimates(run.state, run.id, tiers, case_of(task)), f"{run.id}/{task.id}")


@lru_cache(maxsize=256)
def _estimates(state: State, run: str, tiers: tuple[Tier, ...], case: Case) -> Estimates:
    return estimate_all(tiers, list(_past(state, run)), case)


@lru_cache(maxsize=4)
def _past(state: State, run: str) -> tuple[PastAttempt, ...]:
    """Read once a run, so that its tasks are routed alike whatever ends first, and a thousand of them in no time."""
    return tuple(history(state).past)


def _of_run(state: State, run: str, plan: Plan) -> Iterator[Trial]:
    tasks = {task.id: task for task in plan.tasks}
    attempts: dict[str, list[dict[str, Any]]] = {}
    for row in state.ledger.attempts(run):
        attempts.setdefault(row["task"], []).append(row)
    for row in state.ledger.tasks(run):
        if row["status"] in LAST and row["id"] in tasks and row["attempt"]:
            yield from _of_task(run, tasks[row["id"]], row, attempts.get(row["id"], []))


def _of_task(run: str, task: Task, row: dict[str, Any], attempts: list[dict[str, Any]]) -> Iterator[Trial]:
    """One attempt ended as the task did; each other one that was judged was refused, after a published miss too."""
    tiers = {each["attempt"]: each["tier"] for each in attempts} | {row["attempt"]: row["tier"]}
    usd = {number: sum(each["usd"] or 0.0 for each in attempts if each["attempt"] == number) for number in tiers}
    judged = row["judged"] or row["attempt"]
    for number in sorted(number for number in tiers if number <= judged and tiers[number] in TIERS):
        ended = LAST[row["status"]] if number == row["attempt"] else "refused"
        tier = cast(Tier, tiers[number])
        if number == row["attempt"] and row["status"] == "blocked" and tier != "procedure":
            continue
        yield Trial(run, task.id, case_of(task), number, tier, number > min(tiers), ended, usd[number])


@lru_cache(maxsize=256)
def _plan(base: Path, path: str) -> Plan | None:
    """The plan as a run began with it: a commit's files never change, so it is read once."""
    try:
        return planfile.begun(base, path)
    except InputError:
        return None
