"""A target against its receipts: pure, so that anyone can repeat a verdict from the ledger.

Every seed counts and is named. A comparison pairs two recipes seed by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from orchestrator import intervals
from orchestrator.datasets import Dataset
from orchestrator.records import Direction, Outcome, Receipt, Target, Verdict

REPO = PurePosixPath("/repo")  # where the change's files are, in every command of a receipt
COMPARE: dict[str, Callable[[float, float], float]] = {
    "difference": lambda ours, theirs: ours - theirs,
    "ratio": lambda ours, theirs: ours / theirs if theirs else math.inf,
}


def verdict(target: Target, dataset: Dataset | None, commit: str, receipts: list[Receipt]) -> Verdict:
    """The target against its receipts, which may be among others'."""
    own = [receipt for receipt in receipts if any(is_of(receipt, recipe) for recipe in target.recipes)]
    values = values_of(target, own)
    seen = intervals.mean(list(values.values()))
    mean = statistics.fmean(values.values()) if values else None
    outcome, reason = _outcome(target, dataset, own, values, mean)
    return Verdict(
        target=target.id,
        outcome=outcome,
        reason=reason + _interval_words(target, seen) * (outcome in ("reproduced", "not reproduced", "reported")),
        mean=mean,
        spread=statistics.stdev(values.values()) if len(values) > 1 else None,
        values=values,
        receipts=tuple(receipt.id for receipt in own),
        dataset=dataset.label if dataset else "",
        commit=commit,
        low=seen.low,
        high=seen.high,
        asked=target,
    )


def values_of(target: Target, receipts: Iterable[Receipt]) -> dict[str, float]:
    """Seed -> value, in the order of the receipts; a comparison has one for each seed that both recipes finished."""
    kept = list(receipts)
    ours, *theirs = (_values_of(target, recipe, kept) for recipe in target.recipes)
    if not theirs:
        return ours
    return {seed: COMPARE[target.compare](ours[seed], theirs[0][seed]) for seed in ours if seed in theirs[0]}


def half_width_pct(mean: float, count: int) -> float:
    """Half the width of the binomial 95 % interval of an error of `mean` % on `count` images."""
    rate = mean / 100
    return 100 * 1.96 * math.sqrt(rate * (1 - rate) / count)


def name_of(receipt: Receipt) -> str:
    """The trial's name, as its receipt has it."""
    return receipt.what.partition(":")[0]


def recipe_of(receipt: Receipt, target: Target) -> str:
    """Which of the target's recipes a receipt is of."""
    return next(recipe for recipe in target.recipes if is_of(receipt, recipe))


def _values_of(target: Target, recipe: str, receipts: list[Receipt]) -> dict[str, float]:
    found = {}
    for receipt in receipts:
        value = target.quantity.of(receipt.values, target.level) if receipt.kind != "control" else None
        if value is not None and is_of(receipt, recipe):
            found[str(receipt.seed)] = value
    return found


def is_of(receipt: Receipt, recipe: str) -> bool:
    """Whether the receipt is of a run of the recipe."""
    return recipe in receipt.argv or str(REPO / recipe) in receipt.argv


def _outcome(
    target: Target, dataset: Dataset | None, receipts: list[Receipt], values: dict[str, float], mean: float | None
) -> tuple[Outcome, str]:
    broken = [receipt for receipt in receipts if not receipt.passed and receipt.kind == "train"]
    void = [receipt for receipt in broken if receipt.exit_code == 0]  # it ran, and what came out does not count
    failed = [receipt for receipt in receipts if not receipt.passed and receipt.kind == "control"]
    lacking = _lacking(target, receipts)
    timed = target.quantity.kind == "timing" and dataset and not dataset.absent and not dataset.surrogate
    if dataset and not dataset.official and not timed:
        return "not measured", f"not measured on {target.dataset.upper()}: the data is {dataset.label}"
    if failed:
        return "not measured", f"control failed: {failed[0].what}"
    if void:
        return "not measured", void[0].what
    if broken:
        return "did not finish", broken[0].what
    if lacking:
        return "not measured", f"these controls were not run: {', '.join(lacking)}"
    if target.quantity.kind == "tests" and not values:
        skipped = next((receipt.what for receipt in receipts), "the tests were not run")
        return "not measured", f"nothing was compared: {skipped}"
    if short := [r for r in receipts if r.kind == "tests" and not r.passed and not r.values.get("failed")]:
        return "not measured", f"not all that was to be compared was: {short[0].what}"
    if mean is None or len(values) < target.seeds:
        return "did not finish", f"{len(values)} of {target.seeds} seeds finished{_never(target, receipts)}"
    ours = f"mean {target.shown(mean)} of {len(values)} seeds, {target.limit} asked{target.quantity.means(mean)}"
    if target.direction is Direction.reported:
        return "reported", ours
    return ("reproduced" if target.met_by(mean) else "not reproduced"), ours


def _lacking(target: Target, receipts: list[Receipt]) -> list[str]:
    """The controls that the quantity asks for and that no receipt is of."""
    run = {(recipe_of(receipt, target), name_of(receipt)) for receipt in receipts if receipt.kind == "control"}
    return [
        f"{name} of {recipe}"
        for recipe in target.recipes
        for name in target.quantity.controls
        if (recipe, name) not in run
    ]


def _never(target: Target, receipts: list[Receipt]) -> str:
    """Words for trainings that came to their end without the value that was waited for."""
    silent = [r for r in receipts if r.kind == "train" and target.quantity.of(r.values, target.level) is None]
    if not silent or not target.level:
        return ""
    names = ", ".join(f"{name_of(r)} of {recipe_of(r, target)}" for r in silent)
    return f"; a training error of {target.level:g} % was never reached by {names}"


def _interval_words(target: Target, seen: intervals.Interval) -> str:
    if seen.low is None or seen.high is None:
        return ""
    return f"; 95 % interval over seeds {target.shown(seen.low)} to {target.shown(seen.high)}"
