"""Selective invalidation: what changed is done again, with what depends on it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import inputs
from orchestrator.forge.local import LocalForge
from orchestrator.house import State
from orchestrator.inputs import changed, of_plan
from orchestrator.records import Plan, PullRequest
from tests.orchestrator import helpers
from tests.orchestrator.endtoend import has_bubblewrap, small_repo
from tests.orchestrator.helpers import PLAN, agent, plan, skill, small_library, write

MORE = """- [ ] `c` Do the third
  - skill: write
  - writes: c.md
"""


def hashes(
    folder: Path, text: str = PLAN + MORE, procedure: str = "p", body: str = "Do it.", prompt: str = "You do things."
) -> dict[str, inputs.Hashes]:
    (folder / "skills/tune").mkdir(parents=True, exist_ok=True)
    (folder / "skills/tune/p.toml").write_text(procedure)
    library = small_library()
    skills = {**library.skills, "write": skill("write", body=body)}
    agents = {**library.agents, "worker": agent("worker", 2, skills=("tune", "write"), prompt=prompt)}
    return of_plan(plan(text), replace(library, skills=skills, agents=agents), folder)


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


def test_a_script_beside_a_skill_or_an_agents_prompt_makes_its_tasks_stale_and_what_needs_them(tmp_path: Path) -> None:
    write(tmp_path, {"skills/write/scripts/s.py": "1"})
    before = hashes(tmp_path)
    write(tmp_path, {"skills/write/scripts/s.py": "2"})
    assert stale(before, hashes(tmp_path)) == {"c": ["files of skill `write`"]}
    write(tmp_path, {"skills/write/scripts/s.py": "1", "skills/tune/new.py": ""})
    assert stale(before, hashes(tmp_path)) == {
        "a": ["files of skill `tune`"],
        "b": ["files of skill `tune`", "what task `a` was given"],
    }
    (tmp_path / "skills/tune/new.py").unlink()
    assert stale(before, hashes(tmp_path, prompt="You do all.")) == {"c": ["agent `worker`"]}


def test_other_words_in_a_section_make_its_tasks_stale_and_what_needs_them_elsewhere(tmp_path: Path) -> None:
    text = PLAN + "\n## Second\n\n" + MORE + "\n## Third\n\n" + MORE.replace("`c`", "`d`") + "  - needs: c\n"
    before = hashes(tmp_path, text)
    said = text.replace("## Second\n", "## Second\n\nDo it well.\n")
    assert stale(before, hashes(tmp_path, said)) == {task: ["the words of section `Second`"] for task in "cd"}


def test_a_record_of_before_these_parts_were_known_stands(tmp_path: Path) -> None:
    known = ("the task itself", "skill", "targets", "task")
    old = {
        task: {name: each for name, each in parts.items() if name.startswith(known)}
        for task, parts in hashes(tmp_path).items()
    }
    assert old["b"].keys() == {"the task itself", "skill `tune`", "targets", "task `a`"}
    write(tmp_path, {"skills/tune/new.py": ""})
    now = hashes(tmp_path, (PLAN + MORE).replace("## First\n", "## First\n\nMore words.\n"), prompt="You do all.")
    assert stale(old, now) == {}


# Recipes: what the accepted commits hold, against the new base


TICKED = plan(
    (PLAN + MORE + "  - needs: b\n- [ ] `d` Do the last\n  - skill: write\n  - writes: d.md\n").replace("[ ]", "[x]")
)
HASHES: dict[str, inputs.Hashes] = {task.id: {"the task itself": "as it was"} for task in TICKED.tasks}
EDITED = {"b": ["recipe `r.toml`"], "c": ["recipe `r.toml`"]}  # b measures it, c needs b


@dataclass
class House:
    """A repository with r.toml, in whose runs tasks are accepted one upon the other."""

    state: State
    head: str
    run: str = ""

    def begin(self, run: str) -> None:
        self.run = run
        self.state.ledger.open_run(run, plan=TICKED.path)

    def accept(
        self, task: str, recipe: str = "", record: Mapping[str, str] | None = HASHES["a"], said: str = ""
    ) -> str:
        """The task's accepted change, in which it wrote this recipe and this plan; the commit."""
        wrote = {f"{task}.md": self.run, "r.toml": recipe, TICKED.path: said}
        files = {path: text.encode() for path, text in wrote.items() if text}
        below, self.head = self.head, self.state.repository.commit_files(self.head, files, "m", "engineer")
        self.state.ledger.open_task(self.run, task, inputs=json.dumps(record) if record else None)
        self.state.ledger.set_task(self.run, task, status="accepted")
        fields: dict[str, Any] = dict.fromkeys(("title", "body", "base", "author"), "")
        fields |= {"run": self.run, "task": task, "plan": TICKED.path, "head": f"odyssey/{self.run}/{task}"}
        fields |= {"commit": self.head, "base_commit": below, "below": None, "guarded": False, "status": "open"}
        LocalForge(self.state.ledger, self.state.repository, Path()).open(PullRequest(number=0, risk="low", **fields))
        return self.head

    def edited(self, recipe: str) -> str:
        """The head with a recipe that a person wrote."""
        return self.state.repository.commit_files(self.head, {"r.toml": recipe.encode()}, "m", "A Person")

    def stale(self, base: str) -> dict[str, list[str]]:
        return inputs.stale(self.state, TICKED, HASHES, base)


@pytest.fixture
def house(tmp_path: Path) -> House:
    first = helpers.repository(tmp_path, {"r.toml": "rate = 1\n"})
    made = House(State.of(tmp_path), first)
    made.state.repository.bring_in(tmp_path, first)
    made.begin("p-1")
    return made


def test_a_recipe_that_a_person_edits_makes_stale_what_was_measured_with_it_and_what_needs_that(house: House) -> None:
    for task in "abcd":
        house.accept(task)
    assert house.stale(house.head) == {}
    assert house.stale(house.edited("rate = 2\n")) == EDITED
    assert house.stale(house.edited("rate = 1\n")) == {}


def test_a_recipe_that_the_run_itself_wrote_before_or_after_the_measurement_makes_nothing_stale(house: House) -> None:
    house.accept("a", recipe="rate = 2\n")
    house.accept("b")
    for base in (house.accept("c"), house.accept("d", recipe="rate = 3\n")):  # a person merges the stack up to here
        assert house.stale(base) == {}
    assert house.stale(house.edited("rate = 1\n")) == EDITED, "as it was before the run is neither"


def test_a_recipe_that_a_later_run_wrote_is_measured_again_once(house: House) -> None:
    for task in "abcd":
        house.accept(task)
    house.begin("p-2")
    house.accept("a", recipe="rate = 2\n")
    assert house.stale(house.head) == EDITED
    house.begin("p-3")
    house.accept("b")
    assert house.stale(house.head) == {"c": EDITED["c"]}, "it was not accepted again"
    house.accept("c")
    assert house.stale(house.head) == {}


def test_prose_that_the_run_itself_wrote_makes_nothing_stale_and_a_persons_does(house: House) -> None:
    part = inputs.WORDS.format("First")

    def saying(words: str) -> tuple[Plan, dict[str, inputs.Hashes]]:
        made = plan(TICKED.text.replace("## First\n", f"## First\n\n{words}\n"))
        return made, {task.id: {part: inputs.words(made)["First"]} for task in made.tasks}

    (before, record), (reported, left), (edited, now) = saying("As planned."), saying("As found."), saying("As I say.")
    house.accept("a", record=record["a"], said=before.text)
    house.accept("b", record=record["b"], said=reported.text)
    assert inputs.stale(house.state, reported, left, house.head) == {}
    assert inputs.stale(house.state, edited, now, house.head) == {"a": [part], "b": [part]}


def test_what_was_accepted_without_record_or_whose_commit_is_gone_stands(house: House) -> None:
    house.accept("b", record=None)
    house.accept("c")
    base = house.edited("rate = 2\n")
    assert house.stale(base) == {"c": EDITED["c"]}
    house.state.ledger.set_pull(2, commit="f" * 40)
    assert house.stale(base) == {}


COUNTED = """---
title: Counted
targets:
  - {id: parameters, metric: parameters, value: 1, margin: 0, direction: reported, source: "a test",
     recipe: mlcore/recipes/small.toml}
budget: {minutes: 20}
---
# Counted

## Counting
- [ ] `measure` Count its parameters
  - skill: measure-reproduction
  - targets: parameters
  - writes: plans/small.md
"""


@pytest.mark.skipif(not has_bubblewrap(), reason="bubblewrap is not installed")
def test_an_edited_recipe_is_measured_again_by_the_next_run(tmp_path: Path) -> None:
    repo = small_repo(tmp_path, tmp_path, measured=False)
    repo.write("plans/small.md", COUNTED)
    repo.commit()
    for argv in (("run", "plans/small.md"), ("pr", "merge", "1")):
        done = repo.run(*argv)
        assert done.returncode == 0, done.stderr
    recipe = (repo.root / "mlcore/recipes/small.toml").read_text()
    repo.write("mlcore/recipes/small.toml", recipe.replace("hidden = [24]", "hidden = [25]"))
    repo.commit()

    done = repo.run("run", "plans/small.md")

    assert done.returncode == 0, done.stderr
    assert "done again: changed since it was done: recipe `mlcore/recipes/small.toml`" in done.stderr
    assert repo.ledger("SELECT run, id FROM tasks") == [("small-1", "measure"), ("small-2", "measure")]
