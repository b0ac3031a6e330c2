"""`report --verify`: does what the ledger says follow from what the harness signed?

Receipts against their chain, signatures and the heads that were published in commits; verdicts worked out again, from
the base commit's plan and all that was measured of their commit; pull requests against their seals. A verdict's reason
isn't compared: a later version may put it in other words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import planfile, verdicts
from orchestrator.book import Row
from orchestrator.datasets import Dataset
from orchestrator.errors import GitError
from orchestrator.house import State
from orchestrator.records import Plan, Receipt, Target, Verdict
from orchestrator.schedule import DONE

TOLERANCE = 1e-9
FOLLOWS = ("outcome", "values", "mean", "spread", "dataset")  # from the receipts


def wrong(state: State) -> list[str]:
    """Everything that doesn't hold, one line each; empty when all does."""
    anchors, gone = [], []
    for pull in state.ledger.pulls():
        try:
            message = state.repository.message(pull.commit)
        except GitError as error:
            gone.append(f"pull request {pull.number} can't be checked against its commit: {error}")
        else:
            anchors += [line.split()[1] for line in message.splitlines() if line.startswith("Odyssey-Receipts: ")]
    made = [line for run in state.ledger.runs() for line in _run(state, run)]
    return [*state.ledger.verify(tuple(anchors)), *made, *state.ledger.broken_seals(), *gone]


def _run(state: State, run: Row) -> Iterator[str]:
    """The run's verdicts. Without its plan, against what they themselves say was asked; and that is said."""
    pulls = state.ledger.pulls(run["id"])
    if pulls and pulls[0].base_commit != run["base_commit"]:
        yield f"{run['id']}: its base commit is not the one below its first pull request"
    plan, why = _plan(state, run)
    tasks = [(task, _made(task)) for task in state.ledger.tasks(run["id"])]
    if why and any(made for _, made in tasks):
        yield f"verdicts of {run['id']} can't be checked against the plan: {why}"
    datasets = {each["name"]: each for each in json.loads(run["dataset"] or "[]")}
    for task, made in tasks:
        measured = [receipt for receipt in state.ledger.receipts(run["id"], task["id"]) if receipt.target]
        asked = _asked(plan, task["id"], made)
        for target in asked.keys() - made.keys() if task["status"] in DONE else ():
            yield f"verdict of {target} in {run['id']}: missing, though `{task['id']}` was judged"
        for target, verdict in made.items():
            lines = _verdict(verdict, asked[target], datasets, measured) if target in asked else ["no target of it"]
            yield from (f"verdict of {target} in {run['id']}: {line}" for line in lines)


def _plan(state: State, run: Row) -> tuple[Plan | None, str]:
    """The plan as it stood when the run began, or why it can't be had."""
    commit, path = run["base_commit"] or "", run["plan"]
    if not state.repository.has(commit):
        return None, f"its base commit {commit[:12]} is no longer in {state.repository.folder}; fetch it into there"
    found, problems = planfile.read_begun(path, state.repository.read(commit, path) or "")
    return found, "" if found else f"{path} of {commit[:12]} can't be read: {problems[0]}"


def _made(task: Row) -> dict[str, Verdict]:
    found = (Verdict.model_validate(each) for each in json.loads(task["verdicts"] or "[]"))
    return {verdict.target: verdict for verdict in found}


def _asked(plan: Plan | None, task_id: str, made: Mapping[str, Verdict]) -> dict[str, Target]:
    if plan is None:
        return {target: verdict.asked for target, verdict in made.items() if verdict.asked}
    tasks = (task for task in plan.tasks if task.id == task_id)
    return {target.id: target for task in tasks for target in plan.targets_of(task)}


def _verdict(
    verdict: Verdict, asked: Target, datasets: Mapping[str, Mapping[str, Any]], measured: list[Receipt]
) -> Iterator[str]:
    """What differs when the verdict is made again of everything that was measured of its commit."""
    if verdict.asked not in (asked, None):  # verdicts of before targets had quantities name none
        yield "what was asked is not what the plan asks"
    known = {receipt.id for receipt in measured}
    if missing := [receipt for receipt in verdict.receipts if receipt not in known]:
        yield f"receipt {missing[0][:12]} is missing"
    place = {receipt: at for at, receipt in enumerate(verdict.receipts)}  # the ledger has them as they came to an end
    own = [receipt for receipt in measured if receipt.commit == verdict.commit and _is_of(receipt, asked)]
    own.sort(key=lambda receipt: place.get(receipt.id, len(place)))
    again = verdicts.verdict(asked, _dataset(asked.dataset, datasets, own), verdict.commit, own)
    if left_out := [receipt for receipt in again.receipts if receipt not in place]:
        yield f"receipt {left_out[0][:12]} is left out"
    for name in FOLLOWS:
        said, follows = getattr(verdict, name), getattr(again, name)
        if not _same(said, follows):
            yield f"its {name} is {said!r}, but {follows!r} follows from the receipts"
    values = again.values.values() or [math.nan]
    lowest = (min(values), max(values))  # what intervals were before decision 0013
    if not any(_same((verdict.low, verdict.high), each) for each in ((again.low, again.high), lowest)):
        yield "its interval is not that of its values"


def _dataset(name: str, datasets: Mapping[str, Mapping[str, Any]], own: list[Receipt]) -> Dataset | None:
    """The run's dataset, official only if its files were in every receipt: the run's own word isn't signed."""
    if not name:
        return None
    if name not in datasets:
        return Dataset(name, Path(), {}, official=False, surrogate=False)
    found = Dataset(**{**datasets[name], "folder": Path(datasets[name]["folder"])})
    signed = all(receipt.data == found.sha256 for receipt in own if receipt.data)
    return replace(found, official=signed and found.sha256 == dict(found.format.official))


def _is_of(receipt: Receipt, asked: Target) -> bool:
    return any(verdicts.is_of(receipt, recipe) for recipe in asked.recipes)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE)
    if isinstance(one, tuple):
        return all(map(_same, one, other))
    return bool(one == other)
