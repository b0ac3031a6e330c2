"""The command `orchestrate`: parse, call, print. stdout is data, stderr is talk."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator import commands, pulls
from orchestrator.commands import AsJson, PlanPath, amount, count, given_provider, relative
from orchestrator.commands import here as _here
from orchestrator.errors import EXIT_CODES, InputError, OrchestratorError
from orchestrator.terminal import printable

if TYPE_CHECKING:
    from orchestrator.engine import Paused
    from orchestrator.house import Run, State
    from orchestrator.workspace import Checkout

CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
HELP = f"""Turn a plan kept in this repository into reviewed pull requests whose numbers were measured, not claimed.

\b
  orchestrate run plans/mnist.md     do the whole plan; ends with pull requests
  orchestrate pr show 1              read one, with its evidence
  orchestrate pr merge 1             take it

\b
Exit codes:
{CODES}
"""
app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)
app.add_typer(pulls.pr, name="pr")
app.add_typer(commands.mailbox, name="mailbox")

RunId = Annotated[str | None, typer.Argument(help="a run's id; the latest if left out", metavar="RUN")]


def main() -> None:
    """Run the app; every error that Odyssey knows ends with its words and its exit code."""
    from orchestrator.workspace import strip_git_variables

    strip_git_variables()
    try:
        app()
    except OrchestratorError as error:
        if "--json" in sys.argv:
            print(_error_document(error))
        print(printable(str(error)), file=sys.stderr)
        sys.exit(error.exit_code)


@app.command()
def run(
    plan: PlanPath,
    parallel: Annotated[int | None, typer.Option(help="tasks at work side by side")] = None,
    data: Annotated[Path | None, typer.Option(help="the datasets' folder (else MLCORE_DATA, cache, download)")] = None,
    again: Annotated[bool, typer.Option("--again", help="do tasks again that are already ticked")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="do this task alone, ticked or not; may be given several times"),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="who answers as the language model: none, anthropic, mailbox or replay:FILE")
    ] = None,
    unsafe_no_sandbox: Annotated[
        bool, typer.Option("--unsafe-no-sandbox", help="run agents' code WITHOUT a sandbox; stamped on every receipt")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do a plan: every task by its agent, every change through the gate, every accepted one a pull request.

    Works from HEAD's commit and in folders of its own: your checkout is not touched, whatever state it is in.
    Interrupted at any moment, it goes on with `orchestrate resume`.
    """
    from orchestrator import session

    checkout, state = _here()
    with state.locked():
        display = _display(as_json)
        flags: dict[str, Any] = {"parallel": parallel, "data": data.resolve() if data else None}
        flags["unsafe_no_sandbox"] = unsafe_no_sandbox or None
        flags["provider"] = given_provider(provider)
        job = session.start(checkout, state, relative(plan, checkout), flags, display.say, again, only or ())
        if checkout.dirty:
            display.say(
                "", "note", f"uncommitted changes are not part of this run (it works from {checkout.commit[:12]})"
            )
        _go(checkout, state, job, display, as_json)


@app.command()
def resume(
    run_id: RunId = None,
    minutes: Annotated[float | None, typer.Option(parser=amount, help="minutes to add to the run's budget")] = None,
    usd: Annotated[float | None, typer.Option(parser=amount, help="dollars to add to the run's budget")] = None,
    tokens: Annotated[int | None, typer.Option(parser=count, help="tokens to add to the run's budget")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="add it to this task's own budget instead, within the run's")
    ] = None,
    provider: Annotated[str | None, typer.Option(help="who answers from now on, if not the one of before")] = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was interrupted, killed or paused: nothing that ended is done again."""
    from orchestrator import session

    checkout, state = _here()
    with state.locked():
        display = _display(as_json)
        chosen = run_id or session.latest(state, unfinished=True)
        session.change_provider(state, chosen, given_provider(provider))
        display.say("", "resume", f"going on with {chosen}; what ended is not done again")
        job = session.again(checkout, state, chosen, display.say)
        session.extend_budget(state, chosen, minutes, usd, tokens, task)
        _go(checkout, state, job, display, as_json)


PAPER, ISSUES = "A plan from a paper", "Plans and issues"


@app.command()
def plan(
    context: typer.Context,
    plan: Annotated[Path | None, typer.Argument(help="the plan, for example plans/mnist.md", metavar="PLAN")] = None,
    write: Annotated[bool, typer.Option("--write", help="write the tree into the plan file")] = False,
    from_paper: Annotated[
        Path | None, typer.Option(metavar="PDF", help="find the numbers that a paper claims", rich_help_panel=PAPER)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write a draft plan there", rich_help_panel=PAPER)] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="a language model reads it too: anthropic, mailbox or replay:FILE", rich_help_panel=PAPER),
    ] = None,
    tier: Annotated[str, typer.Option(help="which one: haiku, sonnet or opus", rich_help_panel=PAPER)] = "haiku",
    usd: Annotated[float, typer.Option(parser=amount, help="what its reading may cost", rich_help_panel=PAPER)] = 1.0,
    confirm: Annotated[
        str | None, typer.Option(metavar="ID", help="make a candidate a target", rich_help_panel=PAPER)
    ] = None,
    margin: Annotated[float | None, typer.Option(help="how close is close enough", rich_help_panel=PAPER)] = None,
    recipe: Annotated[str | None, typer.Option(help="what is trained", rich_help_panel=PAPER)] = None,
    seeds: Annotated[int, typer.Option(help="trainings of a measurement", rich_help_panel=PAPER)] = 3,
    dataset: Annotated[str, typer.Option(help="if the paper's words name none", rich_help_panel=PAPER)] = "",
    reject: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="drop a candidate; `all`: what is left", rich_help_panel=PAPER),
    ] = None,
    import_issues: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="owner/repo, or a JSON export", rich_help_panel=ISSUES)
    ] = None,
    export_issues: Annotated[
        str | None, typer.Option(metavar="DEST", help="owner/repo, or a JSON export", rich_help_panel=ISSUES)
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="export for real; without it only shown", rich_help_panel=ISSUES)
    ] = False,
    take: Annotated[
        str, typer.Option(help="where both changed, whose word counts: issues or plan", rich_help_panel=ISSUES)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Show who would do what and what it would cost, without running; or make a plan.

    \b
    who does what
      orchestrate plan plans/mnist.md
    what a paper claims, with pages and quotes; the same as a draft plan
      orchestrate plan --from-paper lenet.pdf
      orchestrate plan --from-paper lenet.pdf --out plans/lenet.md
      orchestrate plan --from-paper lenet.pdf --provider anthropic --usd 0.50
    decide on each candidate of a draft
      orchestrate plan plans/lenet.md --confirm ID --margin 0.05 --recipe FILE
      orchestrate plan plans/lenet.md --reject ID
    issues become tasks (again: brings the news in); tasks become issues
      orchestrate plan plans/issues.md --import-issues owner/repo
      orchestrate plan plans/mnist.md --export-issues owner/repo --apply

    \b
    What a program finds in a paper are candidates. Only you make a target of
    one, after reading its page; a draft with undecided candidates does not
    lint, so it can't be run.

    \b
    Issues come over the network (GITHUB_TOKEN, GITHUB_API_URL), or from a file:
      gh issue list --state all --limit 5000 \\
         --json number,title,body,state,labels,milestone,url > issues.json
    What one side changed since the last time is taken over; what both changed
    stays, is named, and gives exit code 2.
    """
    from orchestrator import planning

    sources = {name: context.get_parameter_source(name) for name in context.params}
    planning.check_together([name for name, source in sources.items() if source and source.name == "COMMANDLINE"])
    checkout, state = _here()
    if from_paper:
        place = relative(out, checkout) if out else None
        wish = planning.Reading(given_provider(provider), tier, usd) if provider else None
        with planning.alone(state, from_paper, wish):
            planning.from_paper(checkout.root, state, from_paper, place, wish, as_json)
    elif import_issues:
        place = relative(plan or Path("plans/issues.md"), checkout)
        planning.import_issues(checkout.root, place, import_issues, take, as_json)
    elif plan is None:
        raise InputError(
            "which plan? name one, as in `orchestrate plan plans/mnist.md`, or see `orchestrate plan --help`"
        )
    elif export_issues:
        planning.export_issues(checkout.root, relative(plan, checkout), export_issues, take, apply, as_json)
    elif confirm or reject:
        wanted = planning.Wanted(confirm, tuple(reject or ()), margin, recipe, seeds, dataset)
        planning.decide(checkout.root, relative(plan, checkout), wanted)
    else:
        _show_plan(checkout, state, relative(plan, checkout), write, as_json)


@app.command()
def lint(
    plans: Annotated[list[Path] | None, typer.Argument(help="plans to read; all of plans/*.md if left out")] = None,
    as_json: AsJson = False,
) -> None:
    """Check agents, skills and plans, all errors in one go, each with its place and the fix."""
    from dataclasses import asdict

    from orchestrator import documents
    from orchestrator.lint import lint as check

    checkout, _ = _here()
    counts, problems = check(checkout.root, [relative(path, checkout) for path in plans or []])
    if as_json:
        print(documents.document("lint", **counts, problems=[asdict(problem) for problem in problems]))
    elif problems:
        raise InputError(problems)
    else:
        print(", ".join(f"{count} {what}" for what, count in counts.items()) + ": nothing to mend", file=sys.stderr)
    raise typer.Exit(2 if problems else 0)


@app.command()
def status(run_id: RunId = None, as_json: AsJson = False) -> None:
    """Where a run stands: its tasks, what they cost, its pull requests."""
    from orchestrator import documents, session, views

    _, state = _here()
    chosen = run_id or session.latest(state)
    content = documents.run(state, chosen, pulls=as_json)
    pulls = state.ledger.each_pull(chosen)
    print(documents.document("status", **content) if as_json else views.status(content, pulls))


@app.command()
def report(
    run_id: RunId = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="check receipts, and that verdicts follow from them")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a run measured: verdicts, every seed, every control, each with its receipt."""
    from orchestrator import audit, documents, session, views

    _, state = _here()
    chosen = run_id or session.latest(state)
    content = documents.run(state, chosen)
    found = state.ledger.receipts(chosen)
    wrong = audit.wrong(state) if verify else []
    if as_json:
        print(documents.document("report", **content, receipts=documents.receipts(found), wrong=wrong))
    else:
        print(views.report(state, content, found))
    if verify:
        for line in wrong or [f"{len(found)} receipts of this run: chain, signatures, verdicts and pull requests hold"]:
            print(printable(line), file=sys.stderr)
    if wrong:
        raise typer.Exit(1)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting, its value and where it comes from."""
    from orchestrator import config as settings
    from orchestrator import documents, views

    checkout, _ = _here()
    values, origin = settings.load(checkout.root, {})
    if as_json:
        print(documents.document("config", settings=values.model_dump(mode="json"), origin=origin))
    else:
        print(views.settings(values, origin))


app.command()(commands.tiers)
app.command()(commands.compare)
app.command()(commands.record)
app.command()(commands.bench)
app.command()(commands.demo)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"odyssey {version('odyssey')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None: ...


# Helpers, in reading order


def _show_plan(checkout: Checkout, state: State, path: str, write: bool, as_json: bool) -> None:
    from orchestrator import documents, planfile, planner, views
    from orchestrator.lint import read_plan

    loaded, library, assignments = read_plan(checkout.root, path)
    depth = planner.depth(loaded, library).why
    estimates = views.estimates(state, loaded, library, assignments)
    if write:
        text = planfile.set_block(loaded.text, "tree", planner.tree(loaded, assignments.values()))
        (checkout.root / path).write_text(text)
    if as_json:
        tasks = [
            {**each.model_dump(mode="json"), **estimates[each.task], "budget": documents.budget(loaded.task(each.task))}
            for each in assignments.values()
        ]
        print(documents.document("plan", plan=path, sha256=loaded.sha256, depth=depth, tasks=tasks))
    else:
        print(views.plan(loaded, depth, assignments, estimates))


def _display(as_json: bool) -> Any:
    from orchestrator.display import Display

    return Display(live=sys.stderr.isatty() and not as_json)


def _go(checkout: Checkout, state: State, job: Run, display: Any, as_json: bool) -> NoReturn:
    from orchestrator import documents, views
    from orchestrator.engine import Died, Paused
    from orchestrator.forge.local import LocalForge
    from orchestrator.runner import Runner

    resume_with = f"orchestrate resume {job.id}"
    _exit_on_signals(resume_with)
    state.repository.recover()
    statuses = state.ledger.statuses(job.id).items()
    display.expect((name, job.task(name).title, job.assignments[name].agent, status) for name, status in statuses)
    forge = LocalForge(state.ledger, state.repository, checkout.root)
    code = 0
    try:
        with display.shown():
            Runner(job, forge, (state.folder / "key").read_bytes()).go()
    except Paused as paused:
        more = _what_it_needs(paused, job.settings.provider)
        print(f"paused: {printable(str(paused))}\ngo on with: {resume_with}{more}", file=sys.stderr, flush=True)
        code = paused.code
    except Died as died:
        _leave_broken(died, f"a new run: orchestrate run {job.plan.path}; `{resume_with}` would end here again")
    except Exception as error:
        _leave_broken(error, resume_with)
    content, pulls = documents.run(state, job.id, pulls=as_json), state.ledger.each_pull(job.id)
    print(documents.document("run", **content) if as_json else views.status(content, pulls), flush=True)
    if code == 0 and content["run"]["status"] != "accepted":
        code = 3
    if code in (0, 3):
        top = state.ledger.pulls(job.id, newest=1)
        print(_next_steps(content, top[0].number if top else 0, resume_with), file=sys.stderr, flush=True)
    os._exit(code)  # a paused workflow still waits in this process; it must not be told that it was cancelled


def _what_it_needs(paused: Paused, provider: str) -> str:
    """The options of `resume` with which a paused run may go on."""
    if paused.code != 5:
        return " --provider anthropic" if provider == "none" else ""
    more = " --minutes 30" if "minutes" in str(paused) else " --usd 1 --tokens 100000"
    return f" --task {paused.task}{more}" if paused.task else more


def _next_steps(content: dict[str, Any], top: int, resume_with: str) -> str:
    """What a person would type after a run that came to its end. `top`: the newest pull request's number, or 0."""
    run = content["run"]
    lines = [f"read it: orchestrate report {run['id']} --verify"]
    if top:
        lines.append(f"take it: orchestrate pr show {top}, then orchestrate pr merge {top}")
    if any(task["status"] in ("failed", "blocked") for task in content["tasks"]):
        lines.append(f"what failed or is blocked: mend it, commit, and orchestrate run {run['plan']} again")
    return "\n".join([*lines, f"the run is over; `{resume_with}` would only show this again"])


def _leave_broken(error: Exception, go_on_with: str) -> NoReturn:
    """What broke the run, and how to go on once it is mended: the journal holds all that was done."""
    import traceback

    known = isinstance(error, OrchestratorError)
    print(printable(str(error) if known else "".join(traceback.format_exception(error))), file=sys.stderr)
    print(f"go on with: {go_on_with}", file=sys.stderr, flush=True)
    os._exit(error.exit_code if isinstance(error, OrchestratorError) else 1)


def _error_document(error: OrchestratorError) -> str:
    from dataclasses import asdict

    from orchestrator import documents

    problems = [asdict(problem) for problem in error.problems] if isinstance(error, InputError) else []
    return documents.document("error", error=str(error), exit_code=error.exit_code, problems=problems)


def _exit_on_signals(resume_with: str) -> None:
    """All that matters is on disk at every moment, so the quickest exit is the safest: like a kill, with a word."""

    from orchestrator.sandbox.process import stop_all

    def leave(number: int, _: object) -> None:
        stop_all()
        os.write(2, f"\ninterrupted; go on with: {resume_with}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


if __name__ == "__main__":
    main()
