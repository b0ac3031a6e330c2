"""Which files a dataset's shards are, and a plain tar of each.

A compressed shard is decompressed once into the cache: pictures are read in a random order and from the middle of an
epoch, and neither gzip nor xz can begin in its middle. JPEG hardly compresses, so the copy is about as large as the
shard; it counts against a bound. Shards that `mlcore data shards` makes are plain.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlcore.data.fetch import Places
from mlcore.errors import DataError, DatasetMissing
from mlcore.files import CHUNK_BYTES, replacing

PACKED = (".tar.gz", ".tgz", ".tar.xz", ".txz")
ENDINGS = (".tar", *PACKED)
XZ_MEMORY_BYTES = 1 << 28
LIMIT_MIB = 16 << 10  # of decompressed shards in the cache; MLCORE_CACHE_MIB sets another

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Roots:
    """Where relative names are looked for, in this order, and the cache with its bound in MiB."""

    folders: tuple[Path, ...]
    cache: Path
    limit_mib: int = LIMIT_MIB

    @staticmethod
    def of(data: Path | None, environ: Mapping[str, str]) -> Roots:
        """`--data`, else MLCORE_DATA, and the folder one is in."""
        places = Places.of(data, environ)
        named = places.named or places.environment
        text = environ.get("MLCORE_CACHE_MIB", "")
        limit = int(text) if text.isascii() and text.isdigit() else LIMIT_MIB
        return Roots((named, Path()) if named else (Path(),), places.cache, limit)


def shard_files(name: str, roots: Roots) -> tuple[Path, ...]:
    """The shards of a folder, a pattern (`photos/train-*.tar`), a list file (.txt, a path a line) or one archive.

    Sorted by name; of `x.tar` and `x.tar.xz` the plain one is taken. Raises DatasetMissing when there is none.
    """
    for root in roots.folders:
        with reading(root / name):
            if found := _shards_at(root / name):
                return found
    looked = ", ".join(str(root / name) for root in roots.folders)
    raise DatasetMissing(
        "no tar shards", place=looked, fix="name a folder, a pattern or a list file; --data or MLCORE_DATA is its root"
    )


@contextlib.contextmanager
def reading(place: Path) -> Iterator[None]:
    """Make what the system says of a file or folder that can't be read a DataError."""
    try:
        yield
    except OSError as error:
        fix = "make it readable, or name something else"
        raise DataError(f"can't be read ({error.strerror})", place=str(error.filename or place), fix=fix) from error


def _shards_at(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        return _chosen([file for file in path.iterdir() if file.name.endswith(ENDINGS)])
    if path.suffix == ".txt" and path.is_file():
        return _listed(path)
    if path.is_file():
        return (path,)
    return _chosen([file for file in path.parent.glob(path.name) if file.name.endswith(ENDINGS)])


def _listed(path: Path) -> tuple[Path, ...]:
    """The files that a list names, relative to its folder; # begins a comment."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not a list of paths ({error})", place=str(path), fix="write it in UTF-8") from error
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    files = tuple(path.parent / line for line in lines if line)
    for file in files:
        if not file.is_file():
            raise DatasetMissing(f"{file} does not exist", place=str(path), fix="correct the list")
    return files


def _chosen(files: Sequence[Path]) -> tuple[Path, ...]:
    """Visible files in the order of their names, one of each stem: a plain tar before a packed one."""
    by_stem = dict[str, Path]()
    for file in sorted(files, key=lambda file: (not file.name.endswith(".tar"), file.name)):
        if file.is_file() and not file.name.startswith("."):
            by_stem.setdefault(file.name[: file.name.rindex(".t")], file)
    return tuple(sorted(by_stem.values(), key=lambda file: file.name))


def stamp_of(path: Path) -> str:
    """A name for the file as it is now: changes when its path, size or time does."""
    with reading(path):
        status = path.stat()
    text = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def plain(path: Path, roots: Roots, tell: Tell) -> tuple[Path, bool]:
    """A plain tar with the shard's content, itself or a copy in the cache, and whether its compression was intact.

    Of a damaged one as much is kept as could be decompressed. Raises DataError when the copies would exceed the bound.
    """
    if not path.name.endswith(PACKED):
        return path, True
    folder, stamp = roots.cache / "shards", stamp_of(path)
    for copy, intact in ((folder / f"{stamp}.tar", True), (folder / f"{stamp}-damaged.tar", False)):
        if copy.is_file():
            return copy, intact
    tell(f"decompressing {path.name} into {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _unpack(path, folder, stamp, _room(folder, roots))
    except OSError as error:
        raise _no_room(path, f"can't be decompressed into {folder} ({error.strerror or error})") from error


def _unpack(path: Path, folder: Path, stamp: str, room: int) -> tuple[Path, bool]:
    copy, intact = folder / f"{stamp}.tar", True
    with path.open("rb") as source, replacing(copy) as target:
        pieces = (_gunzipped if path.name.endswith("gz") else _unxzed)(source)
        try:
            for piece in pieces:
                room -= len(piece)
                if room < 0:
                    raise _no_room(path, "decompressed it would exceed the bound of the cache")
                target.write(piece)
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error):
            intact = False
    return (copy, True) if intact else (copy.replace(folder / f"{stamp}-damaged.tar"), False)


def _gunzipped(stream: BinaryIO) -> Iterator[bytes]:
    """The content in pieces; what comes before a damage is not lost."""
    with gzip.GzipFile(fileobj=stream) as unpacker:
        while piece := unpacker.read1(CHUNK_BYTES):
            yield piece


def _unxzed(stream: BinaryIO) -> Iterator[bytes]:
    """The same; not by lzma.open, which would give a file all the memory it asks for."""
    packed = stream.read(CHUNK_BYTES)
    while packed.strip(b"\0"):  # streams may follow one another, with padding between
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
        while not unpacker.eof:
            if unpacker.needs_input and not packed:
                raise EOFError
            yield unpacker.decompress(packed, CHUNK_BYTES)
            packed = stream.read(CHUNK_BYTES) if unpacker.needs_input else b""
        packed = unpacker.unused_data or packed or stream.read(CHUNK_BYTES)


def _room(folder: Path, roots: Roots) -> int:
    """Bytes that may still be written: of the bound, and of the disk but for a twentieth."""
    held = sum(file.stat().st_size for file in folder.glob("*.tar"))
    return min((roots.limit_mib << 20) - held, shutil.disk_usage(folder).free * 19 // 20)


def _no_room(path: Path, what: str) -> DataError:
    hint = "decompress it beside itself (gunzip -k, xz -dk), raise MLCORE_CACHE_MIB, or set MLCORE_CACHE"
    return DataError(what, place=str(path), fix=f"{hint} (now {os.environ.get('MLCORE_CACHE') or 'the default'})")
