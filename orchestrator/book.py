"""The SQLite file under the ledger: its tables, one transaction a call, safe to use from several threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, plan TEXT, plan_sha256 TEXT, base_commit TEXT, base_branch TEXT, status TEXT,
    budget TEXT, settings TEXT, sandbox TEXT, dataset TEXT, created_at TEXT, finished_at TEXT);
CREATE TABLE IF NOT EXISTS tasks (
    run TEXT, id TEXT, position INTEGER, status TEXT, attempt INTEGER, tier TEXT, agent TEXT, detail TEXT,
    verdicts TEXT, started_at TEXT, finished_at TEXT, PRIMARY KEY (run, id));
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, run TEXT, task TEXT, attempt INTEGER, turn INTEGER, tier TEXT, state TEXT,
    reply TEXT, tokens INTEGER, usd REAL, max_usd REAL, started_at TEXT, done_at TEXT);
CREATE TABLE IF NOT EXISTS sends (
    position INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, at TEXT, kind TEXT, what TEXT);
CREATE TABLE IF NOT EXISTS starts (key TEXT PRIMARY KEY, count INTEGER);
CREATE TABLE IF NOT EXISTS spending (
    key TEXT PRIMARY KEY, run TEXT, task TEXT, kind TEXT, usd REAL, tokens INTEGER, seconds REAL);
CREATE TABLE IF NOT EXISTS totals (
    run TEXT, node TEXT, usd REAL, tokens INTEGER, seconds REAL, PRIMARY KEY (run, node));
CREATE TABLE IF NOT EXISTS limits (run TEXT, node TEXT, budget TEXT, PRIMARY KEY (run, node));
CREATE TABLE IF NOT EXISTS delegations (key TEXT PRIMARY KEY, run TEXT, body TEXT, at TEXT);
CREATE TABLE IF NOT EXISTS receipts (
    position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, key TEXT UNIQUE, run TEXT, task TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS pulls (
    number INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT, task TEXT, status TEXT, body TEXT, UNIQUE (run, task));
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT, task TEXT, at TEXT, kind TEXT, body TEXT);
CREATE TRIGGER IF NOT EXISTS receipts_stay BEFORE UPDATE ON receipts
    BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;
CREATE TRIGGER IF NOT EXISTS receipts_are_kept BEFORE DELETE ON receipts
    BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END;
CREATE TRIGGER IF NOT EXISTS events_stay BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER IF NOT EXISTS events_are_kept BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""
LATER_COLUMNS = {  # added to tables that older versions made
    "runs": {"provider": "TEXT"},
    "tasks": {"inputs": "TEXT", "why_tier": "TEXT", "judged": "INTEGER"},
    "calls": {"node": "TEXT", "model": "TEXT", "provider": "TEXT", "request": "TEXT", "max_tokens": "INTEGER"},
}
INDEXES = """
CREATE INDEX IF NOT EXISTS calls_of_run ON calls (run, state);
CREATE INDEX IF NOT EXISTS sends_of_call ON sends (key);
CREATE INDEX IF NOT EXISTS receipts_of_task ON receipts (run, task);
CREATE INDEX IF NOT EXISTS events_of_run ON events (run, position);
"""
# What was spent before there were totals.
TOTALS = """
INSERT INTO totals SELECT run, '', SUM(usd), SUM(tokens), SUM(seconds) FROM spending GROUP BY run;
INSERT INTO totals SELECT run, task, SUM(usd), SUM(tokens), SUM(seconds) FROM spending GROUP BY run, task;
"""
Row = dict[str, Any]
Clock = Callable[[], datetime]


def now() -> datetime:
    return datetime.now(UTC)


class Book:
    """Rows in, rows out."""

    def __init__(self, path: Path, clock: Clock = now) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        self._clock = clock
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA cache_size=-512")  # in KB
        self._connection.executescript(SCHEMA)
        self._grow()
        self._connection.executescript(INDEXES)

    def _grow(self) -> None:
        """Bring a file that an older version made up to date."""
        with self._transaction():
            for table, columns in LATER_COLUMNS.items():
                there = {row["name"] for row in self._rows(f"PRAGMA table_info({table})")}
                for name in columns.keys() - there:
                    self._connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
            if self._rows("SELECT 1 FROM spending LIMIT 1") and not self._rows("SELECT 1 FROM totals LIMIT 1"):
                for statement in TOTALS.strip().splitlines():
                    self._connection.execute(statement)

    def close(self) -> None:
        self._connection.close()

    def time(self) -> str:
        return self._clock().isoformat(timespec="seconds")

    def together(self) -> AbstractContextManager[None]:
        """What is written inside becomes durable in one go, or not at all. For what takes no time: others wait."""
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, sql: str, *args: Any) -> list[Row]:
        with self._lock:
            return [dict(row) for row in self._connection.execute(sql, args).fetchall()]

    def _insert(self, table: str, **fields: Any) -> bool:
        """Whether the row is new."""
        names, marks = ", ".join(fields), ", ".join("?" * len(fields))
        with self._lock:
            # OR IGNORE: a step that repeats after a crash finds its row there
            sql = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"
            return self._connection.execute(sql, [*fields.values()]).rowcount > 0

    def _update(self, table: str, where: Row, fields: Row) -> None:
        changes, place = ", ".join(f"{name} = ?" for name in fields), " AND ".join(f"{name} = ?" for name in where)
        with self._lock:
            self._connection.execute(f"UPDATE {table} SET {changes} WHERE {place}", [*fields.values(), *where.values()])
