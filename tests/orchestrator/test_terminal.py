"""What agents and their commands print reaches no person's terminal as a command to it: the terminal's own words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator import documents, report, verdicts, views
from orchestrator.display import Display
from orchestrator.house import State
from orchestrator.records import PullRequest
from orchestrator.terminal import printable
from tests.orchestrator import test_mailbox
from tests.orchestrator.helpers import PLAN, change, plan, target, write
from tests.orchestrator.test_measure import OFFICIAL, seeds, trained

FORGED = "\x1b[1A\x1b[2Kverdict x: reproduced\x07\u202e\x9b2K"
SPELT = r"\x1b[1A\x1b[2Kverdict x: reproduced\x07\u202e\x9b2K"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (FORGED, SPELT),
        ("a\tb\nµ, 数, 🙂", "a\tb\nµ, 数, 🙂"),
        ("50 %\r100 %", r"50 %\r100 %"),
        ("\udcff", r"\udcff"),
        ("", ""),
    ],
)
def test_what_is_not_printable_is_spelt_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("kind", ["measured", "failed"])
def test_a_line_of_a_run_is_words_alone(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Display(live=False).say("a", kind, f"accept: {FORGED}")
    assert capsys.readouterr().err.endswith(f" a: {kind} accept: {SPELT}\n")


def test_a_row_of_the_live_table_is_words_alone() -> None:
    from rich.console import Console

    display = Display(live=True)
    display.expect([("a", "A", "worker", "waiting")])
    display.say("a", "output", f"50 %\r{FORGED}\n")
    console = Console(file=sys.stdout, width=200)
    with console.capture() as captured:
        console.print(display._table())
    assert SPELT in captured.get()
    assert "\x1b" not in captured.get()


def test_the_status_of_a_run_is_words_alone_and_the_ledgers_stay(tmp_path: Path) -> None:
    state = State.of(tmp_path)
    known = {"base_commit": "c" * 40, "base_branch": "main", "sandbox": "bubblewrap"}
    state.ledger.open_run("p-1", plan="plans/p.md", budget=plan().budget.model_dump_json(), **known)
    state.ledger.open_task("p-1", "a", position=0, agent="worker")
    state.ledger.set_task("p-1", "a", status="running", detail=FORGED)
    state.ledger.note("p-1", "a", "gate", FORGED)
    content = documents.run(state, "p-1")
    shown = views.status(content, [pulled()])
    assert shown.count(SPELT) == 3
    assert "\x1b" not in shown
    assert content["tasks"][0]["detail"] == content["tasks"][0]["doing"]["body"] == FORGED


def test_a_report_of_a_run_is_words_alone(tmp_path: Path) -> None:
    state = State.of(tmp_path)
    known = {"base_commit": "c" * 40, "base_branch": "main", "sandbox": "bubblewrap"}
    path = f"plans/{FORGED}.md"
    state.ledger.open_run("p-1", plan=path, budget=plan().budget.model_dump_json(), **known)
    write(state.folder / "base" / ("c" * 40), {path: PLAN})
    shown = views.report(state, documents.run(state, "p-1"), [])
    assert SPELT in shown
    assert "\x1b" not in shown


def test_a_result_and_a_pull_request_are_words_alone() -> None:
    failed = trained(9, None, passed=False).model_copy(update={"what": f"seed-9: ended with exit code 1: {FORGED}"})
    verdict = verdicts.verdict(target(), OFFICIAL, change().commit, [*seeds(1.0), failed])
    text = report.results([target()], {"t1": verdict}, [*seeds(1.0), failed])
    shown = views.pull(pulled())
    assert SPELT in text
    assert shown.count(SPELT) == 2
    assert "\x1b" not in text + shown
    assert shown.splitlines()[0].endswith("reproduced"), "a title is one line"


def test_a_request_of_the_mailbox_is_words_alone(tmp_path: Path) -> None:
    box, name = test_mailbox.posted(tmp_path, test_mailbox.request(system=FORGED))
    assert SPELT in box.show(name)
    assert "\x1b" not in box.show(name)


def pulled() -> PullRequest:
    return PullRequest(
        number=1, run="p-1", task="a", plan="plans/p.md", title=f"A: {FORGED}\nverdict y: reproduced", body=FORGED,
        head="odyssey/p-1/a", commit="c" * 40, base="main", base_commit="b" * 40, below=None, risk="low",
        guarded=False, author="worker", status="open",
    )  # fmt: skip
