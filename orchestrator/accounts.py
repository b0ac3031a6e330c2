"""Calls that are paid once, and budgets that hold: for a run, and for every task and sub-agent beneath it.

A node is a place in the run's tree: "" the run, "task", "task/1/junior". What is spent at a node counts at each one
above it, and a call is sent only if its maximum fits under every limit on the way up. All of it survives a crash, so
resuming gives nobody a fresh budget.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.book import Book, Clock, Row, now
from orchestrator.errors import BudgetExhausted, NoRoom, NotFound
from orchestrator.records import Budget, TaskBudget, raised
from orchestrator.underway import UnderWay

WARN_AT = 0.8
LEAST_S = 0.01  # fewer seconds than these are none
UNITS = ("dollars", "tokens", "minutes")
ADD = "UPDATE totals SET usd = usd + ?, tokens = tokens + ?, seconds = seconds + ? WHERE run = ? AND node = ?"
ATTEMPTS = """
SELECT task, attempt, MAX(CASE WHEN node IS NULL OR node IN (task, task || '/' || attempt) THEN tier END) AS tier,
    SUM(CASE state WHEN 'done' THEN usd WHEN 'started' THEN max_usd ELSE 0 END) + SUM((
        SELECT COALESCE(SUM(usd), 0) FROM spending AS doubt
        WHERE doubt.run = calls.run AND doubt.kind = 'in doubt' AND doubt.key GLOB 'doubt:' || calls.key || '/*'
    )) AS usd
FROM calls WHERE run = ? AND task != '' GROUP BY task, attempt HAVING tier IS NOT NULL ORDER BY task, attempt
"""
# The usage that the service gave with each reply that was paid for.
PROMPTS = """
SELECT SUM(json_extract(reply, '$.usage.cache_read')) AS cache_read,
    SUM(json_extract(reply, '$.usage.cache_read') + json_extract(reply, '$.usage.input_tokens')
        + json_extract(reply, '$.usage.cache_write_5m') + json_extract(reply, '$.usage.cache_write_1h')) AS tokens
FROM calls WHERE run = ? AND state = 'done' AND tokens > 0 AND task = COALESCE(?, task)
"""
NOTHING = {"usd": 0.0, "tokens": 0, "seconds": 0.0}


class Accounts(Book):
    """The paying half of the ledger. `on_warning` hears (run, task, words) when a budget is nearly used up."""

    on_warning: Callable[[str, str, str], None] | None = None

    def __init__(self, path: Path, clock: Clock = now) -> None:
        super().__init__(path, clock)
        self.under_way = UnderWay()

    # Calls: paid once

    def begin_call(
        self, key: str, max_usd: float, run: str, task: str, max_tokens: int = 0, node: str = "", **fields: Any
    ) -> Row | None:
        """The reply if this call was already paid for; else None, with the intent on record and its maximum reserved.

        A call that was begun and never ended is in doubt: it may have been paid, so its maximum is charged, each time.
        Raises BudgetExhausted, and records nothing, when the maximum doesn't fit beside what is spent and under way.
        """
        node = node or task
        with self._transaction():
            known = self._rows("SELECT * FROM calls WHERE key = ?", key)
            if known and known[0]["state"] == "done":
                return known[0]
            if known and known[0]["state"] == "started":
                self._charge_doubt(known[0], node)
            self.reserve(run, usd=max_usd, tokens=max_tokens, besides=key, node=node)
            begun = {"state": "started", "max_usd": max_usd, "max_tokens": max_tokens, "started_at": self.time()}
            self._insert("calls", key=key, run=run, task=task, node=node, **begun, **fields)
            self._update("calls", {"key": key}, begun)
        return None

    def _charge_doubt(self, call: Row, node: str) -> None:
        doubts = len(self._rows("SELECT 1 FROM spending WHERE key GLOB ?", f"doubt:{call['key']}/*"))
        most = {"usd": call["max_usd"], "tokens": call["max_tokens"] or 0}
        self._charge(f"doubt:{call['key']}/{doubts}", call["run"], call["task"], "in doubt", node, **most)

    def keep_call(self, key: str, run: str, task: str, reply: Row, **fields: Any) -> None:
        """A reply that cost nothing, on record in one go. The first one stays."""
        done = {"state": "done", "reply": json.dumps(reply), "started_at": self.time(), "done_at": self.time()}
        nothing = {"tokens": 0, "usd": 0.0, "max_usd": 0.0, "max_tokens": 0, "request": ""}
        self._insert("calls", key=key, run=run, task=task, **done, **nothing, **fields)

    def end_call(self, key: str, reply: Row, tokens: int, usd: float, seconds: float = 0.0) -> None:
        """`seconds`: what it took beyond those that were charged while it was on its way; of `fail_call` too."""
        with self._transaction():
            fields = {"state": "done", "reply": json.dumps(reply), "tokens": tokens, "usd": usd, "done_at": self.time()}
            self._update("calls", {"key": key}, fields)
            call = self._rows("SELECT run, task, node FROM calls WHERE key = ?", key)[0]
            self._charge(f"call:{key}", call["run"], call["task"], "call", call["node"], usd=usd, tokens=tokens)
            self.return_seconds(call["run"], call["task"], "call", -seconds, call["node"])

    def fail_call(self, key: str, kind: str, what: str, doubtful: bool, seconds: float = 0.0) -> None:
        """Put a send that gave no reply on record.

        What may have been paid for (`doubtful`) is charged at its maximum; nothing of it is under way any more.
        """
        with self._transaction():
            self._insert("sends", key=key, at=self.time(), kind=kind, what=what)
            call = self._rows("SELECT * FROM calls WHERE key = ?", key)[0]
            if doubtful:
                self._charge_doubt(call, call["node"] or call["task"])
            self._update("calls", {"key": key}, {"state": "failed"})
            self.return_seconds(call["run"], call["task"], "call", -seconds, call["node"] or call["task"])

    def settle(self, run: str) -> None:
        """Charge what a dead process had under way at its maximum: it may have been paid for, and holds nobody up."""
        for call in self._rows("SELECT key FROM calls WHERE run = ? AND state = 'started'", run):
            self.fail_call(call["key"], "died", "the process ended before the reply", doubtful=True)

    def calls(self, run: str) -> list[Row]:
        return self._rows("SELECT * FROM calls WHERE run = ? ORDER BY started_at, rowid", run)

    def attempts(self, run: str) -> list[Row]:
        """Each task's attempts that called a brain: task, attempt, tier, usd, with helpers and reviews paid for.

        Calls under way count at their maximum, and so do those in doubt.
        """
        return self._rows(ATTEMPTS, run)

    def prompts(self, run: str, task: str | None = None) -> Row | None:
        """Prompt tokens of the run's or task's calls, how many a cache gave, their share; None when none was bought."""
        (found,) = self._rows(PROMPTS, run, task)
        return {**found, "cached_share": found["cache_read"] / found["tokens"]} if found["tokens"] else None

    def sends(self, key: str) -> list[Row]:
        """The sends of a call that failed, oldest first."""
        return self._rows("SELECT * FROM sends WHERE key = ? ORDER BY position", key)

    def begin(self, key: str) -> int:
        """Note that something is about to start; how often it had been started before."""
        with self._transaction():
            self._insert("starts", key=key, count=0)
            self._connection.execute("UPDATE starts SET count = count + 1 WHERE key = ?", [key])
            return int(self._rows("SELECT count FROM starts WHERE key = ?", key)[0]["count"]) - 1

    def begun(self, key: str) -> int:
        """How many different things beneath a key were started."""
        return len(self._rows("SELECT 1 FROM starts WHERE key GLOB ?", f"{key}/*"))

    # Budgets: checked before anything is dispatched

    def limit(self, run: str, node: str, budget: TaskBudget) -> None:
        """Give a node a budget of its own, beneath those above it. The first one stays."""
        self._insert("limits", run=run, node=node, budget=budget.model_dump_json())

    def raise_limits(self, run: str, task: str, usd: float = 0, tokens: int = 0, minutes: float = 0) -> None:
        """More for a task that has a budget of its own, and for all beneath it. Raises NotFound when it has none."""
        with self._transaction():
            rows = self._rows("SELECT * FROM limits WHERE run = ?", run)
            rows = [row for row in rows if _beneath(row["node"], task)]
            if not task or not rows:
                raise NotFound(f"task `{task}` of run `{run}` has no budget of its own; leave --task out for the run's")
            for row in rows:
                budget = raised(TaskBudget.model_validate_json(row["budget"]), usd, tokens, minutes)
                self._update("limits", {"run": run, "node": row["node"]}, {"budget": budget.model_dump_json()})

    def take_seconds(self, run: str, task: str, kind: str, seconds: float, node: str = "") -> float:
        """Charge so many seconds before they are used, or what is left of them under every limit; how many.

        Raises BudgetExhausted when none are left.
        """
        with self._transaction():
            self.reserve(run, node=node or task)
            given = min([seconds, *self._seconds_left(run, node or task)])
            self._count_seconds(run, task, kind, given, node)
        return given

    def return_seconds(self, run: str, task: str, kind: str, seconds: float, node: str = "") -> None:
        """Give back what was taken and not used; less than nothing is what was used beyond it."""
        if seconds:
            with self._transaction():
                self._count_seconds(run, task, kind, -seconds, node)

    def _seconds_left(self, run: str, node: str) -> Iterator[float]:
        for place, budget in self._limits(run, node):
            if budget.minutes is not None:
                yield budget.minutes * 60 - self.spent(run, place)["seconds"]

    def _count_seconds(self, run: str, task: str, kind: str, seconds: float, node: str) -> None:
        """One row of the record for all seconds of a kind in one place."""
        key = f"seconds:{run}/{node or task}/{kind}"
        self._insert("spending", key=key, run=run, task=task, kind=kind, **NOTHING)
        self._connection.execute("UPDATE spending SET seconds = seconds + ? WHERE key = ?", [seconds, key])
        self._count(run, task, node or task, {**NOTHING, "seconds": seconds})

    def spent(self, run: str, task: str | None = None) -> Row:
        """Dollars, tokens and seconds of the run, or of one node with all beneath it."""
        rows = self._rows("SELECT usd, tokens, seconds FROM totals WHERE run = ? AND node = ?", run, task or "")
        return rows[0] if rows else {**NOTHING}

    def reserve(self, run: str, usd: float = 0.0, tokens: int = 0, besides: str = "", node: str = "") -> None:
        """Raises BudgetExhausted when what is asked for goes over a budget, beside what is spent and under way.

        It is NoRoom where nothing but calls that this process has under way stands in the way: they may need less.
        `besides`: the key of a call that is not counted as under way, because it is the one that asks.
        """
        started = self._rows("SELECT * FROM calls WHERE run = ? AND state = 'started' AND key != ?", run, besides)
        refusals = list(self._refusals(run, node, started, usd, tokens))
        if refusals:
            raise min(refusals, key=lambda each: isinstance(each, NoRoom))

    def _refusals(self, run: str, node: str, started: list[Row], usd: float, tokens: int) -> Iterator[BudgetExhausted]:
        for place, budget in self._limits(run, node):
            spent = self.spent(run, place)
            beneath = [call for call in started if _beneath(call["node"] or call["task"], place)]
            for what, had, more, most, column in (
                ("dollars", spent["usd"], usd, budget.usd, "max_usd"),
                ("tokens", spent["tokens"], tokens, budget.tokens, "max_tokens"),
                ("minutes", spent["seconds"] / 60, LEAST_S / 60, budget.minutes, ""),
            ):
                reserved = {call["key"]: call[column] or 0 for call in beneath} if column and more else {}
                held = sum(reserved.values())
                if most is None or had + held + more <= most:
                    continue
                lost = sum(amount for key, amount in reserved.items() if key not in self.under_way.keys)
                kind = NoRoom if had + lost + more <= most else BudgetExhausted
                asked = more if column else 0.0  # minutes are taken a little at a time
                words = _used_up(place, what, most, {"spent": had, "under way": held, "asked for": asked})
                yield kind(words, place.partition("/")[0])

    def _limits(self, run: str, node: str) -> Iterator[tuple[str, Budget | TaskBudget]]:
        """The budgets that bind a node: the run's, then each one's on the way down."""
        rows = self._rows("SELECT budget FROM runs WHERE id = ?", run)
        if not rows:
            raise NotFound(f"there is no run `{run}`")
        yield "", Budget.model_validate_json(rows[0]["budget"])
        for place in _chain(node):
            for row in self._rows("SELECT budget FROM limits WHERE run = ? AND node = ?", run, place):
                yield place, TaskBudget.model_validate_json(row["budget"])

    def _charge(self, key: str, run: str, task: str, kind: str, node: str = "", **amounts: float) -> None:
        row = {**NOTHING, **amounts}
        if self._insert("spending", key=key, run=run, task=task, kind=kind, **row):
            self._count(run, task, node or task, row)

    def _count(self, run: str, task: str, node: str, amounts: Row) -> None:
        """Add it to the totals of a node and of all above it."""
        before = {place: self.spent(run, place) for place in ("", *_chain(node))}
        for place in before:
            self._insert("totals", run=run, node=place, **NOTHING)
            self._connection.execute(ADD, [amounts["usd"], amounts["tokens"], amounts["seconds"], run, place])
        self._warn(run, task, node, before)

    def _warn(self, run: str, task: str, node: str, before: dict[str, Row]) -> None:
        """Say it, once, when a budget passes four fifths: also when some is given back and spent again."""
        if not self._rows("SELECT 1 FROM runs WHERE id = ?", run):
            return
        for place, budget in self._limits(run, node):
            after = self.spent(run, place)
            limits = (budget.usd, budget.tokens, budget.minutes and budget.minutes * 60)
            for what, unit, most in zip(UNITS, ("usd", "tokens", "seconds"), limits, strict=True):
                if most is None or not before[place][unit] < WARN_AT * most <= after[unit]:
                    continue
                if self.begin(f"warned of {run}/{place}: {most:g} {what}") == 0:
                    whose = f" of `{place}`" if place else ""
                    words = f"{after[unit] / most:.0%} of the budget{whose} in {what} is used"
                    self._insert("events", run=run, task=task, at=self.time(), kind="budget", body=words)
                    if self.on_warning:
                        self.on_warning(run, task, words)


def _chain(node: str) -> list[str]:
    """A node and those above it, the run left out, from the top: a, a/1, a/1/b."""
    names = node.split("/") if node else []
    return ["/".join(names[: depth + 1]) for depth in range(len(names))]


def _used_up(place: str, what: str, most: float, parts: dict[str, float]) -> str:
    """The budget, and apart from each other what is spent, reserved for calls under way, and asked for."""
    limit, digits = (f"{most:g}", 2) if what != "tokens" else (f"{most:.0f}", 0)
    said = [f"{amount:.{digits}f} {name}" for name, amount in parts.items() if amount or name == "spent"]
    whose = f" of `{place}`" if place else ""
    return f"the budget{whose} of {limit} {what} is used up ({', '.join(said)})"


def _beneath(node: str, place: str) -> bool:
    return not place or node == place or node.startswith(f"{place}/")
