"""A sandbox for the tests that need a real one, and short ways to use it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.base import Command, Completed, Limits, Mount, Sandbox
from orchestrator.sandbox.probes import choose_sandbox
from orchestrator.tools import TOOLS, ToolContext, ToolResult, call


@lru_cache(maxsize=1)
def _chosen() -> Sandbox | str:
    try:
        return choose_sandbox()
    except SandboxUnavailable as error:
        return str(error)


def real_sandbox() -> Sandbox:
    """Bubblewrap; skips the test where there is none, unless CI promised one."""
    chosen = _chosen()
    if isinstance(chosen, str):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no sandbox here: {chosen}")
    return chosen


def shell(script: str, *mounts: Mount, limits: Limits | None = None, sandbox: Sandbox | None = None) -> Completed:
    """A shell script in the sandbox; its working directory is the first mount, or `/`."""
    cwd = mounts[0].target if mounts else Path("/")
    command = Command(("/bin/sh", "-c", script), cwd, mounts, limits=limits or Limits(wall_s=60))
    return (sandbox or real_sandbox()).run(command)


def python(
    source: str, *mounts: Mount, env: Mapping[str, str] | None = None, limits: Limits | None = None
) -> Completed:
    """A Python program, with the packages of our own interpreter, in the sandbox."""
    cwd = mounts[0].target if mounts else Path("/")
    argv = (sys.executable, "-c", source)
    return real_sandbox().run(Command(argv, cwd, mounts, env or {}, limits=limits or Limits(wall_s=60)))


def writable(folder: Path) -> Mount:
    return Mount(folder, folder, writable=True)


def worktree_at(root: Path, files: Mapping[str, str]) -> Path:
    """A worktree with these files, and git's pointer in it."""
    worktree = root / "worktree"
    for path, content in {".git": "gitdir: /elsewhere\n", **files}.items():
        (worktree / path).parent.mkdir(parents=True, exist_ok=True)
        (worktree / path).write_text(content)
    return worktree


def context_for(
    worktree: Path,
    writes: tuple[str, ...] = ("src/**",),
    commands: tuple[str, ...] = ("sh -c *", "python -c *"),
    sandbox: Sandbox | None = None,
) -> ToolContext:
    return ToolContext(
        worktree=worktree,
        writes=writes,
        commands=commands,
        sandbox=sandbox or real_sandbox(),
        outputs=worktree.parent / "outputs",
        limits=Limits(wall_s=60),
    )


def use(context: ToolContext, name: str, **arguments: object) -> ToolResult:
    """A call of a tool, all of them allowed."""
    return call(name, arguments, context, frozenset(TOOLS))


def files_of(folder: Path) -> dict[str, str]:
    """Every file's content by its path, links as `-> target`; scratch left out."""
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.relative_to(folder).parts[0] != "runs"
    }
