"""What `orchestrate plan` does besides showing a plan: from a paper, from and to issues. Calls, prints, exit codes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import typer

from orchestrator import attempt, config, documents, drafts, library, planfile
from orchestrator.calls import Calls
from orchestrator.display import tell
from orchestrator.engine import Paused
from orchestrator.errors import InputError, Problem
from orchestrator.house import State
from orchestrator.issues.issue import Take
from orchestrator.issues.store import opened
from orchestrator.papers.draft import Decision
from orchestrator.papers.reread import Reader
from orchestrator.records import Budget
from orchestrator.sandbox.probes import choose_sandbox
from orchestrator.terminal import printable

PAPER_TOKENS, PAPER_MINUTES = 5_000_000, 600.0  # of one paper; dollars are what binds

# Of `orchestrate plan`: what it does beside showing a plan, one at a time, and which of its options need another.
DOES = ("from_paper", "import_issues", "export_issues", "confirm", "reject", "write")
NEEDS = {
    "out": ("from_paper",),
    "provider": ("from_paper",),
    "tier": ("provider",),
    "usd": ("provider",),
    **dict.fromkeys(("margin", "recipe", "seeds", "dataset"), ("confirm",)),
    "apply": ("export_issues",),
    "take": ("import_issues", "export_issues"),
}


@dataclass(frozen=True)
class Wanted:
    """A person's decisions on a draft, as they were typed."""

    confirm: str | None
    reject: tuple[str, ...]
    margin: float | None
    recipe: str | None
    seeds: int
    dataset: str


@dataclass(frozen=True)
class Reading:
    """A language model that shall read a paper, as it was typed."""

    provider: str | None
    tier: str
    usd: float


class Straight:
    """Steps of a command that is over in a minute: the ledger alone remembers them."""

    async def step(self, name: str, do: Callable[[], Awaitable[Any]]) -> Any:
        return await do()

    async def pause(self, reason: str, code: int = 5, task: str = "") -> Any:
        raise Paused(reason, code)


def check_together(given: Collection[str]) -> None:
    """Raises InputError for what would otherwise be left undone without a word. `given`: the parameters that were."""
    chosen = [name for name in DOES if name in given]
    if len(chosen) > 1 and chosen != ["confirm", "reject"]:
        raise InputError(f"{_spelled(chosen, ' and ')} can't go together; give one, then the other")
    if {"plan", "from_paper"} <= {*given}:
        raise InputError("PLAN and --from-paper can't go together; --out names the draft")
    for name, others in NEEDS.items():
        if name in given and not {*others} & {*given}:
            raise InputError(
                f"{_spelled([name])} does nothing without {_spelled(others, ' or ')}; give both, or neither"
            )


def _spelled(names: Iterable[str], between: str = "") -> str:
    return between.join(f"--{name.replace('_', '-')}" for name in names)


def alone(state: State, paper: Path, wish: Reading | None) -> AbstractContextManager[None]:
    """Nobody else has this paper read meanwhile, or the same replies would be bought twice. Raises Busy."""
    if wish is None:
        return nullcontext()
    return state.locked(f"{_run(paper)}.lock", "has this paper read; when it is done, its answers are here too")


def from_paper(root: Path, state: State, paper: Path, out: str | None, wish: Reading | None, as_json: bool) -> None:
    settings, _ = config.load(root, {"provider": wish.provider} if wish else {})
    reader = _reader(state, settings, paper, wish) if wish else None
    try:
        content = drafts.from_paper(root, paper, out, choose_sandbox(settings.unsafe_no_sandbox), reader)
    except Paused as paused:
        print(f"paused: {printable(str(paused))}\nthe same command goes on; what was answered is kept", file=sys.stderr)
        raise typer.Exit(paused.code) from None
    print(documents.document("plan --from-paper", **content) if as_json else printable(drafts.told(content)))
    if reader:
        print(f"read by {content['by']}: {_cost(state, reader.run)}", file=sys.stderr)


def _reader(state: State, settings: config.Settings, paper: Path, wish: Reading) -> Reader:
    """A buyer of replies. The paper's own digest is the run: what it was asked once is never bought again."""
    if wish.tier not in settings.models:
        raise InputError(f"--tier {wish.tier}: no such tier; there are {', '.join(settings.models)}")
    run = _run(paper)
    provider = attempt.chosen(settings, state, run, _tell)
    if provider is None:
        raise InputError("--provider none reads nothing; leave it out")
    for note in attempt.check_models(settings, state):
        _tell("note", note)
    budget = Budget(usd=wish.usd, tokens=PAPER_TOKENS, minutes=PAPER_MINUTES).model_dump_json()
    state.ledger.open_run(run, plan="", budget=budget, provider=settings.provider)
    state.ledger.set_run(run, budget=budget, status="over")
    state.ledger.on_warning = lambda _, __, words: _tell("budget", words)
    calls = Calls(provider, state.ledger, Straight(), settings.prices, tell=_tell)
    return Reader(calls, run, wish.tier, settings.models[wish.tier])


def _run(paper: Path) -> str:
    if not paper.is_file():
        raise InputError(f"{paper}: no such file")
    return f"paper-{hashlib.sha256(paper.read_bytes()).hexdigest()[:12]}"


def _tell(kind: str, text: str) -> None:
    tell(f"{kind}: {text}")


def _cost(state: State, run: str) -> str:
    spent = state.ledger.spent(run)
    return f"${spent['usd']:.2f} and {spent['tokens']} tokens so far"


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
        print(printable(str(Problem(**each))), file=sys.stderr)
    if content["conflicts"]:
        raise typer.Exit(2)
