"""Issues -> tasks of a plan. The second time nothing is added twice, and what a person wrote in the plan stays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from orchestrator.errors import Problem
from orchestrator.issues.blocks import FIELDS, Block, blocks, known, of_issue, quoted, with_known
from orchestrator.issues.issue import Issue, Take, escaped, mark
from orchestrator.issues.merge import Merged, merge
from orchestrator.issues.outward import Link, link_of, links, without_block
from orchestrator.records import Skill

NEEDS = re.compile(r"\b(?:blocked by|depends on|needs)[:\s]+#(\d{1,12})\b", re.IGNORECASE)
SKILL_LABEL = re.compile(r"^skill:\s*([a-z0-9-]+)$")
DEFAULT_SKILL = "implement-change"
NEW_PLAN = """---
title: "Issues of {repo}"
budget: {{minutes: 60}}
---
# Issues of {repo}

The tasks below came from issues. Give each one the files that it may write, and commands that accept it; what you
change here stays when the issues are imported again.
"""


@dataclass
class Imported:
    """The plan's new text, and what became of each issue, by number."""

    text: str
    added: list[int] = field(default_factory=list)
    updated: list[int] = field(default_factory=list)
    unchanged: list[int] = field(default_factory=list)
    taken_out: list[int] = field(default_factory=list)  # its task was taken out of the plan: it stays out
    elsewhere: list[int] = field(default_factory=list)  # exported from another plan
    unproven: list[int] = field(default_factory=list)  # says to be a task; its author is not known to write there
    gone: list[int] = field(default_factory=list)  # in the plan, not among the issues any more
    conflicts: list[Problem] = field(default_factory=list)


def bring_in(
    text: str, path: str, repo: str, issues: Iterable[Issue], skills: Mapping[str, Skill], take: Take = ""
) -> Imported:
    """`text` may be empty: then a plan is begun."""
    done = Imported(text or NEW_PLAN.format(repo=repo))
    chosen = {issue.number: issue for issue in issues}
    exported = links(issue for issue in chosen.values() if issue.author == "writer")
    before = known(done.text, repo)
    pairs, new = _sorted_out(done, path, repo, chosen, exported, before)
    wrong: list[tuple[str, Issue, str]] = []
    for block, issue in sorted(pairs, key=lambda pair: -pair[0].start):  # from below, so that places stay
        wrong += _update(done, repo, issue, block, exported.get(issue.number), take)
    done.updated.sort()
    done.unchanged.sort()
    _add(done, repo, new, skills)
    after = blocks(done.text)
    lines = {block.id: block.start + 1 for block in after}
    done.conflicts = [_conflict(path, lines[task], task, issue, name) for task, issue, name in reversed(wrong)]
    done.gone = [block.number for block in after if block.repo == repo and block.number not in chosen]
    done.text = with_known(done.text, repo, before | {block.number for block in after if block.repo == repo})
    return done


def _sorted_out(
    done: Imported, path: str, repo: str, chosen: Mapping[int, Issue], exported: Mapping[int, Link], before: set[int]
) -> tuple[list[tuple[Block, Issue]], list[Issue]]:
    """Issues with the tasks that they are, and the issues that are new; the rest is only told."""
    found = blocks(done.text)
    pairs, new = [], []
    for number, issue in sorted(chosen.items()):
        link = exported.get(number)
        block = _linked(found, path, repo, issue, link)
        if block:
            pairs.append((block, issue))
        elif link:
            (done.taken_out if link.plan == path else done.elsewhere).append(number)
        elif number in before:
            done.taken_out.append(number)
        elif issue.author != "writer" and link_of(issue.body):
            done.unproven.append(number)
        else:
            new.append(issue)
    return pairs, new


def _linked(found: list[Block], path: str, repo: str, issue: Issue, link: Link | None) -> Block | None:
    """The issue's task: by the marker in the plan, by the one in the issue, or by the id that the import once gave."""
    for block in found:
        if (block.repo, block.number) == (repo, issue.number):
            return block
    wanted = link.task if link and link.plan == path else f"issue-{issue.number}" if not link else ""
    return next((block for block in found if block.id == wanted and not block.repo), None)


def _update(
    done: Imported, repo: str, issue: Issue, block: Block, link: Link | None, take: Take
) -> list[tuple[str, Issue, str]]:
    """Merge one issue into its task. Returns what both changed."""
    ours = {"title": block.title, "body": block.body, "state": block.state}
    theirs = {"title": escaped(issue.title), "body": quoted(without_block(issue.body)), "state": issue.state}
    fields = FIELDS if link is None or block.repo else ("title", "state")  # an exported task's body is the plan's own
    base = block.base if block.repo else (link.base if link else {})
    merged = {name: merge(ours[name], theirs[name], base.get(name, ""), take) for name in fields}
    done.text = _rewritten(done.text, repo, issue, block, merged)
    changed = any(merged[name].value != ours[name] for name in fields)
    (done.updated if changed else done.unchanged).append(issue.number)
    return [(block.id, issue, name) for name in reversed(fields) if merged[name].conflict]


def _rewritten(text: str, repo: str, issue: Issue, block: Block, merged: Mapping[str, Merged]) -> str:
    """Only the lines that the issue gives are touched: the task's line, the marker, the quoted body."""
    lines = text.split("\n")
    state, title = merged["state"].value, merged["title"].value
    lines[block.start] = f"- [{'x' if state == 'closed' else ' '}] `{block.id}` {title}"
    if "body" not in merged:
        return "\n".join(lines)
    base = {name: each.base for name, each in merged.items()}
    made = of_issue(repo, issue.number, title, merged["body"].value, state, base)
    kept = [
        line
        for at, line in enumerate(lines[block.start : block.end], block.start)
        if at != block.marker_at and not line.startswith("  >")
    ]
    place = block.marker_at - block.start if block.marker_at is not None else len(kept)
    inserted = [made["marker"], *([made["body"]] if made["body"] else [])]
    return "\n".join([*lines[: block.start], *kept[:place], *inserted, *kept[place:], *lines[block.end :]])


def _conflict(path: str, line: int, task: str, issue: Issue, name: str) -> Problem:
    fix = "`--take issues` or `--take plan` decides, or make both the same"
    return Problem(
        path, line, f"{name} of `{task}` was changed here and in issue {issue.number}; the plan's stays", fix
    )


# New tasks


def _add(done: Imported, repo: str, new: list[Issue], skills: Mapping[str, Skill]) -> None:
    present = blocks(done.text)
    taken = {block.id for block in present}
    ids = {issue.number: _id(repo, issue.number, taken) for issue in new}
    needs = _needs(new, {block.number: block.id for block in present if block.repo == repo} | ids)
    sections: dict[str, list[str]] = {}
    for issue in new:
        task = _task(repo, issue, ids[issue.number], needs[issue.number], skills)
        sections.setdefault(escaped(issue.milestone or "Issues"), []).append(task)
        done.added.append(issue.number)
    for section, tasks in sections.items():
        done.text = _placed(done.text, section, tasks)


def _id(repo: str, number: int, taken: set[str]) -> str:
    """`issue-12`; a longer one where a task of a person's own has that name."""
    name = f"issue-{number}"
    return name if name not in taken else f"{re.sub(r'[^a-z0-9]+', '-', repo.lower()).strip('-')[:40]}-{name}"


def _task(repo: str, issue: Issue, name: str, needs: list[str], skills: Mapping[str, Skill]) -> str:
    labels = [match[1] for label in issue.labels if (match := SKILL_LABEL.match(label))]
    skill = next((label for label in labels if label in skills), DEFAULT_SKILL)
    writes = skills[skill].writes if skill in skills else ()
    title, body = escaped(issue.title), quoted(without_block(issue.body))
    base = {"title": mark(title), "body": mark(body), "state": mark(issue.state)}
    made = of_issue(repo, issue.number, title, body, issue.state, base)
    lines = [made["task"].replace("{id}", name, 1), f"  - skill: {skill}"]
    lines += [
        f"  - writes: {', '.join(writes) or 'plans/*.md'}",
        *([f"  - needs: {', '.join(needs)}"] if needs else []),
    ]
    return "\n".join([*lines, made["marker"], *([made["body"]] if body else [])])


def _needs(new: list[Issue], ids: Mapping[int, str]) -> dict[int, list[str]]:
    """What an issue says it is blocked by, as far as it is in the plan; a circle of issues is left open."""
    found: dict[int, list[str]] = {}
    for issue in new:
        wanted = dict.fromkeys(int(number) for number in NEEDS.findall(issue.body) if int(number) in ids)
        found[issue.number] = []
        for number in wanted:
            graph = {ids[each]: needs for each, needs in found.items()}
            graph[ids[issue.number]] = [*found[issue.number], ids[number]]
            try:
                TopologicalSorter(graph).prepare()
            except CycleError:
                continue
            found[issue.number].append(ids[number])
    return found


def _placed(text: str, section: str, tasks: list[str]) -> str:
    """After the last task of its section, or in a new section at the end."""
    last = next((block for block in reversed(blocks(text)) if block.section == section), None)
    lines = text.rstrip("\n").split("\n")
    if last is None:
        return "\n".join([*lines, "", f"## {section}", *tasks, ""])
    return "\n".join([*lines[: last.end], *tasks, *lines[last.end :], ""])
