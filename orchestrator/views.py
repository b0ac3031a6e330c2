"""What the commands print for people: plain text and Markdown, the same whether it goes to a terminal or a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from orchestrator import planner, review
from orchestrator import report as reports
from orchestrator.book import now
from orchestrator.config import Settings
from orchestrator.house import State
from orchestrator.library import Library
from orchestrator.planfile import begun
from orchestrator.records import Assignment, Plan, PullRequest, Receipt, Verdict
from orchestrator.terminal import one_line, printable


def estimates(
    state: State, loaded: Plan, library: Library, assignments: Mapping[str, Assignment]
) -> dict[str, dict[str, Any]]:
    """Dollars, minutes and reviews a task, from earlier runs where there were any."""
    measured = _measured_minutes(state, assignments)
    found = {}
    for task, assignment in assignments.items():
        reviews = review.expected(loaded.task(task), assignment, library)
        reading = reviews * library.skills[review.SKILL].minutes if reviews else 0.0
        estimate = planner.estimate(assignment, library.skills[assignment.skill], measured, reading)
        usd = None if math.isnan(estimate.usd) else estimate.usd
        minutes = {"minutes": round(estimate.minutes, 2), "minutes_from": estimate.minutes_from}
        found[task] = {"usd": usd, **minutes, "reviews": reviews}
    return found


def plan(
    loaded: Plan, depth: str, assignments: Mapping[str, Assignment], costs: Mapping[str, Mapping[str, Any]]
) -> str:
    lines = [f"{one_line(loaded.title)} ({loaded.path})", "", depth, planner.tree(loaded, assignments.values()), ""]
    for task, cost in costs.items():
        if loaded.task(task).done:
            lines.append(f"{task:<24} ticked: `orchestrate run` leaves it alone, but for --again")
            continue
        dollars = "$?" if cost["usd"] is None else f"${cost['usd']:.2f}"
        own = f"; at most {budget}" if (budget := loaded.task(task).budget) else ""
        read = f", {_reviews(cost['reviews'])}" if cost["reviews"] else ""
        lines.append(f"{task:<24} {dollars:>7} {cost['minutes']:6.1f} min{read}  (from {cost['minutes_from']}){own}")
    todo = [cost for task, cost in costs.items() if not loaded.task(task).done]
    total = sum(cost["minutes"] for cost in todo)
    unknown = any(cost["usd"] is None for cost in todo)
    read = f", {_reviews(reviews)}" if (reviews := sum(cost["reviews"] for cost in todo)) else ""
    lines.append(f"{'together':<24} {'$?' if unknown else '$0.00':>7} {total:6.1f} min{read}")
    whole = loaded.budget
    lines.append(f"{'budget':<24} {f'${whole.usd:.2f}':>7} {whole.minutes:6.1f} min, {whole.tokens} tokens")
    for target in loaded.targets:
        lines.append(
            f"target {target.id}: {target.metric} {target.limit}, {target.seeds} seeds ({one_line(target.source)})"
        )
    return printable("\n".join(lines))


def status(content: Mapping[str, Any], pulls: Iterable[PullRequest]) -> str:
    run = content["run"]
    spent, budget = run["spent"], run["budget"]
    lines = [
        f"run {run['id']}: {_standing(run)} ({run['plan']} at {run['base_commit'][:12]}, sandbox {run['sandbox']})"
    ]
    lines.append(
        f"spent ${spent['usd']:.2f} of ${budget['usd']:.2f}, {spent['tokens']} of {budget['tokens']} tokens, "
        f"{spent['minutes']:.1f} of {budget['minutes']:g} minutes of commands"
    )
    lines += [reports.cached(run["prompts"])] if run["prompts"] else []
    for task in content["tasks"]:
        where = f"{task['agent']}, {task['tier']}, attempt {task['attempt']}" if task["tier"] else task["agent"]
        lines.append(
            f"  {task['status']:<11} {task['id']:<20} {where}"
            + (f": {_short(task['detail'])}" if task["detail"] else "")
        )
        if doing := task["doing"]:
            lines.append(f"    {_ago(doing['at'])}: {doing['kind']} {_short(doing['body'])}")
    for each in content["verdicts"]:
        verdict = Verdict.model_validate(each)
        values = ", ".join(f"{value:.2f}" for value in verdict.values.values())
        reason = one_line(verdict.reason)
        lines.append(f"verdict {verdict.target}: {verdict.outcome} ({reason}; seeds: {values or 'none'})")
    return printable("\n".join([*lines, *(_pull_line(each) for each in pulls)]))


def report(state: State, content: Mapping[str, Any], receipts: list[Receipt]) -> str:
    base = state.folder / "base" / content["run"]["base_commit"]
    targets = begun(base, content["run"]["plan"]).targets
    verdicts = {each["target"]: Verdict.model_validate(each) for each in content["verdicts"]}
    head = state.ledger.head()
    lines = [
        status(content, state.ledger.each_pull(content["run"]["id"])),
        "",
        reports.results(targets, verdicts, receipts) if verdicts else "Nothing was measured.",
    ]
    return printable("\n".join([*lines, "", f"{len(receipts)} receipts; the ledger's chain ends at {head}"]))


def pulls(found: list[PullRequest]) -> str:
    return "\n".join(_pull_line(each) for each in found) or "no pull requests yet; `orchestrate run PLAN` makes them"


def pull(found: PullRequest) -> str:
    stacked = f", stacked on {found.below}" if found.below else ""
    lines = [
        f"# {one_line(found.title)}",
        "",
        f"pull request {found.number} ({found.status}) by {found.author}, {found.created_at}",
        f"{found.head} -> {found.base or 'any branch'}{stacked}; commit {found.commit[:12]}; risk {found.risk}",
        "",
        found.body,
    ]
    return printable("\n".join(lines))


def settings(values: Settings, origin: Mapping[str, str]) -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        rows.append(f"{name:<18} {getattr(values, name)!s:<40} {origin[name]:<12} {field.description}")
    return "\n".join(rows)


def _standing(run: Mapping[str, Any]) -> str:
    if run["status"] == "running" and not run["at_work"]:
        return f"interrupted; go on with `orchestrate resume {run['id']}`"
    return str(run["status"])


def _reviews(count: int) -> str:
    return f"{count} review{'s' if count > 1 else ''}"


def _ago(at: str) -> str:
    minutes = (now() - datetime.fromisoformat(at)).total_seconds() / 60
    return f"{minutes:.0f} min ago" if minutes < 100 else f"{minutes / 60:.1f} h ago"


def _short(detail: str) -> str:
    """First and last line: what went wrong, and what it means. The whole stands in `--json`."""
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    return printable(" ... ".join(dict.fromkeys([lines[0][:200], lines[-1][:200]]))) if lines else ""


def _pull_line(each: PullRequest) -> str:
    stacked = f", on {each.below}" if each.below else ""
    return f"pull request {each.number} [{each.status}{stacked}] {one_line(each.title)} (risk {each.risk})"


def _measured_minutes(state: State, assignments: Mapping[str, Assignment]) -> dict[str, float]:
    """Mean minutes a skill's tasks took, over all earlier runs of tasks with the same names."""
    found: dict[str, list[float]] = {}
    for row in state.ledger.runs():
        for task in state.ledger.tasks(row["id"]):
            if task["id"] in assignments and task["status"] == "accepted":
                seconds = state.ledger.spent(row["id"], task["id"])["seconds"]
                found.setdefault(assignments[task["id"]].skill, []).append(seconds / 60)
    return {skill: sum(minutes) / len(minutes) for skill, minutes in found.items()}
