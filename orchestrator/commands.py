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

    names = [name for box in _mailboxes() for name in box.open()]
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
    box, chosen = _named(name)
    print(box.show(chosen))


@mailbox.command("answer")
def mailbox_answer(
    name: Name, file: Annotated[str, typer.Argument(help="the file with the reply; - for standard input")] = "-"
) -> None:
    """Give a reply. It is checked first; a bad one is refused with the reason, and the request stays open."""
    box, chosen = _named(name)
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


def demo(
    recording: Annotated[Path | None, typer.Argument(help="a recording of plans/recordings")] = None,
    prepare: Annotated[Path | None, typer.Option(help="only make the clone to record in, in this new folder")] = None,
    tests: Annotated[str, typer.Option(help="with --prepare: what its gate runs, separated by spaces")] = "",
) -> None:
    """Play a recorded run again in a clone, offline: the tools really run, and it must end in the same pull request."""
    import tempfile
    import time

    from orchestrator import demo as demos
    from orchestrator.errors import InputError

    checkout, _ = here()
    if prepare:
        commit = demos.prepare(checkout.root, checkout.commit, prepare, tuple(tests.split()))
        print(f"{prepare} stands at {commit[:12]}; run a plan in it, then `orchestrate record`", file=sys.stderr)
        return
    if recording is None:
        raise InputError("name a recording, such as plans/recordings/warmup.jsonl, or give --prepare FOLDER")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="odyssey-demo-") as folder:
        wrong = demos.play(recording, checkout.root, Path(folder) / "repo")
    for line in wrong:
        print(line)
    ended = "it ended otherwise than recorded" if wrong else "the same pull requests as recorded"
    print(f"{ended}, after {time.monotonic() - started:.0f} s", file=sys.stderr)
    raise typer.Exit(3 if wrong else 0)


def bench(
    tasks: Annotated[str, typer.Option(help="sizes of the plans, separated by commas")] = "10,100,1000",
    turns: Annotated[int, typer.Option(help="turns of the conversation", min=20)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="one versioned JSON document on stdout")] = False,
) -> None:
    """What the orchestrator itself costs: time and memory of plans that do nothing, and of a turn without its model."""
    from dataclasses import asdict

    from orchestrator import bench as measured
    from orchestrator import documents

    per_turn = measured.measure_turns(turns)
    per_task = []
    for size in tasks.split(","):
        per_task.append(measured.measure_tasks(int(size)))
        one = per_task[-1]
        words = f"{one.tasks} tasks: {one.seconds:.1f} s, {one.ms_per_task:.0f} ms a task, {one.peak_mb:.0f} MB"
        print(words, file=sys.stderr, flush=True)
    if as_json:
        print(documents.document("bench", turn=asdict(per_turn), tasks=[asdict(each) for each in per_task]))
        return
    print(f"a turn: {per_turn.median_ms:.1f} ms, 95 % within {per_turn.p95_ms:.1f} ms ({per_turn.turns} turns)")
    print("| tasks | seconds | ms a task | peak MB |\n|---|---|---|---|")
    for one in per_task:
        print(f"| {one.tasks} | {one.seconds:.1f} | {one.ms_per_task:.1f} | {one.peak_mb:.0f} |")


def here() -> tuple[Checkout, State]:
    """The repository around the working directory, and its state folder."""
    from orchestrator.house import State
    from orchestrator.workspace import find_checkout

    checkout = find_checkout(Path.cwd())
    return checkout, State.of(checkout.root)


def _mailboxes() -> list[Mailbox]:
    """This repository's, and those of the runs that `compare` makes in repositories of their own."""
    from orchestrator.config import STATE_FOLDER
    from orchestrator.providers.mailbox import Mailbox

    folder = here()[1].folder
    compared = sorted(folder.glob(f"compare/*/repo/{STATE_FOLDER}/mailbox"))
    return [Mailbox(place) for place in (folder / "mailbox", *compared)]


def _named(name: str) -> tuple[Mailbox, str]:
    """Where the open request lies that a name, or its beginning, stands for. Raises NotFound."""
    from orchestrator.errors import NotFound

    waiting = [(box, each) for box in _mailboxes() for each in box.open()]
    found = [(box, each) for box, each in waiting if each == name]
    found = found or [(box, each) for box, each in waiting if each.startswith(name)]
    if not found or len({each for _, each in found}) > 1:
        many = "several open requests begin with" if found else "no open request"
        raise NotFound(f"{many} `{name}`; open are: {', '.join(each for _, each in waiting) or 'none'}")
    return found[0]
