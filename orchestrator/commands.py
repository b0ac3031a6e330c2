"""Commands around the language models: what each tier and layer earns, answering by mail, recordings, what we cost."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orchestrator.house import State
    from orchestrator.providers.mailbox import Mailbox
    from orchestrator.workspace import Checkout

PlanPath = Annotated[Path, typer.Argument(help="the plan, for example plans/mnist.md", metavar="PLAN")]
AsJson = Annotated[bool, typer.Option("--json", help="one versioned JSON document on stdout")]
mailbox = typer.Typer(help="Answer what a run with --provider mailbox asks.", no_args_is_help=True)
MOST = 1e12  # of anything that a person may give
Name = Annotated[str, typer.Argument(help="the request's name, or the beginning of it", metavar="REQUEST")]


def amount(given: str) -> float:
    """An option's dollars or minutes."""
    number = float(given)
    if not 0 < number <= MOST:  # nor is NaN
        raise typer.BadParameter(f"{given} can't be given; give a number above 0 and up to {MOST:g}")
    return number


def count(given: str) -> int:
    """An option's tokens."""
    int(given)
    return int(amount(given))


@mailbox.command("list")
def mailbox_list(
    as_json: AsJson = False,
) -> None:
    """Requests that wait for a reply, oldest first; those of a comparison with the run that asks."""
    from orchestrator import documents

    waiting = [(name, asker) for asker, box in _mailboxes() for name in box.open()]
    if as_json:
        askers = [{"request": name, "asker": asker or None} for name, asker in waiting]
        print(documents.document("mailbox list", requests=[name for name, _ in waiting], askers=askers))
        return
    for name, asker in waiting:
        print(f"{name}\t{asker}".rstrip())
    if not waiting:
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
    reply = box.answer(chosen, sys.stdin.read() if file == "-" else _reply_in(file))
    calls = ", ".join(call["name"] for call in reply.tool_calls)
    print(f"{chosen}: taken ({f'calls {calls}' if calls else reply.stop_reason})", file=sys.stderr)


def _reply_in(file: str) -> str:
    from orchestrator.errors import InputError

    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read ({error}); name a file that holds the reply, or -") from error


def tiers(as_json: AsJson = False) -> None:
    """Which tier does what: attempts, accepted, cost per accepted change, and what the router would choose now.

    \b
    The router tries what is free first, then the ladder of models that costs
    least per accepted change, counting what a refusal leads to: the next tier,
    and in the end a person. It learns from every finished run here.
    """
    from orchestrator import documents, library, outcomes
    from orchestrator import tiers as shown

    checkout, state = here()
    content = shown.document(library.load(checkout.root), outcomes.history(state))
    print(documents.document("tiers", **content) if as_json else shown.table(content))


def compare(
    plan: PlanPath,
    without: Annotated[str, typer.Option(help="the layer to take off: hierarchy, skills or tiers")],
    seeds: Annotated[int, typer.Option(min=1, max=100, help="runs of each side")] = 3,
    usd: Annotated[
        float, typer.Option(parser=amount, help="what all runs together may cost, by the plan's budget")
    ] = 20.0,
    data: Annotated[Path | None, typer.Option(help="the datasets' folder (else MLCORE_DATA, cache, download)")] = None,
    provider: Annotated[
        str | None, typer.Option(help="who answers as the language model: none, anthropic, mailbox or replay:FILE")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep the repositories that the runs were made in")] = False,
    as_json: AsJson = False,
) -> None:
    """Does a layer earn its keep? A plan with and without it, over several seeds.

    \b
      orchestrate compare plans/mnist.md --without tiers --seeds 5

    \b
    hierarchy  one generalist does every task, right under the chief
    skills     no instructions and no procedures; reviewers keep theirs
    tiers      every task on its dearest tier: nothing free, nothing cheaper first

    \b
    Every run is made in a repository of its own under .odyssey/compare, from
    HEAD's commit; yours is not touched. An interrupted comparison goes on where
    it was. Procedures need no model; a task that needs one and has none is
    blocked on either side, and the comparison says so. With --provider mailbox,
    `orchestrate mailbox list` shows here what the runs ask. Differences come
    with 95 % intervals over the seeds: Student's, or resampled ones from eight
    seeds on; for what passed, from six seeds on (tasks of one run fail together,
    and a few runs that agree show nothing). The verdict goes by dollars and
    time; where calls cost nothing, by their number and tokens.
    """
    from orchestrator import compare as comparing
    from orchestrator import config as settings
    from orchestrator import documents, session
    from orchestrator.lint import read_plan

    checkout, state = here()
    path, layer = relative(plan, checkout), _layer(without)
    base = session.committed(checkout, state, path)
    loaded, _, _ = read_plan(base, path)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    flags = {"provider": given_provider(provider), "data": data.resolve() if data else None}
    values, _ = settings.load(base, flags)
    if values.provider == "anthropic":
        comparing.check_dollars(path, loaded.budget.usd, 2 * seeds, usd)
    experiment = comparing.Experiment(
        checkout, state, path, layer, values, lambda text: print(text, file=sys.stderr, flush=True)
    )
    content = experiment.run(seeds, keep)
    print(documents.document("compare", **content) if as_json else comparing.table(content))


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
    as_json: AsJson = False,
) -> None:
    """What the orchestrator itself costs: time and memory of plans that do nothing, and of a turn without its model."""
    from dataclasses import asdict

    from orchestrator import bench as measured
    from orchestrator import documents

    sizes = _sizes(tasks)
    per_turn = measured.measure_turns(turns)
    per_task = []
    for size in sizes:
        per_task.append(measured.measure_tasks(size))
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


def relative(path: Path, checkout: Checkout) -> str:
    """A plan's path as git has it. Raises InputError for one outside of the repository."""
    from orchestrator.errors import InputError

    try:
        return path.resolve().relative_to(checkout.root.resolve()).as_posix()
    except ValueError:
        raise InputError(f"{path} is outside the repository {checkout.root}; keep plans inside it") from None


def given_provider(name: str | None) -> str | None:
    """A recording's path is found again wherever the run is resumed from."""
    kind, colon, path = (name or "").partition(":")
    return f"{kind}:{Path(path).resolve()}" if colon else name


def _sizes(given: str) -> list[int]:
    from orchestrator.errors import InputError

    if not all(size.strip().isdecimal() and int(size) for size in given.split(",")):
        raise InputError(f"--tasks {given}: give numbers above 0, separated by commas, such as 10,100")
    return [int(size) for size in given.split(",")]


def _layer(name: str) -> Any:
    from orchestrator.ablation import LAYERS
    from orchestrator.errors import InputError
    from orchestrator.frontmatter import did_you_mean

    if name not in LAYERS:
        raise InputError(
            f"--without {name}: no such layer; {did_you_mean(name, LAYERS) or 'layers: ' + ', '.join(LAYERS)}"
        )
    return name


def _mailboxes() -> list[tuple[str, Mailbox]]:
    """This repository's, and those of the runs that `compare` makes in repositories of their own, by who asks there."""
    from orchestrator.config import STATE_FOLDER
    from orchestrator.providers.mailbox import ASKER, Mailbox

    folder = here()[1].folder
    compared = sorted(folder.glob(f"compare/*/repo/{STATE_FOLDER}/mailbox"))
    askers = [place.parents[2] / ASKER for place in compared]
    told = [path.read_text() if path.exists() else "compare" for path in askers]
    return [("", Mailbox(folder / "mailbox")), *zip(told, map(Mailbox, compared), strict=True)]


def _named(name: str) -> tuple[Mailbox, str]:
    """Where the open request lies that a name, or its beginning, stands for. Raises NotFound."""
    from orchestrator.errors import NotFound

    waiting = [(box, each) for _, box in _mailboxes() for each in box.open()]
    found = [(box, each) for box, each in waiting if each == name]
    found = found or [(box, each) for box, each in waiting if each.startswith(name)]
    if not found or len({each for _, each in found}) > 1:
        many = "several open requests begin with" if found else "no open request"
        raise NotFound(f"{many} `{name}`; open are: {', '.join(each for _, each in waiting) or 'none'}")
    return found[0]
