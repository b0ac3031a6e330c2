"""Make tar shards: pictures made smaller, mixed by seed, a thousand to a shard, each shard whole or not there.

A making that was stopped anywhere goes on: what is in `.making` says which shards are done, and a shard's bytes are a
pure function of the pictures, the options and its number. index.json comes last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import INDEX, read_document, table_of, write_index
from mlcore.data.shards.decode import JPEG_BEGIN, MOST_PIXELS, PLAIN_JPEG, decode, resize, shape_for
from mlcore.data.shards.faults import TOO_LARGE, Faults, PictureError
from mlcore.data.shards.files import Tell
from mlcore.data.shards.originals import Original
from mlcore.errors import DataError, MlcoreError
from mlcore.files import replacing, sha256_of, write_bytes, write_json
from mlcore.rng import Rng

WORK = ".making"
END = bytes(1024)  # two empty blocks
PER_WORKER = 8
MOST_JPEG = 65_500  # pixels a side that libjpeg writes


@dataclass(frozen=True)
class Making:
    """How shards are made. side: the shorter side in pixels. enlarge: smaller pictures too."""

    side: int = 256
    quality: int = 90
    enlarge: bool = False
    per_shard: int = 1000
    seed: int = 1
    max_pixels: int = MOST_PIXELS
    refuse: bool = True


@dataclass(frozen=True)
class Shard:
    """What is known of a finished shard. rows: offset, size, crc, label; shorter: the sides that occur."""

    name: str
    bytes: int
    sha256: str
    rows: list[list[int]]
    shorter: list[int]
    left_out: dict[str, Any]


def make_shards(
    pictures: Sequence[Original], out: Path, making: Making, found: Faults, source: str, workers: int, tell: Tell
) -> dict[str, Any]:
    """Make the shards of these pictures in `out`, or go on making them; returns index.json's document.

    Raises DataError for a fault where `making.refuse`, for an `out` that holds something else, and when it can't be
    written; MlcoreError when another process makes shards there.
    """
    if making.refuse:
        found.demand_none()
    classes = sorted({one.class_name for one in pictures})
    order = Rng(making.seed).child("shards").generator().permutation(len(pictures))
    parts = [order[start : start + making.per_shard] for start in range(0, len(order), making.per_shard)]
    try:
        with _working(out, _plan(pictures, making, source)) as folder:
            if (out / INDEX).is_file():
                return read_document(out / INDEX)
            shards = []
            for number, part in enumerate(parts):
                chosen = [pictures[i] for i in part]
                shards.append(
                    _done(out, folder, number) or _make(out, folder, number, chosen, classes, making, workers)
                )
                tell(_progress(number + 1, len(parts), sum(len(shard.rows) for shard in shards)))
            return _finish(out, shards, classes, making, found, source)
    except OSError as error:
        raise DataError(
            f"can't be written ({error.strerror or error})",
            place=str(out),
            fix="make room, or choose another folder; the same command goes on",
        ) from error


def recoded(content: bytes, making: Making) -> tuple[bytes, int]:
    """A picture as it goes into a shard, and its shorter side; a JPEG that has its size already keeps its bytes.

    Raises PictureError.
    """
    import simplejpeg

    if shorter := _fits_already(content, making):
        return content, shorter
    image_HW3 = decode(content, making.side, making.max_pixels)
    height, width = image_HW3.shape[:2]
    shorter = making.side if making.enlarge else min(making.side, height, width)
    shape = shape_for(height, width, shorter)
    _demand_jpeg(*shape, making)  # before the picture is made that large
    if shape != (height, width):
        image_HW3 = resize(image_HW3, shape)
    return bytes(simplejpeg.encode_jpeg(image_HW3, making.quality, "RGB", "420")), shorter


def _demand_jpeg(height: int, width: int, making: Making) -> None:
    if max(height, width) > MOST_JPEG or height * width > making.max_pixels:
        said = f"it would become {width}x{height} pixels, more than {MOST_JPEG} a side or {making.max_pixels} in all"
        raise PictureError(said, kind=TOO_LARGE)


def _fits_already(content: bytes, making: Making) -> int:
    """The shorter side of a sound JPEG that need not be made anew, else 0."""
    import simplejpeg

    if not content.startswith(JPEG_BEGIN):
        return 0
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        shorter = int(min(height, width))
        fits = shorter == making.side or (shorter < making.side and not making.enlarge)
        if not fits or colours not in PLAIN_JPEG or height * width > making.max_pixels:
            return 0
        simplejpeg.decode_jpeg(content, "RGB", min_height=1, min_width=1)  # strict: what it complains of is made anew
    except ValueError:
        return 0
    return shorter


def _plan(pictures: Sequence[Original], making: Making, source: str) -> str:
    """One digest of all that decides the shards' bytes."""
    digest = hashlib.sha256(json.dumps(asdict(making)).encode())
    for one in pictures:
        digest.update(f"{one.class_name}\n{one.name}\n{one.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@contextlib.contextmanager
def _working(out: Path, plan: str) -> Iterator[Path]:
    """The folder that the making's state is in, held alone; refuses one of another plan."""
    folder = out / WORK
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MlcoreError("another process makes shards here", place=str(out), fix="wait for it") from error
        known = folder / "plan"
        others = [path for path in out.iterdir() if path != folder]
        if not known.is_file() and others:
            raise DataError("holds other files", place=str(out), fix="choose an empty folder")
        if known.is_file() and known.read_text() != plan:
            raise DataError(
                "holds shards of other pictures or options", place=str(out), fix="choose another folder, or remove it"
            )
        write_bytes(known, plan.encode())
        for torn in out.glob(".*.part"):
            torn.unlink()
        yield folder


def _done(out: Path, folder: Path, number: int) -> Shard | None:
    """A shard that an earlier run finished, if its bytes are still what they were."""
    try:
        shard = Shard(**json.loads((folder / f"{number:06}.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    path = out / shard.name
    return shard if path.is_file() and sha256_of(path) == shard.sha256 else None


def _make(
    out: Path, folder: Path, number: int, pictures: Sequence[Original], classes: list[str], making: Making, workers: int
) -> Shard:
    """Write a shard and, after it, what is known of it."""
    faults, rows, sides, name = Faults(), list[list[int]](), set[int](), f"shard-{number:06}.tar"

    def made(one: Original) -> tuple[bytes, int] | PictureError:
        try:
            return recoded(one.read(), making)
        except PictureError as error:
            return error

    with replacing(out / name) as stream:
        for one, got in zip(pictures, ahead(made, pictures, workers, PER_WORKER * workers), strict=True):
            if isinstance(got, PictureError):
                faults.add(got.kind, f"{one.place}: {got.what}")
                if making.refuse:
                    faults.demand_none()
                continue
            offset = _append(stream, one.member, got[0])
            rows.append([offset, len(got[0]), zlib.crc32(got[0]), classes.index(one.class_name)])
            sides.add(got[1])
        stream.write(END)
        size = stream.tell()
    shard = Shard(name, size, sha256_of(out / name), rows, sorted(sides), faults.document())
    write_json(folder / f"{number:06}.json", asdict(shard))
    return shard


def _append(stream: BinaryIO, name: str, content: bytes) -> int:
    """Write a member; where its content begins. Nothing of this machine or this moment is in the header."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    stream.write(info.tobuf(tarfile.PAX_FORMAT))
    offset = stream.tell()
    stream.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return offset


def _finish(
    out: Path, shards: Sequence[Shard], classes: list[str], making: Making, found: Faults, source: str
) -> dict[str, Any]:
    """The index of all shards; then `.making` keeps only what tells the same command that it is done."""
    faults = Faults()
    faults.merge(found)
    for shard in shards:
        faults.merge(Faults.of(shard.left_out))
    sides = {side for shard in shards for side in shard.shorter}
    labels = np.array([row[3] for shard in shards for row in shard.rows], np.int64)
    document = {
        "source": source,
        "side": sides.pop() if len(sides) == 1 else 0,
        "making": asdict(making),
        "images": len(labels),
        "classes": classes,
        "counts": dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True)),
        "left_out": faults.document(),
        "shards": [_entry(shard, classes) for shard in shards],
    }
    write_index(out, document, table_of([(i, *row) for i, shard in enumerate(shards) for row in shard.rows]))  # type: ignore[misc]
    for path in (out / WORK).glob("*.json"):
        path.unlink()
    return read_document(out / INDEX)


def _entry(shard: Shard, classes: list[str]) -> dict[str, Any]:
    counts = np.bincount([row[3] for row in shard.rows], minlength=len(classes)).tolist()
    return {
        "name": shard.name,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "images": len(shard.rows),
        "counts": {name: count for name, count in zip(classes, counts, strict=True) if count},
    }


BAR = 24


def _progress(done: int, total: int, images: int) -> str:
    """A line with a bar."""
    full = BAR * done // total
    return f"[{'#' * full}{'.' * (BAR - full)}] shard {done} of {total}, {images:,} pictures"
