"""The append-only record under everything: runs, tasks, calls paid once, spending, receipts, pull requests, events.

One SQLite file in the state folder. Receipts form a hash chain and are signed with a key that no sandbox ever sees;
the database itself refuses to change or drop one. Calls have a content-addressed key, written before they are sent.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from orchestrator.errors import BudgetExhausted, InputError, NotFound
from orchestrator.records import Budget, PullRequest, Receipt

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
CREATE TABLE IF NOT EXISTS spending (
    key TEXT PRIMARY KEY, run TEXT, task TEXT, kind TEXT, usd REAL, tokens INTEGER, seconds REAL);
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
GENESIS = "0" * 64
Row = dict[str, Any]
Clock = Callable[[], datetime]


def now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """Safe to use from several threads; one transaction a call."""

    def __init__(self, path: Path, key: SigningKey, clock: Clock = now) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=30, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        self._key = key
        self._clock = clock
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        self._connection.close()

    def time(self) -> str:
        return self._clock().isoformat(timespec="seconds")

    # Runs and tasks

    def open_run(self, run: str, **fields: Any) -> None:
        self._insert("runs", id=run, status="running", created_at=self.time(), **fields)

    def run(self, run: str) -> Row:
        rows = self._rows("SELECT * FROM runs WHERE id = ?", run)
        if not rows:
            known = ", ".join(row["id"] for row in self.runs()[-5:]) or "none"
            raise NotFound(f"there is no run `{run}`; the latest are: {known}")
        return rows[0]

    def runs(self) -> list[Row]:
        return self._rows("SELECT * FROM runs ORDER BY rowid")

    def set_run(self, run: str, **fields: Any) -> None:
        self._update("runs", {"id": run}, fields)

    def open_task(self, run: str, task: str, **fields: Any) -> None:
        self._insert("tasks", run=run, id=task, status="waiting", **fields)

    def tasks(self, run: str) -> list[Row]:
        return self._rows("SELECT * FROM tasks WHERE run = ? ORDER BY position", run)

    def set_task(self, run: str, task: str, **fields: Any) -> None:
        self._update("tasks", {"run": run, "id": task}, fields)

    # Calls: paid once

    def begin_call(self, key: str, max_usd: float, run: str, task: str, **fields: Any) -> Row | None:
        """The reply if this call was already paid for; else None, with the intent on record and its maximum reserved.

        A call that was begun and never ended is in doubt: it may have been paid, so its maximum is charged, each time.
        Raises BudgetExhausted, and records nothing, when the maximum doesn't fit beside what is spent and under way.
        """
        with self._transaction():
            known = self._rows("SELECT * FROM calls WHERE key = ?", key)
            if known and known[0]["state"] == "done":
                return known[0]
            if known:
                doubts = len(self._rows("SELECT 1 FROM spending WHERE key GLOB ?", f"doubt:{key}/*"))
                self._charge(f"doubt:{key}/{doubts}", run, task, "in doubt", usd=known[0]["max_usd"])
            self.reserve(run, usd=max_usd, besides=key)
            begun = {"state": "started", "max_usd": max_usd, "started_at": self.time()}
            self._insert("calls", key=key, run=run, task=task, **begun, **fields)
            self._update("calls", {"key": key}, begun)
        return None

    def end_call(self, key: str, reply: Row, tokens: int, usd: float) -> None:
        with self._transaction():
            fields = {"state": "done", "reply": json.dumps(reply), "tokens": tokens, "usd": usd, "done_at": self.time()}
            self._update("calls", {"key": key}, fields)
            call = self._rows("SELECT run, task FROM calls WHERE key = ?", key)[0]
            self._charge(f"call:{key}", call["run"], call["task"], "call", usd=usd, tokens=tokens)

    def calls(self, run: str) -> list[Row]:
        return self._rows("SELECT * FROM calls WHERE run = ? ORDER BY started_at, turn", run)

    def attempts(self, run: str) -> list[Row]:
        """Each task's attempts that called a brain: task, attempt, tier, usd. Calls in doubt count at their maximum."""
        usd = "SUM(CASE WHEN state = 'done' THEN usd ELSE max_usd END) usd"
        return self._rows(
            f"SELECT task, attempt, tier, {usd} FROM calls WHERE run = ? GROUP BY task, attempt, tier", run
        )

    # Budgets: checked before anything is dispatched

    def charge_seconds(self, key: str, run: str, task: str, kind: str, seconds: float) -> None:
        with self._transaction():
            self._charge(key, run, task, kind, seconds=seconds)

    def spent(self, run: str, task: str | None = None) -> Row:
        where, args = ("run = ?", (run,)) if task is None else ("run = ? AND task = ?", (run, task))
        return self._rows(
            "SELECT COALESCE(SUM(usd), 0) usd, COALESCE(SUM(tokens), 0) tokens, COALESCE(SUM(seconds), 0) seconds "
            f"FROM spending WHERE {where}",
            *args,
        )[0]

    def reserve(self, run: str, usd: float = 0.0, tokens: int = 0, besides: str = "") -> None:
        """Raises BudgetExhausted when what is asked for goes over the budget, beside what is spent and under way.

        `besides`: the key of a call that is not counted as under way, because it is the one that asks.
        """
        budget = Budget.model_validate_json(self.run(run)["budget"])
        spent = self.spent(run)
        open_calls = "SELECT COALESCE(SUM(max_usd), 0) usd FROM calls WHERE run = ? AND state = 'started' AND key != ?"
        under_way = self._rows(open_calls, run, besides)[0]["usd"]
        for what, used, more, limit in (
            ("dollars", spent["usd"] + under_way, usd, budget.usd),
            ("tokens", spent["tokens"], tokens, budget.tokens),
            ("minutes", spent["seconds"] / 60, 0, budget.minutes),
        ):
            if used + more > limit or (what == "minutes" and used >= limit):
                raise BudgetExhausted(f"the budget of {limit:g} {what} is used up ({used:.2f} spent)")

    # Receipts: a signed chain

    def add_receipt(self, key: str, receipt: Receipt) -> Receipt:
        """Sign, link and keep a receipt. The same key twice gives the first one back: a repeated step adds nothing."""
        with self._transaction():
            known = self._rows("SELECT body FROM receipts WHERE key = ?", key)
            if known:
                return Receipt.model_validate_json(known[0]["body"])
            receipt = self._signed(receipt)
            body = receipt.model_dump_json()
            self._insert("receipts", id=receipt.id, key=key, run=receipt.run, task=receipt.task, body=body)
        return receipt

    def receipt(self, key: str) -> Receipt | None:
        rows = self._rows("SELECT body FROM receipts WHERE key = ?", key)
        return Receipt.model_validate_json(rows[0]["body"]) if rows else None

    def receipts(self, run: str, task: str | None = None) -> list[Receipt]:
        rows = self._rows("SELECT body, task FROM receipts WHERE run = ? ORDER BY position", run)
        return [Receipt.model_validate_json(row["body"]) for row in rows if task in (None, row["task"])]

    def head(self) -> str:
        """The chain's newest link. It is written into commits and pull requests, out of this file's reach."""
        rows = self._rows("SELECT id FROM receipts ORDER BY position DESC LIMIT 1")
        return str(rows[0]["id"]) if rows else GENESIS

    def verify(self, anchors: tuple[str, ...] = ()) -> list[str]:
        """What is wrong with the chain: a changed body, a missing link, a bad signature, an anchor that is gone."""
        rows = self._rows("SELECT id, run, task, body FROM receipts ORDER BY position")
        wrong, previous = [], GENESIS
        for row in rows:
            wrong += check_link(row, previous, self._key.verify_key)
            previous = row["id"]
        known = {row["id"] for row in rows} | {GENESIS}
        return wrong + [
            f"receipt {anchor[:12]} was published but is not in the ledger" for anchor in anchors if anchor not in known
        ]

    def _signed(self, receipt: Receipt) -> Receipt:
        receipt = receipt.model_copy(update={"previous": self.head(), "at": self.time(), "id": "", "signature": ""})
        digest = digest_of(receipt)
        signature = self._key.sign(digest.encode()).signature.hex()
        return receipt.model_copy(update={"id": digest, "signature": signature})

    # Pull requests

    def add_pull(self, make: Callable[[int], PullRequest], run: str, task: str) -> PullRequest:
        """The task's pull request: the one it has, or a new one from `make(number)`."""
        with self._transaction():
            known = self.pull_of(run, task)
            if known:
                return known
            number = self._rows("SELECT COALESCE(MAX(number), 0) + 1 AS n FROM pulls")[0]["n"]
            pull = self._sealed(make(number))
            body = pull.model_dump_json()
            self._insert("pulls", number=number, run=run, task=task, status=pull.status, body=body)
        return pull

    def _sealed(self, pull: PullRequest) -> PullRequest:
        signature = self._key.sign(words_of(pull)).signature.hex()
        return pull.model_copy(update={"seal": signature})

    def broken_seals(self) -> list[str]:
        """Pull requests whose words are not the harness's any more."""
        return [
            f"pull request {pull.number}: its text is not what the harness wrote"
            for pull in self.pulls()
            if not _signed_by(self._key.verify_key, words_of(pull), pull.seal)
        ]

    def pull(self, number: int) -> PullRequest:
        rows = self._rows("SELECT body FROM pulls WHERE number = ?", number)
        if not rows:
            raise NotFound(f"there is no pull request {number}; `orchestrate pr list` shows what there is")
        return PullRequest.model_validate_json(rows[0]["body"])

    def pull_of(self, run: str, task: str) -> PullRequest | None:
        rows = self._rows("SELECT body FROM pulls WHERE run = ? AND task = ?", run, task)
        return PullRequest.model_validate_json(rows[0]["body"]) if rows else None

    def pulls(self, run: str | None = None) -> list[PullRequest]:
        rows = self._rows("SELECT body, run FROM pulls ORDER BY number")
        return [PullRequest.model_validate_json(row["body"]) for row in rows if run in (None, row["run"])]

    def set_pull(self, number: int, **fields: Any) -> PullRequest:
        pull = self.pull(number).model_copy(update=fields)
        self._update("pulls", {"number": number}, {"status": pull.status, "body": pull.model_dump_json()})
        return pull

    # Events: what a person watches

    def note(self, run: str, task: str, kind: str, body: str) -> None:
        self._insert("events", run=run, task=task, at=self.time(), kind=kind, body=body)

    def events(self, run: str, after: int = 0) -> list[Row]:
        return self._rows("SELECT * FROM events WHERE run = ? AND position > ? ORDER BY position", run, after)

    # SQL, in one place

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

    def _insert(self, table: str, **fields: Any) -> None:
        names, marks = ", ".join(fields), ", ".join("?" * len(fields))
        with self._lock:
            # OR IGNORE: a step that repeats after a crash finds its row there
            self._connection.execute(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", [*fields.values()])

    def _update(self, table: str, where: Row, fields: Row) -> None:
        changes, place = ", ".join(f"{name} = ?" for name in fields), " AND ".join(f"{name} = ?" for name in where)
        with self._lock:
            self._connection.execute(f"UPDATE {table} SET {changes} WHERE {place}", [*fields.values(), *where.values()])

    def _charge(self, key: str, run: str, task: str, kind: str, **amounts: float) -> None:
        row = {"usd": 0.0, "tokens": 0, "seconds": 0.0, **amounts}
        self._insert("spending", key=key, run=run, task=task, kind=kind, **row)


def digest_of(receipt: Receipt) -> str:
    """sha256 of the receipt's content and its link, independent of the order of keys."""
    content = receipt.model_dump(mode="json", exclude={"id", "signature"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_link(row: Row, previous: str, key: VerifyKey) -> list[str]:
    """What is wrong with one receipt and its place. `row`: id, run, task and body as the table has them."""
    expected, name = str(row["id"]), f"receipt {str(row['id'])[:12]}"
    try:
        receipt = Receipt.model_validate_json(row["body"])
    except ValueError:
        return [f"{name}: its content was changed"]
    filed = (expected, row["run"], row["task"])
    if digest_of(receipt) != expected or (receipt.id, receipt.run, receipt.task) != filed:
        return [f"{name}: its content was changed"]
    if receipt.previous != previous:
        return [f"{name}: a receipt before it is missing"]
    if not _signed_by(key, expected.encode(), receipt.signature):
        return [f"{name}: its signature is not the harness's"]
    return []


def words_of(pull: PullRequest) -> bytes:
    """What a pull request says, without what may change later (status, approval)."""
    said = (pull.number, pull.run, pull.task, pull.title, pull.body, pull.commit, pull.base_commit, pull.author)
    return json.dumps(said).encode()


def _signed_by(key: VerifyKey, message: bytes, signature: str) -> bool:
    try:
        key.verify(message, bytes.fromhex(signature))
    except (BadSignatureError, ValueError):
        return False
    return True


def load_key(path: Path) -> SigningKey:
    """The harness's signing key, made on first use. It is also the secret from which the gate draws its seeds."""
    if not path.exists():
        fresh = path.with_suffix(f".{os.urandom(6).hex()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(handle, SigningKey.generate().encode())
        os.fsync(handle)
        os.close(handle)
        with suppress(FileExistsError):  # another process was faster: its key is everyone's
            os.link(fresh, path)
        fresh.unlink()
    raw = path.read_bytes()
    if len(raw) != 32:
        raise InputError(f"{path} is not a signing key; move it away (receipts signed with it can't be verified then)")
    return SigningKey(raw)
