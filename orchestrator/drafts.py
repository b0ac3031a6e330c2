"""`orchestrate plan` for plans that are not there yet: drafted from a paper, decided on, carried to and from issues."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError, Problem
from orchestrator.frontmatter import MAX_BYTES, read_text
from orchestrator.issues import inward, outward
from orchestrator.issues.issue import Take
from orchestrator.issues.store import Store
from orchestrator.papers import claims, draft, pages, reread
from orchestrator.papers.draft import Decision
from orchestrator.papers.reread import Reader
from orchestrator.planfile import inside
from orchestrator.records import Plan, Skill
from orchestrator.sandbox.base import Sandbox

SHOWN = 15  # candidates, or issues of a kind, on a terminal
FATES = {
    "added": "added as tasks",
    "updated": "updated from the issue",
    "unchanged": "as they were",
    "taken_out": "left out, since their tasks were taken out of the plan",
    "elsewhere": "left out, since they are tasks of other plans",
    "unproven": "left out, since they say to be tasks and nobody known to write there opened them "
    "(`--import-issues owner/repo` asks there, and sees most with GITHUB_TOKEN set)",
    "gone": "in the plan, but not among the issues any more; they stay",
}


def from_paper(
    root: Path, paper: Path, out: str | None, sandbox: Sandbox, reader: Reader | None = None
) -> dict[str, Any]:
    """Read the paper, find candidates, and write a draft plan to `out` if there is one. Returns what was found."""
    if out is not None:
        check_new(root, out)
    read = pages.read(paper, sandbox)
    found, dropped = claims.candidates(read), 0
    if reader:
        found, dropped = asyncio.run(reread.reread(read, found, reader))
    digest = hashlib.sha256(paper.read_bytes()).hexdigest()
    if out is not None:
        write(root, out, draft.draft(read, digest, found, out))
    return {
        "paper": {"name": read.name, "sha256": digest, "pages": read.count, "without_text": list(read.unread)},
        "candidates": [each.model_dump(mode="json") for each in found],
        "by": _by(reader) if reader else "the program alone; no language model read the paper",
        "dropped": dropped,  # what a model claimed and the pages do not say
        "written": out,
    }


def _by(reader: Reader) -> str:
    return f"the program, and a language model of tier {reader.tier} through {reader.calls.provider.name}"


def told(content: dict[str, Any]) -> str:
    """The candidates for people, likeliest first."""
    paper, found, out = content["paper"], content["candidates"], content["written"]
    lines = [f"{paper['name']}: {paper['pages']} pages, {len(found)} candidates, none of them confirmed"]
    if paper["without_text"]:
        lines.append(f"no text on pages {', '.join(map(str, paper['without_text'][:20]))}: pictures, or unreadable")
    if content["dropped"]:
        lines.append(f"{content['dropped']} claims of the language model were dropped: no page bears them out")
    for each in found[:SHOWN]:
        what = f"{each['value']:g} {each['unit']} {each['metric']} {each['dataset']}".replace("  ", " ")
        lines += [f"  p. {each['page']:<3} {what} {each['place']}".rstrip(), f"         {each['quote'][:150]!r}"]
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more: --json has them all")
    next_step = (
        f"confirm or reject each one: orchestrate lint {out} names them" if out else "--out plans/NAME.md drafts a plan"
    )
    return "\n".join([*lines, next_step])


def decide(root: Path, path: str, confirmed: str | None, rejected: tuple[str, ...], decision: Decision | None) -> int:
    """Confirm one candidate, reject some (or `all`). Returns how many are left to decide on."""
    text, problems = read_text(root, path)
    if problems:
        raise InputError(problems)
    if confirmed is not None:
        assert decision is not None, "the command line checks it"
        text = draft.confirm(text, path, confirmed, decision, root)
    for name in draft.undecided(text, path) if rejected == ("all",) else rejected:
        text = draft.reject(text, path, name)
    write(root, path, text)
    return len(draft.undecided(text, path))


def import_issues(root: Path, path: str, store: Store, skills: Mapping[str, Skill], take: Take) -> dict[str, Any]:
    """Bring the issues into the plan at `path`, which is begun if it is not there. Returns what became of each."""
    if not inside(path) or not path.endswith(".md"):
        raise InputError([Problem(path, 0, "is no place for a plan", "for example plans/NAME.md")])
    text = ""
    if (root / path).exists():
        text, problems = read_text(root, path)
        if problems:
            raise InputError(problems)
    done = inward.bring_in(text, path, store.repo, store.issues(), skills, take)
    if len(done.text.encode()) > MAX_BYTES:
        raise InputError([Problem(path, 0, f"would be larger than {MAX_BYTES} bytes", "import a smaller export")])
    if done.text != text:
        write(root, path, done.text)
    counts = {name: getattr(done, name) for name in FATES}
    return {"plan": path, "repository": store.repo, **counts, "conflicts": [asdict(each) for each in done.conflicts]}


def export_issues(plan: Plan, store: Store, take: Take, apply: bool) -> dict[str, Any]:
    """What would make the issues say what the plan says; done if `apply`, one after the other."""
    actions, conflicts = outward.compare(plan, store.repo, store.issues(), take)
    made = []
    for action in actions:
        number = action.number
        if apply and action.what == "create":
            number = store.create(action.fields)
        changes = action.then if action.what == "create" else action.fields
        if apply and changes:
            store.update(number, changes)
        made.append({**asdict(action), "number": number or None})
    told = [asdict(each) for each in conflicts]
    return {"plan": plan.path, "repository": store.repo, "applied": apply, "actions": made, "conflicts": told}


def told_import(content: dict[str, Any]) -> str:
    lines = [f"{content['plan']}: issues of {content['repository']}"]
    for name, words in FATES.items():
        numbers = content[name]
        if numbers:
            lines.append(f"  {len(numbers):>4} {words}: {', '.join(f'#{n}' for n in numbers[:SHOWN])}" + _more(numbers))
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing there"])


def told_export(content: dict[str, Any]) -> str:
    done = content["applied"]
    lines = [f"{content['repository']}: tasks of {content['plan']}"]
    for each in content["actions"]:
        number = f"#{each['number']}" if each["number"] else "new"
        lines.append(f"  {each['what']:<8} {number:<6} {each['task']}: {', '.join(each['fields']) or 'as it is'}")
    return "\n".join([*lines, "done" if done else "nothing was changed; --apply does it"])


def _more(numbers: list[int]) -> str:
    return f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""


def check_new(root: Path, out: str) -> None:
    """Raises InputError where a draft must not be written: outside the repository, or over a file that is there."""
    if not inside(out) or not out.endswith(".md"):
        raise InputError([Problem(out, 0, "is no place for a plan", "for example --out plans/NAME.md")])
    if (root / out).exists():
        raise InputError([Problem(out, 0, "is there already", "take another name, or move it away")])


def write(root: Path, path: str, text: str) -> None:
    """All of it or nothing."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.new")
    fresh.write_text(text)
    fresh.replace(place)
