"""A dataset of photographs in tar shards: found, catalogued, and turned into what training and evaluation draw from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcore.config import Data
from mlcore.data.dataset import Bytes, Shape
from mlcore.data.feeds import Feeds, seen_shape
from mlcore.data.images import Normaliser
from mlcore.data.loader import Indices
from mlcore.data.shards.catalogue import Catalogue
from mlcore.data.shards.decode import FORMATS, Look, decode_square
from mlcore.data.shards.faults import Faults, PictureError
from mlcore.data.shards.feed import ColourNoise, Filler, PhotoFeed, PhotoStream, Seeing
from mlcore.data.shards.files import Roots, Tell, shard_files
from mlcore.data.shards.scan import open_catalogue
from mlcore.data.shards.stats import Statistics, statistics_of
from mlcore.data.windows import Cut, Views
from mlcore.errors import DataError, RecipeError
from mlcore.result import usable_cores
from mlcore.rng import Rng

NAME = "shards"
BLACK = "{} picture for which a black square is scored: "  # a prediction belongs to every picture of the files


@dataclass(frozen=True)
class Photos:
    """Both splits' catalogues, and what is known of them; the attributes are as those of `Dataset`."""

    data: Data
    train: Catalogue
    test: Catalogue
    statistics: Statistics
    path: Path
    kind: str = NAME
    name: str = NAME
    surrogate: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def classes(self) -> int:
        return len(self.train.classes)

    @property
    def image_shape(self) -> Shape:
        """(3, S, S)."""
        return photo_shape(self.data)

    @property
    def sha256(self) -> dict[str, str]:
        """Of the tars, by split and file name."""
        splits = {"train": self.train, "test": self.test}
        return {f"{split}/{name}": digest for split, one in splits.items() for name, digest in one.sha256.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out."""
        return (*self.train.faults.lines(), *self.test.faults.lines())

    @property
    def test_labels(self) -> Indices | None:
        return None if self.test.withheld else self.test.labels

    def test_image(self, index: int) -> Bytes:
        """uint8 [3,S,S]: a test photograph's square."""
        return _square_of(self.test.read(index), self.data)

    def feeds(self, batch: int, rng: Rng) -> Feeds:
        """What training and evaluation draw from, as the recipe says; RecipeError for what can't be held out."""
        data, cut, look = self.data, _cut(self.data), look_of(self.data)
        part, held = _split(len(self.train), data, rng)
        labels = _shuffled(self.train.labels, part, rng) if data.shuffle_labels else self.train.labels
        normaliser = _normaliser(self.statistics, data.normalise)
        seeing = Seeing(cut, normaliser, look, data.broken != "skip")
        noise = ColourNoise(data.colour_noise, self.statistics.axes) if data.colour_noise else None
        train = Filler(self.train, seeing)
        return Feeds(
            train=PhotoFeed(train, part, labels, batch, rng.child("loader"), noise),
            validation=PhotoStream(Filler(self.train, seeing, train.faults), held, cut.views("centre")),
            test=self.tested(normaliser, train.faults),
            normaliser=normaliser,
            faults=train.faults,
        )

    def tested(self, normaliser: Normaliser, faults: Faults) -> PhotoStream:
        """The test split, as the recipe has it evaluated; what can't be had any more goes to `faults`."""
        return self._stream(self.test, "test", normaliser, self.data.views, faults)

    def trained(self, normaliser: Normaliser, faults: Faults) -> PhotoStream:
        """All of the training split, not augmented, by the centre view."""
        return self._stream(self.train, "training", normaliser, "centre", faults)

    def _stream(self, split: Catalogue, name: str, normaliser: Normaliser, views: Views, faults: Faults) -> PhotoStream:
        cut = _cut(self.data)
        seeing = Seeing(cut, normaliser, look_of(self.data), self.data.broken != "skip")
        filler = Filler(split, seeing, faults, called=BLACK.format(name))
        return PhotoStream(filler, np.arange(len(split)), cut.views(views))


def find_photos(data: Data, folder: Path | None, tell: Tell) -> Photos:
    """The photographs that a recipe's [data] names; `folder` is what relative names begin at, else MLCORE_DATA.

    Raises DatasetMissing, DataError for what is broken where the recipe refuses that, and RecipeError when the recipe
    says another number of classes.
    """
    roots, look = Roots.of(folder, os.environ), look_of(data)
    assert data.train is not None
    assert data.test is not None
    files = shard_files(data.train, roots)
    train = open_catalogue(files, roots, look, tell, classes=data.classes or 0)
    test_files = shard_files(data.test, roots)
    test = open_catalogue(test_files, roots, look, tell, may_withhold=True, classes=data.classes or 0)
    test = test.as_classes_of(train.classes)
    if data.broken == "refuse":
        train.faults.demand_none()
        test.faults.demand_none()
    if len(train.classes) != data.classes:
        said = f"{data.classes} classes, but the shards have {len(train.classes)}"
        raise RecipeError(said, place="data.classes", fix="write that number")
    statistics, _ = statistics_of(train, photo_shape(data)[1], roots.cache, look, tell, data.broken != "skip")
    return Photos(data, train, test, statistics, files[0].parent)


def photo_shape(data: Data) -> Shape:
    """(3, S, S) of the squares that a recipe of photographs wants."""
    assert data.side
    return 3, data.side, data.side


def read_photo(path: Path, data: Data) -> Bytes:
    """uint8 [1,3,S,S]: a picture from a file, as the recipe's photographs are; DataError when it is none."""
    try:
        return _square_of(path.read_bytes(), data)[None]
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", place=str(path), fix="name a picture") from error
    except PictureError as error:
        fix = error.fix or f"give {', '.join(FORMATS)}"
        raise PictureError(error.what, kind=error.kind, place=str(path), fix=fix) from error


def _square_of(content: bytes, data: Data) -> Bytes:
    """uint8 [3,S,S] of a picture's bytes."""
    side = photo_shape(data)[1]
    square = decode_square(content, side, look_of(data).most_pixels)
    rows, columns = slice(square.top, square.top + side), slice(square.left, square.left + side)
    return np.ascontiguousarray(square.image_HW3[rows, columns].transpose(2, 0, 1))


def look_of(data: Data) -> Look:
    """How the recipe wants pictures decoded."""
    assert data.max_pixels is not None
    return Look(data.workers or usable_cores(), data.max_pixels)


def _cut(data: Data) -> Cut:
    shape = photo_shape(data)
    return Cut(shape[1:], seen_shape(data, shape)[1:], data.flip)


def _split(count: int, data: Data, rng: Rng) -> tuple[Indices, Indices]:
    """(training, validation), parted by seed as images in memory are; RecipeError when they exceed the split."""
    if data.validation + max(data.limit, 1) > count:
        raise RecipeError(
            f"{data.validation} held out and {max(data.limit, 1)} to train on exceed the {count} training images",
            place="data.validation, data.limit",
            fix="lower one of them",
        )
    order = rng.child("split").generator().permutation(count).astype(np.int64)
    held, rest = order[: data.validation], order[data.validation :]
    return np.sort(rest[: data.limit] if data.limit else rest), np.sort(held)


def _shuffled(labels: Indices, part: Indices, rng: Rng) -> Indices:
    """The labels with the part's own dealt out anew."""
    dealt = labels.copy()
    dealt[part] = rng.child("shuffled labels").generator().permutation(labels[part])
    return dealt


def _image(seen: Statistics) -> Normaliser:
    return Normaliser(seen.mean_image, np.full((1, 1, 1), 1 / 255))


def _channel(seen: Statistics) -> Normaliser:
    deviation = np.sqrt(np.diag(seen.covariance)).reshape(3, 1, 1)
    return Normaliser(seen.mean_colour.reshape(3, 1, 1), np.where(deviation > 0, deviation, 1))


def _scalar(seen: Statistics) -> Normaliser:
    mean = seen.mean_colour.mean()
    square = (np.diag(seen.covariance) + seen.mean_colour**2).mean()
    deviation = max(square - mean**2, 0.0) ** 0.5 or 1.0
    return Normaliser(np.full((1, 1, 1), mean), np.full((1, 1, 1), deviation))


WAYS: dict[str, Callable[[Statistics], Normaliser]] = {"scalar": _scalar, "channel": _channel, "image": _image}


def _normaliser(seen: Statistics, way: str) -> Normaliser:
    """As `Normaliser.of` has it, by the statistics of all training photographs."""
    return WAYS[way](seen)
