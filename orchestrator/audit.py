"""`report --verify`: does what the ledger says follow from what the harness signed?

Receipts against their chain, signatures and the heads that were published in commits; verdicts against the receipts
they name; pull requests against their seals.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator

from orchestrator import verdicts
from orchestrator.house import State
from orchestrator.ledger import Ledger
from orchestrator.records import Receipt, Verdict

TOLERANCE = 1e-9


def wrong(state: State) -> list[str]:
    """Everything that doesn't hold, one line each; empty when all does."""
    anchors = []
    for pull in state.ledger.pulls():
        message = state.repository.message(pull.commit)
        anchors += [line.split()[1] for line in message.splitlines() if line.startswith("Odyssey-Receipts: ")]
    return [*state.ledger.verify(tuple(anchors)), *_verdicts(state.ledger), *state.ledger.broken_seals()]


def _verdicts(ledger: Ledger) -> Iterator[str]:
    for run in ledger.runs():
        receipts = {receipt.id: receipt for receipt in ledger.receipts(run["id"])}
        for task in ledger.tasks(run["id"]):
            for each in json.loads(task["verdicts"] or "[]"):
                yield from _verdict(run["id"], Verdict.model_validate(each), receipts)


def _verdict(run: str, verdict: Verdict, receipts: dict[str, Receipt]) -> Iterator[str]:
    name = f"verdict of {verdict.target} in {run}"
    if missing := [receipt for receipt in verdict.receipts if receipt not in receipts]:
        yield f"{name}: receipt {missing[0][:12]} is missing"
    named = [receipts[receipt] for receipt in verdict.receipts if receipt in receipts]
    if verdict.values != _values(verdict, named):
        yield f"{name}: its values are not those of its receipts"
    mean = statistics.fmean(verdict.values.values()) if verdict.values else None
    if (mean is None) != (verdict.mean is None) or abs((mean or 0) - (verdict.mean or 0)) > TOLERANCE:
        yield f"{name}: its mean is not that of its values"
    if verdict.asked and verdict.outcome == "reproduced" and not (mean is not None and verdict.asked.met_by(mean)):
        yield f"{name}: reproduced, though its mean misses the target"
    if verdict.outcome == "reproduced" and not all(receipt.passed for receipt in named):
        yield f"{name}: reproduced, though one of its receipts failed"


def _values(verdict: Verdict, named: list[Receipt]) -> dict[str, float]:
    """What the receipts give; a verdict of before targets had quantities is one of a test error."""
    if verdict.asked:
        return verdicts.values_of(verdict.asked, named)
    trained = [receipt for receipt in named if receipt.kind == "train" and "test_error_pct" in receipt.values]
    return {str(receipt.seed): receipt.values["test_error_pct"] for receipt in trained}
