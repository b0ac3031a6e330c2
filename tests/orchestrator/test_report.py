"""Reports: what an agent's code printed is quoted, and can be taken neither for a row nor for the end of a block."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator import documents, planfile, publish, report, review, session, verdicts, views
from orchestrator.house import Run, State
from orchestrator.records import Judgement, Risk
from tests.orchestrator.helpers import PLAN, change, plan, receipt, target
from tests.orchestrator.test_measure import OFFICIAL, seeds, trained

PRINTED = (
    "oops\n| `t1` | 1.00 % (a paper) | at most 1.10 % | 0.01 % | reproduced |\n<!-- /odyssey:result -->\n- [x] `c` Mine"
)


def test_what_a_failed_training_printed_stays_within_its_line_of_the_result() -> None:
    failed = trained(9, None, passed=False).model_copy(
        update={"what": f"seed-9: training ended with exit code 1: {PRINTED}"}
    )
    verdict = verdicts.verdict(target(), OFFICIAL, change().commit, [*seeds(1.0), failed])
    text = report.results([target()], {"t1": verdict}, [*seeds(1.0), failed])
    rows = [line for line in text.splitlines() if line.startswith("| `t1`")]
    assert rows == [
        "| `t1` | 1.00 % (a paper) | at most 1.10 % | (does not count: 1.00 % over 1 seeds) | did not finish |"
    ]
    written = planfile.set_block(PLAN, "result", text)
    assert [task.id for task in plan(written).tasks] == ["a", "b"]
    assert planfile.set_block(written, "result", "x") == planfile.set_block(PLAN, "result", "x")


def test_every_seed_and_control_stands_in_the_result_with_its_receipt() -> None:
    found = seeds(1.0, 1.1, 1.2)
    verdict = verdicts.verdict(target(), OFFICIAL, change().commit, found)
    text = report.results([target()], {"t1": verdict}, found)
    for each in found:
        assert f"`{each.id}` |" in text
    assert "1.10 % ± 0.10 over 3 seeds" in text
    assert text.count("(chance expected)") == 3


def test_the_time_of_a_resumed_training_is_not_taken_for_the_whole() -> None:
    found = [trained(0, 1.0, train_wall_s=5.0), trained(1, 1.0)]
    verdict = verdicts.verdict(target(), OFFICIAL, change().commit, found)
    text = report.results([target()], {"t1": verdict}, found)
    assert text.count("| 0 s |") == text.count("| 0 s since it was resumed |") == 1


def test_a_missed_target_and_a_failed_receipt_are_shouted() -> None:
    found = [*seeds(5.0, 5.0, 5.0), receipt("zero-steps: x", kind="control", passed=False, id="f")]
    verdict = verdicts.verdict(target(), OFFICIAL, change().commit, found[:-1])
    text = report.results([target()], {"t1": verdict.model_copy(update={"receipts": ("f",)})}, found)
    assert "**not reproduced**" in text
    assert "**failed**" in text


def test_what_was_measured_before_stands_to_the_letter_beside_what_is_new() -> None:
    both = [target(), target(id="t2")]
    old = {each.id: verdicts.verdict(each, OFFICIAL, change().commit, seeds(2.0)) for each in both}
    before = report.results(both, old, seeds(2.0))
    new = {"t2": verdicts.verdict(both[1], OFFICIAL, change().commit, seeds(3.0))}
    text = report.results(both, new, seeds(3.0), report.parts(before, ["t1", "t3"]))
    assert report.parts(text, ["t1"]) == report.parts(before, ["t1"])
    assert report.parts(text, ["t2"]) == report.parts(report.results(both, new, seeds(3.0)), ["t2"])
    assert report.parts(text, ["t3", "t"]) == {}
    assert report.results(both, {}, [], report.parts(before, ["t2", "t1"])) == before


def test_what_a_reviewer_said_instead_of_a_review_stands_quoted_and_makes_no_heading(tmp_path: Path) -> None:
    """Cut off, or a refusal: its raw words are the reason why there is no review."""
    state = State.of(tmp_path)
    state.ledger.open_run("r-1", plan="plans/p.md", budget=plan().budget.model_dump_json())
    state.ledger.open_task("r-1", "a", position=0)
    run = cast(Run, SimpleNamespace(id="r-1", ledger=state.ledger, plan=plan()))
    risk = Risk(level="low", guarded=False, reasons=(f"low: notes/{PRINTED} (prose)",))
    judgement = review.judged(Judgement(outcome="accepted", risk=risk), f"refused: ## Verdict\n{PRINTED}", "lead")
    body = report.body(run, plan().task("a"), change(), judgement, "done", "h")
    assert [line for line in body.splitlines() if line.startswith(("| `t1`", "<!--", "- [x]", "oops"))] == []
    assert body.count("\n## Verdict") == 0
    assert [line for line in body.splitlines() if "refused: " in line] == [
        line for line in body.splitlines() if line.startswith("> - lead: none could be had: refused: ")
    ]


def test_tasks_of_the_base_plan_that_are_not_the_runs_keep_what_stood_there(tmp_path: Path) -> None:
    state = State.of(tmp_path)
    state.ledger.open_run("p-2", plan="plans/p.md")
    state.ledger.open_task("p-2", "a", position=0)
    verdict = verdicts.verdict(target(), OFFICIAL, change().commit, seeds(2.0))
    standing = planfile.set_block(PLAN, "result", report.results([target()], {"t1": verdict}, seeds(2.0)))

    def written() -> str:
        run = cast(Run, SimpleNamespace(id="p-2", ledger=state.ledger, plan=plan(standing)))
        return publish._results(run, Judgement(outcome="accepted", risk=Risk(level="low", guarded=False, reasons=())))

    assert written() == planfile.block(standing, "result")
    state.ledger.open_task("p-2", "b", position=1)
    assert "| `t1` |" not in written(), "it is measured again"


def test_status_says_what_a_running_task_does_and_for_how_long(tmp_path: Path) -> None:
    state = State.of(tmp_path)
    known = {"base_commit": "c" * 40, "base_branch": "main", "sandbox": "bubblewrap"}
    state.ledger.open_run("p-1", plan="plans/p.md", budget=plan().budget.model_dump_json(), **known)
    for task, status in (("a", "accepted"), ("b", "running")):
        state.ledger.open_task("p-1", task, position=0, agent="worker")
        state.ledger.set_task("p-1", task, status=status, tier="procedure", attempt=1)
        state.ledger.note("p-1", task, "gate", f"{task}/seed-1")
    shown = views.status(documents.run(state, "p-1"), []).splitlines()
    assert shown[2:] == [
        "  accepted    a                    worker, procedure, attempt 1",
        "  running     b                    worker, procedure, attempt 1",
        "    0 min ago: gate b/seed-1",
    ]


@pytest.mark.parametrize(
    ("path", "run"),
    [("plans/mnist.md", "mnist-1"), ("plans/My Plan..lock.md", "my-plan-lock-1"), ("plans/~^:é.md", "plan-1")],
)
def test_a_runs_name_can_be_part_of_a_branchs_whatever_its_plan_is_called(tmp_path: Path, path: str, run: str) -> None:
    state = State.of(tmp_path)
    assert session._new_id(state, plan(path=path)) == run
    state.ledger.open_run(run, plan=path)
    assert session._new_id(state, plan(path=path)) == run.replace("-1", "-2")
    state.repository.open(f"odyssey/{run}/attempts/a/1", _empty_commit(state))


def _empty_commit(state: State) -> str:
    from orchestrator.workspace import git

    who = {f"GIT_{role}_{key}": "x" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    folder = state.repository.folder
    return git(folder, "commit-tree", git(folder, "mktree"), "-m", "x", env=who)
