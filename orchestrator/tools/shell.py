"""The tool that runs a command: argv without a shell, if the skill allows it, on a copy of the worktree."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from orchestrator.errors import ToolRefused
from orchestrator.sandbox.base import Command, Completed, Mount
from orchestrator.tools.base import SCRATCH, Arguments, Tool, ToolContext, ToolResult
from orchestrator.tools.commands import check_allowed
from orchestrator.tools.staging import Carried, scrub, staged

ARGV_BYTES = 100_000
TOLD_PATHS = 20


class Run(Arguments):
    argv: list[str] = Field(min_length=1, max_length=1000, description="the program and its arguments; no shell")
    timeout_s: float | None = Field(default=None, gt=0, description="seconds; never more than the task's own limit")


def run(arguments: Run, context: ToolContext) -> ToolResult:
    argv = tuple(arguments.argv)
    _check_words(argv)
    check_allowed(argv, context.commands)
    scratch = _scratch(context.worktree)
    with staged(context.worktree, context.outputs) as staging:
        context.turn.copied()
        done = context.sandbox.run(_command(argv, arguments.timeout_s, staging.root, context), context.on_output)
        with context.turn:
            carried = staging.carry_back(context.writes, context.turn.taken)
            context.turn.taken.update(carried.changed)
    carried = replace(carried, dropped=(*carried.dropped, *scrub(scratch)))
    return ToolResult(_told(argv, done, carried), is_error=done.exit_code != 0 or bool(carried.dropped))


def _command(argv: tuple[str, ...], timeout_s: float | None, copy: Path, context: ToolContext) -> Command:
    scratch = context.worktree / SCRATCH
    wall_s = min(timeout_s or context.limits.wall_s, context.limits.wall_s)
    return Command(
        argv=argv,
        cwd=context.worktree,
        mounts=(*context.mounts, Mount(copy, context.worktree, writable=True), Mount(scratch, scratch, writable=True)),
        env={**_python_env(context.worktree), **context.env},
        limits=replace(context.limits, wall_s=wall_s),
    )


def _python_env(worktree: Path) -> Mapping[str, str]:
    """The worktree's packages before any installed one, and compiled code kept from one command to the next."""
    caches = worktree / SCRATCH / ".cache"
    return {
        "PYTHONPATH": str(worktree),
        "PYTHONPYCACHEPREFIX": str(caches / "pyc"),
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "PYTHONUNBUFFERED": "1",
    }


def _scratch(worktree: Path) -> Path:
    scratch = worktree / SCRATCH
    if scratch.is_symlink():
        raise ToolRefused(f"{SCRATCH}: is a symbolic link, so no command is run on it; have it removed")
    scratch.mkdir(exist_ok=True)
    return scratch


def _check_words(argv: tuple[str, ...]) -> None:
    if any("\0" in word for word in argv):
        raise ToolRefused("argv: a word holds a NUL; give plain words")
    try:
        size = sum(len(word.encode()) for word in argv)
    except UnicodeEncodeError:
        raise ToolRefused("argv: a word holds half a character; send valid Unicode") from None
    if size > ARGV_BYTES:
        raise ToolRefused(f"argv: {size} bytes are too many; put them into a file")
    if argv[0].startswith("-"):
        raise ToolRefused(f"{argv[0]!r}: looks like an option; the first word is the program")


def _told(argv: tuple[str, ...], done: Completed, carried: Carried) -> str:
    parts = [f"$ {shlex.join(argv)[:1000]}", _ending(done)]
    parts += [done.stdout.rstrip()] if done.stdout.strip() else []
    parts += [f"[stderr]\n{done.stderr.rstrip()}"] if done.stderr.strip() else []
    if carried.changed:
        parts.append(f"[changed: {_some(carried.changed, ', ')}]")
    if carried.dropped:
        parts.append(f"[refused, and not kept:\n{_some(carried.dropped, chr(10))}]")
    return "\n".join(parts)


def _ending(done: Completed) -> str:
    used = f"{done.wall_s:.1f} s, {done.cpu_s:.1f} CPU s"
    if done.timed_out:
        return f"[stopped by the time limit after {used}]"
    if done.exit_code < 0:
        return f"[ended by signal {-done.exit_code} after {used}]"
    return f"[exit code {done.exit_code} after {used}]"


def _some(items: tuple[str, ...], between: str) -> str:
    more = f"{between}and {len(items) - TOLD_PATHS} more" if len(items) > TOLD_PATHS else ""
    return between.join(items[:TOLD_PATHS]) + more


RUN = Tool(
    "run",
    "Run one of this skill's commands in the worktree, without network. Files it changes are kept only where this task "
    f"may write; {SCRATCH}/ is scratch that lasts.",
    Run,
    run,
)
