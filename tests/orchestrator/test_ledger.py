"""The ledger: paid once, budgets that hold, and a chain of receipts in which every tampering shows."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from pydantic import ValidationError

from orchestrator.errors import BudgetExhausted, InputError, NotFound
from orchestrator.ledger import GENESIS, Ledger, digest_of, load_key
from orchestrator.records import Budget, PullRequest, Receipt, TaskBudget
from tests.orchestrator.helpers import KEY, ledger, receipt


def chain(folder: Path, count: int = 4) -> Ledger:
    made = ledger(folder)
    for number in range(count):
        made.add_receipt(f"k{number}", receipt(f"check {number}", values={"x": float(number)}))
    return made


def tamper(folder: Path, *statements: str) -> None:
    """Change the file behind the ledger's back, as one who can write it would: triggers dropped first."""
    with sqlite3.connect(folder / "ledger.db") as connection:
        for trigger in ("receipts_stay", "receipts_are_kept"):
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            connection.execute(statement)


# Receipts


def test_receipts_are_linked_signed_and_found_again(tmp_path: Path) -> None:
    made = chain(tmp_path)
    found = made.receipts("r-1")
    assert made.verify() == []
    assert [each.previous for each in found] == [GENESIS, *(each.id for each in found[:-1])]
    assert all(each.id == digest_of(each) for each in found)
    assert made.head() == found[-1].id
    assert Ledger(tmp_path / "ledger.db", KEY).receipts("r-1") == found
    assert made.receipts("r-1", "other") == made.receipts("r-2") == []


def test_the_same_key_twice_gives_the_first_receipt_back(tmp_path: Path) -> None:
    made = chain(tmp_path, 2)
    again = made.add_receipt("k0", receipt("another story", passed=False))
    assert again == made.receipts("r-1")[0] == made.receipt("k0")
    assert len(made.receipts("r-1")) == 2
    assert made.receipt("unknown") is None


@pytest.mark.parametrize("table", ["receipts", "events"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET run = 'x'", "DELETE FROM {}"])
def test_the_database_refuses_to_change_or_drop(tmp_path: Path, table: str, statement: str) -> None:
    made = chain(tmp_path)
    made.note("r-1", "a", "kind", "text")
    with (
        sqlite3.connect(tmp_path / "ledger.db") as connection,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        connection.execute(statement.format(table))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "UPDATE receipts SET body = replace(body, '\"passed\":true', '\"passed\":false') WHERE position = 2",
            "content",
        ),
        ("UPDATE receipts SET body = replace(body, '1.0', '0.5') WHERE position = 2", "content"),
        ("UPDATE receipts SET body = '{}' WHERE position = 2", "content"),
        ("UPDATE receipts SET body = 'no json' WHERE position = 2", "content"),
        ("UPDATE receipts SET run = 'r-2' WHERE position = 2", "content"),
        ("UPDATE receipts SET task = 'b' WHERE position = 2", "content"),
        ("UPDATE receipts SET id = 'x' WHERE position = 2", "content"),
        ("DELETE FROM receipts WHERE position = 2", "before it is missing"),
        ("DELETE FROM receipts WHERE position = 1", "before it is missing"),
        ("UPDATE receipts SET position = 9 WHERE position = 2", "before it is missing"),
    ],
)
def test_every_tampering_with_a_receipt_shows(tmp_path: Path, statement: str, expected: str) -> None:
    made = chain(tmp_path)
    tamper(tmp_path, statement)
    wrong = made.verify()
    assert wrong
    assert expected in wrong[0]


def rewritten(made: Ledger, key: SigningKey) -> list[str]:
    """Statements that rewrite the whole chain from the second receipt on, consistent in itself, signed with `key`."""
    statements, previous = [], made.receipts("r-1")[0].id
    for position, old in enumerate(made.receipts("r-1")[1:], 2):
        bare = old.model_copy(update={"what": "better", "previous": previous, "id": "", "signature": ""})
        previous = digest_of(bare)
        signature = key.sign(previous.encode()).signature.hex()
        body = bare.model_copy(update={"id": previous, "signature": signature}).model_dump_json()
        statements.append(f"UPDATE receipts SET id = '{previous}', body = '{body}' WHERE position = {position}")
    return statements


def test_a_chain_rewritten_with_another_key_is_not_the_harnesss(tmp_path: Path) -> None:
    made = chain(tmp_path)
    tamper(tmp_path, *rewritten(made, SigningKey.generate()))
    assert len(made.verify()) == 3
    assert all("its signature is not the harness's" in line for line in made.verify())


def test_a_signature_moved_from_another_receipt_is_found(tmp_path: Path) -> None:
    made = chain(tmp_path)
    first, second = made.receipts("r-1")[:2]
    tamper(tmp_path, f"UPDATE receipts SET body = replace(body, '{second.signature}', '{first.signature}')")
    assert made.verify() == [f"receipt {second.id[:12]}: its signature is not the harness's"]
    tamper(tmp_path, f"UPDATE receipts SET body = replace(body, '{first.signature}', 'zz') WHERE position = 1")
    assert len(made.verify()) == 2


def test_a_truncated_chain_is_found_by_what_was_published(tmp_path: Path) -> None:
    made = chain(tmp_path)
    anchors = tuple(each.id for each in made.receipts("r-1"))
    assert made.verify((GENESIS, *anchors)) == []
    tamper(tmp_path, "DELETE FROM receipts WHERE position = 4")
    assert made.verify() == []  # a chain alone can't know
    assert made.verify(anchors) == [f"receipt {anchors[3][:12]} was published but is not in the ledger"]


def test_a_chain_rewritten_with_the_harnesss_own_key_is_found_by_what_was_published(tmp_path: Path) -> None:
    made = chain(tmp_path)
    anchor = made.head()
    tamper(tmp_path, *rewritten(made, KEY))
    assert made.verify() == []
    assert made.verify((anchor,)) == [f"receipt {anchor[:12]} was published but is not in the ledger"]


# Calls and budgets


def begin(made: Ledger, key: str, usd: float = 0.25, **changed: Any) -> Any:
    return made.begin_call(key, usd, **{"run": "r-1", "task": "a", "attempt": 1, "turn": 0, "tier": "haiku", **changed})


def test_a_call_that_ended_is_not_bought_again(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(usd=1, tokens=99))
    assert begin(made, "k") is None
    made.end_call("k", {"content": "words"}, tokens=30, usd=0.2)
    for _ in range(3):
        assert json.loads(begin(made, "k")["reply"]) == {"content": "words"}
    made.end_call("k", {"content": "words"}, tokens=30, usd=0.2)
    assert made.spent("r-1") == {"usd": 0.2, "tokens": 30, "seconds": 0}
    assert [row["state"] for row in made.calls("r-1")] == ["done"]


def test_a_reply_on_record_is_given_back_even_when_the_budget_is_gone(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(usd=0.25, tokens=9))
    begin(made, "k")
    made.end_call("k", {}, tokens=99, usd=5.0)
    assert begin(made, "k")["usd"] == 5.0
    with pytest.raises(BudgetExhausted):
        begin(made, "other", 0.0)


def test_a_call_in_doubt_is_charged_its_maximum_each_time_before_it_is_sent_again(tmp_path: Path) -> None:
    begin(ledger(tmp_path), "k")
    for crashes in (1, 2):  # each process dies before the reply
        assert begin(Ledger(tmp_path / "ledger.db", KEY), "k") is None
        assert Ledger(tmp_path / "ledger.db", KEY).spent("r-1")["usd"] == 0.25 * crashes
    made = Ledger(tmp_path / "ledger.db", KEY)
    made.end_call("k", {}, tokens=1, usd=0.1)
    assert made.spent("r-1")["usd"] == pytest.approx(0.6)


def test_calls_under_way_count_against_the_budget(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    for number in range(4):
        begin(made, f"k{number}")
    with pytest.raises(
        BudgetExhausted, match=r"the budget of 1 dollars is used up \(0.00 spent, 1.00 under way, 0.25 asked for\)"
    ):
        begin(made, "k4")
    made.end_call("k0", {}, tokens=0, usd=0.05)
    with pytest.raises(BudgetExhausted):
        begin(made, "k4", 0.3)
    assert begin(made, "k4", 0.2) is None


def test_a_call_in_doubt_that_no_longer_fits_records_nothing(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    begin(made, "k", 0.75)
    with pytest.raises(BudgetExhausted):
        begin(made, "k", 0.75)
    assert made.spent("r-1")["usd"] == 0
    made.set_run("r-1", budget=Budget(usd=2).model_dump_json())
    assert begin(made, "k", 0.75) is None
    assert made.spent("r-1")["usd"] == 0.75


def test_at_most_what_the_budget_holds_is_begun_from_many_threads(tmp_path: Path) -> None:
    made = ledger(tmp_path)

    def attempt(number: int) -> bool:
        try:
            return begin(made, f"k{number}", 0.25) is None
        except BudgetExhausted:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(32))) == 4


@pytest.mark.parametrize(
    ("budget", "spend", "words"),
    [
        (
            Budget(usd=1),
            lambda made: made.reserve("r-1", usd=1.01),
            "the budget of 1 dollars is used up (0.00 spent, 1.01 asked for)",
        ),
        (
            Budget(tokens=5),
            lambda made: made.reserve("r-1", tokens=6),
            "the budget of 5 tokens is used up (0 spent, 6 asked for)",
        ),
        (
            Budget(minutes=2),
            lambda made: (made.take_seconds("r-1", "a", "gate", 120), made.reserve("r-1")),
            "the budget of 2 minutes is used up (2.00 spent)",
        ),
    ],
)
def test_a_budget_says_what_is_used_up(
    tmp_path: Path, budget: Budget, spend: Callable[[Ledger], Any], words: str
) -> None:
    made = ledger(tmp_path, budget=budget)
    made.reserve("r-1")
    with pytest.raises(BudgetExhausted) as caught:
        spend(made)
    assert str(caught.value) == words


def test_a_tasks_budget_binds_it_and_all_beneath_until_it_is_raised_and_nobody_else(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(usd=1, tokens=100, minutes=9))
    made.limit("r-1", "a", TaskBudget(usd=0.25, minutes=1))
    made.limit("r-1", "a", TaskBudget(usd=9))  # the first one stays, also when a run goes on
    made.reserve("r-1", usd=0.25, tokens=100, node="a/1/junior")
    made.reserve("r-1", usd=1, node="b")
    with pytest.raises(BudgetExhausted) as caught:
        made.reserve("r-1", usd=0.26, node="a/1/junior")
    assert (str(caught.value), caught.value.task) == (
        "the budget of `a` of 0.25 dollars is used up (0.00 spent, 0.26 asked for)",
        "a",
    )
    made.raise_limits("r-1", "a", usd=0.25)
    made.reserve("r-1", usd=0.5, node="a")
    with pytest.raises(BudgetExhausted, match="the budget of 1 dollars") as caught:
        made.reserve("r-1", usd=1.01, node="a")  # more than what is above it has left
    assert caught.value.task == ""
    told = list[str]()
    made.on_warning = lambda run, task, words: told.append(words)
    made.take_seconds("r-1", "a", "gate", 50)
    assert told == ["83% of the budget of `a` in minutes is used"]
    made.take_seconds("r-1", "a", "gate", 10)
    made.reserve("r-1", node="b")
    with pytest.raises(BudgetExhausted, match="the budget of `a` of 1 minutes"):
        made.reserve("r-1", node="a")
    with pytest.raises(NotFound, match="task `b` of run `r-1` has no budget of its own"):
        made.raise_limits("r-1", "b", usd=1)
    for wrong in ({"usd": -100}, {"minutes": float("nan")}, {"minutes": float("inf")}):
        with pytest.raises(ValidationError):
            made.raise_limits("r-1", "a", **wrong)
    made.raise_limits("r-1", "a", minutes=1)
    made.reserve("r-1", usd=0.5, node="a")  # nothing of it was stored


def test_seconds_are_told_by_place_and_recorded_in_one_row_for_each_and_its_kind(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    for _ in range(3):
        made.take_seconds("r-1", "a", "gate", 10)
    made.take_seconds("r-1", "b", "gate", 16)
    made.return_seconds("r-1", "b", "gate", 4)
    made.take_seconds("r-1", "b", "tools", 1, "b/1/junior")
    assert made.spent("r-1")["seconds"] == 43
    assert made.spent("r-1", "b")["seconds"] == 13
    assert made.spent("r-1", "b/1/junior")["seconds"] == 1
    rows = made._rows("SELECT task, kind, seconds FROM spending ORDER BY rowid")
    assert [tuple(row.values()) for row in rows] == [("a", "gate", 30), ("b", "gate", 12), ("b", "tools", 1)]
    assert made.spent("r-2")["seconds"] == 0


# Pull requests, runs, threads


def pull(number: int, task: str = "a", run: str = "r-1") -> PullRequest:
    return PullRequest(
        number=number, run=run, task=task, plan="p", title="t", body="b", head="h", commit="c", base="main",
        base_commit="d", below=None, risk="low", guarded=False, author="x", status="open",
    )  # fmt: skip


def test_a_task_of_a_run_has_one_pull_request(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    first = made.add_pull(pull, "r-1", "a")
    assert made.add_pull(lambda number: pull(number).model_copy(update={"title": "other"}), "r-1", "a") == first
    assert made.add_pull(lambda number: pull(number, "b"), "r-1", "b").number == 2
    assert made.add_pull(lambda number: pull(number, "a", "r-2"), "r-2", "a").number == 3
    assert [each.number for each in made.pulls("r-1")] == [1, 2]
    assert made.set_pull(1, status="closed").status == made.pull(1).status == "closed"
    with pytest.raises(NotFound, match="there is no pull request 9"):
        made.pull(9)


def test_runs_come_in_the_order_in_which_they_began_whatever_the_clock_says(tmp_path: Path) -> None:
    made = ledger(tmp_path)
    for run in ("r-10", "r-9", "a-1"):
        made.open_run(run, plan="p")
    assert [row["id"] for row in made.runs()] == ["r-1", "r-10", "r-9", "a-1"]
    made.open_run("r-9", plan="another")
    assert made.run("r-9")["plan"] == "p"
    with pytest.raises(NotFound, match="there is no run `r-2`; the latest are: r-1, r-10, r-9, a-1"):
        made.run("r-2")


def test_eight_threads_write_one_unbroken_chain_and_one_of_everything(tmp_path: Path) -> None:
    made = ledger(tmp_path, budget=Budget(usd=100, tokens=10_000))
    barrier = threading.Barrier(8)

    def work(worker: int) -> list[Receipt]:
        barrier.wait()
        found = []
        for number in range(12):
            found.append(made.add_receipt(f"shared {number}", receipt(f"by {worker}")))
            made.note("r-1", "a", "n", f"{worker}/{number}")
            begin(made, f"call {worker}/{number}")
            made.end_call(f"call {worker}/{number}", {}, tokens=1, usd=0.01)
            made.add_pull(lambda n, task=f"t{number}": pull(n, task), "r-1", f"t{number}")  # type: ignore[misc]
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert made.verify() == []
    assert all(each == found[0] for each in found)
    assert len(made.receipts("r-1")) == len(made.pulls()) == 12
    assert len(made.events("r-1")) == 96
    assert made.spent("r-1")["tokens"] == 96


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    made = ledger(tmp_path)

    def dies(_: int) -> PullRequest:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.add_pull(dies, "r-1", "a")
    assert made.pulls() == []
    assert made.add_pull(pull, "r-1", "a").number == 1


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def make(_: int) -> bytes:
        barrier.wait()
        return load_key(tmp_path / "key").encode()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(InputError, match="is not a signing key; move it away"):
        load_key(tmp_path / "key")


def test_a_pull_request_whose_words_were_changed_breaks_its_seal(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    made = book.add_pull(pull, "r-1", "a")
    assert book.broken_seals() == []
    book.set_pull(made.number, status="approved", approved_by="A Person")
    assert book.broken_seals() == [], "what may change is not sealed"
    book.set_pull(made.number, body="0.11 %")
    assert book.broken_seals() == [f"pull request {made.number}: its text is not what the harness wrote"]
