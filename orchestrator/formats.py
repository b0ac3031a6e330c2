"""The files of the datasets that verdicts stand on: their names and checksums, how they are read and written.

IDX and CIFAR batches are read here a second time on purpose: mlcore's readers are what is being judged. A format knows
how a folder looks whose test labels are withheld: without the file of labels (IDX), with 255 for each (CIFAR).

Legend: N images, C channels, H W pixels.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError

Bytes = NDArray[np.uint8]
MAX_RAW_BYTES = 1 << 30


@dataclass(frozen=True)
class Split:
    """images uint8 [N, H, W] or [N, C, H, W], or N photographs; labels uint8 or int64 [N]; names of classes, if any."""

    images: Any
    labels: NDArray[Any]
    names: tuple[str, ...] = ()


class Format(Protocol):
    """One kind of folder. Readers raise InputError with path and fix."""

    @property
    def official(self) -> Mapping[str, str]:
        """File -> sha256 of its decompressed bytes, as published."""

    def raw(self, folder: Path, file: str) -> bytes:
        """A file's decompressed bytes."""

    def train(self, folder: Path) -> Split: ...

    def test(self, folder: Path) -> Split: ...

    def copy_train(self, source: Path, target: Path) -> None:
        """The training files into another folder."""

    def copy_test_images(self, source: Path, target: Path) -> None:
        """The test images, without their labels, into another folder."""

    def write_train(self, folder: Path, split: Split) -> None:
        """In the place of what is there."""

    def write_test_images(self, folder: Path, images: Any) -> None:
        """Without labels."""


# IDX: one file of images and one of labels for each split

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Idx:
    official: Mapping[str, str]

    def raw(self, folder: Path, file: str) -> bytes:
        return _raw(_existing(folder / file))

    def train(self, folder: Path) -> Split:
        return Split(read_idx(folder / TRAIN_IMAGES, 3), read_idx(folder / TRAIN_LABELS, 1))

    def test(self, folder: Path) -> Split:
        return Split(read_idx(folder / TEST_IMAGES, 3), read_idx(folder / TEST_LABELS, 1))

    def copy_train(self, source: Path, target: Path) -> None:
        for file in (TRAIN_IMAGES, TRAIN_LABELS):
            _copy(source / file, target)

    def copy_test_images(self, source: Path, target: Path) -> None:
        _copy(source / TEST_IMAGES, target)

    def write_train(self, folder: Path, split: Split) -> None:
        for file, array in ((TRAIN_IMAGES, split.images), (TRAIN_LABELS, split.labels)):
            (folder / file.removesuffix(".gz")).unlink(missing_ok=True)
            write_idx(folder / file, array)

    def write_test_images(self, folder: Path, images: Bytes) -> None:
        write_idx(folder / TEST_IMAGES, images)


def read_idx(path: Path, dimensions: int) -> Bytes:
    raw = _raw(_existing(path))
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(f"{path} is not an IDX file of {dimensions} dimensions; fetch it again")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if int(np.prod(shape, dtype=object)) != len(raw) - header:
        raise InputError(f"{path} does not hold what its header says; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def write_idx(path: Path, array: Bytes) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    with (
        path.open("wb") as file,
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, compresslevel=1, filename="") as zipped,
    ):
        zipped.write(header + array.tobytes())


def _existing(path: Path) -> Path:
    """The file, zipped or not."""
    for candidate in (path, path.with_suffix("")):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path} is missing; run `mlcore fetch mnist`, or give the folder with --data")


def _copy(path: Path, target: Path) -> None:
    found = _existing(path)
    shutil.copyfile(found, target / found.name)


# CIFAR-10: records of a label and 3x32x32 pixels, in five batches for training and one for testing

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
INSIDE = "cifar-10-batches-bin"  # the official archive's own folder
CIFAR_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
CIFAR_CLASSES = 10
WITHHELD = 255  # the label of every test image, where they are kept back


@dataclass(frozen=True)
class Cifar:
    """Written unpacked: they are read again by every training, and .xz takes a second a batch."""

    official: Mapping[str, str]

    def raw(self, folder: Path, file: str) -> bytes:
        return _raw(_batch_in(folder, file))

    def train(self, folder: Path) -> Split:
        batches = [read_batch(_batch_in(folder, name)) for name in TRAIN_BATCHES]
        return Split(np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches]))

    def test(self, folder: Path) -> Split:
        return read_batch(_batch_in(folder, TEST_BATCH))

    def copy_train(self, source: Path, target: Path) -> None:
        for name in TRAIN_BATCHES:
            (target / f"{name}.bin").write_bytes(self.raw(source, name))

    def copy_test_images(self, source: Path, target: Path) -> None:
        self.write_test_images(target, self.test(source).images)

    def write_train(self, folder: Path, split: Split) -> None:
        images, labels = (np.array_split(array, len(TRAIN_BATCHES)) for array in (split.images, split.labels))
        for name, *batch in zip(TRAIN_BATCHES, images, labels, strict=True):
            write_batch(folder / f"{name}.bin", Split(batch[0], batch[1]))

    def write_test_images(self, folder: Path, images: Bytes) -> None:
        write_batch(folder / f"{TEST_BATCH}.bin", Split(images, np.full(len(images), WITHHELD, np.uint8)))


def read_batch(path: Path) -> Split:
    """A batch with its labels; withheld ones are refused: nothing could be measured by them."""
    raw = _raw(path)
    if not raw or len(raw) % RECORD_BYTES:
        raise InputError(f"{path} is no CIFAR batch ({len(raw)} bytes); fetch it again")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= CIFAR_CLASSES:
        raise InputError(f"{path} has a label {labels.max()}, not a class 0..{CIFAR_CLASSES - 1}; fetch it again")
    return Split(records[:, 1:].reshape(-1, *CIFAR_SHAPE), labels)


def write_batch(path: Path, split: Split) -> None:
    records = np.concatenate([split.labels[:, None], split.images.reshape(len(split.labels), -1)], axis=1)
    path.write_bytes(records.tobytes())


def _batch_in(folder: Path, name: str) -> Path:
    """The file of a batch, packed or not, as mlcore looks for it."""
    for place in (folder, folder / INSIDE):
        for ending in (".bin", ".bin.gz", ".bin.xz"):
            if (path := place / f"{name}{ending}").is_file():
                return path
    raise InputError(f"{folder / name}.bin is missing; run `mlcore fetch cifar10`, or unpack the official archive")


# Packed files


def _raw(path: Path) -> bytes:
    try:
        raw = READERS.get(path.suffix, _read_plain)(path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} can't be read: {error}; fetch it again") from error
    if len(raw) > MAX_RAW_BYTES:
        raise InputError(f"{path} is larger than {MAX_RAW_BYTES} bytes")
    return raw


def _read_plain(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_RAW_BYTES + 1)


def _read_gzip(path: Path) -> bytes:
    with gzip.open(path) as file:
        return file.read(MAX_RAW_BYTES + 1)


def _read_xz(path: Path) -> bytes:
    with lzma.open(path) as file:
        return file.read(MAX_RAW_BYTES + 1)


READERS: dict[str, Callable[[Path], bytes]] = {".gz": _read_gzip, ".xz": _read_xz}
PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open}  # as streams of bytes

# Of the decompressed bytes: gzip headers differ from mirror to mirror, and .xz is a matter of taste.
FORMATS: dict[str, Format] = {
    "mnist": Idx(
        {
            TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        }
    ),
    "cifar10": Cifar(
        {
            "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            TEST_BATCH: "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        }
    ),
}
