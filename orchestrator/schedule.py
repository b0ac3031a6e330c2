"""Which tasks may start, and which never will: pure, and no dearer for a thousand tasks than each of them once."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from orchestrator.records import Plan

DONE = ("accepted", "missed", "unmeasured")  # published: what needs them may go on
ENDED = (*DONE, "failed", "blocked")
RUNNING = "running"
PAUSED = "paused"  # its own budget is used up: resumable


class Schedule:
    """The tasks of one run, as they become ready. A need outside of the run was done before it."""

    def __init__(self, plan: Plan, status: Mapping[str, str]) -> None:
        self.status = dict(status)
        self._place = {task.id: (status.get(task.id) != RUNNING, at) for at, task in enumerate(plan.tasks)}
        mine = [task for task in plan.tasks if task.id in status]
        self._needs = {task.id: tuple(need for need in task.needs if need in status) for task in mine}
        self._needed_by: dict[str, list[str]] = {}
        for task in mine:
            for need in dict.fromkeys(self._needs[task.id]):
                self._needed_by.setdefault(need, []).append(task.id)
        self._taken: set[str] = set()
        self._open = {task.id for task in mine if status[task.id] not in ENDED}
        for task in mine:
            if status[task.id] == PAUSED:
                self.hold(task.id)
        self._ready = [
            (self._place[task.id], task.id) for task in mine if task.id in self._open and self._is_ready(task.id)
        ]
        heapify(self._ready)

    @property
    def over(self) -> bool:
        return not self._open

    def take(self) -> str | None:
        """The plan's first task that may start; before all others, what was under way when the run was interrupted."""
        while self._ready:
            _, task = heappop(self._ready)
            if task in self._open and task not in self._taken:
                self._taken.add(task)
                return task
        return None

    def end(self, task: str, status: str) -> None:
        self.status[task] = status
        self._open.discard(task)
        if status in DONE:
            for each in self._needed_by.get(task, ()):
                if each in self._open and self._is_ready(each):
                    heappush(self._ready, (self._place[each], each))

    def hold(self, task: str) -> None:
        """Paused, and with it what needs it: all of these go on another day."""
        self.status[task] = PAUSED
        ahead = [task]
        while ahead:
            each = ahead.pop()
            self._open.discard(each)
            ahead += self._needed_by.get(each, ())

    def stuck(self) -> dict[str, str]:
        """Tasks that wait for one that ended without being published, with the reason."""
        return {
            waiting: f"it needs `{need}`, which is {self.status[need]}"
            for need, status in self.status.items()
            if status in ("failed", "blocked")
            for waiting in self._needed_by.get(need, ())
            if waiting in self._open
        }

    def _is_ready(self, task: str) -> bool:
        return all(self.status[need] in DONE for need in self._needs[task])
