"""Walk a tar archive by its headers: names, offsets and sizes; nothing is unpacked.

The standard library reads each header; the walk is done here, because `tarfile` takes a damaged header in mid-archive
for the end and reads extended headers of any size. Here damage is an error, and what may be large has a limit.
Understood: ustar, GNU long names, pax paths and sizes. A sparse member, a link or a device is told as irregular.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from mlcore.errors import DataError

BLOCK = 512
MOST_EXTENDED = 1 << 16  # bytes of a pax header or a long name
MOST_NAME = 4096
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
CONTROL = re.compile(r"[\x00-\x1f\x7f\\]|[\ud800-\udfff]")


class TarError(DataError):
    """The archive is damaged, cut short, or declares what can't be."""


@dataclass(frozen=True)
class Member:
    """A member's name and where its bytes are. `regular`: a plain file; folders are not told at all."""

    name: str
    offset: int
    size: int
    regular: bool = True


@dataclass(frozen=True)
class Span:
    """A stretch of an open file that holds an archive: bytes `start` to `stop`. `place` names it in errors."""

    descriptor: int
    start: int
    stop: int
    place: str

    @staticmethod
    def of_file(descriptor: int, place: str) -> Span:
        """The whole of an open file."""
        return Span(descriptor, 0, os.fstat(descriptor).st_size, place)

    def inside(self, member: Member) -> Span:
        """The stretch of a member, itself an archive."""
        return Span(self.descriptor, member.offset, member.offset + member.size, f"{self.place}:{member.name}")

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of the file; TarError when they are not all there."""
        content = os.pread(self.descriptor, size, offset) if offset + size <= self.stop else b""
        if len(content) != size:
            raise self.error("ends in the middle of a member", offset)
        return content

    def error(self, what: str, offset: int) -> TarError:
        """An error with its place."""
        return TarError(f"{what}, at byte {offset - self.start}", place=self.place, fix="fetch or make the file again")


def walk(span: Span) -> Iterator[Member]:
    """Every member but folders, in the archive's order; TarError at the first damage, after what came before it."""
    position, pax, long_name = span.start, dict[str, str](), ""
    while True:
        block = span.read(position, BLOCK)
        if not any(block):
            return
        info = _header(span, block, position)
        data = position + BLOCK
        if info.type in LONG or info.type in EXTENDED or info.type == tarfile.XGLTYPE:
            content = _extension(span, info, data)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = _text(content.rstrip(b"\0"))
            elif info.type in EXTENDED:
                pax = _records(span, content, data)
            position = _after(data, info.size)
            continue
        data = _past_map(span, info, block, data)
        size = _size(span, info, pax, data)
        name = pax.get("path") or long_name or info.name
        if not info.isdir():
            regular = info.type in REGULAR and not any(key.startswith("GNU.sparse") for key in pax)
            yield Member(name, data, size, regular)
        position, pax, long_name = _after(data, size), {}, ""


def is_safe(name: str) -> bool:
    """Whether a name is relative, stays below its root and has no control characters."""
    parts = name.split("/")
    return not (CONTROL.search(name) or len(name) > MOST_NAME or name.startswith("/") or ".." in parts or not parts[-1])


def _header(span: Span, block: bytes, position: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise span.error(f"not a tar header ({error})", position) from error
    if info.size < 0 or position + BLOCK + info.size > span.stop:
        raise span.error(f"a member of {info.size} bytes is declared that the archive does not hold", position)
    return info


def _extension(span: Span, info: tarfile.TarInfo, data: int) -> bytes:
    if info.size > MOST_EXTENDED:
        raise span.error(f"an extended header of {info.size} bytes (the most is {MOST_EXTENDED})", data)
    return span.read(data, info.size)


def _records(span: Span, content: bytes, data: int) -> dict[str, str]:
    """The pax records `length key=value` of an extended header."""
    records, at = dict[str, str](), 0
    while at < len(content):
        match = re.match(rb"(\d{1,6}) ([^=\n]+)=", content[at:])
        length = int(match.group(1)) if match else 0
        if not match or length <= match.end() or content[at + length - 1 : at + length] != b"\n":
            raise span.error("a pax header that can't be read", data)
        records[_text(match.group(2))] = _text(content[at + match.end() : at + length - 1])
        at += length
    return records


def _past_map(span: Span, info: tarfile.TarInfo, block: bytes, data: int) -> int:
    """Where the data begins: the map of an old GNU sparse file may fill further blocks."""
    more = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while more:
        more = span.read(data, BLOCK)[504]
        data += BLOCK
    return data


def _size(span: Span, info: tarfile.TarInfo, pax: dict[str, str], data: int) -> int:
    """How many bytes follow; links and devices have none, whatever they declare."""
    if info.islnk() or info.issym() or info.isdev():
        return 0
    text = pax.get("size", "")
    size = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else info.size
    if data + size > span.stop:
        raise span.error(f"a member of {size} bytes is declared that the archive does not hold", data)
    return size


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _after(data: int, size: int) -> int:
    return data + -(-size // BLOCK) * BLOCK
