"""Shards without an index: every picture looked at once, and what was seen kept in the cache."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import (
    INDEX,
    Catalogue,
    from_index,
    read_document,
    table_of,
    with_empty_classes_told,
    write_index,
)
from mlcore.data.shards.catalogue import read_index as read_kept
from mlcore.data.shards.decode import MOST_BYTES, PICTURES, Look, decode
from mlcore.data.shards.faults import (
    CUT_SHORT,
    DUPLICATE,
    IRREGULAR,
    NO_CLASS,
    TOO_LARGE,
    UNSAFE,
    Faults,
    PictureError,
)
from mlcore.data.shards.files import Roots, Tell, plain, reading, stamp_of
from mlcore.data.shards.tarwalk import Member, Span, TarError, is_safe, walk
from mlcore.errors import DataError

VERSION = 2  # of what a scan keeps
PER_WORKER = 8  # pictures under way


def open_catalogue(
    files: Sequence[Path], roots: Roots, look: Look, tell: Tell, may_withhold: bool = False
) -> Catalogue:
    """The catalogue of these shards: their index, the scan in the cache, or a new scan. Its faults are the caller's.

    may_withhold: of a test split. Where no picture at all lies in a class's folder, the labels are withheld; some of a
    folder's shards may lack a class. Raises DataError for an index that does not fit its shards, and where no picture
    is left.
    """
    folder = files[0].parent
    if (folder / INDEX).is_file() and {file.parent for file in files} == {folder}:
        catalogue = _indexed(folder, {file.name for file in files}, roots, may_withhold)
    else:
        catalogue = with_empty_classes_told(_scanned(files, roots, look, tell, may_withhold))
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
    }
    try:
        catalogue.home.mkdir(parents=True, exist_ok=True)
        write_index(catalogue.home, document, catalogue.table)
    except OSError as error:
        tell(f"warning: the scan can't be kept in {catalogue.home} ({error.strerror})")


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
    def class_name(self) -> str:
        return self.member.name.rpartition("/")[0].removeprefix("./")


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
    faults, seen, sha256 = Faults(), list[_Seen](), dict[str, str]()
    names, keys = set[str](), keys_of(files)
    for shard, (file, (path, intact)) in enumerate(zip(files, unpacked, strict=True)):
        tell(f"looking at the pictures of {file.name} ({shard + 1} of {len(files)}, {len(seen):,} so far)")
        with reading(file), path.open("rb") as stream:
            sha256[keys[shard]] = hashlib.file_digest(stream, "sha256").hexdigest()
            span = Span.of_file(stream.fileno(), str(file))
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            found = _candidates(span, shard, names, faults)
            seen += ahead(lambda one: _look(one, look), found, look.workers, PER_WORKER * look.workers)
        if not intact:
            faults.add(CUT_SHORT, f"{file}: its compression")
    for one in seen:
        if one.fault:
            faults.add(one.fault.kind, f"{one.found.place}: {one.fault.what}")
    withheld = may_withhold and not any(one.found.class_name for one in seen)
    for one in seen:
        if not (withheld or one.fault or one.found.class_name):
            faults.add(NO_CLASS, one.found.place)
    sound = [one for one in seen if not one.fault and (withheld or one.found.class_name)]
    classes = () if withheld else _classes(files[0].parent, {one.found.class_name for one in sound})
    labels = {name: label for label, name in enumerate(classes)}
    rows = [
        (one.found.shard, one.found.member.offset, one.found.member.size, one.crc, labels.get(one.found.class_name, -1))
        for one in sound
    ]
    sides = {one.shorter for one in sound}
    side = sides.pop() if len(sides) == 1 else 0
    return Catalogue(tuple(path for path, _ in unpacked), table_of(rows), classes, sha256, faults, home, side)


def keys_of(files: Sequence[Path]) -> list[str]:
    """What each shard's checksum is known by: its file's name; of those that share one, the path below all shards."""
    paths = [os.path.abspath(file) for file in files]  # noqa: PTH100
    often, above = Counter(Path(path).name for path in set(paths)), os.path.commonpath(paths)
    return [
        file.name if often[file.name] == 1 else Path(path).relative_to(above).as_posix()
        for file, path in zip(files, paths, strict=True)
    ]


def _candidates(span: Span, shard: int, names: set[str], faults: Faults) -> Iterator[_Found]:
    """The members that may be pictures; everything else that should be none is counted."""
    try:
        for member in walk(span):
            found = _Found(shard, span, member)
            if kind := _objection(member, names):
                faults.add(kind, found.place)
            elif member.name.lower().endswith(PICTURES):
                names.add(member.name)
                yield found
    except TarError as error:
        faults.add(CUT_SHORT, str(error))


def _objection(member: Member, names: set[str]) -> str | None:
    """The kind of fault a member is by its header, if any."""
    if not is_safe(member.name):
        return UNSAFE
    if not member.regular:
        return IRREGULAR
    if not member.name.lower().endswith(PICTURES):
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
