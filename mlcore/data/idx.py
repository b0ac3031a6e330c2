"""IDX files, the format MNIST comes in: read with doubt, written to the byte.

Layout: two zero bytes, an element type, a rank; `rank` big-endian uint32 sizes; the elements, row-major,
big-endian. Plain or gzip. Source: the format note on LeCun's MNIST page.

A header is only a claim. Its size is held against a limit, then against what the file can hold (its own bytes,
or deflate's best ratio for gzip), before anything large is allocated; a gzip stream is read no further than one
byte past the claim. So a malformed file costs at most `limit_bytes` of memory, and only as much of it as there
are real bytes.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from mlcore.errors import DataError, DatasetMissing, IdxBadMagic, IdxOversize, IdxTruncated, IdxWrongCount
from mlcore.files import CHUNK_BYTES, replacing

UNPACKED_BYTES = 1 << 17  # out of a gzip file at a time: each call costs, and so does memory for a small file
ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_RANK = 4
LIMIT_BYTES = 128 << 20  # MNIST's largest file is 47 MB
DEFLATE_MAX_RATIO = 1032  # zlib's technical notes: no deflate stream expands further
GZIP_MAGIC = b"\x1f\x8b"
IDX_SUFFIX = re.compile(r"[.-]idx[1-4]-ubyte(\.gz)?$|\.idx(\.gz)?$")


@dataclass(frozen=True)
class Idx:
    """What an IDX file holds, with the sha256 of its decompressed bytes (the gzip wrapping does not count)."""

    array: npt.NDArray[Any]
    sha256: str


def read_idx(path: Path, limit_bytes: int = LIMIT_BYTES) -> Idx:
    """Read a whole IDX file; the array has the file's shape and its element type in native byte order.

    Raises DatasetMissing, IdxBadMagic, IdxTruncated (fewer elements than declared, or a cut gzip stream),
    IdxWrongCount (bytes after the last element), IdxOversize (declares more than `limit_bytes`), DataError.
    """
    with _opened(path) as (stream, capacity):
        header, dtype, shape = _read_header(path, stream)
        size = math.prod(shape) * dtype.itemsize
        _doubt(path, shape, size, capacity - len(header), limit_bytes)
        flat = np.empty(size, dtype=np.uint8)  # paged in only as real bytes arrive
        _fill(path, stream, flat, shape)
    digest = hashlib.sha256(header)
    digest.update(flat.data)
    return Idx(flat.view(dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False), digest.hexdigest())


def read_images(path: Path, limit_bytes: int = LIMIT_BYTES) -> Idx:
    """Read images, uint8 [N, height, width]; another rank or element type raises IdxBadMagic."""
    return _expect(path, read_idx(path, limit_bytes), rank=3, what="images")


def read_labels(path: Path, limit_bytes: int = LIMIT_BYTES) -> Idx:
    """Read labels, uint8 [N]; another rank or element type raises IdxBadMagic."""
    return _expect(path, read_idx(path, limit_bytes), rank=1, what="labels")


def write_idx(path: Path, array: npt.NDArray[Any]) -> None:
    """Write `array` as IDX, gzip when the name ends in .gz; equal arrays give equal bytes (no time stamp).

    Raises IdxBadMagic for an element type that IDX lacks, OSError when the file can't be written.
    """
    code = {np.dtype(name): code for code, name in ELEMENT_TYPES.items()}.get(array.dtype.newbyteorder(">"))
    if code is None or not 1 <= array.ndim <= MAX_RANK:
        raise IdxBadMagic(
            f"IDX holds no {array.dtype} of rank {array.ndim}", place=str(path), fix="convert it to uint8 first"
        )
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    body = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(">"))
    with replacing(path) as stream, _packed(path, stream) as packed:
        packed.write(header)
        packed.write(body.tobytes())


def _expect(path: Path, idx: Idx, rank: int, what: str) -> Idx:
    if idx.array.ndim != rank or idx.array.dtype != np.uint8:
        raise IdxBadMagic(
            f"{what} are uint8 of rank {rank}, but this file holds {idx.array.dtype} of rank {idx.array.ndim}",
            place=str(path),
            fix="check that the file names were not swapped",
        )
    return idx


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file's decompressed stream and the most bytes it can yield; the errors of reading it, typed."""
    try:
        with path.open("rb") as raw:
            capacity = os.fstat(raw.fileno()).st_size
            if raw.read(2) != GZIP_MAGIC:
                raw.seek(0)
                yield raw, capacity
                return
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                yield cast(BinaryIO, io.BufferedReader(unpacked, UNPACKED_BYTES)), capacity * DEFLATE_MAX_RATIO
    except FileNotFoundError as error:
        raise DatasetMissing("no such file", place=str(path), fix="run `mlcore fetch` to get it") from error
    except EOFError as error:
        raise IdxTruncated("the gzip stream is cut short", place=str(path), fix="fetch the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise IdxBadMagic(f"not a sound gzip stream ({error})", place=str(path), fix="fetch the file again") from error
    except OSError as error:
        raise DataError(
            f"can't be read ({error.strerror or error})", place=str(path), fix="check the path and its rights"
        ) from error


def _read_header(path: Path, stream: BinaryIO) -> tuple[bytes, np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise IdxTruncated(f"{len(magic)} bytes are no IDX header", place=str(path), fix="fetch the file again")
    zeros, code, rank = struct.unpack(">HBB", magic)
    if zeros != 0 or code not in ELEMENT_TYPES or not 1 <= rank <= MAX_RANK:
        raise IdxBadMagic(
            f"begins with {magic.hex(' ')}, not with an IDX magic (00 00, a type 08..0e, a rank 1..4)",
            place=str(path),
            fix="check that it is the right file",
        )
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise IdxTruncated("ends inside its header", place=str(path), fix="fetch the file again")
    return magic + sizes, np.dtype(ELEMENT_TYPES[code]), struct.unpack(f">{rank}I", sizes)


def _doubt(path: Path, shape: tuple[int, ...], size: int, capacity: int, limit_bytes: int) -> None:
    claim = f"declares {_times(shape)} = {size} bytes"
    if size > limit_bytes:
        fix = "check that it is the right file"
        raise IdxOversize(f"{claim}, more than the limit of {limit_bytes}", place=str(path), fix=fix)
    if size > capacity:
        fix = "fetch the file again"
        raise IdxTruncated(f"{claim}, but the file can hold at most {max(capacity, 0)}", place=str(path), fix=fix)


def _fill(path: Path, stream: BinaryIO, flat: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    """Fill `flat` from the stream, which must end exactly there."""
    view, filled = flat.data, 0
    while filled < len(view):
        chunk = stream.read(min(CHUNK_BYTES, len(view) - filled))
        if not chunk:
            raise IdxTruncated(
                f"declares {_times(shape)} = {len(view)} bytes but ends after {filled}",
                place=str(path),
                fix="fetch the file again",
            )
        view[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    if stream.read(1):
        raise IdxWrongCount(
            f"goes on after the {_times(shape)} elements it declares",
            place=str(path),
            fix="fetch the file again",
        )


@contextlib.contextmanager
def _packed(path: Path, stream: BinaryIO) -> Iterator[BinaryIO]:
    if path.suffix != ".gz":
        yield stream
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0, compresslevel=6) as packed:
        yield cast(BinaryIO, packed)


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
