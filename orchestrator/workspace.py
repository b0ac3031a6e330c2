"""Worktrees and commits. The user's own checkout, branches and remotes are never changed by a run.

Odyssey works in a bare repository of its own, `.odyssey/repo.git`, into which the base commit is fetched; every branch
and worktree of a run lives there. Its configuration is ours alone, so no hook, filter, fsmonitor, textconv or ssh
command of the user's repository (or one that an agent wrote) can run: git has nowhere to find one. What configures git
in it is written anew whenever it differs, since a folder of that name may have come with somebody's repository.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from git import Git, GitCommandError

from orchestrator.config import STATE_FOLDER
from orchestrator.errors import GitError, InputError, Problem
from orchestrator.objects import EXECUTABLE, FILE, TREE, Entry, Objects
from orchestrator.records import Change, FileChange, Tier

# What a tree's own .gitattributes ask for is overruled: files come out of git as the bytes that went in.
ATTRIBUTES = "* -text !eol -ident !filter !working-tree-encoding !export-ignore !export-subst !diff !merge\n"
EXCLUDE = "/runs/\n"  # scratch is no work of an attempt's, also where the tree has no .gitignore that says so
PERSONAL = frozenset(
    {"GIT_CONFIG_GLOBAL", *(f"GIT_{role}_{field}" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL"))}
)
NEVER_IN_NAMES = str.maketrans("", "", "<>\n\0")
CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n[gc]\n\tauto = 0\n"


def clean_environment() -> dict[str, str]:
    """What every git command of ours gets: no configuration but the repository's, no prompts, no signing."""
    return {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
    }


def strip_git_variables() -> None:
    """Forget GIT_* of our own environment: a hook that started us would otherwise choose our repository.

    Who a person is stays, and where their configuration is, which no command but `own_config` reads.
    """
    for name in [name for name in os.environ if name.startswith("GIT_") and name not in PERSONAL]:
        del os.environ[name]


def own_config(cwd: Path, *argv: str) -> str:
    """`git config` as the person has it, wherever they keep it: reading it runs nothing. "" where it says nothing."""
    try:
        return str(Git(str(cwd)).execute(["git", "config", *argv]))
    except GitCommandError:
        return ""


def git(cwd: Path, *argv: str, env: Mapping[str, str] | None = None, strip: bool = True) -> str:
    """Run git with an argument list, never a shell. Returns stdout. Raises GitError with git's own words."""
    safe = ["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never"]
    try:
        with Path(os.devnull).open("rb") as fed, _global_config() as config:
            output = Git(str(cwd)).execute(
                ["git", *safe, *argv],
                istream=fed,
                env={**clean_environment(), "GIT_CONFIG_GLOBAL": config, **(env or {})},
                strip_newline_in_stdout=strip,
            )
    except GitCommandError as error:
        raise GitError(f"git {argv[0]} failed: {_words(error) or f'exit code {error.status}'}") from error
    return str(output)


@contextmanager
def _global_config() -> Iterator[str]:
    """A file with what the person calls safe, and no more: git then works in repositories that somebody else owns.

    A file, since `git fetch` hands no `-c` on to the other side, which asks for the `.git` inside by its own name.
    """
    safe = _safe_directories()
    if not safe:
        yield os.devnull
        return
    with NamedTemporaryFile("w", prefix="odyssey-git-") as file:
        file.write("[safe]\n" + "".join(f"\tdirectory = {_quoted(path)}\n" for path in safe))
        file.flush()
        yield file.name


@lru_cache(maxsize=1)
def _safe_directories() -> tuple[str, ...]:
    said = own_config(Path("/"), "--null", "--show-scope", "--get-all", "safe.directory").split("\0")
    found = [path for scope, path in zip(said[0::2], said[1::2], strict=False) if scope in ("system", "global")]
    return tuple(each for path in found for each in ((path, f"{path}/.git") if path.startswith("/") else (path,)))


def _quoted(value: str) -> str:
    """As git's configuration spells it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _words(error: GitCommandError) -> str:
    """What git said, without GitPython's dressing; conflicts are told on stdout."""
    streams = (str(error.stderr).strip().removeprefix("stderr: "), str(error.stdout).strip().removeprefix("stdout: "))
    lines = (line.strip() for stream in streams for line in stream.removeprefix("'").removesuffix("'").splitlines())
    return "; ".join(line for line in lines if line)


# The user's repository: read, never written


@dataclass(frozen=True)
class Checkout:
    """Where a person stands: the repository's root, HEAD's commit, its branch ("" when detached)."""

    root: Path
    commit: str
    branch: str
    dirty: bool


def find_checkout(start: Path) -> Checkout:
    """The repository around `start`. Raises InputError outside of one, without a commit, or if it brings our state."""
    try:
        root = Path(git(start, "rev-parse", "--show-toplevel"))
        commit = git(root, "rev-parse", "--verify", "HEAD^{commit}")
    except GitError as error:
        fix = "; run this inside a git repository that has at least one commit (`git init`, `git commit`)"
        fix = "" if "safe.directory" in str(error) else fix  # git's own words end with what to type
        raise InputError(f"{start} is not usable: {error}{fix}") from error
    try:
        branch = git(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    except GitError:
        branch = ""
    if git(root, "ls-tree", "--name-only", "HEAD", "--", STATE_FOLDER):
        fix = f"it would be taken for our own state; take it out (`git rm -r --cached {STATE_FOLDER}`) and commit"
        raise InputError([Problem(STATE_FOLDER, 0, f"is part of commit {commit[:12]}", fix)])
    dirty = bool(git(root, "diff-index", "--name-only", "HEAD", "--", env=_without_filters(root)))
    return Checkout(root, commit, branch, dirty)


def _without_filters(root: Path) -> dict[str, str]:
    """Switches off the repository's own filter commands, which git runs on files as new as its index."""
    try:
        keys = git(root, "config", "--null", "--name-only", "--get-regexp", r"^filter\.").strip("\0").split("\0")
    except GitError:  # it has none
        return {}
    found = {"GIT_CONFIG_COUNT": str(len(keys))}
    for number, key in enumerate(keys):
        found[f"GIT_CONFIG_KEY_{number}"] = key
        found[f"GIT_CONFIG_VALUE_{number}"] = "false" if key.endswith(".required") else ""
    return found


class Repository:
    """Odyssey's own bare repository, and the worktrees of its attempts."""

    def __init__(self, folder: Path, worktrees: Path) -> None:
        self.folder = folder
        self.worktrees = worktrees
        self._objects = Objects(folder / "objects")
        self._packed: dict[str, str] = {}  # trees of commits that git has packed, such as a run's base
        if not (folder / "HEAD").exists():
            self._init()
        _settle(folder / "config", CONFIG)
        _settle(folder / "info" / "attributes", ATTRIBUTES)
        _settle(folder / "info" / "exclude", EXCLUDE)
        worktrees.mkdir(parents=True, exist_ok=True)

    def _init(self) -> None:
        """All of it or nothing, however it ends: made beside its place, then moved there."""
        fresh = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        fresh.mkdir(parents=True, exist_ok=True)
        git(fresh, "init", "--quiet", "--bare", "--template=", "--initial-branch=odyssey", ".")
        try:
            fresh.rename(self.folder)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)

    def bring_in(self, source: Path, commit: str) -> None:
        """Copy a commit and its history, as far as it is there, from the user's repository."""
        if not self.has(commit):
            options = ("--quiet", "--no-tags", "--update-shallow", "--no-recurse-submodules")
            git(self.folder, "fetch", *options, "--", str(source), f"{commit}:refs/odyssey/base/{commit}")

    def has(self, commit: str) -> bool:
        try:
            git(self.folder, "cat-file", "-e", f"{commit}^{{commit}}")
        except GitError:
            return False
        return True

    def resolve(self, ref: str) -> str | None:
        """The commit that a name stands for. A branch of ours is a file, and reading it starts no process."""
        loose = self.folder / ref
        if ref.startswith("refs/heads/odyssey/"):
            if loose.is_file():
                return loose.read_text().strip()
            if not (self.folder / "packed-refs").exists():  # nothing of ours packs them
                return None
        try:
            return git(self.folder, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        except GitError:
            return None

    def set_branch(self, branch: str, commit: str) -> None:
        """As `git update-ref` does it: written beside, under git's own lock, then moved there."""
        if self.resolve(f"refs/heads/{branch}") == commit:
            return
        path = self.folder / "refs" / "heads" / branch
        lock = path.with_name(f"{path.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock.open("x") as file:
                file.write(f"{commit}\n")
            lock.replace(path)
        except OSError as error:
            raise GitError(f"branch {branch} can't be set: {error}") from error

    # Attempts

    def open(self, branch: str, base: str) -> tuple[Path, str]:
        """A fresh worktree named like `branch` at `base`, and that base. One that a crash left half made goes first."""
        self.close(branch)
        path = self._worktree(branch)
        self._link(path, base)
        self._in(path, "read-tree", "--reset", "-u", base)
        return path, base

    def _link(self, path: Path, base: str) -> None:
        """What `git worktree add` writes, without the five processes that it starts."""
        path.mkdir(parents=True)
        gitdir = self._gitdir(path)
        gitdir.mkdir(parents=True)
        (gitdir / "commondir").write_text("../..\n")
        (gitdir / "gitdir").write_text(f"{path / '.git'}\n")
        (gitdir / "HEAD").write_text(f"{base}\n")
        (path / ".git").write_text(f"gitdir: {gitdir}\n")

    def close(self, branch: str) -> None:
        """Take a worktree away, git's record of it too; its commits stay."""
        path = self._worktree(branch)
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self._gitdir(path), ignore_errors=True)

    def recover(self) -> None:
        """Take away the locks that git left when it was killed. Only for the one who holds the repository's lock."""
        for place in (self.folder, *self.folder.glob("worktrees/*")):
            for lock in place.glob("*.lock"):
                lock.unlink(missing_ok=True)
        for lock in (self.folder / "refs").rglob("*.lock"):
            lock.unlink(missing_ok=True)
        for scratch in self.folder.glob("scratch-*"):
            scratch.unlink(missing_ok=True)

    def _worktree(self, branch: str) -> Path:
        return self.worktrees / branch.replace("/", "--")

    def snapshot(self, worktree: Path) -> str:
        """The worktree as a tree object, ignored files left out unless they are tracked. Changes nothing there."""
        with self._scratch_index() as env:
            self._in(worktree, "read-tree", "HEAD", env=env)
            self._in(worktree, "add", "--all", "--", ".", env=env)
            return self._in(worktree, "write-tree", env=env)

    def restore(self, worktree: Path, tree: str) -> None:
        """Make the worktree equal to a snapshot: what came later goes, ignored files stay."""
        if self.snapshot(worktree) == tree:
            return
        self._in(worktree, "read-tree", "--reset", "-u", tree)
        self._in(worktree, "clean", "--quiet", "-ffd")

    def commit(self, worktree: Path, base: str, message: str, author: str) -> str:
        """Freeze the worktree as one commit on `base`; `base` itself when nothing changed."""
        return self.commit_snapshot(self.snapshot(worktree), base, message, author)

    def commit_snapshot(self, tree: str, base: str, message: str, author: str) -> str:
        """A snapshot as one commit on `base`; `base` itself when nothing changed."""
        return base if tree == self.tree(base) else self.commit_tree(tree, base, message, author)

    # Commits without a worktree

    def tree(self, commit: str) -> str:
        body = self._objects.read(commit)
        if body is not None and body.startswith(b"tree "):
            return body[5:45].decode()
        if commit not in self._packed:
            self._packed[commit] = git(self.folder, "rev-parse", "--verify", f"{commit}^{{tree}}")
        return self._packed[commit]

    def commit_tree(self, tree: str, parent: str, message: str, author: str) -> str:
        now = f"{int(time.time())} +0000"
        name = author.translate(NEVER_IN_NAMES)
        lines = (
            f"tree {tree}",
            f"parent {parent}",
            f"author {name} <agent@odyssey.invalid> {now}",
            f"committer Odyssey harness <harness@odyssey.invalid> {now}",
            "",
            message.replace("\0", "").rstrip("\n"),
            "",
        )
        return self._objects.write("commit", "\n".join(lines).encode(errors="surrogateescape"))

    def commit_files(self, commit: str, files: Mapping[str, bytes], message: str, author: str) -> str:
        """A commit on `commit` with some files' contents replaced."""
        tree = self.tree(commit)
        for path, data in files.items():
            tree = self._grafted(tree, path.encode(errors="surrogateescape").split(b"/"), data)
        return self.commit_tree(tree, commit, message, author)

    def _grafted(self, tree: str, path: list[bytes], data: bytes) -> str:
        """The tree with one file replaced, and with it every tree above that file."""
        assert path[0] not in (b"", b".", b"..", b".git"), path
        entries = self._entries(tree) if tree else {}
        if path[1:]:
            below = entries.get(path[0])
            inner = below.name if below and below.mode == TREE else ""
            entries[path[0]] = Entry(TREE, self._grafted(inner, path[1:], data))
        else:
            entries[path[0]] = Entry(FILE, self._objects.write("blob", data))
        return self._objects.write_tree(entries)

    def _entries(self, tree: str) -> dict[bytes, Entry]:
        found = self._objects.entries(tree)
        return self._listed(tree) if found is None else found

    def _listed(self, tree: str) -> dict[bytes, Entry]:
        """A tree that git has packed, as git tells it."""
        lines = git(self.folder, "ls-tree", "-z", "--full-tree", tree, strip=False).split("\0")
        found = {}
        for line in filter(None, lines):
            head, path = line.split("\t", 1)
            mode, _, name = head.split(" ")
            found[path.encode(errors="surrogateescape")] = Entry(mode.lstrip("0"), name)
        return found

    def merge(self, ours: str, theirs: str) -> str | None:
        """The tree that joins two commits; None when they conflict."""
        try:
            return git(self.folder, "merge-tree", "--write-tree", "--messages", ours, theirs).split("\n")[0]
        except GitError:
            return None

    def export(self, commit: str, target: Path) -> None:
        """The commit's files in a fresh folder, without any git."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with self._scratch_index() as env:
            git(self.folder, "read-tree", commit, env=env)
            at = {**env, "GIT_DIR": str(self.folder), "GIT_WORK_TREE": str(target)}
            git(target, "checkout-index", "--all", "--force", env=at)

    def read(self, commit: str, path: str) -> str | None:
        try:
            body = self._loose(commit, path)
            if body is not None:
                return body.decode(errors="surrogateescape")
            return git(self.folder, "cat-file", "blob", f"{commit}:{path}", strip=False)
        except GitError:
            return None

    def _loose(self, commit: str, path: str) -> bytes | None:
        """A file's bytes as long as nothing on the way to it is packed, or missing."""
        name, mode = self.tree(commit), TREE
        for part in path.encode(errors="surrogateescape").split(b"/"):
            entry = (self._objects.entries(name) or {}).get(part) if mode == TREE else None
            if entry is None:
                return None
            name, mode = entry.name, entry.mode
        return self._objects.read(name) if mode in (FILE, EXECUTABLE) else None

    def size(self, commit: str, path: str) -> int:
        """Bytes of a file; 0 when there is none."""
        try:
            return int(git(self.folder, "cat-file", "-s", f"{commit}:{path}"))
        except GitError:
            return 0

    def message(self, commit: str) -> str:
        return git(self.folder, "show", "--no-patch", "--format=%B", commit, "--")

    def diff(self, base: str, commit: str) -> str:
        options = ("--no-ext-diff", "--no-textconv", "--no-color")
        return _printable(git(self.folder, "diff", *options, base, commit, "--", strip=False))

    def changed(self, base: str, commit: str) -> tuple[FileChange, ...]:
        """Each file that differs. Renames are shown as a deletion and an addition: both paths count."""
        options = ("--no-ext-diff", "--no-textconv", "--no-renames", "-z")
        raw = git(self.folder, "diff", "--raw", *options, base, commit, "--").split("\0")
        sizes = {}
        for line in git(self.folder, "diff", "--numstat", *options, base, commit, "--").split("\0"):
            if line:
                added, removed, path = line.split("\t", 2)
                sizes[path] = tuple(-1 if count == "-" else int(count) for count in (added, removed))
        names = {"A": "added", "D": "deleted"}
        return tuple(
            FileChange(
                path=_printable(path),
                status=names.get(head.split(" ")[4][0], "modified"),
                added=sizes.get(path, (-1, -1))[0],
                removed=sizes.get(path, (-1, -1))[1],
                mode=head.split(" ")[1],
            )
            for head, path in zip(raw[0::2], raw[1::2], strict=False)
        )

    def change(self, task: str, attempt: int, tier: Tier, base: str, commit: str) -> Change:
        files = self.changed(base, commit) if commit != base else ()
        return Change(
            task=task, attempt=attempt, tier=tier, base=base, commit=commit, tree=self.tree(commit), files=files
        )

    def _in(self, worktree: Path, *argv: str, env: Mapping[str, str] | None = None) -> str:
        """Git in a worktree, its gitdir named by us: a `.git` that an agent wrote is never followed."""
        where = {"GIT_DIR": str(self._gitdir(worktree)), "GIT_WORK_TREE": str(worktree)}
        return git(worktree, *argv, env={**where, **(env or {})})

    def _gitdir(self, worktree: Path) -> Path:
        return self.folder / "worktrees" / worktree.name

    def _scratch_index(self) -> _ScratchIndex:
        return _ScratchIndex(self.folder)


def _printable(given: str) -> str:
    """What git said, as text; bytes that are none become `\\xff`: in a path, one that no one may write."""
    return given.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _settle(path: Path, text: str) -> None:
    """Have the file hold this text, at every moment in which another process may read it."""
    if path.is_file() and path.read_text() == text:
        return
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)


class _ScratchIndex:
    """An index file for one operation."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"scratch-{os.getpid()}-{os.urandom(6).hex()}"

    def __enter__(self) -> dict[str, str]:
        return {"GIT_INDEX_FILE": str(self._path)}

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
