"""Reading and writing files without following a single symbolic link: the program that the file tools run inside.

Standard library only; run with `python -I -S inside.py ROOT`. One request as JSON on stdin, one answer on stdout:
{"ok": ...} or {"refused": "why, and what to do"}. Paths are lists of names beneath `root`. Each folder on the way is
opened by O_NOFOLLOW from the one before, so what a path says is where it leads, whoever swaps things meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes a tenth of a call's time
    from typing import Any

READ_BYTES = 16 << 20  # the largest file that is read or edited
LINE_CHARS = 400  # of a matching line in a search
LIST_ENTRIES = 1000
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
SKIPPED = frozenset(
    {".git", "__pycache__", ".venv", ".odyssey", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".cache"}
)


class Refused(Exception):
    """Told to the agent."""


@contextmanager
def opened_folder(root: str, names: list[str], create: bool = False) -> Iterator[int]:
    """A descriptor of the folder `names` beneath `root`; `create` makes what is missing, and refuses repositories."""
    folder = os.open(root, FOLDER & ~os.O_NOFOLLOW)
    try:
        for depth, name in enumerate(names):
            inner = _step(folder, name, "/".join(names[: depth + 1]), create)
            os.close(folder)
            folder = inner
            if create and _exists(folder, ".git"):
                raise Refused(f"{'/'.join(names[: depth + 1])}: is a repository of its own; its files are not yours")
        yield folder
    finally:
        os.close(folder)


def read(root: str, path: list[str], offset: int, limit: int) -> dict[str, Any]:
    """`limit` lines from line `offset` (the first is 1), and how many lines the file has."""
    shown = "/".join(path)
    lines = _split(_text(_bytes(root, path), shown))
    return {"text": "".join(lines[offset - 1 : offset - 1 + limit]), "lines": len(lines)}


def listing(root: str, path: list[str]) -> dict[str, Any]:
    """Names in a folder: `name/`, `name  12 bytes`, `name -> target` for a link."""
    with opened_folder(root, path) as folder:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - a descriptor, not a path
        return {"entries": [_entry(folder, name) for name in names[:LIST_ENTRIES]], "count": len(names)}


def write(root: str, path: list[str], content: str) -> dict[str, Any]:
    """Replace or create a file, whole or not at all."""
    with opened_folder(root, path[:-1], create=True) as folder:
        existed = _exists(folder, path[-1])
        replace_file(folder, path[-1], content.encode(), "/".join(path))
    return {"existed": existed}


def edit(root: str, path: list[str], old: str, new: str, replace_all: bool) -> dict[str, Any]:
    """Replace `old`, which must be there once (or more often, with replace_all)."""
    shown = "/".join(path)
    text = _text(_bytes(root, path), shown)
    found = text.count(old)
    if not found:
        raise Refused(f"{shown}: `old` is not in the file; read it and copy the text exactly, white space too")
    if found > 1 and not replace_all:
        raise Refused(f"{shown}: `old` is there {found} times; give more of its surroundings, or set replace_all")
    with opened_folder(root, path[:-1], create=True) as folder:
        replace_file(folder, path[-1], text.replace(old, new).encode(), shown)
    return {"replaced": found}


def search(root: str, pattern: str, glob: str, limit: int) -> dict[str, Any]:
    """Lines that a regular expression finds, as `path:line: text`, in files whose path matches `glob` (compiled)."""
    try:
        wanted, files = re.compile(pattern), re.compile(glob, re.DOTALL)
    except re.error as error:
        raise Refused(f"pattern: not a regular expression: {error}") from None
    hits: list[str] = []
    for folder, name, shown in _files(root):
        if not files.fullmatch(shown):
            continue
        for number, line in _lines(folder, name):
            if wanted.search(line):
                hits.append(f"{shown}:{number}: {line.rstrip()[:LINE_CHARS]}")
                if len(hits) > limit:
                    return {"hits": hits[:limit], "more": True}
    return {"hits": hits, "more": False}


def replace_file(folder: int, name: str, data: bytes, shown: str, mode: int | None = None) -> None:
    """Put `data` under `name` in an open folder: written beside, synced, renamed. Keeps an existing file's mode."""
    with_mode = 0o644 if mode is None else mode
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(_kind(folder, name, shown, status.st_mode))
        with_mode = stat.S_IMODE(status.st_mode) & 0o777 if mode is None else mode
    except FileNotFoundError:
        pass
    beside = f".{name[:200]}.{os.urandom(8).hex()}"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), with_mode)
            os.fsync(file.fileno())
        os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(beside, dir_fd=folder)
        raise


def _step(folder: int, name: str, shown: str, create: bool) -> int:
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
    try:
        return os.open(name, FOLDER, dir_fd=folder)
    except FileNotFoundError:
        raise Refused(f"{shown}: no such folder; `list` shows what there is") from None
    except OSError:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        raise Refused(_kind(folder, name, shown, mode, "a folder")) from None


def _bytes(root: str, path: list[str]) -> bytes:
    shown = "/".join(path)
    with opened_folder(root, path[:-1]) as folder:
        try:
            fd = os.open(path[-1], FILE, dir_fd=folder)
        except FileNotFoundError:
            raise Refused(f"{shown}: no such file; `list` shows what there is") from None
        except OSError:
            mode = os.stat(path[-1], dir_fd=folder, follow_symlinks=False).st_mode
            raise Refused(_kind(folder, path[-1], shown, mode)) from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise Refused(_kind(folder, path[-1], shown, status.st_mode))
            if status.st_size > READ_BYTES:
                raise Refused(f"{shown}: {status.st_size} bytes are too many to read; use a command for a part of it")
            with os.fdopen(fd, "rb", closefd=False) as file:
                return file.read(READ_BYTES)
        finally:
            os.close(fd)


def _text(data: bytes, shown: str) -> str:
    if b"\0" not in data:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    raise Refused(f"{shown}: is not UTF-8 text ({len(data)} bytes); use a command that knows its format")


def _split(text: str) -> list[str]:
    """Lines with their ends. Only a line feed ends one, as for every other tool: str.splitlines knows ten more."""
    *lines, rest = text.split("\n")
    return [f"{line}\n" for line in lines] + ([rest] if rest else [])


def _kind(folder: int, name: str, shown: str, mode: int, wanted: str = "a file") -> str:
    if stat.S_ISLNK(mode):
        target = os.readlink(name, dir_fd=folder)
        return f"{shown}: is a symbolic link to {target!r}; links are not followed, give its target"
    kinds = ((stat.S_ISDIR, "a folder; use `list`"), (stat.S_ISREG, "a file"))
    kind = next((words for test, words in kinds if test(mode)), "neither a file nor a folder")
    return f"{shown}: is {kind}, not {wanted}"


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _entry(folder: int, name: str) -> str:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        return f"{name}/"
    if stat.S_ISLNK(status.st_mode):
        return f"{name} -> {os.readlink(name, dir_fd=folder)}"
    return f"{name}  {status.st_size} bytes"


def _files(root: str) -> Iterator[tuple[int, str, str]]:
    """(open folder, name, path) of every file beneath root, in order of path; links and SKIPPED left out."""
    for at, folders, names, folder in os.fwalk(root, follow_symlinks=False):
        folders[:] = sorted(name for name in folders if name not in SKIPPED)
        prefix = os.path.relpath(at, root)
        for name in sorted(names):
            yield folder, name, name if prefix == "." else f"{prefix}/{name}"


def _lines(folder: int, name: str) -> Iterator[tuple[int, str]]:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return
        fd = os.open(name, FILE, dir_fd=folder)
    except OSError:
        return
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_size > READ_BYTES:
            return
        data = file.read(READ_BYTES)
    if b"\0" not in data[:8192]:
        yield from enumerate(_split(data.decode("utf-8", "replace")), 1)


ACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "read": read,
    "list": listing,
    "write": write,
    "edit": edit,
    "search": search,
}


def main() -> None:
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"ok": ACTS[request.pop("act")](sys.argv[1], **request)}
    except Refused as reason:
        answer = {"refused": str(reason)}
    except OSError as error:
        answer = {"refused": f"{error.filename or 'the path'}: {error.strerror}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
