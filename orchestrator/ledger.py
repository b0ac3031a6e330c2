"""The append-only record under everything: runs, tasks, receipts, pull requests, events; calls and budgets below it.

One SQLite file in the state folder. Receipts form a hash chain and are signed with a key that no sandbox ever sees;
the database itself refuses to change or drop one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from orchestrator.accounts import Accounts
from orchestrator.book import Clock, Row, now
from orchestrator.errors import InputError, NotFound
from orchestrator.records import PullRequest, Receipt

GENESIS = "0" * 64


class Ledger(Accounts):
    """Safe to use from several threads; one transaction a call."""

    def __init__(self, path: Path, key: SigningKey, clock: Clock = now) -> None:
        super().__init__(path, clock)
        self._key = key

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
        """Runs of plans, oldest first; what was bought besides (a paper's reading) has no plan."""
        return self._rows("SELECT * FROM runs WHERE plan IS NOT '' ORDER BY rowid")

    def set_run(self, run: str, **fields: Any) -> None:
        self._update("runs", {"id": run}, fields)

    def open_task(self, run: str, task: str, **fields: Any) -> None:
        self._insert("tasks", run=run, id=task, status="waiting", **fields)

    def tasks(self, run: str) -> list[Row]:
        return self._rows("SELECT * FROM tasks WHERE run = ? ORDER BY position", run)

    def each_task(self, run: str) -> Iterator[Row]:
        """A run's tasks in the plan's order, one in memory at a time."""
        for task in self.statuses(run):
            yield from self._rows("SELECT * FROM tasks WHERE run = ? AND id = ?", run, task)

    def statuses(self, run: str) -> dict[str, str]:
        """How each task stands, in the plan's order."""
        rows = self._rows("SELECT id, status FROM tasks WHERE run = ? ORDER BY position", run)
        return {row["id"]: row["status"] for row in rows}

    def set_task(self, run: str, task: str, **fields: Any) -> None:
        self._update("tasks", {"run": run, "id": task}, fields)

    def attempts_at(self, run: str, task: str) -> int:
        """How many attempts at the task were begun, as far as it is not said which of them ended it."""
        (row,) = self._rows("SELECT attempt FROM tasks WHERE run = ? AND id = ?", run, task)
        return int(row["attempt"] or 0)

    def why_tier(self, run: str, task: str) -> str:
        """The router's reason for the tiers on which the task is tried, in one line."""
        (row,) = self._rows("SELECT why_tier FROM tasks WHERE run = ? AND id = ?", run, task)
        return str(row["why_tier"] or "")

    def accepted(self, plan: str) -> dict[str, Row]:
        """By which run each task of a plan was last accepted, and the hashes of its inputs then, as JSON."""
        sql = (
            "SELECT tasks.id id, run, inputs FROM tasks JOIN runs ON runs.id = tasks.run WHERE runs.plan = ? "
            "AND tasks.status = 'accepted' AND tasks.inputs IS NOT NULL ORDER BY runs.rowid"
        )
        return {row["id"]: row for row in self._rows(sql, plan)}

    # Delegations: planned once

    def delegation(self, key: str) -> str | None:
        rows = self._rows("SELECT body FROM delegations WHERE key = ?", key)
        return str(rows[0]["body"]) if rows else None

    def keep_delegation(self, key: str, run: str, body: str) -> str:
        """The first one stays, whoever plans again."""
        self._insert("delegations", key=key, run=run, body=body, at=self.time())
        return self.delegation(key) or body

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
        where, args = ("run = ?", [run]) if task is None else ("run = ? AND task = ?", [run, task])
        rows = self._rows(f"SELECT body FROM receipts WHERE {where} ORDER BY position", *args)
        return [Receipt.model_validate_json(row["body"]) for row in rows]

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

    def pulls(self, run: str | None = None, newest: int = -1) -> list[PullRequest]:
        """Pull requests, newest last: all, or a run's, or of these the `newest` so many."""
        where, args = ("1", []) if run is None else ("run = ?", [run])
        rows = self._rows(f"SELECT body FROM pulls WHERE {where} ORDER BY number DESC LIMIT ?", *args, newest)
        return [PullRequest.model_validate_json(row["body"]) for row in reversed(rows)]

    def each_pull(self, run: str) -> Iterator[PullRequest]:
        """A run's pull requests, oldest first, one in memory at a time."""
        for row in self._rows("SELECT number FROM pulls WHERE run = ? ORDER BY number", run):
            yield self.pull(row["number"])

    def set_pull(self, number: int, **fields: Any) -> PullRequest:
        pull = self.pull(number).model_copy(update=fields)
        self._update("pulls", {"number": number}, {"status": pull.status, "body": pull.model_dump_json()})
        return pull

    # Events: what a person watches

    def note(self, run: str, task: str, kind: str, body: str) -> None:
        self._insert("events", run=run, task=task, at=self.time(), kind=kind, body=body)

    def last_event(self, run: str, task: str) -> Row | None:
        """What a task did last."""
        sql = "SELECT at, kind, body FROM events WHERE run = ? AND task = ? ORDER BY position DESC LIMIT 1"
        return next(iter(self._rows(sql, run, task)), None)

    def events(self, run: str, after: int = 0) -> list[Row]:
        return self._rows("SELECT * FROM events WHERE run = ? AND position > ? ORDER BY position", run, after)


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
