"""Commands around the language models: answering by mail, recording a run, measuring the orchestrator itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.house import State
    from orchestrator.providers.mailbox import Mailbox
    from orchestrator.workspace import Checkout

mailbox = typer.Typer(help="Answer what a run with --provider mailbox asks.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="the request's name, or the beginning of it", metavar="REQUEST")]


@mailbox.command("list")
def mailbox_list(
    as_json: Annotated[bool, typer.Option("--json", help="one versioned JSON document on stdout")] = False,
) -> None:
    """Requests that wait for a reply, oldest first."""
    from orchestrator import documents

    names = _mailbox().open()
    if as_json:
        print(documents.document("mailbox list", requests=names))
        return
    for name in names:
        print(name)
    if not names:
        print("no request is waiting", file=sys.stderr)


@mailbox.command("show")
def mailbox_show(name: Name) -> None:
    """A request as Markdown, with how to answer it: paste it into any chat window."""
    box = _mailbox()
    print(box.show(_named(box, name)))


@mailbox.command("answer")
def mailbox_answer(
    name: Name, file: Annotated[str, typer.Argument(help="the file with the reply; - for standard input")] = "-"
) -> None:
    """Give a reply. It is checked first; a bad one is refused with the reason, and the request stays open."""
    box = _mailbox()
    chosen = _named(box, name)
    reply = box.answer(chosen, sys.stdin.read() if file == "-" else Path(file).read_text())
    calls = ", ".join(call["name"] for call in reply.tool_calls)
    print(f"{chosen}: taken ({f'calls {calls}' if calls else reply.stop_reason})", file=sys.stderr)


def record(
    run_id: Annotated[str | None, typer.Argument(help="a run's id; the latest if left out", metavar="RUN")] = None,
    how: Annotated[str, typer.Option(help="how it was recorded: who answered, in honest words")] = "",
) -> None:
    """Write a run's calls to stdout as a recording, which `--provider replay:FILE` plays again."""
    from orchestrator import recording, session

    _, state = here()
    for line in recording.lines(state, run_id or session.latest(state), how):
        print(line)


def here() -> tuple[Checkout, State]:
    """The repository around the working directory, and its state folder."""
    from orchestrator.house import State
    from orchestrator.workspace import find_checkout

    checkout = find_checkout(Path.cwd())
    return checkout, State.of(checkout.root)


def _mailbox() -> Mailbox:
    from orchestrator.providers.mailbox import Mailbox

    return Mailbox(here()[1].folder / "mailbox")


def _named(box: Mailbox, name: str) -> str:
    """The open request that a name's beginning stands for."""
    found = [each for each in box.open() if each.startswith(name)]
    return found[0] if len(found) == 1 else name
