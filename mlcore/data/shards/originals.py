"""The pictures that shards are made from: class folders, archives of many shapes, the official ones of ILSVRC 2012.

- a folder of class folders;
- archives with members `<class>/<name>.jpg`, such as shards;
- an archive of one archive per class, such as ILSVRC2012_img_train.tar, or a folder of these;
- an archive of pictures without a class, such as ILSVRC2012_img_val.tar, with a list that names their classes.
Nothing is unpacked: each picture is found by its file, offset and size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mlcore.data.shards.decode import MOST_BYTES, NUMBER, PICTURES
from mlcore.data.shards.faults import (
    CUT_SHORT,
    DUPLICATE,
    EMPTY_CLASS,
    IRREGULAR,
    NO_CLASS,
    STRANGE_CLASS,
    TOO_LARGE,
    UNSAFE,
    Faults,
    PictureError,
)
from mlcore.data.shards.files import Roots, Tell, plain, reading, shard_files
from mlcore.data.shards.tarwalk import Span, TarError, is_safe, walk
from mlcore.errors import DataError, DatasetMissing

NEST = 2  # an archive in an archive, and no deeper


@dataclass(frozen=True)
class Original:
    """A picture before it is put into a shard: bytes `offset` to `offset + size` of a file; its class, its name."""

    path: Path
    offset: int
    size: int
    class_name: str
    name: str

    @property
    def place(self) -> str:
        """Where it is, for a message."""
        return f"{self.path}:{self.class_name}/{self.name}"

    @property
    def member(self) -> str:
        """The name it gets in a shard: a key without a dot, as WebDataset wants it, then .jpg."""
        return f"{self.class_name}/{re.sub(r'[^A-Za-z0-9_-]', '_', PurePosixPath(self.name).stem)}.jpg"

    def read(self) -> bytes:
        """Its bytes; PictureError when they can't be had."""
        if self.size > MOST_BYTES:
            raise PictureError(f"{self.size} bytes", kind=TOO_LARGE, place=self.place)
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                content = stream.read(self.size)
        except OSError as error:
            raise PictureError(f"can't be read ({error.strerror})", place=self.place) from error
        if len(content) != self.size:
            raise PictureError("ends too early", place=self.place)
        return content


@dataclass(frozen=True)
class Truth:
    """The classes of pictures whose archive does not tell: by name, or in the order of their names."""

    by_name: dict[str, str]
    in_order: tuple[str, ...]


def originals(source: str, truth: Truth | None, roots: Roots, faults: Faults, tell: Tell) -> list[Original]:
    """Every picture of `source`, in a fixed order, each with a member name of its own; what is odd goes to `faults`.

    Raises DatasetMissing when there is nothing, DataError for a list of classes that does not fit.
    """
    with reading(Path(source)):
        folders = [folder for root in roots.folders if (folder := root / source).is_dir()]
        if folders and (classes := _class_folders(folders[0], faults)):
            found = _in_folders(classes, faults)
        else:
            found = _in_archives(source, roots, faults, tell)
    if truth:
        found = _with_truth(found, truth, faults)
    kept = [one for one in found if _has_class(one, faults)]
    if not kept:
        raise DatasetMissing("no pictures", place=source, fix="name a folder of class folders, or archives")
    return _named_apart(sorted(kept, key=lambda one: (one.class_name, one.name)))


def read_truth(path: Path, classes: Path | None, first: int, faults: Faults) -> Truth:
    """A list of classes: `class` a line in the order of the pictures' names, or `name class`.

    A class that is a number counts, from `first`, the lines of the file `classes`. Numbers beyond it go to `faults`.
    """
    names = [line.split()[0] for line in _lines(classes)] if classes else []
    by_name, in_order = dict[str, str](), list[str]()
    for number, line in enumerate(_lines(path), start=1):
        *name, label = line.split()
        class_name = _class_of(label, names, first, f"{path}:{number}")
        if not class_name:
            faults.add(STRANGE_CLASS, f"{path}:{number}: {label}")
        if name:
            by_name[PurePosixPath(name[0]).name] = class_name
        else:
            in_order.append(class_name)
    if bool(by_name) == bool(in_order):
        raise DataError("neither `class` nor `name class` a line", place=str(path), fix="write all lines one way")
    return Truth(by_name, tuple(in_order))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't be read ({error})", place=str(path), fix="name a text file") from error


def _class_of(label: str, names: Sequence[str], first: int, place: str) -> str:
    """The class that a label stands for; empty when its number is out of range."""
    if not re.fullmatch(r"-?\d{1,9}", label):
        return label
    if not names:
        raise DataError(
            f"class {label} is a number", place=place, fix="give --classes FILE with a class a line, in their order"
        )
    at = int(label) - first
    return names[at] if 0 <= at < len(names) else ""


def _with_truth(found: Sequence[Original], truth: Truth, faults: Faults) -> list[Original]:
    ordered = sorted(found, key=lambda one: one.name)
    if truth.by_name:
        return [replace(one, class_name=truth.by_name.get(PurePosixPath(one.name).name, "")) for one in ordered]
    if len(truth.in_order) != len(ordered):
        raise DataError(
            f"{len(truth.in_order)} classes are listed for {len(ordered)} pictures",
            place=str(ordered[0].path) if ordered else "--labels",
            fix="give the list that belongs to this archive",
        )
    return [replace(one, class_name=name) for one, name in zip(ordered, truth.in_order, strict=True)]


def _has_class(one: Original, faults: Faults) -> bool:
    if not one.class_name:
        faults.add(NO_CLASS, one.place)
    return bool(one.class_name)


def _named_apart(ordered: Sequence[Original]) -> list[Original]:
    """A member name of its own for each: the second `a.jpg` of a class, from a.png, becomes a-2.jpg."""
    taken, apart = set[str](), []
    for one in ordered:
        path, count, named = PurePosixPath(one.name), 1, one
        while named.member in taken:
            count += 1
            named = replace(one, name=f"{path.stem}-{count}{path.suffix}")
        taken.add(named.member)
        apart.append(named)
    return apart


def _class_folders(folder: Path, faults: Faults) -> list[Path]:
    """The folders in a folder; a link among them is not followed."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink() and entry.is_dir():
            faults.add(IRREGULAR, str(entry))
        elif entry.is_dir() and not entry.name.startswith("."):
            found.append(entry)
    return found


def _in_folders(classes: Sequence[Path], faults: Faults) -> list[Original]:
    found = []
    for folder in classes:
        if not is_safe(folder.name):
            faults.add(UNSAFE, str(folder))
            continue
        pictures = list(_files_below(folder, faults))
        if not pictures:
            faults.add(EMPTY_CLASS, str(folder))
        for path in pictures:
            name = "_".join(path.relative_to(folder).parts)
            found.append(Original(path, 0, path.stat().st_size, folder.name, name))
    return found


def _files_below(folder: Path, faults: Faults) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(place) / name
            if not name.lower().endswith(PICTURES):
                continue
            if path.is_symlink() or not path.is_file():
                faults.add(IRREGULAR, str(path))
            else:
                yield path


def _in_archives(source: str, roots: Roots, faults: Faults, tell: Tell) -> list[Original]:
    found = list[Original]()
    files = shard_files(source, roots)
    for file in files:
        tell(f"reading the headers of {file.name} ({len(found):,} pictures so far)")
        path, intact = plain(file, roots, tell)
        if not intact:
            faults.add(CUT_SHORT, f"{file}: its compression")
        with path.open("rb") as stream:
            alone = file.name.partition(".")[0] if len(files) > 1 else ""
            found += _in_span(path, Span.of_file(stream.fileno(), str(file)), alone, faults, NEST)
    return _without_second(found, faults)


def _in_span(path: Path, span: Span, alone: str, faults: Faults, nest: int) -> Iterator[Original]:
    """The pictures of an archive, and of archives in it. `alone`: the class of those that are in no folder."""
    try:
        for member in walk(span):
            name = member.name.removeprefix("./")
            if not is_safe(name):
                faults.add(UNSAFE, f"{span.place}:{member.name}")
            elif not member.regular:
                faults.add(IRREGULAR, f"{span.place}:{member.name}")
            elif name.endswith(".tar") and nest > 1:
                yield from _in_span(path, span.inside(member), PurePosixPath(name).stem, faults, nest - 1)
            elif name.lower().endswith(NUMBER) and "/" not in name:
                raise DataError(
                    "its classes are numbers (.cls), of which no shards are made",
                    place=f"{span.place}:{member.name}",
                    fix="train on these shards as they are",
                )
            elif name.lower().endswith(PICTURES):
                folder, _, last = name.rpartition("/")
                yield Original(path, member.offset, member.size, folder.replace("/", "_") or alone, last)
    except TarError as error:
        faults.add(CUT_SHORT, str(error))


def _without_second(found: Sequence[Original], faults: Faults) -> list[Original]:
    """Of members with one name the first."""
    seen, kept = set[tuple[str, str]](), []
    for one in found:
        if (one.class_name, one.name) in seen:
            faults.add(DUPLICATE, one.place)
        else:
            seen.add((one.class_name, one.name))
            kept.append(one)
    return kept
