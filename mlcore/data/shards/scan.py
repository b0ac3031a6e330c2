"""Shards without an index: every picture looked at once, and what was seen kept in the cache.

A picture's class is the folder it lies in. Where members `KEY.cls` lie beside pictures `KEY.jpg` (WebDataset; before or
after them), it is the number from 0 that its own holds as text.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import (
    INDEX,
    Catalogue,
    Table,
    from_index,
    read_document,
    table_of,
    with_empty_classes_told,
    write_index,
)
from mlcore.data.shards.catalogue import read_index as read_kept
from mlcore.data.shards.decode import MOST_BYTES, NUMBER, PICTURES, Look, decode
from mlcore.data.shards.faults import (
    CUT_SHORT,
    DUPLICATE,
    IRREGULAR,
    NO_CLASS,
    NO_NUMBER,
    OUT_OF_RANGE,
    TOO_LARGE,
    UNSAFE,
    Faults,
    PictureError,
)
from mlcore.data.shards.files import Roots, Tell, plain, reading, stamp_of
from mlcore.data.shards.tarwalk import Member, Span, TarError, is_safe, walk
from mlcore.errors import DataError

VERSION = 3  # of what a scan keeps
PER_WORKER = 8  # pictures under way
MOST_CLASSES = 1 << 16
MOST_NUMBER = 32  # bytes


def open_catalogue(
    files: Sequence[Path], roots: Roots, look: Look, tell: Tell, may_withhold: bool = False, classes: int = 0
) -> Catalogue:
    """The catalogue of these shards: their index, the scan in the cache, or a new scan. Its faults are the caller's.

    may_withhold: of a test split. Where no picture at all has a class, the labels are withheld; some of a folder's
    shards may lack a class. classes: how many there are where numbers tell them; 0: whatever they tell.
    Raises DataError for an index that does not fit its shards, and where no picture is left.
    """
    folder = files[0].parent
    if (folder / INDEX).is_file() and {file.parent for file in files} == {folder}:
        catalogue = _indexed(folder, {file.name for file in files}, roots, may_withhold)
    else:
        catalogue = _scanned(files, roots, look, tell, may_withhold)
        if catalogue.numbered and classes:
            catalogue = _below(catalogue, files, classes)
        if not catalogue.numbered or (classes and not may_withhold):  # else a number may be missing
            catalogue = with_empty_classes_told(catalogue)
    if not len(catalogue):
        seen = "; ".join(catalogue.faults.lines()) or "the archives are empty"
        raise DataError(f"no picture that can be used ({seen})", place=str(folder), fix="name other shards")
    return catalogue


def _indexed(folder: Path, names: set[str], roots: Roots, may_lack: bool) -> Catalogue:
    """What the index has of these shards. What was left out when they were made is told of every part of them."""
    whole = from_index(folder)
    known = {path.name for path in whole.shards}
    if strange := sorted(names - known):
        raise DataError(
            f"{INDEX} beside it does not list it",
            place=str(folder / strange[0]),
            fix="take it out of the folder, or name the shards by a pattern or a list",
        )
    if names == known:
        return with_empty_classes_told(whole)
    key = "\n".join([str(folder.resolve()), *sorted(names)])
    part = whole.of_shards(names, roots.cache / "parts" / hashlib.sha256(key.encode()).hexdigest()[:24])
    told = with_empty_classes_told(replace(whole if may_lack else part, home=folder))
    return replace(part, faults=told.faults)


def _below(catalogue: Catalogue, files: Sequence[Path], classes: int) -> Catalogue:
    """A numbered catalogue with classes 0 to classes - 1; other numbers are faults."""
    strange, faults = np.flatnonzero(catalogue.labels >= classes), Faults()
    faults.merge(catalogue.faults)
    if len(strange):
        shard, offset, label = (int(catalogue.table[name][strange[0]]) for name in ("shard", "offset", "label"))
        with reading(files[shard]), catalogue.shards[shard].open("rb") as stream:
            members = walk(Span.of_file(stream.fileno(), ""))
            name = next(member.name for member in members if member.offset == offset)
        faults.add(OUT_OF_RANGE, f"{files[shard]}:{name}: {label}, not 0 to {classes - 1}", len(strange))
    below = replace(catalogue, classes=_numbers(classes), faults=faults)
    return below.kept(catalogue.labels < classes)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def _scanned(files: Sequence[Path], roots: Roots, look: Look, tell: Tell, may_withhold: bool) -> Catalogue:
    allowed = ["may withhold"] if may_withhold else []
    key = "\n".join([str(VERSION), str(look.most_pixels), *allowed, *(stamp_of(file) for file in files)])
    home = roots.cache / "scans" / hashlib.sha256(key.encode()).hexdigest()[:24]
    unpacked = [plain(file, roots, tell) for file in files]
    if (home / INDEX).is_file() and (kept := _kept(home, [path for path, _ in unpacked])):
        return kept
    catalogue = _look_at(files, unpacked, home, look, tell, may_withhold)
    _keep(catalogue, files, tell)
    return catalogue


def _kept(home: Path, paths: Sequence[Path]) -> Catalogue | None:
    """What an earlier scan saw; None when that can't be read any more."""
    try:
        document, table = read_kept(home)
        return Catalogue(
            tuple(paths),
            table,
            tuple(document["classes"]),
            dict(document["sha256"]),
            Faults.of(document["left_out"]),
            home,
            int(document["side"]),
            bool(document["numbered"]),
        )
    except (DataError, KeyError, TypeError, ValueError):
        return None


def _keep(catalogue: Catalogue, files: Sequence[Path], tell: Tell) -> None:
    """Keep a scan for the next time; where that can't be, it is done again."""
    document = {
        "source": [str(file) for file in files],
        "classes": list(catalogue.classes),
        "sha256": catalogue.sha256,
        "left_out": catalogue.faults.document(),
        "side": catalogue.side,
        "numbered": catalogue.numbered,
    }
    try:
        catalogue.home.mkdir(parents=True, exist_ok=True)
        write_index(catalogue.home, document, catalogue.table)
    except OSError as error:
        tell(f"warning: the scan can't be kept in {catalogue.home} ({error.strerror})")


Key: TypeAlias = tuple[int, str]


@dataclass(frozen=True)
class _Found:
    """A member that may be a picture."""

    shard: int
    span: Span
    member: Member

    @property
    def place(self) -> str:
        return f"{self.span.place}:{self.member.name}"

    @property
    def folder(self) -> str:
        return self.member.name.rpartition("/")[0].removeprefix("./")

    @property
    def key(self) -> Key:
        """What it shares with the other members of its sample: the shard, and the name up to its first dot."""
        above, slash, last = self.member.name.removeprefix("./").rpartition("/")
        return self.shard, above + slash + last.partition(".")[0]


@dataclass(frozen=True)
class _Seen:
    """What a look at a picture gave: checksum and shorter side, or the fault."""

    found: _Found
    crc: int
    shorter: int
    fault: PictureError | None


def _look_at(
    files: Sequence[Path],
    unpacked: Sequence[tuple[Path, bool]],
    home: Path,
    look: Look,
    tell: Tell,
    may_withhold: bool,
) -> Catalogue:
    faults, seen, sha256, numbers = Faults(), list[_Seen](), dict[str, str](), dict[Key, str]()
    names, keys = set[str](), keys_of(files)
    for shard, (file, (path, intact)) in enumerate(zip(files, unpacked, strict=True)):
        tell(f"looking at the pictures of {file.name} ({shard + 1} of {len(files)}, {len(seen):,} so far)")
        with reading(file), path.open("rb") as stream:
            sha256[keys[shard]] = hashlib.file_digest(stream, "sha256").hexdigest()
            span = Span.of_file(stream.fileno(), str(file))
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            found = _candidates(span, shard, names, numbers, faults)
            seen += ahead(lambda one: _look(one, look), found, look.workers, PER_WORKER * look.workers)
        if not intact:
            faults.add(CUT_SHORT, f"{file}: its compression")
    for one in seen:
        if one.fault:
            faults.add(one.fault.kind, f"{one.found.place}: {one.fault.what}")
    numbered = any(one.found.key in numbers for one in seen)
    named = [(one, numbers.get(one.found.key, "") if numbered else one.found.folder) for one in seen]
    withheld = may_withhold and not numbered and not any(name for _, name in named)
    for one, name in named:
        if not (withheld or one.fault or name or one.found.key in numbers):
            faults.add(NO_CLASS, one.found.place)
    sound = [(one, name) for one, name in named if not one.fault and (withheld or name)]
    told = set[str]() if withheld else {name for _, name in sound}
    classes = _numbers(max(map(int, told), default=-1) + 1) if numbered else _classes(files[0].parent, told)
    paths, sides = tuple(path for path, _ in unpacked), {one.shorter for one, _ in sound}
    side = sides.pop() if len(sides) == 1 else 0
    return Catalogue(paths, _rows(sound, classes), classes, sha256, faults, home, side, numbered)


def _rows(sound: Sequence[tuple[_Seen, str]], classes: Sequence[str]) -> Table:
    labels = {name: label for label, name in enumerate(classes)}
    found = [(one.found.shard, one.found.member, one.crc, labels.get(name, -1)) for one, name in sound]
    return table_of([(shard, member.offset, member.size, crc, label) for shard, member, crc, label in found])


def keys_of(files: Sequence[Path]) -> list[str]:
    """What each shard's checksum is known by: its file's name; of those that share one, the path below all shards."""
    paths = [os.path.abspath(file) for file in files]  # noqa: PTH100
    often, above = Counter(Path(path).name for path in set(paths)), os.path.commonpath(paths)
    return [
        file.name if often[file.name] == 1 else Path(path).relative_to(above).as_posix()
        for file, path in zip(files, paths, strict=True)
    ]


def _candidates(span: Span, shard: int, names: set[str], numbers: dict[Key, str], faults: Faults) -> Iterator[_Found]:
    """The members that may be pictures; the classes' numbers are noted, what should be neither is counted."""
    try:
        for member in walk(span):
            found = _Found(shard, span, member)
            if kind := _objection(member, names):
                faults.add(kind, found.place)
            elif member.name.lower().endswith(PICTURES):
                names.add(member.name)
                yield found
            elif member.name.lower().endswith(NUMBER):
                names.add(member.name)
                numbers[found.key] = _number(found, faults)
    except TarError as error:
        faults.add(CUT_SHORT, str(error))


def _number(found: _Found, faults: Faults) -> str:
    """The class that a member tells, as digits; empty after a fault."""
    content = found.span.read(found.member.offset, min(found.member.size, MOST_NUMBER))
    match = re.fullmatch(rb"\s*([0-9]{1,9})\s*", content) if found.member.size < MOST_NUMBER else None
    if not match:
        faults.add(NO_NUMBER, f"{found.place}: {content!r}")
    elif int(match[1]) >= MOST_CLASSES:
        faults.add(OUT_OF_RANGE, f"{found.place}: {int(match[1])}, not below {MOST_CLASSES}")
    else:
        return str(int(match[1]))
    return ""


def _objection(member: Member, names: set[str]) -> str | None:
    """The kind of fault a member is by its header, if any."""
    if not is_safe(member.name):
        return UNSAFE
    if not member.regular:
        return IRREGULAR
    if not member.name.lower().endswith((*PICTURES, NUMBER)):
        return None
    if member.name in names:
        return DUPLICATE
    return TOO_LARGE if member.size > MOST_BYTES else None


def _look(found: _Found, look: Look) -> _Seen:
    """Decode a picture, at an eighth of its size where that is possible."""
    content = found.span.read(found.member.offset, found.member.size)
    try:
        height, width = decode(content, 1, look.most_pixels).shape[:2]
    except PictureError as error:
        return _Seen(found, 0, 0, error)
    return _Seen(found, zlib.crc32(content), min(_header_size(content) or (height, width)), None)


def _header_size(content: bytes) -> tuple[int, int] | None:
    """Height and width as a JPEG's header has them."""
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return int(height), int(width)


def _classes(folder: Path, seen: set[str]) -> tuple[str, ...]:
    """The classes in their order: as a MANIFEST.json beside the shards lists them, else by name."""
    listed = list[str]()
    if (folder / "MANIFEST.json").is_file():
        entries = read_document(folder / "MANIFEST.json").get("classes", [])
        listed = [str(entry["synset"]) for entry in entries if isinstance(entry, dict) and "synset" in entry]
    return tuple(listed) + tuple(sorted(seen - set(listed)))
