"""The user's own checkout: found as it stands, refused with the fix, and left as it is to the byte."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import workspace
from orchestrator.errors import InputError
from orchestrator.workspace import ATTRIBUTES, CONFIG, EXCLUDE, Repository, find_checkout
from tests.orchestrator.helpers import commit, fingerprint, git, repository, write
from tests.orchestrator.test_workspace import FILES, ours, session


def dirty(root: Path) -> None:
    write(root, {"a.txt": "half done\n", "untracked.txt": "mine\n", "runs/x": "ignored\n"})
    (root / "deep/er/file.md").unlink()
    write(root, {"staged.txt": "staged\n"})
    git(root, "add", "--", "staged.txt")
    (root / "link").symlink_to("/etc/hostname")


def detached(root: Path) -> None:
    commit(root, {"a.txt": "newer\n"})
    git(root, "checkout", "--quiet", "HEAD~1")


def in_mid_merge(root: Path) -> None:
    git(root, "checkout", "--quiet", "-b", "side")
    commit(root, {"a.txt": "theirs\n"})
    git(root, "checkout", "--quiet", "main")
    commit(root, {"a.txt": "ours\n"})
    with pytest.raises(AssertionError, match="merge"):
        git(root, "merge", "side")


@pytest.mark.parametrize("state", [dirty, detached, in_mid_merge, lambda root: None])
def test_a_users_checkout_is_the_same_to_the_byte_after_a_run(tmp_path: Path, state: Callable[[Path], None]) -> None:
    root = tmp_path / "user"
    repository(root, FILES)
    state(root)
    before = fingerprint(root)
    times = {path: path.lstat().st_mtime_ns for path in root.rglob("*") if ".odyssey" not in path.parts}
    session(root)
    assert fingerprint(root) == before
    assert times == {path: path.lstat().st_mtime_ns for path in root.rglob("*") if ".odyssey" not in path.parts}


def test_a_checkout_is_described_as_it_stands(tmp_path: Path) -> None:
    first = repository(tmp_path, FILES)
    clean = find_checkout(tmp_path / "deep")
    assert (clean.root, clean.commit, clean.branch, clean.dirty) == (tmp_path, first, "main", False)
    git(tmp_path, "checkout", "--quiet", "--detach")
    write(tmp_path, {"a.txt": "changed, and longer\n"})
    found = find_checkout(tmp_path)
    assert (found.branch, found.dirty) == ("", True)


def test_a_folder_that_cannot_be_used_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run this inside a git repository"):
        find_checkout(tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(InputError, match="at least one commit"):
        find_checkout(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to somebody else")
def test_a_repository_of_another_user_is_used_once_the_person_calls_it_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, home = tmp_path / 'a "user"', tmp_path / "home"
    repository(root, FILES)
    git(root, "config", "--add", "safe.directory", "*")  # whoever wrote a repository does not vouch for it
    for path in (root, root / ".git"):
        os.chown(path, 12345, 12345)
    for name, value in {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    home.mkdir()
    with (
        fresh_configuration(),
        pytest.raises(InputError, match=r"dubious ownership.*safe\.directory '[^;]*$") as refusal,
    ):
        find_checkout(root)
    typed = str(refusal.value).rpartition("; ")[2]
    subprocess.run(shlex.split(typed), check=True)
    with fresh_configuration():
        made, _, new = session(root)
    assert made.read(new, "a.txt") == "changed 2\n"


@contextmanager
def fresh_configuration() -> Iterator[None]:
    """What the person configured is read once a process."""
    workspace._safe_directories.cache_clear()
    yield
    workspace._safe_directories.cache_clear()


def test_state_that_came_with_a_repository_is_not_taken_for_ours(tmp_path: Path) -> None:
    repository(tmp_path, FILES)
    write(tmp_path, {".odyssey/key": bytes(32), ".odyssey/repo.git/config": "[core]\n\tfsmonitor = evil\n"})
    git(tmp_path, "add", "--force", ".odyssey")
    git(tmp_path, "commit", "--quiet", "-m", "a gift")
    with pytest.raises(InputError, match=r"\.odyssey: is part of commit [0-9a-f]{12}; it would be taken for our own"):
        find_checkout(tmp_path)


def test_the_configuration_of_our_repository_is_ours_whatever_stood_there(tmp_path: Path) -> None:
    root = tmp_path / "user"
    repository(root, FILES)
    folder = ours(root).folder
    (folder / "config").write_text(f'{CONFIG}[filter "x"]\n\tclean = touch {tmp_path}/sentinel\n')
    (folder / "info/attributes").write_text("* filter=x\n")
    (folder / "info/exclude").write_text("*.py\n")
    session(root)
    assert not (tmp_path / "sentinel").exists()
    made = Repository(folder, folder.with_name("worktrees"))
    assert ((folder / "config").read_text(), (folder / "info/attributes").read_text()) == (CONFIG, ATTRIBUTES)
    assert (folder / "info/exclude").read_text() == EXCLUDE
    assert made.has(find_checkout(root).commit)


def test_a_shallow_clone_will_do(tmp_path: Path) -> None:
    repository(tmp_path / "origin", FILES)
    commit(tmp_path / "origin", {"a.txt": "second\n"})
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{tmp_path}/origin", "user")
    made, _, new = session(tmp_path / "user")
    assert made.read(new, "a.txt") == "changed 2\n"
