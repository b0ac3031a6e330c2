"""What `orchestrate plan` does besides showing a plan: from a paper, from and to issues. Calls, prints, exit codes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import typer

from orchestrator import config, documents, drafts, library, planfile
from orchestrator.errors import InputError, Problem
from orchestrator.issues.issue import Take
from orchestrator.issues.store import opened
from orchestrator.papers.draft import Decision
from orchestrator.sandbox.probes import choose_sandbox


@dataclass(frozen=True)
class Wanted:
    """A person's decisions on a draft, as they were typed."""

    confirm: str | None
    reject: tuple[str, ...]
    margin: float | None
    recipe: str | None
    seeds: int
    dataset: str


def from_paper(root: Path, paper: Path, out: str | None, as_json: bool) -> None:
    settings, _ = config.load(root, {})
    content = drafts.from_paper(root, paper, out, choose_sandbox(settings.unsafe_no_sandbox))
    print(documents.document("plan --from-paper", **content) if as_json else drafts.told(content))


def decide(root: Path, path: str, wanted: Wanted) -> None:
    decision = None
    if wanted.confirm:
        if wanted.margin is None or wanted.recipe is None:
            raise InputError("--confirm needs --margin and --recipe: how close is close enough, and what is trained")
        decision = Decision(wanted.margin, wanted.recipe, wanted.seeds, wanted.dataset)
    left = drafts.decide(root, path, wanted.confirm, wanted.reject, decision)
    print(f"{path}: {left} candidates are left to decide on" if left else f"{path}: all decided", file=sys.stderr)


def import_issues(root: Path, path: str, source: str, take: str, as_json: bool) -> None:
    if source.endswith(".json") and not Path(source).is_file():
        raise InputError(f"{source}: no such file; `orchestrate plan --help` says how to export issues")
    skills = library.read(root)[0].skills
    content = drafts.import_issues(root, path, opened(source), skills, _side(take))
    print(documents.document("plan --import-issues", **content) if as_json else drafts.told_import(content))
    _tell_conflicts(content)


def export_issues(root: Path, path: str, place: str, take: str, apply: bool, as_json: bool) -> None:
    content = drafts.export_issues(planfile.load(root, path), opened(place), _side(take), apply)
    print(documents.document("plan --export-issues", **content) if as_json else drafts.told_export(content))
    _tell_conflicts(content)


def _side(take: str) -> Take:
    if take not in get_args(Take):
        raise InputError(f"--take {take}: whose word counts, `issues` or `plan`?")
    return cast(Take, take)


def _tell_conflicts(content: dict[str, Any]) -> None:
    """On stderr, each with its place; the document on stdout holds them too."""
    for each in content["conflicts"]:
        print(Problem(**each), file=sys.stderr)
    if content["conflicts"]:
        raise typer.Exit(2)
