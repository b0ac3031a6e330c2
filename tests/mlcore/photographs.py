"""Drawn JPEGs of a few hundred bytes, tars of them, and a recipe that trains on them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import simplejpeg

from mlcore import config
from mlcore.data.shards.catalogue import Catalogue
from mlcore.data.shards.decode import Look
from mlcore.data.shards.files import Roots, shard_files
from mlcore.data.shards.scan import open_catalogue

CLASSES = ("n01", "n02", "n03")
SIDE = 24

RECIPE = """
name = "photos"
threads = 1
[model]
name = "mlp"
options.hidden = [16]
[data]
dataset = "shards"
train = "train"
test = "test"
side = 24
crop = 20
classes = 3
flip = true
colour_noise = 0.1
normalise = "channel"
workers = 2
[optimiser]
rate = 0.02
[train]
epochs = 4
batch = 16
"""


def pixels(seed: int, height: int = SIDE, width: int = 30, kind: int = 0) -> np.ndarray:
    """uint8 [H,W,3]: a gradient whose colour tells the class, with some noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 4 + 40, columns * 3 + 60, np.full((height, width), 90)]
    image = np.stack(planes[kind:] + planes[:kind], axis=-1) + generator.integers(0, 30, (height, width, 1))
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))


def jpeg(seed: int, height: int = SIDE, width: int = 30, kind: int = 0) -> bytes:
    return bytes(simplejpeg.encode_jpeg(pixels(seed, height, width, kind), 90))


def png(seed: int, height: int = SIDE, width: int = 30) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels(seed, height, width)).save(stream, "PNG")
    return stream.getvalue()


def cmyk(seed: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels(seed)).convert("CMYK").save(stream, "JPEG")
    return stream.getvalue()


def bomb() -> bytes:
    """A JPEG of a few hundred bytes whose header says 9000x9000."""
    small = bytearray(jpeg(0))
    at = small.index(b"\xff\xc0") + 5
    small[at : at + 4] = (9000).to_bytes(2, "big") * 2
    return bytes(small)


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these members, whatever their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sound(count: int, first: int = 0, side: int = SIDE) -> list[tuple[str, bytes]]:
    """Members of all classes by turns."""
    return [(f"{CLASSES[i % 3]}/p{i}.jpg", jpeg(i, side, side + 6, i % 3)) for i in range(first, first + count)]


def splits(root: Path, extra: Mapping[str, bytes] | None = None) -> Path:
    """A folder with train/ (two shards, 60 pictures, and what is extra) and test/ (15)."""
    tar(root / "train" / "a.tar", sound(30))
    tar(root / "train" / "b.tar", [*sound(30, 30), *(extra or {}).items()])
    tar(root / "test" / "a.tar", sound(15, 100))
    return root


def roots(tmp_path: Path) -> Roots:
    return Roots((tmp_path,), tmp_path / "cache")


def catalogued(name: str, tmp_path: Path, most_pixels: int = 1 << 20) -> Catalogue:
    """The catalogue of shards below `tmp_path`."""
    here = roots(tmp_path)
    return open_catalogue(shard_files(name, here), here, Look(2, most_pixels), lambda text: None)


def recipe(*overrides: str) -> config.Recipe:
    return config.parse(RECIPE, "photos.toml", overrides)
