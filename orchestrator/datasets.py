"""The datasets that verdicts stand on: which files they are, and what each room gets to see of them.

An agent's sandbox gets a copy without the test labels. The gate trains on a folder of its own: the test images in a
secret order, mixed with as many that the gate made by moving each one a pixel or two (public labels can be memorised,
these can't), still without labels. Controls get folders in which there is nothing left to learn.

IDX and its checksums are read here a second time on purpose: mlcore's reader is what is being judged.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
VISIBLE = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES)  # to an agent

# sha256 of the decompressed bytes (gzip headers differ from mirror to mirror).
OFFICIAL: dict[str, dict[str, str]] = {
    "mnist": {
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
}
MAX_RAW_BYTES = 1 << 30
Control = Literal["shuffled labels", "noise images"]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """A dataset on this machine. `official` says that every file's checksum is the published one."""

    name: str  # as the plan calls it
    folder: Path
    sha256: dict[str, str]
    official: bool
    surrogate: bool

    @property
    def label(self) -> str:
        if self.official:
            return self.name
        return f"a drawn surrogate for {self.name}" if self.surrogate else f"{self.name}, unverified files"


def locate(name: str, data: Path | None) -> Dataset:
    """Have mlcore find, download or draw the dataset, then check its files here. Raises InputError with the fix."""
    if name not in OFFICIAL:
        raise InputError(f"dataset `{name}` can't be measured; measurable: {', '.join(OFFICIAL)}")
    mlcore = str(Path(sys.executable).with_name("mlcore"))
    argv = [mlcore, "fetch", name, "--surrogate", "--json", *(["--data", str(data)] if data else [])]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise InputError(f"dataset `{name}` could not be had; give its folder with --data (see the message above)")
    found = json.loads(done.stdout)
    folder = Path(found["path"])
    hashes = {file: hashlib.sha256(_raw(folder / file)).hexdigest() for file in FILES}
    return Dataset(name, folder, hashes, hashes == OFFICIAL[name], bool(found["surrogate"]))


def withhold(dataset: Dataset, target: Path) -> Path:
    """The folder that an agent's sandbox mounts: `target/<folder's name>` without the test labels."""
    folder, complete = target / dataset.folder.name, target / f"{dataset.folder.name}.complete"
    copied = json.dumps(dataset.sha256, sort_keys=True)
    if not (complete.exists() and complete.read_text() == copied):
        complete.unlink(missing_ok=True)
        _fresh(folder)
        for file in VISIBLE:
            shutil.copyfile(_existing(dataset.folder / file), folder / _existing(dataset.folder / file).name)
        complete.write_text(copied)
    return target


def gate_split(dataset: Dataset, target: Path, seed: int) -> None:
    """Write `target/data/<name>/` for the sandbox and `target/answers.npy`, `target/made.npy` for the scorer.

    answers: uint8 [2N] labels in the folder's order; made: bool [2N], true where the gate moved the image.
    """
    rng = np.random.default_rng(seed)
    images, labels = read_idx(dataset.folder / TEST_IMAGES, 3), read_idx(dataset.folder / TEST_LABELS, 1)
    if len(images) != len(labels):
        raise InputError(f"{dataset.folder}: {len(images)} test images but {len(labels)} labels; fetch it again")
    both = np.concatenate([images, _moved(images, rng)])
    order = rng.permutation(len(both))
    folder = _fresh(target / "data" / dataset.name)
    for file in (TRAIN_IMAGES, TRAIN_LABELS):
        shutil.copyfile(_existing(dataset.folder / file), folder / _existing(dataset.folder / file).name)
    write_idx(folder / TEST_IMAGES, both[order])
    np.save(target / "answers.npy", np.concatenate([labels, labels])[order], allow_pickle=False)
    np.save(target / "made.npy", (np.arange(len(both)) >= len(images))[order], allow_pickle=False)
    (target / "complete").touch()


def control(dataset: Dataset, target: Path, kind: Control, seed: int) -> None:
    """As gate_split, from which the relation of images and labels was taken: a learner must end at chance."""
    gate_split(dataset, target, seed)
    (target / "complete").unlink()
    rng = np.random.default_rng([seed, 1])
    folder = target / "data" / dataset.name
    if kind == "shuffled labels":
        labels = read_idx(dataset.folder / TRAIN_LABELS, 1)
        _replace(folder, TRAIN_LABELS, rng.permutation(labels))
    else:
        shape = read_idx(dataset.folder / TRAIN_IMAGES, 3).shape
        _replace(folder, TRAIN_IMAGES, rng.integers(0, 256, shape, dtype=np.uint8))
    (target / "complete").touch()


# IDX, the few lines of it that are needed


def read_idx(path: Path, dimensions: int) -> Bytes:
    raw = _raw(path)
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


def _raw(path: Path) -> bytes:
    path = _existing(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_RAW_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {error}; fetch it again") from error
    if len(raw) > MAX_RAW_BYTES:
        raise InputError(f"{path} is larger than {MAX_RAW_BYTES} bytes")
    return raw


def _existing(path: Path) -> Path:
    """The file, zipped or not."""
    for candidate in (path, path.with_suffix("")):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path} is missing; run `mlcore fetch mnist`, or give the folder with --data")


def _replace(folder: Path, name: str, array: Bytes) -> None:
    for stale in _names(name):
        (folder / stale).unlink(missing_ok=True)
    write_idx(folder / name, array)


def _names(name: str) -> Iterator[str]:
    yield name
    yield name.removesuffix(".gz")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _moved(images: Bytes, rng: np.random.Generator) -> Bytes:
    """Each image moved by one pixel in a direction drawn at random, the uncovered edge black."""
    out = np.zeros_like(images)
    height, width = images.shape[1:]
    steps = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    choice = rng.integers(len(steps), size=len(images))
    for index, (down, right) in enumerate(steps):
        chosen = choice == index
        source = images[chosen, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        moved = np.zeros((int(chosen.sum()), height, width), np.uint8)
        moved[:, max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)] = source
        out[chosen] = moved
    return out
