"""Drawn photographs of a few hundred bytes in tar shards, in Imagenette's place but not its own."""

from __future__ import annotations

import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.datasets import Dataset

CLASSES = 12
TRAIN, TEST = 240, 72
FOLDER = "imagenette2-160"


def jpeg(number: int, side: int = 60) -> bytes:
    """Of a colour of its own, with a bright spot: its place tells the class.

    Patches make pictures of a class differ, or one untrained network in 300 guesses three classes right.
    """
    rng = np.random.default_rng(number)
    row, column = divmod(number % CLASSES, 4)
    pixels = rng.integers(20, 100, 3) + rng.integers(0, 40, (side, side + 12, 3))
    patches = rng.integers(-45, 46, (side // 15, (side + 12) // 12, 1))
    pixels += patches.repeat(15, axis=0).repeat(12, axis=1)
    pixels[row * 16 + 8 : row * 16 + 20, column * 12 + 12 : column * 12 + 24] += 110
    pixels = pixels.clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=75)
    return stream.getvalue()


def label(number: int) -> str:
    return f"n{number * 7 % CLASSES:02}"


def tar(path: Path, members: list[tuple[str, bytes]], packed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1234567890, "photographer"
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(lzma.compress(stream.getvalue(), preset=0) if packed else stream.getvalue())
    return path


def members(first: int, count: int) -> list[tuple[str, bytes]]:
    return [(f"{label(i)}/ILSVRC2012_{label(i)}_{i:08}.jpg", jpeg(i)) for i in range(first, first + count)]


def drawn(root: Path, packed: bool = True) -> Dataset:
    """root/imagenette2-160 with two shards for training and two for testing."""
    ending = ".tar.xz" if packed else ".tar"
    for split, first, count in (("train", 0, TRAIN), ("val", 1000, TEST)):
        for number in range(2):
            path = root / FOLDER / f"{FOLDER}-{split}-{number:04}{ending}"
            tar(path, members(first + number * count // 2, count // 2), packed)
    return Dataset("imagenette", root / FOLDER, {"train": "x", "val": "y"}, official=False, surrogate=False)


def listed(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return archive.getmembers()


def contents(path: Path) -> list[bytes]:
    with tarfile.open(path) as archive:
        return [archive.extractfile(member).read() for member in archive]  # type: ignore[union-attr]
