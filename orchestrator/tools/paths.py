"""A path as an agent writes it, checked before anything is opened: relative, plain, and where it may be written."""

from __future__ import annotations

import unicodedata

from orchestrator.errors import ToolRefused
from orchestrator.globs import matches
from orchestrator.tools.base import SCRATCH

OUTPUTS = "@outputs"
PATH_BYTES = 4000
NAME_BYTES = 240  # room for the temporary name that a file is written under


def names_of(path: str) -> list[str]:
    """The path's names, `.` and empty ones dropped; [] is the worktree itself. Raises ToolRefused.

    What is refused: an absolute path, `..`, control characters, names of git's own. Links are refused when they
    are met (`inside.py`), so what is returned is where the path really leads.
    """
    if path.startswith(("/", "~")):
        raise ToolRefused(f"{path!r}: give a path relative to the worktree")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000 for char in path):
        raise ToolRefused(f"{path!r}: holds a control character; give a plain path")
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise ToolRefused(f"{path!r}: `..` is not followed; give the path from the worktree's root")
    if any(len(name.encode()) > NAME_BYTES for name in names) or len(path.encode()) > PATH_BYTES:
        raise ToolRefused(f"{path[:80]!r}...: is too long")
    if any(_is_gits(name) for name in names):
        raise ToolRefused(f"{path!r}: git's own files are out of bounds; the harness commits for you")
    return names


def writable(path: str, writes: tuple[str, ...]) -> list[str]:
    """The path's names if it may be written. Raises ToolRefused with what may be."""
    names = names_of(path)
    if not names:
        raise ToolRefused(f"{path!r}: is the worktree itself; give a file in it")
    if not may_write("/".join(names), writes):
        allowed = ", ".join((*writes, f"{SCRATCH}/**"))
        raise ToolRefused(f"{'/'.join(names)}: this task may not write there; it may write {allowed}")
    return names


def may_write(relative: str, writes: tuple[str, ...]) -> bool:
    """Whether a plain relative path falls under the task's globs or the scratch folder.

    Never: what declares submodules, and names that look like options.
    """
    if relative == ".gitmodules" or any(name.startswith("-") for name in relative.split("/")):
        return False
    return matches(relative, writes) or relative.startswith(f"{SCRATCH}/")


def _is_gits(name: str) -> bool:
    """`.git` in any disguise that some file system takes for it (case, ignorable characters, the 8.3 name)."""
    plain = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
    plain = plain.casefold().rstrip(". ").split(":")[0]
    return plain in (".git", "git~1")
