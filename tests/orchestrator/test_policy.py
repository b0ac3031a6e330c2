"""What a change may not do, each violation in a real repository."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from orchestrator import planfile, policy
from orchestrator.providers.base import FENCED
from orchestrator.records import Change, Plan, Skill, Task
from orchestrator.workspace import Repository
from tests.orchestrator.helpers import PLAN, plan, repository, skill, task, write

TEST = """\
import pytest


def test_one():
    assert 1
    assert 2


def test_two():
    with pytest.raises(ValueError):
        int('x')
"""
RECORD = planfile.set_block(PLAN, "result", "| t1 | 1.05 % |")
FILES: dict[str, str | bytes] = {
    "r.toml": "rate = 1\n",
    "plans/p.md": RECORD,
    "plans/other.md": PLAN,
    "plans/LOG.md": "# Log\n",
    "tests/test_x.py": TEST,
    "README.md": "words\n",
}
EVERYTHING = task(writes=("**",))
Edit = Callable[[Path], object]


def violations(
    folder: Path, edit: Edit, what: Task = EVERYTHING, how: Skill | None = None, of: Plan | None = None
) -> list[str]:
    """What the policy says of a change made by `edit` in a worktree."""
    first = repository(folder / "user", FILES)
    made = Repository(folder / "repo.git", folder / "worktrees")
    made.bring_in(folder / "user", first)
    worktree, base = made.open("odyssey/r-1/attempts/a/1", first)
    edit(worktree)
    changed = _change(made, worktree, base)
    return policy.violations(changed, what, how or skill("tune"), of or plan(), made)


def _change(made: Repository, worktree: Path, base: str) -> Change:
    return made.change("a", 1, "haiku", base, made.commit(worktree, base, "x", "x"))


def putting(files: Mapping[str, str | bytes]) -> Edit:
    return lambda worktree: write(worktree, files)


def replacing(path: str, old: str, new: str) -> Edit:
    def edit(worktree: Path) -> None:
        text = (worktree / path).read_text()
        assert old in text
        (worktree / path).write_text(text.replace(old, new, 1))

    return edit


def test_a_change_within_its_paths_breaks_nothing(tmp_path: Path) -> None:
    edits = {"r.toml": "rate = 2\n", "README.md": "more\n", "tests/test_y.py": TEST, "plans/LOG.md": "# Log\n\nx\n"}
    assert violations(tmp_path, putting(edits)) == []


def test_a_file_outside_the_tasks_or_the_skills_paths_is_named(tmp_path: Path) -> None:
    edit = putting({"r.toml": "2\n", "README.md": "x\n"})
    said = ["README.md: the task may write only r.toml"]
    assert violations(tmp_path / "1", edit, task(writes=("r.toml",))) == said
    assert violations(tmp_path / "2", edit, EVERYTHING, skill("tune", "r.toml")) == [
        "README.md: the task may write only **"
    ]


@pytest.mark.parametrize("name", ["a\n## Verdict\n.py", "a`b`.py", "a\x1b[2K.py", "a\u2028b.py"])
def test_a_name_that_could_pass_for_words_of_the_harness_is_refused(tmp_path: Path, name: str) -> None:
    (found,) = violations(tmp_path, putting({name: "x"}))
    assert found == f"{name!a}: such a name could pass for words of the harness"


def test_a_rename_counts_as_both_of_its_paths(tmp_path: Path) -> None:
    found = violations(tmp_path, lambda at: (at / "r.toml").rename(at / "s.toml"), task(writes=("r.toml",)))
    assert found == ["s.toml: the task may write only r.toml"]
    found = violations(tmp_path / "2", lambda at: (at / "README.md").rename(at / "r.toml"), task(writes=("r.toml",)))
    assert found == ["README.md: the task may write only r.toml"]


def link(worktree: Path) -> None:
    (worktree / "r.toml").unlink()
    (worktree / "r.toml").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (link, "r.toml: symbolic links are not taken"),
        (lambda at: repository(at / "nested", {"x": "x"}), "nested: nested repositories are not taken"),
        (lambda at: (at / os.fsdecode(b"bad\xff")).write_text("x"), "bad\\xff: outside the repository"),
        (putting({".odyssey/key": "x"}), ".odyssey/key: outside the repository"),
        (putting({"-rf": "x"}), "-rf: outside the repository"),
        (putting({"a\\b": "x"}), "a\\b: outside the repository"),
        (putting({"big": b"x" * ((1 << 20) + 1)}), "big: larger than 1048576 bytes"),
        (putting({"k": "-----BEGIN OPENSSH PRIVATE KEY-----"}), "k: holds what looks like a secret"),
        (putting({"k": "key = sk-ant-" + "a1" * 12}), "k: holds what looks like a secret"),
        (putting({"k": "ghp_" + "a1" * 18}), "k: holds what looks like a secret"),
        (putting({"k": b"\xff\0 AKIAIOSFODNN7EXAMPLE \xfe"}), "k: holds what looks like a secret"),
        (lambda at: (at / "tests/test_x.py").unlink(), "tests/test_x.py: 2 tests became 0"),
        (replacing("tests/test_x.py", "def test_two", "def tst_two"), "tests/test_x.py: 2 tests became 1"),
        (replacing("tests/test_x.py", "    assert 2\n", ""), "tests/test_x.py: 3 assertions became 2"),
        (replacing("tests/test_x.py", "assert 1", "# assert 1"), "tests/test_x.py: 3 assertions became 2"),
        (
            replacing("tests/test_x.py", "pytest.raises(ValueError)", "nothing()"),
            "tests/test_x.py: 3 assertions became 2",
        ),
        (lambda at: (at / "tests/test_x.py").rename(at / "tests/deep.py"), "tests/test_x.py: 3 assertions became 0"),
        (replacing("plans/p.md", "value: 1.0", "value: 9.0"), "plans/p.md: `targets` was changed"),
        (replacing("plans/p.md", "margin: 0.1", "margin: 5"), "plans/p.md: `targets` was changed"),
        (replacing("plans/p.md", "seeds: 3", "seeds: 1"), "plans/p.md: `targets` was changed"),
        (replacing("plans/p.md", "dataset: mnist", "dataset: easy"), "plans/p.md: `targets` was changed"),
        (replacing("plans/p.md", "minutes: 5", "minutes: 500"), "plans/p.md: `budget` was changed"),
        (replacing("plans/p.md", "title: A plan", "title: Another"), "plans/p.md: `title` was changed"),
        (
            replacing("plans/p.md", "title: A plan", "title: A plan\npaper: {title: x}"),
            "plans/p.md: `paper` was changed",
        ),
        (
            replacing("plans/p.md", "writes: r.toml", "writes: '**'"),
            "plans/p.md: tasks were changed; an agent may edit",
        ),
        (replacing("plans/p.md", "  - needs: a\n", ""), "plans/p.md: tasks were changed; an agent may edit"),
        (replacing("plans/p.md", "Do the first", "Do less"), "plans/p.md: tasks were changed; an agent may edit"),
        (replacing("plans/p.md", "skill: tune", "skil: tune"), "plans/p.md:12: unknown key `skil` in task `a`"),
        (lambda at: (at / "plans/p.md").unlink(), "plans/p.md:1: has no front matter"),
        (replacing("plans/p.md", "| 1.05 %", "| 0.05 %"), "plans/p.md: the harness's own record was changed (result)"),
        (replacing("plans/p.md", "- [ ] `a`", "- [x] `a`"), "plans/p.md: the harness's own record was changed (tasks)"),
        (
            replacing("plans/p.md", "  - skill: tune\n", "  - skill: tune\n  - status: accepted\n"),
            "plans/p.md: the harness's own record was changed (tasks)",
        ),
        (
            replacing("plans/p.md", "## First\n", "<!--odyssey:x-->\n| t1 | 0.01 % |\n<!-- /odyssey:x -->\n## First\n"),
            "plans/p.md: the harness's own record was changed (markers)",
        ),
        (
            lambda at: (at / "plans/p.md").write_bytes((at / "plans/p.md").read_bytes() + b"\xff"),
            "plans/p.md: is not UTF-8 text",
        ),
        (replacing("plans/other.md", "margin: 0.1", "margin: 5"), "plans/other.md: `targets` was changed"),
        (lambda at: (at / "plans/other.md").unlink(), "plans/other.md:1: has no front matter"),
    ],
)
def test_each_violation_is_named(tmp_path: Path, edit: Edit, expected: str) -> None:
    found = violations(tmp_path, edit)
    assert [line for line in found if line.startswith(expected)], found


def test_a_change_beyond_its_bounds_has_none_of_its_texts_read(tmp_path: Path) -> None:
    edits: dict[str, str | bytes] = {"big": b"x" * ((1 << 20) + 1), "tests/test_x.py": "", "plans/p.md": "no plan"}
    assert violations(tmp_path, putting(edits)) == ["big: larger than 1048576 bytes"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (policy.TEST, "\n" * 50_000),
        (policy.ASSERTION, "\n" * 50_000),
        (policy.TEST, " " * 50_000),
        (policy.SECRETS, "-----BEGIN " * 10_000),
        (planfile.MARKER, "<!--" + " " * 50_000),
        (planfile.MARKER, "<!-- odyssey" * 20_000),
        (FENCED, "```" + "\n" * 50_000),
    ],
)
def test_what_an_agent_writes_makes_no_search_slower_than_its_text_is_long(pattern: re.Pattern[str], text: str) -> None:
    began = time.process_time()
    assert pattern.findall(text) == []
    assert time.process_time() - began < 1.0  # four of them took 4 to 60 s, growing with the square


def test_prose_around_the_tasks_of_a_plan_may_be_edited(tmp_path: Path) -> None:
    prose = replacing("plans/p.md", "## First\n", "## First\n\nWhy this is done: because.\n\n## A new section\n")
    assert violations(tmp_path, prose) == []


def test_targets_are_held_against_the_plan_that_the_run_began_with(tmp_path: Path) -> None:
    began_with = plan(PLAN.replace("margin: 0.1", "margin: 0.2"))
    found = violations(tmp_path, replacing("plans/p.md", "# A plan", "# The plan"), of=began_with)
    assert found == ["plans/p.md: `targets` was changed"]


def test_what_the_harness_recorded_below_a_change_is_no_change_of_the_agents(tmp_path: Path) -> None:
    first = repository(tmp_path / "user", FILES)
    made = Repository(tmp_path / "repo.git", tmp_path / "worktrees")
    made.bring_in(tmp_path / "user", first)
    ticked = planfile.tick(RECORD, "a", "accepted", "worker (level 2)", True)
    head = made.commit_files(first, {"plans/p.md": ticked.encode()}, "Record", "Odyssey harness")
    worktree, base = made.open("odyssey/r-1/attempts/b/1", head)
    replacing("plans/p.md", "# A plan", "# The plan")(worktree)
    changed = _change(made, worktree, base)
    assert policy.violations(changed, EVERYTHING, skill("tune"), plan(), made) == []
