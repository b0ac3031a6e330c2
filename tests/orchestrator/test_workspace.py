"""Worktrees and snapshots, and that git runs nothing that anyone planted; test_checkout has the user's own checkout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import GitError
from orchestrator.house import State, base_files
from orchestrator.workspace import Repository, find_checkout
from tests.orchestrator.helpers import commit, fingerprint, git, repository, write

FILES: dict[str, str | bytes] = {
    "a.txt": "one\ntwo\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "ident.txt": "$Id$ $Format:%H$\n",
    "data.bin": bytes(range(256)),
    "deep/er/file.md": "x",
    ".gitignore": "*.log\nruns/\n",
    "kept.log": "tracked, though ignored\n",
}


def ours(root: Path) -> Repository:
    return State.of(root).repository


def session(root: Path) -> tuple[Repository, Path, str]:
    """What a run does with a repository, start to end; the second worktree stays open."""
    checkout = find_checkout(root)
    base_files(State.of(root), root, checkout.commit)
    made = ours(root)
    for number in (1, 2):
        worktree, base = made.open(f"odyssey/r-1/attempts/a/{number}", checkout.commit)
        before = made.snapshot(worktree)
        write(worktree, {"a.txt": f"changed {number}\n", "new/file.md": "new\n"})
        made.restore(worktree, before)
        write(worktree, {"a.txt": f"changed {number}\n"})
        new = made.commit(worktree, base, "Change a", "engineer (haiku)")
        made.changed(base, new)
        made.diff(base, new)
        made.merge(base, new)
        made.set_branch("odyssey/r-1/a", new)
        if number == 1:
            made.close("odyssey/r-1/attempts/a/1")
    return made, worktree, new


# Hostile repositories: every way in which git can be told to run a command, each with a sentinel


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


def command(sentinel: Path) -> str:
    script = sentinel.with_name("evil.sh")
    script.write_text(f"#!/bin/sh\ntouch {sentinel}\ncat\n")
    script.chmod(0o755)
    return str(script)


HOOKS = (
    "pre-commit", "commit-msg", "post-commit", "post-checkout", "post-merge", "pre-push", "reference-transaction",
    "post-index-change", "update", "pre-receive", "post-receive", "post-update", "proc-receive", "push-to-checkout",
    "pre-auto-gc", "post-rewrite", "applypatch-msg", "prepare-commit-msg", "pre-rebase", "fsmonitor-watchman",
)  # fmt: skip


def hooks(root: Path, evil: str) -> None:
    for name in HOOKS:
        shutil.copy(evil, root / ".git/hooks" / name)


def configured(**settings: str) -> Callable[[Path, str], None]:
    def plant(root: Path, evil: str) -> None:
        for key, value in settings.items():
            git(root, "config", key.replace("__", "."), value.replace("EVIL", evil))

    return plant


def attributes_file(root: Path, evil: str) -> None:
    write(root.parent, {"attributes": "* filter=evil diff=evil merge=evil\n"})
    configured(core__attributesFile=str(root.parent / "attributes"), filter__evil__clean="EVIL")(root, evil)
    configured(filter__evil__smudge="EVIL", diff__evil__textconv="EVIL", merge__evil__driver="EVIL")(root, evil)


def included(root: Path, evil: str) -> None:
    write(
        root.parent, {"more": f'[core]\n\tfsmonitor = {evil}\n[filter "evil"]\n\tclean = {evil}\n\trequired = true\n'}
    )
    configured(include__path=str(root.parent / "more"))(root, evil)


PLANTED: dict[str, Callable[[Path, str], None]] = {
    "hooks": hooks,
    "hooksPath": lambda root, evil: (hooks(root, evil), configured(core__hooksPath=".git/hooks")(root, evil))[1],
    "fsmonitor": configured(core__fsmonitor="EVIL"),
    "filter": configured(filter__evil__clean="EVIL", filter__evil__smudge="EVIL", filter__evil__required="true"),
    "filter process": configured(filter__evil__process="EVIL"),
    "textconv": configured(diff__evil__textconv="EVIL", diff__evil__cachetextconv="true"),
    "diff.external": configured(diff__external="EVIL"),
    "diff driver": configured(diff__evil__command="EVIL"),
    "merge driver": configured(merge__evil__driver="EVIL"),
    "sshCommand": configured(core__sshCommand="EVIL", remote__origin__url="ssh://localhost/x"),
    "uploadpack": configured(remote__origin__uploadpack="EVIL", uploadpack__packObjectsHook="EVIL"),
    "gpg": configured(commit__gpgSign="true", gpg__program="EVIL", log__showSignature="true"),
    "editor and pager": configured(core__editor="EVIL", core__pager="EVIL", sequence__editor="EVIL"),
    "askPass and credentials": configured(core__askPass="EVIL", credential__helper="EVIL"),
    "alias": configured(alias__fetch="!EVIL", alias__diff="!EVIL"),
    "attributesFile": attributes_file,
    "include": included,
}


@pytest.mark.parametrize("way", PLANTED)
def test_nothing_that_a_repository_configures_is_run(tmp_path: Path, sentinel: Path, way: str) -> None:
    root = tmp_path / "user"
    attributes = (
        "* filter=evil diff=evil merge=evil\n*.txt text eol=crlf ident export-ignore working-tree-encoding=UTF-16\n"
    )
    repository(root, {**FILES, ".gitattributes": attributes})
    PLANTED[way](root, command(sentinel))
    newest = max(path.stat().st_mtime for path in root.rglob("*"))
    os.utime(root / ".git/index", (newest - 5, newest - 5))  # older than the files: git then reads them
    write(root, {"a.txt": "one\ntvo\n"})  # same size
    made, worktree, new = session(root)
    commit_theirs = made.commit_tree(made.tree(new), made.resolve(f"{new}^") or "", "again", "x")
    assert made.merge(new, commit_theirs) == made.tree(new)
    assert not sentinel.exists()
    assert (worktree / "crlf.txt").read_bytes() == FILES["crlf.txt"]


def test_the_sentinels_work(tmp_path: Path, sentinel: Path) -> None:
    """Plain git in the same repositories does run what they configure."""
    for way in ("hooks", "fsmonitor", "filter", "diff.external"):
        root = tmp_path / way.replace(".", "-")
        repository(root, {"a.txt": "x\n", ".gitattributes": "* filter=evil diff=evil\n"})
        PLANTED[way](root, command(sentinel))
        write(root, {"a.txt": "y\n"})
        git(root, "diff")
        git(root, "commit", "--quiet", "-am", "x")
        assert sentinel.exists(), way
        sentinel.unlink()


@pytest.mark.parametrize(
    "attributes",
    ["export-ignore", "ident", "eol=crlf", "text=auto", "filter=x", "working-tree-encoding=UTF-16LE", "binary"],
)
def test_files_come_out_as_the_bytes_that_went_in(tmp_path: Path, attributes: str) -> None:
    root = tmp_path / "user"
    first = repository(root, {**FILES, ".gitattributes": f"* {attributes}\n[attr]custom {attributes.split('=')[0]}\n"})
    base = base_files(State.of(root), root, first)
    worktree, _ = ours(root).open("odyssey/r-1/attempts/a/1", first)
    for folder in (base, worktree):
        assert {name: (folder / name).read_bytes() for name in FILES} == {
            name: content if isinstance(content, bytes) else content.encode() for name, content in FILES.items()
        }
    assert ours(root).snapshot(worktree) == ours(root).tree(first)


# Worktrees and snapshots


@pytest.fixture
def open_worktree(tmp_path: Path) -> tuple[Repository, Path, str]:
    first = repository(tmp_path / "user", FILES)
    made = Repository(tmp_path / "repo.git", tmp_path / "worktrees")
    made.bring_in(tmp_path / "user", first)
    worktree, base = made.open("odyssey/r-1/attempts/a/1", first)
    return made, worktree, base


Opened = tuple[Repository, Path, str]


def test_restore_brings_exactly_the_snapshot_back_and_keeps_ignored_files(open_worktree: Opened) -> None:
    made, worktree, _ = open_worktree
    write(worktree, {"a.txt": "first\n", "added.md": "added\n", "runs/cache": "expensive\n", "x/y/z": "z"})
    os.chmod(worktree / "crlf.txt", 0o755)  # noqa: PTH101
    (worktree / "link").symlink_to("a.txt")
    (worktree / "data.bin").unlink()
    tree, before = made.snapshot(worktree), fingerprint(worktree)
    write(worktree, {"a.txt": "later\n", "kept.log": "later\n", "late/later.md": "late\n", "data.bin": "back\n"})
    (worktree / "added.md").unlink()
    (worktree / "link").unlink()
    (worktree / "link").mkdir()
    write(worktree, {"link/f": "f", ".gitignore": "", "new.log": "n"})
    shutil.rmtree(worktree / "deep")
    write(worktree, {"deep": "now a file"})
    os.chmod(worktree / "crlf.txt", 0o644)  # noqa: PTH101
    assert made.snapshot(worktree) != tree
    made.restore(worktree, tree)
    assert made.snapshot(worktree) == tree
    left = fingerprint(worktree)
    assert left.pop("new.log", None)  # ignored again, so it stays
    assert left == before
    assert (worktree / "runs/cache").read_text() == "expensive\n"


def test_scratch_is_no_work_of_an_attempts_though_no_gitignore_names_it(tmp_path: Path) -> None:
    first = repository(tmp_path / "user", {"a.txt": "one\n", "runs/notes.md": "a person's own\n", "sub/runs/x": "x\n"})
    made = ours(tmp_path / "user")
    made.bring_in(tmp_path / "user", first)
    worktree, base = made.open("odyssey/r-1/attempts/a/1", first)
    write(worktree, {"runs/.cache/pyc/a.pyc": b"\0", "runs/one/checkpoint": "expensive\n"})
    assert made.snapshot(worktree) == made.tree(base)
    write(worktree, {"a.txt": "two\n", "runs/notes.md": "edited\n", "sub/runs/y": "no scratch\n"})
    new = made.commit(worktree, base, "x", "x")
    assert [file.path for file in made.changed(base, new)] == ["a.txt", "runs/notes.md", "sub/runs/y"]
    made.restore(worktree, made.tree(base))
    assert made.snapshot(worktree) == made.tree(base)
    assert (worktree / "runs/one/checkpoint").read_text() == "expensive\n"


def test_a_snapshot_changes_neither_files_nor_index(open_worktree: Opened) -> None:
    made, worktree, base = open_worktree
    write(worktree, {"a.txt": "changed\n"})
    index = made.folder / "worktrees" / worktree.name / "index"
    before = (fingerprint(worktree), index.read_bytes())
    assert made.snapshot(worktree) == made.snapshot(worktree) != made.tree(base)
    assert (fingerprint(worktree), index.read_bytes()) == before
    assert not list(made.folder.glob("scratch-*"))


def test_tracked_files_that_are_ignored_are_part_of_the_work(open_worktree: Opened) -> None:
    made, worktree, base = open_worktree
    assert made.snapshot(worktree) == made.tree(base)
    write(worktree, {"kept.log": "edited\n", "new.log": "ignored\n"})
    new = made.commit(worktree, base, "Edit it", "x")
    assert [(file.path, file.status) for file in made.changed(base, new)] == [("kept.log", "modified")]


def test_a_commit_carries_its_author_and_nothing_when_nothing_changed(open_worktree: Opened) -> None:
    made, worktree, base = open_worktree
    assert made.commit(worktree, base, "Nothing", "x") == base
    write(worktree, {"runs/ignored": "x"})
    assert made.commit(worktree, base, "Nothing", "x") == base
    write(worktree, {"a.txt": "x\n"})
    new = made.commit(worktree, base, "--amend is a title\n\nTask: a", "engineer (haiku)")
    assert git(made.folder, "show", "--no-patch", "--format=%an|%cn|%s|%P", new) == (
        f"engineer (haiku)|Odyssey harness|--amend is a title|{base}"
    )
    assert made.message(new).startswith("--amend is a title\n\nTask: a")


def test_renames_show_both_paths_and_every_kind_of_change_its_mode(open_worktree: Opened) -> None:
    made, worktree, base = open_worktree
    (worktree / "a.txt").rename(worktree / "b.txt")
    (worktree / "crlf.txt").unlink()
    (worktree / "crlf.txt").symlink_to("/etc/passwd")
    write(worktree, {"data.bin": b"\0\1", "line\nbreak é": "x\n", "--upload-pack=evil": "y\n"})
    found = {file.path: (file.status, file.mode, file.added, file.removed) for file in
             made.changed(base, made.commit(worktree, base, "x", "x"))}  # fmt: skip
    assert found == {
        "a.txt": ("deleted", "000000", 0, 2),
        "b.txt": ("added", "100644", 2, 0),
        "crlf.txt": ("modified", "120000", 1, 2),
        "data.bin": ("modified", "100644", -1, -1),
        "line\nbreak é": ("added", "100644", 1, 0),
        "--upload-pack=evil": ("added", "100644", 1, 0),
    }


def test_a_name_that_is_no_text_becomes_a_path_that_nobody_may_write(open_worktree: Opened) -> None:
    from orchestrator.planfile import inside

    made, worktree, base = open_worktree
    (Path(os.fsdecode(os.fsencode(worktree) + b"/bad\xff"))).write_text("x")
    (file,) = made.changed(base, made.commit(worktree, base, "x", "x"))
    assert file.path == "bad\\xff"
    assert not inside(file.path)


def test_a_diff_of_bytes_that_are_no_text_can_be_sent_and_printed(open_worktree: Opened) -> None:
    made, worktree, base = open_worktree
    (worktree / "latin.txt").write_bytes(b"caf\xe9 \xc3\xa9\n")
    diff = made.diff(base, made.commit(worktree, base, "x", "x"))
    assert diff.endswith("+caf\\xe9 é\n")
    assert diff.encode()


def test_a_nested_repository_is_seen_and_none_of_its_commands_run(open_worktree: Opened, sentinel: Path) -> None:
    made, worktree, base = open_worktree
    repository(worktree / "nested", {"x": "x", ".gitattributes": "* filter=evil\n"})
    for plant in ("fsmonitor", "filter", "hooks"):
        PLANTED[plant](worktree / "nested", command(sentinel))
    write(worktree / "nested", {"x": "y"})
    tree = made.snapshot(worktree)
    new = made.commit(worktree, base, "x", "x")
    assert [(file.path, file.mode) for file in made.changed(base, new)] == [("nested", "160000")]
    made.restore(worktree, tree)
    made.restore(worktree, made.tree(base))
    assert not (worktree / "nested").exists()
    assert not sentinel.exists()


def test_a_submodule_of_the_base_is_left_alone_and_none_of_its_commands_run(tmp_path: Path, sentinel: Path) -> None:
    repository(tmp_path / "library", {"x": "x"})
    root = tmp_path / "user"
    repository(root, FILES)
    git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "library"), "lib")
    first = commit(root, {})
    made = ours(root)
    made.bring_in(root, first)
    worktree, base = made.open("odyssey/r-1/attempts/a/1", first)
    assert made.commit(worktree, base, "x", "x") == base
    git(worktree / "lib", "init", "--quiet")
    git(worktree / "lib", "config", "user.name", "x")
    commit(worktree / "lib", {"y": "y", ".gitattributes": "* filter=evil\n"})
    for plant in ("fsmonitor", "filter", "hooks"):
        PLANTED[plant](worktree / "lib", command(sentinel))
    write(worktree / "lib", {"y": "z"})
    write(worktree, {"a.txt": "changed\n"})
    new = made.commit(worktree, base, "x", "x")
    assert {file.path: file.mode for file in made.changed(base, new)} == {"a.txt": "100644", "lib": "160000"}
    made.restore(worktree, made.tree(base))
    assert not sentinel.exists()


def test_a_git_file_that_an_agent_wrote_leads_nowhere(open_worktree: Opened, sentinel: Path, tmp_path: Path) -> None:
    made, worktree, base = open_worktree
    evil = tmp_path / "evil"
    repository(evil, {"x": "x"})
    PLANTED["fsmonitor"](evil, command(sentinel))
    (worktree / ".git").unlink()
    (worktree / ".git").write_text(f"gitdir: {evil}/.git\n")
    write(worktree, {"a.txt": "changed\n"})
    new = made.commit(worktree, base, "x", "x")
    assert [file.path for file in made.changed(base, new)] == ["a.txt"]
    made.restore(worktree, made.tree(base))
    assert not sentinel.exists()


# After a crash


def test_locks_that_a_killed_git_left_are_taken_away(open_worktree: Opened) -> None:
    made, worktree, base = open_worktree
    made.set_branch("odyssey/r-1/a", base)
    other = made.commit_tree(made.tree(base), base, "x", "x")
    admin = made.folder / "worktrees" / worktree.name
    locks = [admin / "index.lock", admin / "HEAD.lock", made.folder / "packed-refs.lock", made.folder / "config.lock",
             made.folder / "refs/heads/odyssey/r-1/a.lock", made.folder / "scratch-1-ab"]  # fmt: skip
    for lock in locks:
        lock.write_text("")
    write(worktree, {"a.txt": "changed\n"})
    with pytest.raises(GitError):
        made.set_branch("odyssey/r-1/a", other)
    made.recover()
    assert not [lock for lock in locks if lock.exists()]
    made.restore(worktree, made.tree(base))
    made.set_branch("odyssey/r-1/a", other)


@pytest.mark.parametrize("missing", [[], ["HEAD"], ["HEAD", "index", "commondir"], ["gitdir"], ["."]])
def test_a_worktree_that_was_cut_off_while_git_made_it_is_made_anew(open_worktree: Opened, missing: list[str]) -> None:
    made, worktree, base = open_worktree
    admin = made.folder / "worktrees" / worktree.name
    (admin / "locked").write_text("initializing")
    for name in missing:
        shutil.rmtree(admin) if name == "." else (admin / name).unlink()
    (worktree / "a.txt").unlink()
    again, same = made.open("odyssey/r-1/attempts/a/1", base)
    assert (again, same) == (worktree, base)
    assert made.snapshot(worktree) == made.tree(base)
    assert sorted(path.name for path in (made.folder / "worktrees").iterdir()) == [worktree.name]
    shutil.rmtree(worktree)
    assert made.snapshot(made.open("odyssey/r-1/attempts/a/1", base)[0]) == made.tree(base)


def test_a_repository_that_was_half_made_beside_its_place_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "repo.git.1/objects").mkdir(parents=True)
    (tmp_path / "repo.git").mkdir()
    first = Repository(tmp_path / "repo.git", tmp_path / "worktrees")
    second = Repository(tmp_path / "repo.git", tmp_path / "worktrees")
    assert git(first.folder, "rev-parse", "--is-bare-repository") == "true"
    assert not second.has("0" * 40)
    assert not (first.folder / "hooks").exists()


def test_an_error_of_git_says_in_its_words_what_failed(tmp_path: Path) -> None:
    repository(tmp_path / "user", FILES)
    made = ours(tmp_path / "user")
    with pytest.raises(GitError, match=r"^git rev-parse failed: fatal: Needed a single revision$"):
        made.tree("nonsense")
    with pytest.raises(GitError, match="git fetch failed: fatal: "):
        made.bring_in(Path(f"--upload-pack=touch {tmp_path}/sentinel;"), "0" * 40)
    assert not (tmp_path / "sentinel").exists()
