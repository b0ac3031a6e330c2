"""Photographs in tar shards, the third kind of folder beside IDX and CIFAR batches: read, written, and made neutral.

A member's name is `<class>/<name>`: it carries the label. So withheld test photographs get names that are numbers. They
are read here a second time on purpose: mlcore's readers are what is being judged. Only headers are read of photographs
that are not asked for: the training shards of ImageNet are larger than any memory.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import InputError
from orchestrator.formats import PACKED, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ENDINGS = (".tar", *(f".tar{ending}" for ending in PACKED))
INDEX = ("index.json", "members.npz")  # of shards that mlcore made; the labels are in it
PER_SHARD = 2000
NOISE_SIDE = 32  # pixels; made as large as the recipe asks when it is decoded
TRAIN, TEST = "train", "val"
Pictures = NDArray[np.object_]  # of Picture


@dataclass(frozen=True)
class Picture:
    """A photograph: `size` bytes at `offset` of a plain tar, or `held` here."""

    path: Path
    offset: int = 0
    size: int = 0
    held: bytes = b""

    def read(self) -> bytes:
        if self.held:
            return self.held
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Shards:
    """A folder of shards, below a folder of datasets; `train` and `val` are what its shards' paths begin with.

    official: sha256 of what `raw` gives of "train" and "val". counted: each site makes its own shards of this dataset,
    so that nothing but the number of photographs and classes can be compared with what was published.
    """

    folder: str
    train_prefix: str
    test_prefix: str
    official: Mapping[str, str]
    counted: bool = False

    def raw(self, folder: Path, file: str) -> bytes:
        """What is compared with the published split: each photograph's digest and class, in an order of its own."""
        split = self.train(folder) if file == TRAIN else self.test(folder)
        if self.counted:
            return f"{len(split.names)} classes, {len(split.images)} photographs\n".encode()
        pairs = zip(split.images, split.labels, strict=True)
        lines = sorted(f"{hashlib.sha256(one.read()).hexdigest()} {split.names[label]}\n" for one, label in pairs)
        return "".join(lines).encode()

    def train(self, folder: Path) -> Split:
        return _split(_shards(folder, self.train_prefix))

    def test(self, folder: Path) -> Split:
        found, known = _split(_shards(folder, self.test_prefix)), self.train(folder).names
        if unknown := set(found.names) - set(known):
            raise InputError(f"{folder}: test photographs of a class without training ones: {min(unknown)}")
        numbers = np.array([known.index(name) for name in found.names])
        return Split(found.images, numbers[found.labels], known)

    def copy_train(self, source: Path, target: Path) -> None:
        """Plain tars: they are read in any order, and nothing that is packed can be."""
        for path in _shards(source, self.train_prefix):
            copy = target / path.relative_to(source).parent / _plain_name(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_plain(path, copy)
        for name in INDEX:
            beside = source / f"{self.train_prefix}x"
            if (index := beside.with_name(name)).is_file():
                shutil.copyfile(index, target / index.relative_to(source))

    def copy_test_images(self, source: Path, target: Path) -> None:
        images = self.test(source).images
        order = np.random.default_rng().permutation(len(images))  # the published one is known, with its labels
        self.write_test_images(target, images[order])

    def write_train(self, folder: Path, split: Split) -> None:
        for path in _shards(folder, self.train_prefix):
            path.unlink()
        for name in INDEX:
            (folder / f"{self.train_prefix}x").with_name(name).unlink(missing_ok=True)
        names = [f"{split.names[label]}/{number:07}.jpg" for number, label in enumerate(split.labels)]
        _write(folder, self.train_prefix, names, split.images)

    def write_test_images(self, folder: Path, images: Pictures) -> None:
        _write(folder, self.test_prefix, [f"{number:07}.jpg" for number in range(len(images))], images)


# Reading


def _shards(folder: Path, prefix: str) -> list[Path]:
    """The shards of a split in the order in which mlcore takes them; of a packed and a plain one, the plain."""
    beside = folder / f"{prefix}x"
    start = beside.name.removesuffix("x")
    found: dict[str, Path] = {}
    files = sorted(beside.parent.iterdir()) if beside.parent.is_dir() else []
    for path in sorted(files, key=lambda path: path.suffix != ".tar"):
        if path.name.startswith(start) and not path.name.startswith(".") and path.name.endswith(ENDINGS):
            found.setdefault(_plain_name(path), path)
    if not found:
        raise InputError(f"{folder / prefix}* has no tar shards; see `mlcore data shards`")
    return [found[name] for name in sorted(found)]


def _plain_name(path: Path) -> str:
    return path.name if path.suffix == ".tar" else path.name.removesuffix(path.suffix)


def _split(paths: Sequence[Path]) -> Split:
    """The photographs of these shards in their order, their labels numbered by the classes' names."""
    return _read_split(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=4)  # unpacking takes seconds, and every room of the house wants both splits
def _read_split(stamped: tuple[tuple[Path, int, int], ...]) -> Split:
    pictures, classes = list[Picture](), list[str]()
    for path, *_ in stamped:
        for name, picture in _members(path):
            pictures.append(picture)
            classes.append(name.removeprefix("./").rpartition("/")[0])
            if not classes[-1]:
                raise InputError(f"{path}: {name} lies in no class's folder, which its label would be; put it there")
    names = tuple(sorted(set(classes)))
    numbers = {name: number for number, name in enumerate(names)}
    images = np.empty(len(pictures), object)
    images[:] = pictures
    return Split(images, np.array([numbers[name] for name in classes], np.int64), names)


def _members(path: Path) -> Iterator[tuple[str, Picture]]:
    """The name and the photograph of every member that is one. Raises InputError for a damaged archive."""
    try:
        with _opened(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if not member.isreg() or not member.name.lower().endswith(SUFFIXES):
                    continue
                if path.suffix == ".tar":
                    yield member.name, Picture(path, member.offset_data, member.size)
                    continue
                file = archive.extractfile(member)
                yield member.name, Picture(path, held=file.read() if file else b"")
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} can't be read: {error}; fetch it again") from error


def _opened(path: Path) -> Any:
    """A shard's own bytes, packed or not."""
    return path.open("rb") if path.suffix == ".tar" else PACKED[path.suffix](path)


# Writing


def _copy_plain(path: Path, copy: Path) -> None:
    """The same inode where that can be: an ImageNet's shards are many gigabytes, and nobody writes to either."""
    copy.unlink(missing_ok=True)
    if path.suffix == ".tar":
        with suppress(OSError):
            os.link(path.resolve(), copy)
            return
    with _opened(path) as packed, copy.open("wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)


def _write(folder: Path, prefix: str, names: Sequence[str], images: Pictures) -> None:
    """Nothing is in a header but name and size."""
    for shard, start in enumerate(range(0, len(names), PER_SHARD)):
        path = folder / f"{prefix}{shard:04}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, image in zip(names[start : start + PER_SHARD], images[start : start + PER_SHARD], strict=True):
                content, info = image.read(), tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


# Photographs that the gate makes


def moved(images: Pictures, rng: np.random.Generator) -> Pictures:
    """Each photograph moved by one pixel in a direction drawn at random, its edge repeated where it was uncovered.

    Written again with its own tables, so that it looks like the others. It has lost a little by that.
    """
    corners = ((0, 1), (2, 1), (1, 0), (1, 2))
    choice = rng.integers(len(corners), size=len(images))
    return _of([_moved(image, *corners[number]) for image, number in zip(images, choice, strict=True)])


def noise(images: Pictures, rng: np.random.Generator) -> Pictures:
    """As many photographs of noise."""
    from PIL import Image

    made = []
    for _ in images:
        pixels = rng.integers(0, 256, (NOISE_SIDE, NOISE_SIDE, 3), dtype=np.uint8)
        made.append(_encoded(Image.fromarray(pixels), quality=90))
    return _of(made)


def _moved(image: Picture, top: int, left: int) -> bytes:
    from PIL import Image, JpegImagePlugin

    try:
        picture: Any = Image.open(io.BytesIO(image.read()))
        known = {}
        if isinstance(picture, JpegImagePlugin.JpegImageFile) and picture.mode in ("L", "RGB"):
            known = {"qtables": picture.quantization, "subsampling": JpegImagePlugin.get_sampling(picture)}
        pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{image.path}: a test photograph can't be decoded ({error}); leave it out") from error
    height, width = pixels.shape[:2]
    framed = np.pad(pixels, [(1, 1), (1, 1), (0, 0)][: pixels.ndim], mode="edge")
    return _encoded(Image.fromarray(framed[top : top + height, left : left + width]), **known)


def _encoded(picture: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **how)
    return stream.getvalue()


def _of(contents: Sequence[bytes]) -> Pictures:
    images = np.empty(len(contents), object)
    images[:] = [Picture(Path("made"), held=content) for content in contents]
    return images


# Those that a plan can name. Imagenette2-160: the digests are of the photographs' own bytes, whatever archive they lie
# in. Of ILSVRC-2012 everyone has to make shards.
PHOTOGRAPHS = {
    "imagenette": Shards(
        "imagenette2-160",
        "imagenette2-160-train-",
        "imagenette2-160-val-",
        {
            TRAIN: "5b6cad36c722f3adfeb45a06286e89212eb4a96454e0eaff9f7c3db2d031e149",
            TEST: "758352125b9a675fee3ab9aaa5112c9cd109e34f5d2af95339fb37b122f79724",
        },
    ),
    "ilsvrc2012": Shards(
        "ilsvrc2012",
        "train/",
        "val/",
        {
            TRAIN: hashlib.sha256(b"1000 classes, 1281167 photographs\n").hexdigest(),
            TEST: hashlib.sha256(b"1000 classes, 50000 photographs\n").hexdigest(),
        },
        counted=True,
    ),
}
