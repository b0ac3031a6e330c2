"""Git objects that stand alone in a file, written and read without starting git: a header, a body, zlib, a sha1.

What git has packed is not found here, and whoever asks then asks git. A file is complete from the moment on which it
has its name, so that a process killed at any moment leaves nothing half written.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

TREE, FILE, EXECUTABLE = "40000", "100644", "100755"
FASTEST, WINDOW_BITS, MEMORY = 1, 13, 6  # of zlib, in 64 KB: a plan is written anew with every task


@dataclass(frozen=True)
class Entry:
    """One line of a tree: a file's or folder's mode, and the object that it is."""

    mode: str
    name: str


@dataclass(frozen=True)
class Objects:
    folder: Path  # a repository's `objects`

    def write(self, kind: str, body: bytes) -> str:
        """The object's name; what is there already stays."""
        data = b"%b %d\0%b" % (kind.encode(), len(body), body)
        name = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        path = self._path(name)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            fresh = path.with_name(f"tmp_obj_{os.urandom(6).hex()}")  # git's own word for what may be swept
            fresh.write_bytes(_deflated(data))
            fresh.chmod(0o444)
            fresh.replace(path)
        return name

    def read(self, name: str) -> bytes | None:
        """An object's body; None when it stands in no file of its own."""
        try:
            data = zlib.decompress(self._path(name).read_bytes())
        except FileNotFoundError:
            return None
        return data.partition(b"\0")[2]

    def entries(self, tree: str) -> dict[bytes, Entry] | None:
        """A tree's own files and folders."""
        body = self.read(tree)
        if body is None:
            return None
        found, at = {}, 0
        while at < len(body):
            end = body.index(b"\0", at)
            mode, _, path = body[at:end].partition(b" ")
            found[path] = Entry(mode.decode(), body[end + 1 : end + 21].hex())
            at = end + 21
        return found

    def write_tree(self, entries: dict[bytes, Entry]) -> str:
        """In git's order, in which a folder's name ends with a slash."""
        ordered = sorted(entries.items(), key=lambda item: item[0] + b"/" * (item[1].mode == TREE))
        lines = (b"%b %b\0%b" % (each.mode.encode(), path, bytes.fromhex(each.name)) for path, each in ordered)
        return self.write("tree", b"".join(lines))

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name[2:]


def _deflated(data: bytes) -> bytes:
    press = zlib.compressobj(FASTEST, zlib.DEFLATED, WINDOW_BITS, MEMORY)
    return press.compress(data) + press.flush()
