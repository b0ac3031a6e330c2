"""The tools that look at files and change them: read, list, write, edit, search.

Each call runs `inside.py` in the sandbox, with the worktree mounted as far as the call needs it: read-only to look,
writable to change. What a call may change is decided here, on the path; that the path is what it says is `inside.py`'s
part.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from orchestrator.errors import ToolRefused
from orchestrator.globs import compiled
from orchestrator.sandbox.base import Command, Limits, Mount
from orchestrator.tools import inside
from orchestrator.tools.base import Arguments, Tool, ToolContext, ToolResult
from orchestrator.tools.paths import OUTPUTS, names_of, writable

PROGRAM = Path("/odyssey/inside.py")
KEPT = Path("/odyssey/outputs")  # where a call that reads a kept result finds it
HELPER = Limits(wall_s=20.0, file_bytes=64 << 20, output_bytes=64 << 20)


class Read(Arguments):
    path: str = Field(description="relative to the worktree, or @outputs/... for a result that was cut")
    offset: int = Field(default=1, ge=1, description="first line")
    limit: int = Field(default=1000, ge=1, le=10_000, description="number of lines")


class List(Arguments):
    path: str = Field(default=".", description="a folder, relative to the worktree")


class Write(Arguments):
    path: str
    content: str


class Edit(Arguments):
    path: str
    old: str = Field(min_length=1, description="text that is in the file exactly once")
    new: str
    replace_all: bool = False


class Search(Arguments):
    pattern: str = Field(min_length=1, max_length=1000, description="Python regular expression, matched line by line")
    glob: str = Field(default="**", max_length=1000, description="which files, such as mlcore/**/*.py; *, ** and ?")
    limit: int = Field(default=100, ge=1, le=1000)


def read(arguments: Read, context: ToolContext) -> ToolResult:
    root, names = _readable(arguments.path, context)
    if not names:
        raise ToolRefused(f"{arguments.path!r}: is a folder; use `list`")
    page = {"offset": arguments.offset, "limit": arguments.limit}
    answer = _inside(context, "read", root, path=names, **page)
    text, lines = answer["text"], answer["lines"]
    last = min(arguments.offset + arguments.limit - 1, lines)
    if not text:
        what = "the file is empty" if not lines else f"the file has {lines} lines"
        return ToolResult(f"[no line {arguments.offset}: {what}]")
    if arguments.offset > 1 or last < lines:
        text += f"\n[lines {arguments.offset}-{last} of {lines}]"
    return ToolResult(text)


def listing(arguments: List, context: ToolContext) -> ToolResult:
    root, names = _readable(arguments.path, context)
    answer = _inside(context, "list", root, path=names)
    entries, count = answer["entries"], answer["count"]
    rest = [f"[{count - len(entries)} more]"] if count > len(entries) else []
    return ToolResult("\n".join([*entries, *rest]) or "[empty folder]")


def write(arguments: Write, context: ToolContext) -> ToolResult:
    names = writable(arguments.path, context.writes)
    _encodable(arguments.content)
    answer = _inside(context, "write", context.worktree, path=names, content=arguments.content)
    verb = "replaced" if answer["existed"] else "created"
    return ToolResult(f"{verb} {'/'.join(names)} ({len(arguments.content.encode())} bytes)")


def edit(arguments: Edit, context: ToolContext) -> ToolResult:
    names = writable(arguments.path, context.writes)
    _encodable(arguments.old + arguments.new)
    swap = {"old": arguments.old, "new": arguments.new, "replace_all": arguments.replace_all}
    answer = _inside(context, "edit", context.worktree, path=names, **swap)
    count = answer["replaced"]
    return ToolResult(f"edited {'/'.join(names)} ({count} place{'s' if count > 1 else ''})")


def search(arguments: Search, context: ToolContext) -> ToolResult:
    if set("{}[]") & set(arguments.glob):
        raise ToolRefused(f"glob {arguments.glob!r}: has only *, ** and ?; search once for each kind of file")
    glob = compiled(arguments.glob).pattern
    query = {"pattern": arguments.pattern, "glob": glob, "limit": arguments.limit}
    answer = _inside(context, "search", context.worktree, **query)
    rest = [f"[more than {arguments.limit}; narrow the pattern or the glob]"] if answer["more"] else []
    return ToolResult("\n".join([*answer["hits"], *rest]) or "[nothing found]")


def _readable(path: str, context: ToolContext) -> tuple[Path, list[str]]:
    names = names_of(path)
    return (KEPT, names[1:]) if names[:1] == [OUTPUTS] else (context.worktree, names)


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ToolRefused(f"the text holds half a character (at {error.start}); send valid Unicode") from None


def _inside(context: ToolContext, act: str, root: Path, **request: Any) -> dict[str, Any]:
    """Run one act of inside.py; its answer. Raises ToolRefused with its reason."""
    command = Command(
        argv=(sys.executable, "-I", "-S", str(PROGRAM), str(root)),
        cwd=Path("/"),
        mounts=_mounts(context, act, root),
        stdin=json.dumps({"act": act, **request}).encode(),
        limits=HELPER,
    )
    done = context.sandbox.run(command)
    if done.timed_out:
        raise ToolRefused(f"{act}: took longer than {HELPER.wall_s:.0f} s; ask for less at a time")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise ToolRefused(f"{act}: failed (exit {done.exit_code}): {done.stderr.strip()[-500:]}") from None
    if "refused" in answer:
        raise ToolRefused(answer["refused"])
    result: dict[str, Any] = answer["ok"]
    return result


def _mounts(context: ToolContext, act: str, root: Path) -> tuple[Mount, ...]:
    program = Mount(Path(inside.__file__).resolve(), PROGRAM)
    if root == KEPT:
        context.outputs.mkdir(parents=True, exist_ok=True)
        return program, Mount(context.outputs, KEPT)
    changes = act in ("write", "edit")
    gits = context.worktree / ".git"
    guard = (Mount(gits, gits),) if changes and gits.exists() else ()
    return program, Mount(context.worktree, context.worktree, writable=changes), *guard


READ = Tool("read", "Read a text file, whole or by lines.", Read, read)
LIST = Tool("list", "List a folder: `name/` is a folder, `name -> target` a link.", List, listing)
WRITE = Tool("write", "Create a file, or replace all of it. Only where this task may write.", Write, write)
EDIT = Tool("edit", "Replace a piece of a file's text. Only where this task may write.", Edit, edit)
SEARCH = Tool("search", "Find lines in the worktree's text files: `path:line: text`.", Search, search)
