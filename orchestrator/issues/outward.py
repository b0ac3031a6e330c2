"""Tasks of a plan -> issues: created or updated by a hidden marker in the issue's body, everything else left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.errors import Problem
from orchestrator.issues.blocks import Block, blocks
from orchestrator.issues.issue import Issue, Take, mark
from orchestrator.issues.merge import merge
from orchestrator.records import Plan, Task

BLOCK = re.compile(
    r"<!-- odyssey:task (?P<plan>[^\s#>]{1,200})#(?P<task>[a-z0-9-]{1,64}) "
    r"title=(?P<title>\w*) state=(?P<state>\w*) block=(?P<mark>\w*) -->\n(?P<inner>.*?)\n<!-- /odyssey:task -->",
    re.DOTALL,
)


@dataclass(frozen=True)
class Link:
    """What an issue's hidden marker says: the task that it is, and how both stood when they last agreed."""

    plan: str
    task: str
    base: Mapping[str, str]
    touched: bool  # somebody edited what stands between the markers


@dataclass(frozen=True)
class Action:
    """What is to be done for a task. `fields` are those of the issue that change; all of them when it is created.

    `then`: what changes once it is created. GitHub opens every new issue, so that of a task that is done is closed by a
    second request; its marker says "open" until then, or a closing that failed would look like a person's reopening.
    """

    task: str
    what: Literal["create", "update", "nothing"]
    number: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    then: dict[str, Any] = field(default_factory=dict)


def links(issues: Iterable[Issue]) -> dict[int, Link]:
    """By issue. Of two that claim one task the older is it: anyone may copy a marker into a new issue."""
    found: dict[int, Link] = {}
    for issue in sorted(issues, key=lambda issue: issue.number):
        link = link_of(issue.body)
        if link and (link.plan, link.task) not in {(each.plan, each.task) for each in found.values()}:
            found[issue.number] = link
    return found


def link_of(body: str) -> Link | None:
    match = BLOCK.search(body)
    if not match:
        return None
    base = {"title": match["title"], "state": match["state"]}
    return Link(match["plan"], match["task"], base, mark(match["inner"]) != match["mark"])


def without_block(body: str) -> str:
    return BLOCK.sub("", body).strip()


def compare(plan: Plan, repo: str, issues: Iterable[Issue], take: Take = "") -> tuple[list[Action], list[Problem]]:
    """What would make the issues say what the plan says; and what changed on both sides, which is left alone."""
    present = {issue.number: issue for issue in issues}
    places = {block.id: block for block in blocks(plan.text)}
    linked = links(issue for issue in present.values() if issue.author != "stranger")
    by_task = {link.task: number for number, link in linked.items() if link.plan == plan.path}
    actions, conflicts = [], list[Problem]()
    for task in plan.tasks:
        block = places[task.id]
        number = block.number if block.repo == repo else by_task.get(task.id, 0)
        issue = present.get(number)
        if issue is None:
            actions.append(_creation(plan, task, block))
        else:
            action, found = _update(plan, task, block, issue, take)
            actions.append(action)
            conflicts += found
    return actions, conflicts


def _creation(plan: Plan, task: Task, block: Block) -> Action:
    new, done = (
        {"body": _block(plan, task, {"title": mark(task.title), "state": mark(state)}), "state": state}
        for state in ("open", "closed")
    )
    return Action(task.id, "create", fields={"title": task.title, **new}, then=done if block.done else {})


def _update(plan: Plan, task: Task, block: Block, issue: Issue, take: Take) -> tuple[Action, list[Problem]]:
    link = link_of(issue.body)
    base = link.base if link else block.base
    ours = {"title": task.title, "state": block.state}
    theirs = {"title": issue.title, "state": issue.state}
    merged = {name: merge(ours[name], theirs[name], base.get(name, ""), take) for name in ours}
    wrong = [name for name, each in merged.items() if each.conflict]
    settled = {name: theirs[name] if each.conflict else each.value for name, each in merged.items()}
    # Where the issue moved on and the plan did not, the plan takes it at the next import; until then they disagree.
    marks = {name: mark(ours[name]) if ours[name] == settled[name] else base.get(name, "") for name in ours}
    body = _with_block(issue.body, _block(plan, task, marks))
    if wrong or (link and link.touched and take != "plan"):
        body = issue.body  # the old marks stay, so that the conflict is seen again
        wrong += ["text between the markers"] if link and link.touched and take != "plan" else []
    changed = {name: value for name, value in settled.items() if value != theirs[name]}
    changed |= {"body": body} if body != issue.body else {}
    problems = [_conflict(plan, task, issue, name) for name in wrong]
    return Action(task.id, "update" if changed else "nothing", issue.number, changed), problems


def _conflict(plan: Plan, task: Task, issue: Issue, name: str) -> Problem:
    fix = "import the issues first, or `--take plan` to overwrite it there"
    return Problem(plan.path, task.line, f"{name} of `{task.id}` was changed in issue {issue.number} too", fix)


def _block(plan: Plan, task: Task, marks: Mapping[str, str]) -> str:
    inner = _words(plan, task)
    told = f"title={marks['title']} state={marks['state']} block={mark(inner)}"
    return f"<!-- odyssey:task {plan.path}#{task.id} {told} -->\n{inner}\n<!-- /odyssey:task -->"


def _with_block(body: str, block: str) -> str:
    if BLOCK.search(body):
        return BLOCK.sub(lambda _: block, body, count=1)
    return f"{body.rstrip()}\n\n{block}" if body.strip() else block


def _words(plan: Plan, task: Task) -> str:
    """What a person reads in the issue; the plan says the rest."""
    lines = [f"Task `{task.id}` of {plan.path}" + (f", section {task.section}." if task.section else ".")]
    rows = {"skill": task.skill, "writes": ", ".join(task.writes), "needs": ", ".join(task.needs)}
    rows |= {"targets": ", ".join(task.targets), "accepted when": "; ".join(task.accept)}
    return "\n".join([*lines, "", *(f"- {name}: `{value}`" for name, value in rows.items() if value)])
