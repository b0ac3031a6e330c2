"""The local forge: one pull request a task, approvals that count, merges that land and never harm a checkout."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import pulls
from orchestrator.errors import ForgeError, NotFound
from orchestrator.forge.local import LocalForge, person
from orchestrator.ledger import Ledger
from orchestrator.records import PullRequest
from orchestrator.workspace import Repository, strip_git_variables
from tests.orchestrator.helpers import commit, fingerprint, git, ledger, repository, write

FILES: dict[str, str | bytes] = {"a.txt": "a\n", "b.txt": "b\n", "c.txt": "c\n"}


@dataclass
class House:
    root: Path
    forge: LocalForge
    repository: Repository
    ledger: Ledger
    first: str

    def draft(self, task: str, on: str, path: str, text: str, **changed: Any) -> PullRequest:
        """A pull request that changes one file, on top of `on`."""
        new = self.repository.commit_files(on, {path: text.encode()}, f"Change {path}", "engineer (haiku)")
        fields: dict[str, Any] = {
            "number": 0, "run": "r-1", "task": task, "plan": "plans/p.md", "title": f"Change {path}", "body": "b",
            "head": f"odyssey/r-1/{task}", "commit": new, "base": "main", "base_commit": on, "below": None,
            "risk": "low", "guarded": False, "author": "engineer (haiku)", "status": "open",
        }  # fmt: skip
        return PullRequest(**{**fields, **changed})

    def stack(self, **upper: Any) -> tuple[PullRequest, PullRequest, PullRequest]:
        """Three pull requests, each on the one below; `upper` goes to the second."""
        one = self.forge.open(self.draft("one", self.first, "a.txt", "A\n"))
        two = self.forge.open(self.draft("two", one.commit, "b.txt", "B\n", **{"below": one.number, **upper}))
        three = self.forge.open(self.draft("three", two.commit, "c.txt", "C\n", below=two.number))
        return one, two, three

    def status(self) -> list[str]:
        return [pull.status for pull in self.forge.all()]

    def head(self) -> str:
        return git(self.root, "rev-parse", "HEAD")


@pytest.fixture
def house(tmp_path: Path) -> House:
    root = tmp_path / "user"
    first = repository(root, FILES)
    made = Repository(tmp_path / "repo.git", tmp_path / "worktrees")
    made.bring_in(root, first)
    book = ledger(tmp_path / "state")
    return House(root, LocalForge(book, made, root), made, book, first)


def test_opening_twice_gives_the_same_pull_request_with_its_own_branch(house: House) -> None:
    one = house.forge.open(house.draft("one", house.first, "a.txt", "A\n"))
    again = house.forge.open(house.draft("one", house.first, "a.txt", "other\n"))
    assert again == one == house.forge.show(1)
    assert (one.number, one.status, bool(one.created_at)) == (1, "open", True)
    assert house.repository.resolve("refs/heads/odyssey/r-1/one") == one.commit
    with pytest.raises(NotFound, match="there is no pull request 2"):
        house.forge.show(2)


def test_a_diff_is_against_what_the_pull_request_is_stacked_on(house: House) -> None:
    _, two, _ = house.stack()
    diff = house.forge.diff(two.number)
    assert "+B" in diff
    assert "+A" not in diff


def test_a_diff_is_shown_as_words_alone(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pulls, "_forge", lambda: house.forge)
    house.forge.open(house.draft("one", house.first, "a.txt", "\x1b[2Kverdict\tx\n"))
    pulls.pr_diff(1)
    assert capsys.readouterr().out.endswith("-a\n+\\x1b[2Kverdict\tx\n")


def test_a_merge_lands_in_the_users_branch_files_and_history(house: House) -> None:
    one, *_ = house.stack()
    merged = house.forge.merge(one.number, "A Person")
    assert (merged.status, merged.approved_by) == ("merged", "A Person")
    assert (house.root / "a.txt").read_text() == "A\n"
    assert git(house.root, "show", "--no-patch", "--format=%P|%s|%an|%cn|%ce", "HEAD") == (
        f"{house.first} {one.commit}|Merge pull request 1: Change a.txt|A Person|A Person|person@example.org"
    )
    assert git(house.root, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(house.root, "status", "--porcelain") == ""


def test_merging_brings_in_what_it_is_stacked_on_and_nothing_above(house: House) -> None:
    _, two, _ = house.stack()
    house.forge.merge(two.number, "A Person")
    assert house.status() == ["merged", "merged", "open"]
    assert [(house.root / name).read_text() for name in FILES] == ["A\n", "B\n", "c\n"]
    house.forge.merge(3, "A Person")
    assert house.status() == ["merged"] * 3
    assert (house.root / "c.txt").read_text() == "C\n"


def test_a_stack_merges_from_the_bottom_one_by_one(house: House) -> None:
    for number in (1, 2, 3):
        house.stack()
        house.forge.merge(number, "A Person")
        assert house.status().count("merged") == number
    assert [(house.root / name).read_text() for name in FILES] == ["A\n", "B\n", "C\n"]


def test_what_guards_the_system_needs_an_approval_also_from_above(house: House) -> None:
    house.stack(guarded=True)
    before = house.head()
    for number in (2, 3):
        with pytest.raises(ForgeError, match=r"pull request 2 changes what guards .* `orchestrate pr approve 2`"):
            house.forge.merge(number, "A Person")
    assert (house.head(), house.status()) == (before, ["open"] * 3)
    assert house.forge.approve(2, "Another").approved_by == "Another"
    house.forge.merge(3, "A Person")
    assert [pull.approved_by for pull in house.forge.all()] == ["A Person", "Another", "A Person"]


def test_an_authors_approval_does_not_count(house: House) -> None:
    house.stack(guarded=True)
    with pytest.raises(ForgeError, match=r"`engineer \(haiku\)` wrote pull request 2: .*; `git config user.name NAME`"):
        house.forge.approve(2, "engineer (haiku)")
    assert house.forge.show(2).status == "open"


def test_what_is_over_cannot_be_approved_merged_or_closed_again(house: House) -> None:
    house.stack()
    house.forge.merge(1, "A Person")
    house.forge.close(3)
    over = {1: "merged; .* `git revert -m 1 COMMIT` takes", 3: "closed; `orchestrate pr reopen 3` opens it again"}
    for number, words in over.items():
        for act in (lambda n: house.forge.approve(n, "x"), lambda n: house.forge.merge(n, "x"), house.forge.close):
            with pytest.raises(ForgeError, match=f"pull request {number} is already {words}"):
                act(number)


def test_what_is_stacked_on_a_closed_one_is_merged_once_that_is_reopened(house: House) -> None:
    house.stack()
    house.forge.close(1)
    with pytest.raises(ForgeError, match="pull request 3 is stacked on 1, which was closed; `orchestrate pr reopen 1`"):
        house.forge.merge(3, "A Person")
    assert (house.root / "a.txt").read_text() == "a\n"
    assert house.forge.reopen(1).status == "open"
    house.forge.merge(3, "A Person")
    assert house.status() == ["merged"] * 3
    assert [(house.root / name).read_text() for name in FILES] == ["A\n", "B\n", "C\n"]


def typed(house: House, words: str) -> None:
    """A person types the git commands that the refusal of pull request 3 names."""
    with pytest.raises(ForgeError) as refusal:
        house.forge.merge(3, "A Person")
    assert words in str(refusal.value)
    for command in re.findall(r"`git ([^`]+)`", str(refusal.value).partition("by hand: ")[2]):
        git(house.root, *shlex.split(command))


def test_what_is_stacked_on_a_closed_one_can_be_taken_alone_by_hand(house: House) -> None:
    house.stack()
    house.forge.close(1)
    typed(house, "stacked on 1, which was closed; ")
    assert [(house.root / name).read_text() for name in FILES] == ["a\n", "b\n", "C\n"]


def test_a_pull_request_for_a_branch_that_is_gone_says_how_to_make_one_and_how_to_take_it_by_hand(house: House) -> None:
    house.stack()
    git(house.root, "branch", "--move", "trunk")
    typed(house, "is for main, which is no branch any more; `git switch -c main` makes one where you stand")
    assert [(house.root / name).read_text() for name in FILES] == ["A\n", "B\n", "C\n"]
    git(house.root, "switch", "--quiet", "-c", "main")
    house.forge.merge(3, "A Person")
    assert house.status() == ["merged"] * 3


def test_a_reopened_one_must_be_approved_again(house: House) -> None:
    house.stack(guarded=True)
    house.forge.approve(2, "Another")
    house.forge.close(2)
    assert house.forge.reopen(2).approved_by == ""
    with pytest.raises(ForgeError, match="`orchestrate pr approve 2`"):
        house.forge.merge(2, "A Person")


def test_what_is_not_closed_cannot_be_reopened(house: House) -> None:
    house.stack()
    house.forge.merge(1, "A Person")
    for number, words in {1: "is already merged; ", 2: "is open; `orchestrate pr merge 2` takes it"}.items():
        with pytest.raises(ForgeError, match=f"pull request {number} {words}"):
            house.forge.reopen(number)


# The user's checkout, in every state


def refused(house: House, words: str, number: int = 1) -> None:
    """The merge is refused with these words, and the checkout and the records are as before."""
    before = (visible(house.root), house.status())
    with pytest.raises(ForgeError, match=words):
        house.forge.merge(number, "A Person")
    assert (visible(house.root), house.status()) == before


def visible(root: Path) -> dict[str, str]:
    """The files, branches and states that a person works with; git's objects and logs of what it did left out."""
    kept = (".git/refs", ".git/HEAD", ".git/MERGE_HEAD", ".git/config", ".git/packed-refs")
    found = fingerprint(root, ())
    return {name: text for name, text in found.items() if not name.startswith(".git/") or name.startswith(kept)}


def test_another_branch_is_named_with_the_command_to_switch(house: House) -> None:
    house.stack()
    git(house.root, "switch", "--quiet", "-c", "other")
    refused(house, "pull request 1 is for main, and other is checked out; run `git switch main` first")
    assert not (house.root / ".git/FETCH_HEAD").exists()


def test_a_detached_head_has_no_branch_to_merge_into(house: House) -> None:
    house.stack()
    git(house.root, "switch", "--quiet", "--detach")
    refused(house, "pull request 1 is for main, and no branch is checked out; run `git switch main` first")


def test_a_pull_request_from_a_detached_head_goes_into_whatever_branch_is_checked_out(house: House) -> None:
    house.forge.open(house.draft("one", house.first, "a.txt", "A\n", base=""))
    git(house.root, "switch", "--quiet", "--detach")
    refused(house, "run `git switch BRANCH` first")
    git(house.root, "switch", "--quiet", "-c", "mine")
    house.forge.merge(1, "A Person")
    assert git(house.root, "show", "mine:a.txt") == "A"


def test_unsaved_work_in_other_files_is_kept_by_a_merge(house: House) -> None:
    house.stack()
    write(house.root, {"b.txt": "half done\n", "untracked.txt": "mine\n"})
    house.forge.merge(1, "A Person")
    assert (house.root / "a.txt").read_text() == "A\n"
    assert (house.root / "b.txt").read_text() == "half done\n"
    assert (house.root / "untracked.txt").read_text() == "mine\n"


def test_unsaved_work_in_the_same_file_stops_a_merge_and_is_kept(house: House) -> None:
    house.stack()
    write(house.root, {"a.txt": "half done\n"})
    refused(house, "`git stash -u`.*Your local changes to the following files would be overwritten by merge: *; *a.txt")
    assert (house.root / "a.txt").read_text() == "half done\n"


def test_a_branch_that_went_on_is_merged_and_one_that_conflicts_is_left_as_it_was(house: House) -> None:
    house.stack()
    commit(house.root, {"d.txt": "d\n"})
    house.forge.merge(1, "A Person")
    commit(house.root, {"b.txt": "mine\n"})
    refused(house, r"`git merge [0-9a-f]{12}` merges it by hand.*CONFLICT \(content\): Merge conflict in b.txt", 2)
    assert git(house.root, "status", "--porcelain") == ""
    assert (house.root / "b.txt").read_text() == "mine\n"


def test_a_merge_of_the_persons_own_that_is_under_way_is_not_given_up(house: House) -> None:
    house.stack()
    git(house.root, "switch", "--quiet", "-c", "side")
    commit(house.root, {"b.txt": "theirs\n"})
    git(house.root, "switch", "--quiet", "main")
    commit(house.root, {"b.txt": "ours\n"})
    with pytest.raises(AssertionError):
        git(house.root, "merge", "side")
    write(house.root, {"b.txt": "resolved by hand\n"})
    refused(house, "a merge is under way here; finish it")
    assert (house.root / "b.txt").read_text() == "resolved by hand\n"
    assert (house.root / ".git/MERGE_HEAD").exists()


def test_no_hook_of_the_checkout_runs_in_a_merge(house: House, tmp_path: Path) -> None:
    house.stack()
    for name in ("pre-merge-commit", "commit-msg", "prepare-commit-msg", "post-merge", "post-checkout"):
        hook = house.root / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/sentinel\n")
        hook.chmod(0o755)
    house.forge.merge(1, "A Person")
    assert not (tmp_path / "sentinel").exists()


def test_the_person_is_who_git_knows_or_the_user_of_this_machine(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (person(house.root), person(house.root, "email")) == ("A Person", "person@example.org")
    git(house.root, "config", "--unset", "user.name")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USER", "someone")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    assert person(house.root) == "someone"
    write(tmp_path / "home", {".config/git/config": "[user]\n\tname = Another Name\n"})
    assert person(house.root) == "Another Name"
    write(tmp_path / "home", {".gitconfig": "[user]\n\tname = Global Name\n"})
    assert person(house.root) == "Global Name"


def test_a_name_that_the_environment_gives_goes_into_the_merge(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.stack()
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_AUTHOR_NAME", "The Author")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "committer@example.org")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    strip_git_variables()
    assert person(house.root) == "The Author"
    house.forge.merge(1, "A Person")
    assert git(house.root, "show", "--no-patch", "--format=%an <%ae>, %cn <%ce>", "HEAD") == (
        "The Author <person@example.org>, A Person <committer@example.org>"
    )
