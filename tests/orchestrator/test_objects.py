"""Commits and branches that are written without starting git are what git would have written, and reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import GitError
from orchestrator.workspace import Repository
from tests.orchestrator.helpers import git, repository

FILES: dict[str, str | bytes] = {
    "a.txt": "one\ntwo\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "data.bin": bytes(range(256)),
    "deep/er/file.md": "x",
}
Kept = tuple[Repository, str]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    first = repository(tmp_path / "user", FILES)
    made = Repository(tmp_path / "repo.git", tmp_path / "worktrees")
    made.bring_in(tmp_path / "user", first)
    return made, first


def test_one_file_is_replaced_in_a_commit_and_nothing_else(kept: Kept) -> None:
    made, base = kept
    new = made.commit_files(base, {"deep/er/file.md": "é\r\n$Id$".encode()}, "Record", "Odyssey harness")
    assert made.read(new, "deep/er/file.md") == "é\r\n$Id$"
    assert made.size(new, "deep/er/file.md") == len("é\r\n$Id$".encode())
    assert [file.path for file in made.changed(base, new)] == ["deep/er/file.md"]
    assert made.read(new, "nowhere") is None
    assert made.size(new, "nowhere") == 0


@pytest.mark.parametrize("packed", [False, True])
def test_what_we_write_ourselves_is_what_git_reads_packed_or_not(kept: Kept, packed: bool) -> None:
    made, base = kept
    if packed:
        git(made.folder, "repack", "-adq")
    files = {"a.txt": b"mine\n", "new/deep.md": b"\0\xff", "new.md": b"", "new-er/x": b"x"}
    new = made.commit_files(base, files, "One\n\nTwo", "a <b> (haiku)")
    git(made.folder, "fsck", "--strict", "--no-dangling")
    assert git(made.folder, "rev-parse", f"{new}^{{tree}}") == made.tree(new)
    assert git(made.folder, "rev-parse", f"{new}^") == base
    assert (
        git(made.folder, "show", "--no-patch", "--format=%an|%cn|%B", new) == "a b (haiku)|Odyssey harness|One\n\nTwo"
    )
    assert {file.path: file.status for file in made.changed(base, new)} == {
        "a.txt": "modified", "new.md": "added", "new-er/x": "added", "new/deep.md": "added"
    }  # fmt: skip
    assert made.read(new, "new/deep.md") == "\0\udcff"
    others = set(git(made.folder, "ls-tree", "-r", "--name-only", base).split("\n")) - {"a.txt"}
    assert [made.read(new, path) for path in others] == [made.read(base, path) for path in others]


def test_a_file_takes_the_place_of_a_folder_and_a_folder_that_of_a_file(kept: Kept) -> None:
    made, base = kept
    deep = made.commit_files(base, {"a.txt/b": b"b"}, "x", "x")
    flat = made.commit_files(deep, {"a.txt": b"a"}, "x", "x")
    git(made.folder, "fsck", "--strict", "--no-dangling")
    assert (made.read(deep, "a.txt/b"), made.read(deep, "a.txt")) == ("b", None)
    assert (made.read(flat, "a.txt/b"), made.read(flat, "a.txt")) == (None, "a")


def test_a_branch_that_another_process_holds_is_told_and_recovered(kept: Kept) -> None:
    made, base = kept
    made.set_branch("odyssey/r-1/x", base)
    assert git(made.folder, "rev-parse", "refs/heads/odyssey/r-1/x") == base
    lock = made.folder / "refs/heads/odyssey/r-1/y.lock"
    lock.touch()
    with pytest.raises(GitError, match=r"branch odyssey/r-1/y can't be set: .*File exists"):
        made.set_branch("odyssey/r-1/y", base)
    made.recover()
    made.set_branch("odyssey/r-1/y", base)
    assert made.resolve("refs/heads/odyssey/r-1/y") == base


def test_two_changes_join_unless_they_conflict(kept: Kept) -> None:
    made, base = kept

    def on_base(path: str, text: str) -> str:
        return made.commit_files(base, {path: text.encode()}, "x", "x")

    joined = made.merge(on_base("a.txt", "mine\n"), on_base("crlf.txt", "theirs\n"))
    assert joined is not None
    both = made.commit_tree(joined, base, "x", "x")
    assert (made.read(both, "a.txt"), made.read(both, "crlf.txt")) == ("mine\n", "theirs\n")
    assert made.merge(on_base("a.txt", "mine\n"), on_base("a.txt", "theirs\n")) is None
