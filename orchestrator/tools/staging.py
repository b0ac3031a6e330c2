"""A command works on a copy of the worktree, and only what it may change comes back.

Why a copy. A skill's command may write anything it can reach, and it replaces files by renaming, which a bind mount of
a single file forbids; mounting folders would allow too much, and undoing afterwards would leave the harm where a
killed orchestrator stopped. So the copy stands in the worktree's place (same path inside), `runs/` is the real one, and
when every process of the command is dead the copy is compared with what was handed out. A changed file that the task
may write is carried over, whole and by rename; any other change is dropped and told. The worktree itself is never at
risk. Changes are found by inode, size and change time, which no program can set, then by content.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ToolRefused
from orchestrator.tools import inside
from orchestrator.tools.base import SCRATCH
from orchestrator.tools.paths import may_write, names_of

NOT_COPIED = frozenset({".git", SCRATCH, ".venv", ".odyssey"})  # at the worktree's root
CACHES = frozenset({"__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache"})
LENDS = stat.S_ISUID | stat.S_ISGID
CARRIED_FILES = 2000
CARRIED_BYTES = 256 << 20


@dataclass(frozen=True)
class Identity:
    """A file as the kernel knows it."""

    inode: int
    size: int
    ctime_ns: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True)
class Carried:
    """Paths that came back changed (or gone), and what was dropped: `path: why`."""

    changed: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Staging:
    """A copy of `worktree` at `root`, and the identity of each file in it when it was handed out."""

    worktree: Path
    root: Path
    handed_out: Mapping[str, Identity]

    def carry_back(self, writes: tuple[str, ...], taken: Set[str] = frozenset()) -> Carried:
        """Bring permitted changes to the worktree. Call it when nothing runs in the copy any more.

        taken: what changed in the worktree since the copy was made; it is not overwritten.
        """
        now = dict(_walk(self.root))
        suspects = [path for path in sorted({*now, *self.handed_out}) if now.get(path) != self.handed_out.get(path)]
        changed: list[str] = []
        dropped: list[str] = []
        size = 0
        for path in suspects:
            found = now.get(path)
            size += found.size if found else 0
            try:
                if size > CARRIED_BYTES or len(changed) >= CARRIED_FILES:
                    raise ToolRefused("more or larger changes than one command may make")
                if path in taken:
                    raise ToolRefused("a command beside this one changed it too; run this one again, alone")
                if self._carry(path, found, writes):
                    changed.append(path)
            except (ToolRefused, inside.Refused, OSError) as reason:
                dropped.append(f"{path}: {reason}")
        return Carried(tuple(changed), tuple(dropped))

    def _carry(self, path: str, found: Identity | None, writes: tuple[str, ...]) -> bool:
        """Bring one change over; False if there is none after all. Raises what `carry_back` tells as the reason."""
        names = path.split("/")
        data = self._content(self.root, names) if found and stat.S_ISREG(found.mode) else None
        if data is not None and data == self._content(self.worktree, names):
            return False
        names_of(path)
        if not may_write(path, writes):
            raise ToolRefused("outside what this task may write")
        if found and data is None:
            raise ToolRefused("only plain files are kept")
        with inside.opened_folder(str(self.worktree), names[:-1], create=found is not None) as folder:
            if found is None or data is None:
                os.unlink(names[-1], dir_fd=folder)
                return True
            inside.replace_file(folder, names[-1], data, path, 0o755 if found.mode & stat.S_IXUSR else 0o644)
            # compiled caches are keyed by the time of the source they were made from
            os.utime(names[-1], ns=(found.mtime_ns, found.mtime_ns), dir_fd=folder)
        return True

    def _content(self, root: Path, names: list[str]) -> bytes | None:
        try:
            with inside.opened_folder(str(root), names[:-1]) as folder:
                if not stat.S_ISREG(os.stat(names[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                    return None
                with os.fdopen(os.open(names[-1], inside.FILE, dir_fd=folder), "rb") as file:
                    return file.read()
        except (inside.Refused, FileNotFoundError):
            return None


@contextmanager
def staged(worktree: Path, scratch: Path) -> Iterator[Staging]:
    """A copy of the worktree in a folder of its own beneath `scratch`, gone afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(scratch)
    prefix = f"staging-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=scratch, ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "worktree"
        shutil.copytree(worktree, root, symlinks=True, ignore=_Left(worktree))
        yield Staging(worktree, root, dict(_walk(root)))


def scrub(folder: Path) -> list[str]:
    """Remove from the scratch folder whatever the harness could trip over: links that lead out, pipes, sockets.

    A file that would run as its owner, whoever starts it, runs as any other from now on.
    """
    removed: list[str] = []
    for at, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(at) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (stat.S_ISLNK(mode) and _leads_into(folder, path))):
                path.unlink()
                removed.append(f"{path.relative_to(folder.parent)}: only plain files and folders are kept")
            elif stat.S_ISREG(mode) and mode & LENDS:
                path.chmod(stat.S_IMODE(mode) & ~LENDS)
                removed.append(f"{path.relative_to(folder.parent)}: it may not run as its owner or group")
    return removed


def _leads_into(folder: Path, link: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # it dangles, or turns in a circle
        return False


def _walk(root: Path) -> Iterator[tuple[str, Identity]]:
    """Every file and link beneath root by its path; links not followed, caches and what isn't copied left out."""
    for at, folders, files in os.walk(root):
        top = at == str(root)
        folders[:] = [name for name in folders if name not in CACHES and not (top and name in NOT_COPIED)]
        links = [name for name in folders if (Path(at) / name).is_symlink()]
        for name in (*files, *links):
            if not (top and name in NOT_COPIED):
                path = Path(at) / name
                yield str(path.relative_to(root)), _identity(path.lstat())


def _identity(status: os.stat_result) -> Identity:
    return Identity(status.st_ino, status.st_size, status.st_ctime_ns, status.st_mtime_ns, status.st_mode)


@dataclass(frozen=True)
class _Left:
    """What copytree leaves out."""

    worktree: Path

    def __call__(self, at: str, names: list[str]) -> set[str]:
        left = CACHES | NOT_COPIED if at == str(self.worktree) else CACHES
        return {name for name in names if name in left}


def _remove_left_behind(scratch: Path) -> None:
    """Copies of an orchestrator that was killed."""
    for folder in scratch.glob("staging-*-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)
