"""Commands on the pull requests that runs have made, in the local forge."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands import AsJson, here

if TYPE_CHECKING:
    from orchestrator.forge.local import LocalForge
    from orchestrator.records import PullRequest

pr = typer.Typer(help="Read, approve, merge and close the pull requests that runs have made.", no_args_is_help=True)
Number = Annotated[int, typer.Argument(help="the pull request's number")]


@pr.command("list")
def pr_list(as_json: AsJson = False) -> None:
    """All pull requests, newest last."""
    from orchestrator import documents, views

    _, state = here()
    pulls = state.ledger.pulls()
    print(
        documents.document("pr list", pull_requests=[documents.pull(each) for each in pulls])
        if as_json
        else views.pulls(pulls)
    )


@pr.command("show")
def pr_show(number: Number, as_json: AsJson = False) -> None:
    """One pull request: what, why, evidence, verdict, risk, cost, receipts."""
    from orchestrator import documents, views

    _, state = here()
    found = state.ledger.pull(number)
    print(documents.document("pr show", pull_request=documents.pull(found)) if as_json else views.pull(found))


@pr.command("diff")
def pr_diff(number: Number) -> None:
    """What it changes, against what it is stacked on; to read, not to apply: what can't be printed is spelt out."""
    from orchestrator.terminal import printable

    print(printable(_forge().diff(number)), end="")


@pr.command("approve")
def pr_approve(number: Number, as_json: AsJson = False) -> None:
    """Say that you have read it. Needed before merging what guards the system (gate, tests, skills, CI)."""
    found = _forge().approve(number, _person())
    _tell("pr approve", found, f"approved by {found.approved_by}", as_json)


@pr.command("merge")
def pr_merge(number: Number, as_json: AsJson = False) -> None:
    """Merge it, and what it is stacked on, into the branch that is checked out."""
    name = _person()
    _tell("pr merge", _forge().merge(number, name), f"merged by {name}", as_json)


@pr.command("close")
def pr_close(number: Number, as_json: AsJson = False) -> None:
    """Turn it down; its branch stays in the local forge. What is stacked on it can't be merged until it is reopened."""
    _tell("pr close", _forge().close(number), f"closed; `orchestrate pr reopen {number}` opens it again", as_json)


@pr.command("reopen")
def pr_reopen(number: Number, as_json: AsJson = False) -> None:
    """Open a closed one again, and with it the way for what is stacked on it; an approval is asked for anew."""
    _tell("pr reopen", _forge().reopen(number), "is open again", as_json)


def _tell(command: str, found: PullRequest, what: str, as_json: bool) -> None:
    from orchestrator import documents
    from orchestrator.terminal import printable

    if as_json:
        print(documents.document(command, pull_request=documents.pull(found)))
    else:
        print(printable(f"pull request {found.number} {what}"), file=sys.stderr)


def _forge() -> LocalForge:
    from orchestrator.forge.local import LocalForge

    checkout, state = here()
    return LocalForge(state.ledger, state.repository, checkout.root)


def _person() -> str:
    from orchestrator.forge.local import person

    return person(here()[0].root)
