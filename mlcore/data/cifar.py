"""CIFAR-10: its six binary batches read from a folder, and downloaded.

A batch is records of 3,073 bytes: the label, then 32x32 red, green and blue bytes, row by row. Read as .bin, .bin.xz or
.bin.gz, from the folder itself or from its cifar-10-batches-bin/, or out of the official archive.
Source: the "binary version" on Krizhevsky's CIFAR page.

Test labels are withheld by a `test_batch` whose labels are all 255. Its pixels have a checksum of their own, so that
such a folder still is "cifar10".
"""

import contextlib
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from mlcore.data.dataset import Bytes, Dataset, verified_name
from mlcore.data.mirrors import Say, Source, check_sha256, download_one
from mlcore.errors import CifarMalformed, DataError, DatasetMissing
from mlcore.files import CHUNK_BYTES, write_bytes

CIFAR10 = "cifar10"
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
WITHHELD = 255  # as the label of every test image
LIMIT_BYTES = 128 << 20  # of a batch; the official ones have 31 MB
XZ_MEMORY_BYTES = 256 << 20  # what an .xz file may ask for; xz's highest level asks for 65 MB
READERS = 2  # unpacking threads

MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
)
ARCHIVE, INSIDE = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
TEST, TEST_PIXELS = "test_batch", "test_batch-pixels"

# sha256 of the decompressed batches, and of the test batch's pixels alone
OFFICIAL_SHA256 = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    TEST: "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    TEST_PIXELS: "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
}
BATCHES = tuple(stem for stem in OFFICIAL_SHA256 if stem != TEST_PIXELS)
SOURCE = Source(MIRRORS, OFFICIAL_SHA256)


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [N,3,32,32] and `labels` uint8 [N] of a file, whose decompressed `content` they look into."""

    images: Bytes
    labels: Bytes
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the decompressed bytes."""
        return hashlib.sha256(self.content).hexdigest()


def read_batch(path: Path, limit_bytes: int = LIMIT_BYTES) -> Batch:
    """Read a batch, packed or not. Raises CifarMalformed, DatasetMissing, DataError (a label beyond 9 or 255 here)."""
    with _typed(path):
        content = OPENERS.get(path.suffix, _read_plain)(path, limit_bytes)
    return parse_batch(content, str(path), limit_bytes)


def parse_batch(content: bytes, place: str, limit_bytes: int = LIMIT_BYTES) -> Batch:
    """The records in `content`; `place` names it in errors."""
    if len(content) > limit_bytes:
        raise CifarMalformed(f"more than {limit_bytes} bytes", place=place, fix="check that it is the right file")
    if not content or len(content) % RECORD_BYTES:
        raise CifarMalformed(
            f"{len(content)} bytes are not one or more records of {RECORD_BYTES}", place=place, fix="fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    wrong = np.flatnonzero(labels >= len(CLASS_NAMES))
    if len(wrong) and not (labels == WITHHELD).all():
        raise CifarMalformed(
            f"label {labels[wrong[0]]} at {wrong[0]} is not a class 0..{len(CLASS_NAMES) - 1}",
            place=place,
            fix="fetch it again",
        )
    return Batch(records[:, 1:].reshape(-1, *SHAPE), labels, content)


def batch_bytes(images_NCHW: Bytes, labels_N: Bytes | None) -> bytes:
    """A batch as the official files have it; without labels, withheld ones."""
    labels = np.full(len(images_NCHW), WITHHELD, np.uint8) if labels_N is None else labels_N
    return np.concatenate([labels[:, None], images_NCHW.reshape(len(labels), -1)], axis=1).tobytes()


def holds_cifar10(folder: Path) -> bool:
    """Whether `folder` has all six batches, or the archive."""
    return len(_files_in(folder)) == len(BATCHES) or (folder / ARCHIVE).is_file()


def read_cifar10(folder: Path, official: Mapping[str, str] = OFFICIAL_SHA256) -> Dataset:
    """Read and check the batches in `folder`; they are "cifar10" when their sha256 are the `official` ones.

    Raises DatasetMissing, CifarMalformed, DataError.
    """
    batches = _read_all(folder)
    training = [batches[stem] for stem in BATCHES if stem != TEST]
    for stem, batch in zip(BATCHES, training, strict=False):
        if batch.labels[0] == WITHHELD:
            raise CifarMalformed("its labels are withheld", place=f"{folder}: {stem}", fix="fetch it again")
    test = batches[TEST]
    withheld = bool(test.labels[0] == WITHHELD)
    images, test_images = np.concatenate([batch.images for batch in training]), np.ascontiguousarray(test.images)
    sha256 = {stem: batch.sha256 for stem, batch in batches.items() if stem != TEST or not withheld}
    sha256[TEST_PIXELS] = hashlib.sha256(test_images.data).hexdigest()
    name, warnings = verified_name(CIFAR10, "CIFAR-10", sha256, dict(official))
    return Dataset(
        kind=CIFAR10,
        name=name,
        class_names=CLASS_NAMES,
        train_images=images,
        train_labels=np.concatenate([batch.labels for batch in training]),
        test_images=test_images,
        test_labels=None if withheld else test.labels.copy(),
        sha256=sha256,
        path=folder,
        warnings=warnings,
    )


def download(folder: Path, say: Say, source: Source) -> None:
    """Fetch the archive, verify every batch in it and keep them unpacked in `folder`.

    Raises DatasetMissing, OSError.
    """

    def check(path: Path, url: str) -> None:
        for stem, batch in read_archive(path).items():
            check_sha256(batch.sha256, source.official[stem], f"{url}: {stem}")

    archive = folder / ARCHIVE
    download_one(archive, check, say, source)
    for stem, batch in read_archive(archive).items():
        write_bytes(folder / f"{stem}.bin", batch.content)
    archive.unlink()


def copy_files(dataset: Dataset, out: Path) -> None:
    """Write the batches into `out`, unpacked, which is how they are read fastest; raises OSError."""
    for stem, batch in _read_all(dataset.path).items():
        write_bytes(out / f"{stem}.bin", batch.content)


def read_archive(path: Path) -> dict[str, Batch]:
    """The six batches of the official archive, by name; CifarMalformed when it is damaged or lacks one."""
    wanted = {f"{stem}.bin": stem for stem in BATCHES}
    found: dict[str, Batch] = {}
    with _typed(path), tarfile.open(path, "r|gz") as archive:
        for member in archive:
            stem = wanted.get(Path(member.name).name)
            if stem and member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                found[stem] = parse_batch(_read_up_to(stream, LIMIT_BYTES), f"{path}: {stem}")
    if lacking := [stem for stem in BATCHES if stem not in found]:
        raise CifarMalformed(f"lacks {', '.join(lacking)}", place=str(path), fix="fetch it again")
    return {stem: found[stem] for stem in BATCHES}


def _read_all(folder: Path) -> dict[str, Batch]:
    files = _files_in(folder)
    if len(files) < len(BATCHES) and (folder / ARCHIVE).is_file():
        return read_archive(folder / ARCHIVE)
    if lacking := [stem for stem in BATCHES if stem not in files]:
        raise DatasetMissing(
            f"lacks {', '.join(lacking)} (.bin, .bin.xz or .bin.gz)",
            place=str(folder),
            fix="run `mlcore fetch cifar10` to get them",
        )
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(BATCHES, pool.map(read_batch, (files[stem] for stem in BATCHES)), strict=True))


def _files_in(folder: Path) -> dict[str, Path]:
    """The batches' files by name, those that need no unpacking first."""
    places = [
        (stem, place / f"{stem}.bin{suffix}")
        for stem in BATCHES
        for place in (folder, folder / INSIDE)
        for suffix in ("", ".gz", ".xz")
    ]
    return {stem: path for stem, path in reversed(places) if path.is_file()}


def _read_plain(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as stream:
        return _read_up_to(stream, limit_bytes)


def _read_gzip(path: Path, limit_bytes: int) -> bytes:
    with gzip.open(path) as stream:
        return _read_up_to(cast(IO[bytes], stream), limit_bytes)


def _read_up_to(stream: IO[bytes], limit_bytes: int) -> bytes:
    """The whole stream, but no more than a byte over the limit."""
    return stream.read(limit_bytes + 1)


def _read_xz(path: Path, limit_bytes: int) -> bytes:
    """As the others; not by lzma.open, which would give a file all the memory it asks for."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES)
    pieces, size = [], 0
    with path.open("rb") as stream:
        while not unpacker.eof and size <= limit_bytes:
            packed = stream.read(CHUNK_BYTES) if unpacker.needs_input else b""
            if unpacker.needs_input and not packed:
                raise EOFError
            pieces.append(unpacker.decompress(packed, CHUNK_BYTES))
            size += len(pieces[-1])
        if unpacker.eof and (unpacker.unused_data or stream.read(1)):
            raise lzma.LZMAError("bytes follow its end")
    return b"".join(pieces)


OPENERS: dict[str, Callable[[Path, int], bytes]] = {".xz": _read_xz, ".gz": _read_gzip}


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    """The errors of reading and unpacking a file, typed."""
    again = {"place": str(path), "fix": "fetch it again"}
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetMissing("no such file", place=str(path), fix="run `mlcore fetch cifar10` to get it") from error
    except EOFError as error:
        raise CifarMalformed("the packed stream is cut short", **again) from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise CifarMalformed(f"can't be unpacked ({error})", **again) from error
    except OSError as error:
        raise DataError(
            f"can't be read ({error.strerror or error})", place=str(path), fix="check the path and its rights"
        ) from error
