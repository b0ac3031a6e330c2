"""The ablation: intervals against published tables, layers really taken off, both sides through the real command."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import ablation, compare, intervals, planner
from orchestrator import library as lib
from orchestrator.compare import Measured
from orchestrator.config import Settings
from orchestrator.errors import InputError
from orchestrator.house import State
from orchestrator.intervals import Interval
from orchestrator.lint import read_plan
from orchestrator.providers.base import Request
from orchestrator.providers.mailbox import Mailbox
from orchestrator.workspace import find_checkout
from tests.orchestrator import brains
from tests.orchestrator.endtoend import Repo, has_bubblewrap, small_digits, small_repo
from tests.orchestrator.helpers import ROOT, write

# Intervals


def test_resampled_means_are_the_same_every_time_and_need_two_values() -> None:
    values = [1.0, 2.0, 3.0, 6.0] * 2
    found = intervals.mean(values)
    assert found == intervals.mean(values)
    assert found.value == 3.0
    assert found.low is not None
    assert found.high is not None
    assert 1.0 <= found.low < 3.0 < found.high <= 6.0
    assert intervals.mean([4.0]) == Interval(4.0, None, None)
    assert intervals.mean([2.0] * 9) == Interval(2.0, 2.0, 2.0)


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_the_mean_of_a_few_normal_values_is_held_as_often_as_is_said(count: int) -> None:
    drawn = np.random.default_rng(count).standard_normal((4000, count)).tolist()
    found = [intervals.mean(values) for values in drawn]
    held = [each.low <= 0.0 <= each.high for each in found if each.low is not None and each.high is not None]
    assert 0.94 < sum(held) / len(drawn) < 0.96


# Layers


def ablated(
    layer: ablation.Layer, folder: Path, path: str = "plans/mnist.md"
) -> tuple[Any, lib.Library, Mapping[str, Any]]:
    """The project's own library and plan with a layer taken off, read again: it must lint."""
    plan, library, assignments = read_plan(ROOT, path)
    found = ablation.without(layer, plan, library, assignments, lambda name: (ROOT / name).read_text())
    for source in (*ROOT.glob("agents/*.md"), *ROOT.glob("skills/*/SKILL.md"), *ROOT.glob("skills/*/scripts/*.toml")):
        write(folder, {source.relative_to(ROOT).as_posix(): source.read_bytes()})
    write(folder, {path: plan.text, **{target.recipe: "" for target in plan.targets}})
    for written in (name for task in plan.tasks if task.done for name in task.writes if "*" not in name):
        (folder / written).parent.mkdir(parents=True, exist_ok=True)
        (folder / written).touch()
    for name, text in found.items():
        if text is None:
            (folder / name).unlink()
        else:
            write(folder, {name: text})
    return read_plan(folder, path)


def test_without_hierarchy_one_generalist_does_it_all_on_the_tiers_that_it_had(tmp_path: Path) -> None:
    before = {each.task: each for each in planner.assign(*read_plan(ROOT, "plans/mnist.md")[:2])}
    _, library, assignments = ablated("hierarchy", tmp_path)
    assert set(library.agents) == {"chief-architect", "generalist", "reviewer"}
    assert {each.chain for each in assignments.values()} == {("chief-architect", "generalist")}
    assert {task: each.tiers for task, each in assignments.items()} == {
        task: each.tiers for task, each in before.items()
    }


def test_without_skills_there_are_no_instructions_and_no_procedures_but_reviewers_read_as_before(
    tmp_path: Path,
) -> None:
    whole = lib.load(ROOT)
    _, library, _ = ablated("skills", tmp_path)
    for name, skill in library.skills.items():
        assert (skill.writes, skill.commands) == (whole.skills[name].writes, whole.skills[name].commands)
        assert skill.procedure is None
        assert skill.body == (whole.skills[name].body if name == "review-change" else "Do the task as it is described.")


def test_without_tiers_every_task_goes_to_the_dearest_at_once(tmp_path: Path) -> None:
    before, _, _ = read_plan(ROOT, "plans/mnist.md")
    plan, _, assignments = ablated("tiers", tmp_path)
    assert {each.tiers for each in assignments.values()} == {("opus",)}
    promises = [task.model_dump(exclude={"tier", "line"}) for task in before.tasks]
    assert [task.model_dump(exclude={"tier", "line"}) for task in plan.tasks] == promises


# What is concluded


def measured(passed: int, of: int, usd: float = 0.0, wall_s: float = 10.0, calls: int = 0) -> Measured:
    status = {f"t{number}": "accepted" if number < passed else "failed" for number in range(of)}
    by_tier = {"sonnet": calls} if calls else {}
    return Measured(status, {}, usd, wall_s, by_tier, calls * 100, False, attempts=of, reviews=0)


@pytest.mark.parametrize(
    ("whole", "bare", "verdict"),
    [
        ([measured(6, 6)] * 6, [measured(1, 6)] * 6, "earns its keep; more is accepted with it"),
        ([measured(1, 6)] * 6, [measured(6, 6)] * 6, "does harm; less is accepted with it"),
        ([measured(1, 1)] * 2, [measured(0, 1)] * 2, "in too few runs to be sure"),
        # tasks need each other, so of one run many fail at once: these are one, two and three observations
        ([measured(8, 8)], [measured(0, 8)], "not shown to earn its keep; more was accepted with it, in too few"),
        ([measured(4, 4)] * 2, [measured(0, 4)] * 2, "not shown to earn its keep; more was accepted with it, in too"),
        (
            [measured(4, 4)] * 3,
            [measured(0, 4), measured(0, 4), measured(4, 4)],
            "not shown to earn its keep; more was accepted with it, in too few runs to be sure",
        ),
        ([measured(4, 4)] * 5, [measured(0, 4)] * 5, "not shown to earn its keep; more was accepted with it, in too"),
        (
            [measured(9, 9)] * 6,
            [measured(0, 9)] * 2 + [measured(9, 9)] * 4,
            "not shown to earn its keep; more was accepted with it, in too few runs to be sure",
        ),
        ([measured(2, 2, 0.1)] * 3, [measured(2, 2, 0.9)] * 3, "earns its keep; it saves dollars"),
        ([measured(2, 2, 0.1, 40.0)] * 3, [measured(2, 2, 0.1, 9.0)] * 3, "not shown to earn its keep; it costs time"),
        ([measured(2, 2)], [measured(2, 2)], "no difference is shown"),
        ([measured(2, 2, calls=9)], [measured(2, 2, calls=5)], "as much is accepted without it, and one seed bounds"),
        (
            [measured(2, 2, 0.0, 40.0, calls=9)] * 2,
            [measured(2, 2, 0.0, 9.0, calls=5)] * 2,
            "not shown to earn its keep; it costs calls and tokens, and as much is accepted without",
        ),
        (
            [measured(2, 2, 0.0, 40.0, calls=5)] * 2,
            [measured(2, 2, 0.0, 9.0, calls=9)] * 2,
            "earns its keep; it saves calls and tokens",
        ),
        ([measured(2, 2, 0.1, calls=9)] * 3, [measured(2, 2, 0.9, calls=5)] * 3, "earns its keep; it saves dollars"),
    ],
)
def test_a_layer_has_to_earn_its_keep(whole: list[Measured], bare: list[Measured], verdict: str) -> None:
    content = compare.summary("plans/p.md", "skills", "mailbox", whole, bare)
    assert verdict in content["verdict"]
    assert content["verdict"] in compare.table(content)


def test_more_dollars_than_a_person_allowed_are_refused_before_anything_runs() -> None:
    compare.check_dollars("plans/p.md", 2.0, 10, 20.0)
    with pytest.raises(InputError) as caught:
        compare.check_dollars("plans/p.md", 2.5, 10, 20.0)
    assert str(caught.value) == (
        "plans/p.md: 10 runs may cost $25.00 by the plan's budget, over the limit of $20.00; "
        "allow it with --usd 25, or take fewer --seeds"
    )


@dataclass(frozen=True)
class Played(compare.Experiment):
    """Its runs are only noted."""

    ran: list[tuple[bool, int]] = field(default_factory=list)

    def _run(self, root: Path, whole: bool, seed: int, said: str) -> Measured:
        self.ran.append((whole, seed))
        return measured(1, 1)


def test_what_was_measured_with_other_settings_is_measured_anew(tmp_path: Path) -> None:
    brains.repository(tmp_path, 1)
    first = Played(find_checkout(tmp_path), State.of(tmp_path), "plans/p.md", "tiers", Settings(), lambda _: None)
    cheaper = {"haiku": "another"}
    for chosen, runs in (({}, 2), ({}, 2), ({"models": cheaper}, 4), ({"parallel": 1}, 6), ({"models": cheaper}, 6)):
        replace(first, settings=Settings.model_validate(chosen)).run(1, keep=False)
        assert len(first.ran) == runs, chosen


@pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
def test_both_sides_run_for_real_in_repositories_of_their_own_and_are_not_run_twice(tmp_path: Path) -> None:
    repo = small_repo(tmp_path, small_digits(tmp_path / "data"), measured=False)
    content = repo.json("compare", "plans/small.md", "--without", "skills", "--seeds", "1")
    again = repo.run("compare", "plans/small.md", "--without", "skills", "--seeds", "1")

    assert {name: (side["passed"], side["tasks"]) for name, side in content["sides"].items()} == {
        "with": (2, 2),
        "without skills": (0, 2),
    }
    blocked = content["sides"]["without skills"]["blocked"]
    assert all("needs a model" in why for why in blocked.values())
    assert sorted(blocked) == ["data", "second"]
    assert again.returncode == 0, again.stderr
    assert "running" not in again.stderr
    assert "skills: not shown to earn its keep; more was accepted with it, in too few runs to be sure" in again.stdout
    assert repo.git("status", "--porcelain") == ""
    assert repo.json("pr", "list")["pull_requests"] == []
    assert repo.run("compare", "plans/small.md", "--without", "skill").stderr.strip() == (
        "--without skill: no such layer; did you mean `skills`?"
    )


NOTE = {"text": "I write.", "calls": [{"tool": "write", "input": {"path": "notes/a.md", "content": "a"}}]}


def by_mail(asked: Request) -> Any:
    """What a language model would say to whoever asks: the chief, the one who does the task, the one who reads it."""
    text = str(asked.messages[0]["content"])
    if "# The tasks to hand out" in text:
        to = "generalist" if "`generalist`" in asked.system else "worker"
        return {"why": "small", "tasks": [{"task": "a", "agent": to, "brief": "Write a."}]}
    if "# Review task" in text:
        return brains.FINE
    return NOTE if asked.turn == 0 else {"text": "The note is written."}


def answered(repo: Repo, process: subprocess.Popen[str], at_most: int = 99) -> list[str]:
    """Answer what is asked until the comparison ends, or so many times; which requests of which runs those were."""
    found: list[str] = []
    while process.poll() is None and len(found) < at_most:
        for place in repo.root.glob(".odyssey/compare/*/repo/.odyssey/mailbox"):
            box = Mailbox(place)
            for name in box.open()[: at_most - len(found)]:
                box.answer(name, json.dumps(by_mail(box.request(name)[1])))
                found.append(f"{place.parts[-4]}/{name}")
        time.sleep(0.1)
    return found


@pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
def test_a_comparison_by_mail_is_asked_from_here_goes_on_where_it_was_cut_off_and_counts_its_calls(
    tmp_path: Path,
) -> None:
    repo = Repo(brains.repository(tmp_path / "repo", 1), tmp_path)
    argv = ["compare", "plans/p.md", "--without", "hierarchy", "--seeds", "1", "--provider", "mailbox", "--json"]
    process = repo.start(*argv)
    found = answered(repo, process, at_most=2)
    while not (waiting := repo.json("mailbox", "list")["requests"]):
        assert process.poll() is None
    asker = "compare plans/p.md, seed 0, whole"
    assert repo.json("mailbox", "list")["askers"] == [{"request": waiting[0], "asker": asker}]
    assert repo.run("mailbox", "list").stdout == f"{waiting[0]}\t{asker}\n"
    shown = repo.run("mailbox", "show", waiting[0])
    process.terminate()
    _, told = process.communicate(timeout=300)
    assert (process.returncode, shown.returncode) == (143, 0), told
    assert f"mailbox show {waiting[0]}" in told

    process = repo.start(*argv)
    found += answered(repo, process)
    out, told = process.communicate(timeout=300)
    content = json.loads(out)

    assert process.returncode == 0, told
    assert "going on with p-1" in told
    sides = content["sides"]
    assert [(side["passed"], side["calls"], side["attempts"], side["reviews"]) for side in sides.values()] == [
        (1, 4, 1, 1),
        (1, 4, 1, 1),
    ]
    assert len(found) == len(set(found)) == sum(side["calls"] for side in sides.values())
    assert {name: side["calls_by_tier"] for name, side in sides.items()} == {
        "with": {"haiku": 2, "opus": 2},
        "without hierarchy": {"haiku": 2, "opus": 2},
    }
    assert all(side["tokens_estimated"] and side["tokens"] > 1000 for side in sides.values())
