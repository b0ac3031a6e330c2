"""An accepted change becomes a pull request on top of the run's stack, the plan's own record written in the same go.

Runs under a lock, as one step. Repeated after a crash it finds the pull request that it made and changes nothing.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from orchestrator import planfile, plots, report
from orchestrator.forge.base import Forge
from orchestrator.gate import gate_folder
from orchestrator.globs import matches
from orchestrator.house import Run
from orchestrator.records import Change, Judgement, PullRequest, Task, Verdict
from orchestrator.schedule import DONE

# A verdict holds on a new base as long as nothing but these, and others' recipes, differ from what was measured.
HARMLESS = ("plans/**", "docs/**", "*.md")
Json = Any


def publish(run: Run, forge: Forge, task: Task, change: Change, judgement: Judgement, words: str) -> Json:
    """`{"detail": ...}` once it is published; `{"stale": change}` when it must be judged again on a new base;
    `{"conflict": why}` when the two can't be joined.
    """
    head = _head(run)
    if known := run.ledger.pull_of(run.id, task.id):
        return {"detail": f"pull request {known.number}"}
    commit = _stacked(run, task, change, head)
    if isinstance(commit, Change):
        return {"stale": commit.model_dump(mode="json")}
    if commit is None:
        return {"conflict": _conflict(run, task, change, head)}
    change = _as_stacked(run, change, head, commit)
    recorded = _record(run, task, change, judgement, commit)
    below = _top(run)
    pull = forge.open(
        PullRequest(
            number=0,
            run=run.id,
            task=task.id,
            plan=run.plan.path,
            title=report.title(task, judgement),
            body=report.body(run, task, change, judgement, words, run.ledger.head()),
            head=f"odyssey/{run.id}/{task.id}",
            commit=recorded,
            base=run.base_branch,
            base_commit=head,
            below=below.number if below else None,
            risk=judgement.risk.level,
            guarded=judgement.risk.guarded,
            author=f"{run.assignments[task.id].agent} ({change.tier})",
            status="open",
        )
    )
    run.repository.set_branch(run.stack, pull.commit)
    return {"detail": f"pull request {pull.number}"}


def _stacked(run: Run, task: Task, change: Change, head: str) -> str | Change | None:
    """The change's commit on the stack's head; a Change when the result is not what the gate judged; None: a conflict.

    Prose that conflicts in the plan is left out: the harness's own record of others stands there, and moves no number.
    """
    if head == change.base:
        return change.commit
    moved = [file.path for file in run.repository.changed(change.base, head) if matters(run, task, file.path)]
    if not change.files:
        return run.repository.change(task.id, change.attempt, change.tier, head, head) if moved else head
    tree = run.repository.merge(head, change.commit) or run.repository.merge(head, _without_prose(run, change))
    if tree is None:
        return None
    commit = run.repository.commit_tree(tree, head, f"{task.title}\n\nTask: {task.id}", _author(run, task, change))
    if moved:
        return run.repository.change(task.id, change.attempt, change.tier, head, commit)
    return commit


def _without_prose(run: Run, change: Change) -> str:
    """The change with the plan as it found it."""
    before = (run.repository.read(change.base, run.plan.path) or "").encode(errors="surrogateescape")
    return run.repository.commit_files(change.commit, {run.plan.path: before}, "Without its prose", "Odyssey harness")


def _as_stacked(run: Run, change: Change, head: str, commit: str) -> Change:
    """The change as its pull request has it: without the plan where its prose was left out."""
    path = run.plan.path
    others = tuple(file for file in change.files if file.path != path)
    if others == change.files or run.repository.read(commit, path) != run.repository.read(head, path):
        return change
    run.say(change.task, "note", f"its prose in {path} conflicts with what stands there; it is left in {change.commit}")
    return change.model_copy(update={"files": others})


def _conflict(run: Run, task: Task, change: Change, head: str) -> str:
    """Why it isn't published, and how to go on; a branch holds what was made."""
    branch = f"odyssey/{run.id}/{task.id}"
    run.repository.set_branch(branch, change.commit)
    theirs = {file.path for file in run.repository.changed(change.base, head)}
    both = ", ".join(file.path for file in change.files if file.path in theirs)
    return (
        f"it conflicts with what was accepted meanwhile ({both or head[:12]}); what was measured of it stands in "
        f"`orchestrate report {run.id}`, the change on branch {branch} of {run.repository.folder}\n"
        f"merge this run's pull requests, then do it again on top: orchestrate run {run.plan.path} --only {task.id}"
    )


def matters(run: Run, task: Task, path: str) -> bool:
    """Whether a file could change what was measured for the task: not prose, nor a recipe that only others measure."""
    mine = {recipe for target in run.plan.targets_of(task) for recipe in target.recipes}
    recipes = {recipe for target in run.plan.targets for recipe in target.recipes}
    return not matches(path, HARMLESS) and path not in recipes - mine


def _head(run: Run) -> str:
    """What the next accepted change goes on top of; a kill may have kept the newest pull request off the stack."""
    head = run.repository.resolve(f"refs/heads/{run.stack}") or run.base_commit
    top = _top(run)
    if top is None or top.base_commit != head:
        return head
    run.repository.set_branch(run.stack, top.commit)
    return top.commit


def _record(run: Run, task: Task, change: Change, judgement: Judgement, commit: str) -> str:
    """The plan's own record, as a commit by the harness: tick, status, tree, as-built note, result block."""
    path = run.plan.path
    text = run.repository.read(commit, path) or ""
    assignment = run.assignments[task.id]
    level = run.library.agents[assignment.agent].level
    status, agent = report.status_line(change, judgement), f"{assignment.agent} (level {level})"
    text = planfile.tick(text, task.id, status, agent, judgement.outcome == "accepted")
    text = planfile.set_block(text, "tree", run.tree)
    notes = [line for line in planfile.block(text, "as-built").splitlines() if f"`{task.id}`:" not in line]
    notes = [line for line in notes if line.startswith("- ")]
    text = planfile.set_block(text, "as-built", "\n".join([*notes, report.as_built(run, task, change, judgement)]))
    if judgement.verdicts:
        text = planfile.set_block(text, "result", _results(run, judgement))
    message = (
        f"Record what happened to `{task.id}`: {status}\n\n"
        f"Odyssey-Run: {run.id}\nOdyssey-Judged: {change.commit}\nOdyssey-Receipts: {run.ledger.head()}"
    )
    files = {path: text.encode(errors="surrogateescape"), **_pictures(run, task, change)}
    return run.repository.commit_files(commit, files, message, "Odyssey harness")


def _pictures(run: Run, task: Task, change: Change) -> dict[str, bytes]:
    """What the task's measurements look like, beside the plan in a folder of its name."""
    folder = PurePosixPath(run.plan.path).with_suffix("")
    receipts = run.ledger.receipts(run.id, task.id)
    made = plots.draw(run.plan.targets_of(task), receipts, gate_folder(run, task.id, change) / "out")
    return {str(folder / name): data for name, data in made.items()}


def _results(run: Run, judgement: Judgement) -> str:
    """The run's own verdicts; of tasks that are none of its, what stood in the plan when it began."""
    verdicts = verdicts_of(run) | {verdict.target: verdict for verdict in judgement.verdicts}
    mine = run.ledger.statuses(run.id)
    others = [target for task in run.plan.tasks if task.id not in mine for target in task.targets]
    # not from the change: its author might have written there
    before = report.parts(planfile.block(run.plan.text, "result"), others)
    return report.results(run.plan.targets, verdicts, run.ledger.receipts(run.id), before)


def verdicts_of(run: Run) -> dict[str, Verdict]:
    """Every verdict that the run has published so far, by target."""
    found = {}
    for row in run.ledger.tasks(run.id):
        for each in json.loads(row["verdicts"] or "[]") if row["status"] in DONE else ():
            verdict = Verdict.model_validate(each)
            found[verdict.target] = verdict
    return found


def _top(run: Run) -> PullRequest | None:
    pulls = run.ledger.pulls(run.id, newest=1)
    return pulls[-1] if pulls else None


def _author(run: Run, task: Task, change: Change) -> str:
    return f"{run.assignments[task.id].agent} ({change.tier})"
