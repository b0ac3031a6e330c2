"""Seconds of commands and of paid answers: paid before they are used, a small slice at a time.

A slice is charged to the budgets before the command may run through it, and what is left of the last one is given back
when the command ends. So commands side by side can't use the same seconds twice, a warning comes while a training runs,
and a crash leaves nothing to be settled: it costs at most the slice that was running, never the rest of the budget.
Every command passes one seam, `MeteredSandbox`; every send of a call another, `in_slices`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orchestrator.accounts import Accounts
from orchestrator.errors import BudgetExhausted
from orchestrator.sandbox.base import Command, Completed, OnOutput, Sandbox

FIRST_S, LONGEST_S = 0.5, 10.0  # of a slice: as long again as the command ran already, within these
T = TypeVar("T")


@dataclass(frozen=True)
class MeteredSandbox:
    """A sandbox on the account of one place in a run's tree of budgets."""

    sandbox: Sandbox
    accounts: Accounts
    run_id: str
    task: str
    node: str
    kind: str

    @property
    def tier(self) -> str:
        return self.sandbox.tier

    def run(self, command: Command, on_output: OnOutput | None = None) -> Completed:
        """Raises BudgetExhausted when no second is left, or none any more; what the command did is then void.

        A command that reaches its own limit of time first has timed out, as ever. One that waits for a place among
        others (`throttle.py`) holds its first slice meanwhile, and nothing else is charged for waiting.
        """
        meter = Meter(self._charge, command.limits.wall_s)
        slices = replace(command, limits=replace(command.limits, wall_s=meter.first()), more=meter.more)
        done = self.sandbox.run(slices, on_output)
        self.accounts.return_seconds(self.run_id, self.task, self.kind, meter.taken_s - done.wall_s, self.node)
        if meter.refusal:
            raise meter.refusal
        return done

    def _charge(self, seconds: float) -> float:
        return self.accounts.take_seconds(self.run_id, self.task, self.kind, seconds, self.node)


@dataclass
class Meter:
    """The slices of one command or answer, up to its own limit of time."""

    charge: Callable[[float], float]
    most_s: float = math.inf
    taken_s: float = 0.0
    refusal: BudgetExhausted | None = None

    def first(self) -> float:
        return self._slice(min(FIRST_S, self.most_s))

    def more(self) -> float:
        wanted = min(max(self.taken_s, FIRST_S), LONGEST_S, self.most_s - self.taken_s)
        try:
            return self._slice(wanted) if wanted > 0 else 0.0
        except BudgetExhausted as refusal:
            self.refusal = refusal
            return 0.0

    def _slice(self, wanted: float) -> float:
        given = self.charge(wanted)
        self.taken_s += given
        return given


async def in_slices(work: Coroutine[Any, Any, T], meter: Meter) -> T:
    """What `work` comes to, if the seconds last; else it is cancelled, and the meter's refusal raised.

    The meter's first slice has been taken.
    """
    task, given_s = asyncio.create_task(work), meter.taken_s
    try:
        while given_s > 0:
            ended, _ = await asyncio.wait({task}, timeout=given_s)
            if ended:
                return task.result()
            given_s = meter.more()
        assert meter.refusal
        raise meter.refusal
    finally:
        task.cancel()
