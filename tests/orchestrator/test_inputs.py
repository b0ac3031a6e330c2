"""Selective invalidation: what changed is done again, with what depends on it, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import inputs
from orchestrator.inputs import changed, of_plan
from tests.orchestrator.helpers import PLAN, plan, skill, small_library

MORE = """- [ ] `c` Do the third
  - skill: write
  - writes: c.md
"""


def hashes(
    folder: Path, text: str = PLAN + MORE, procedure: str = "p", body: str = "Do it."
) -> dict[str, inputs.Hashes]:
    (folder / "skills/tune").mkdir(parents=True, exist_ok=True)
    (folder / "skills/tune/p.toml").write_text(procedure)
    library = small_library()
    other = skill("write", body=body)
    return of_plan(plan(text), replace(library, skills={**library.skills, "write": other}), folder)


def stale(before: dict[str, inputs.Hashes], now: dict[str, inputs.Hashes]) -> dict[str, list[str]]:
    return {task: parts for task in before if (parts := changed(before[task], now[task]))}


def test_the_same_plan_has_the_same_hashes_wherever_its_ticks_and_prose_stand(tmp_path: Path) -> None:
    text = (PLAN + MORE).replace("- [ ] `a`", "- [x] `a`").replace("# A plan", "# A plan\n\nMore words.")
    assert stale(hashes(tmp_path), hashes(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Do the first", "Do it first", {"a": ["the task itself"], "b": ["task `a`"]}),
        ("Do the third", "Do it last", {"c": ["the task itself"]}),
        ("margin: 0.1", "margin: 0.2", {"b": ["targets"]}),
    ],
)
def test_a_changed_task_or_target_makes_stale_what_depends_on_it_and_nothing_else(
    tmp_path: Path, old: str, new: str, expected: dict[str, list[str]]
) -> None:
    assert stale(hashes(tmp_path), hashes(tmp_path, (PLAN + MORE).replace(old, new))) == expected


def test_a_changed_procedure_or_skill_makes_its_tasks_stale(tmp_path: Path) -> None:
    before = hashes(tmp_path)
    assert stale(before, hashes(tmp_path, procedure="q"))["a"] == ["skill `tune`"]
    assert stale(before, hashes(tmp_path, body="Do it well.")) == {"c": ["skill `write`"]}
