"""What becomes of a judged change: a verdict stands on the tree that was measured, and a miss is not forgotten."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import publish
from orchestrator.house import Run, State
from orchestrator.loop import Outcome
from orchestrator.records import Change, Judgement, Risk, Tier, Verdict
from orchestrator.runner import Runner, Tried, Unanswered
from tests.orchestrator.helpers import PLAN, Journal, change, commit, plan, repository, task

FILES: dict[str, str | bytes] = {
    "r.toml": "x = 1\n", "s.toml": "y = 1\n", "code_.py": "a = 1\n", "docs/a.md": "a\n", "plans/p.md": PLAN,
}  # fmt: skip


def place(root: Path, edit: dict[str, str | bytes]) -> tuple[Run, Change]:
    """A run whose stack went on by an edit since a task had changed nothing and measured at the base."""
    base = repository(root, FILES)
    state = State.of(root)
    state.repository.bring_in(root, base)
    state.repository.bring_in(root, head := commit(root, edit))
    state.repository.set_branch("odyssey/r-1/stack", head)
    loaded = plan()
    other = loaded.targets[0].model_copy(update={"id": "t2", "recipe": "s.toml"})
    loaded = loaded.model_copy(update={"targets": (*loaded.targets, other)})
    run = SimpleNamespace(
        id="r-1", plan=loaded, state=state, repository=state.repository, ledger=state.ledger, base_commit=base,
        stack="odyssey/r-1/stack", say=print, assignments={"b": SimpleNamespace(agent="worker")},
    )  # fmt: skip
    return cast(Run, run), state.repository.change("b", 1, "procedure", base, base)


@pytest.mark.parametrize(
    ("edit", "stale"),
    [("code_.py", True), ("r.toml", True), ("s.toml", False), ("docs/a.md", False)],
)
def test_a_measurement_is_made_again_when_what_it_measured_has_moved(tmp_path: Path, edit: str, stale: bool) -> None:
    """A measuring task changes no file; another target's recipe is nothing to it."""
    run, measured = place(tmp_path, {edit: "z = 2\n"})
    head = run.repository.resolve("refs/heads/odyssey/r-1/stack")
    assert head is not None
    found = publish._stacked(run, run.plan.task("b"), measured, head)
    if not stale:
        assert found == head
        return
    assert isinstance(found, Change)
    assert (found.base, found.commit, found.files) == (head, head, ())


def test_a_publication_that_is_repeated_after_a_crash_takes_nothing_off_the_stack(tmp_path: Path) -> None:
    run, measured = place(tmp_path, {"code_.py": "z = 2\n"})
    top = run.repository.resolve("refs/heads/odyssey/r-1/stack")
    task = run.plan.task("b")

    def again(base_commit: str | None) -> Any:
        mine = SimpleNamespace(number=1, commit=measured.commit, base_commit=base_commit)
        ledger = SimpleNamespace(pull_of=lambda *_: mine, pulls=lambda *_, **__: [mine])
        known = cast(Run, SimpleNamespace(**{**vars(run), "ledger": ledger}))
        return publish.publish(known, cast(Any, None), task, measured, cast(Any, None), "")

    assert again("f" * 40) == {"detail": "pull request 1"}
    assert run.repository.resolve("refs/heads/odyssey/r-1/stack") == top
    again(top)  # cut off before the branch was moved
    assert run.repository.resolve("refs/heads/odyssey/r-1/stack") == measured.commit


def test_a_pull_request_that_a_kill_kept_off_the_stack_is_below_the_next_whoever_publishes_first(
    tmp_path: Path,
) -> None:
    run, _ = place(tmp_path, {"code_.py": "z = 2\n"})
    stack = run.repository.resolve("refs/heads/odyssey/r-1/stack")
    run.repository.bring_in(tmp_path, theirs := commit(tmp_path, {"r.toml": "x = 3\n"}))
    cut_off = SimpleNamespace(number=1, commit=theirs, base_commit=stack)
    ledger = SimpleNamespace(pulls=lambda *_, **__: [cut_off])
    assert publish._head(cast(Run, SimpleNamespace(**{**vars(run), "ledger": ledger}))) == theirs
    assert run.repository.resolve("refs/heads/odyssey/r-1/stack") == theirs


def tried(outcome: str, number: int, tier: Tier) -> Tried:
    made = change().model_copy(update={"attempt": number, "tier": tier})
    risk = Risk(level="low", guarded=False, reasons=())
    return Tried(made, Judgement(outcome=cast(Any, outcome), risk=risk, feedback=outcome), Outcome(True, "", 1))


@pytest.mark.parametrize(
    ("ends", "published", "judged"),
    [
        (["missed", "refused"], 1, 2),
        (["missed", "missed"], 2, 2),
        (["missed", "accepted"], 2, 2),
        (["missed", "unanswered"], 1, 1),
        (["missed", "refused", "unanswered"], 1, 2),
        (["refused", "missed", "refused"], 2, 3),
        (["refused", "refused"], None, None),
    ],
)
def test_a_miss_is_published_whatever_becomes_of_later_attempts_and_they_are_counted(
    ends: list[str], published: int | None, judged: int | None
) -> None:
    tiers: list[Tier] = ["procedure", "sonnet", "opus"]
    seen: list[Any] = []

    class Scripted(Runner):
        async def _begin(self, task: Any) -> Any:
            return {"ladder": tiers[: len(ends)], "opened": {}}

        async def _reopen(self, task: Any, number: int, tier: Tier) -> Any:
            return {}

        async def _try(self, task: Any, number: int, tier: Tier, *rest: Any) -> Tried:
            if ends[number - 1] == "unanswered":
                raise Unanswered("nobody answered")
            return tried(ends[number - 1], number, tier)

        async def _publish(self, task: Any, last: Tried) -> Any:
            seen.append((last.change.attempt, last.judged))

        async def _end(self, *_: Any) -> Any:
            seen.append((None, None))

    runner = Scripted.__new__(Scripted)
    runner._engine, runner._run = cast(Any, Journal()), cast(Any, SimpleNamespace(say=lambda *_: None))
    asyncio.run(runner._climb(task("b")))
    assert seen == [(published, judged)]


def test_code_that_was_measured_gets_no_second_draw_of_seeds(tmp_path: Path) -> None:
    run, measured = place(tmp_path, {"docs/a.md": "b\n"})
    runner = Runner.__new__(Runner)
    runner._run = run

    def differs(files: dict[str, str | bytes]) -> bool:
        run.repository.bring_in(tmp_path, later := commit(tmp_path, files))
        now = run.repository.change("b", 2, "sonnet", measured.base, later)
        return bool(asyncio.run(runner._differs(run.plan.task("b"), measured, now)))

    assert not differs({"docs/a.md": "other words\n"})
    assert differs({"code_.py": "a = 2\n"})


def on(run: Run, base: str, files: dict[str, str]) -> Change:
    """A change of task `b` that was made on `base`."""
    made = run.repository.commit_files(base, {path: text.encode() for path, text in files.items()}, "x", "x")
    return run.repository.change("b", 1, "haiku", base, made)


def test_a_conflict_after_the_measurement_loses_neither_the_verdicts_nor_the_change(tmp_path: Path) -> None:
    run, measured = place(tmp_path, {"r.toml": "x = 2\n"})
    run.ledger.open_run("r-1", plan="plans/p.md")
    run.ledger.open_task("r-1", "b", position=0)
    mine = on(run, measured.base, {"r.toml": "x = 3\n"})
    verdict = Verdict(target="t1", outcome="reproduced", reason="it is")
    risk = Risk(level="low", guarded=False, reasons=())
    judged = Tried(mine, Judgement(outcome="accepted", risk=risk, verdicts=(verdict,)), Outcome(True, "", 1))
    runner = Runner.__new__(Runner)
    runner._engine, runner._run, runner._loop = cast(Any, Journal()), run, None
    runner._publishing, runner._forge = threading.Lock(), cast(Any, None)
    assert asyncio.run(runner._publish(run.plan.task("b"), judged)) == "failed"
    (row,) = run.ledger.tasks("r-1")
    assert [Verdict.model_validate(each) for each in json.loads(row["verdicts"])] == [verdict]
    assert "r.toml" in row["detail"]
    assert "orchestrate run plans/p.md --only b" in row["detail"]
    assert run.repository.resolve("refs/heads/odyssey/r-1/b") == mine.commit
    assert publish.verdicts_of(run) == {}, "it was not published"


def test_prose_that_conflicts_with_the_plans_record_is_left_out_and_the_rest_published(tmp_path: Path) -> None:
    ticked = PLAN.replace("- [ ] `b` Do the second", "- [x] `b` Do the second")
    run, measured = place(tmp_path, {"plans/p.md": ticked})
    mine = on(run, measured.base, {"plans/p.md": PLAN.replace("- [ ] `b`", "Prose.\n\n- [ ] `b`"), "s.toml": "y = 2\n"})
    head = run.repository.resolve("refs/heads/odyssey/r-1/stack")
    assert head is not None
    assert run.repository.merge(head, mine.commit) is None
    found = publish._stacked(run, run.plan.task("b"), mine, head)
    assert isinstance(found, str)
    assert run.repository.read(found, "plans/p.md") == ticked
    assert run.repository.read(found, "s.toml") == "y = 2\n"
