"""From a dataset to what training and evaluation draw from, as a recipe's [data] says.

Another way than through memory is a function of the same shape beside `in_memory`.
"""

from dataclasses import dataclass, field

from mlcore.config import Data
from mlcore.data.dataset import Bytes, Dataset, Shape
from mlcore.data.images import Normaliser
from mlcore.data.loader import Feed, Loader, shuffled, split
from mlcore.data.shards.faults import Faults
from mlcore.data.views import InMemory, Stream
from mlcore.data.windows import Cut, Views
from mlcore.errors import RecipeError
from mlcore.rng import Rng


@dataclass(frozen=True)
class Feeds:
    """The three splits, and what all of them are normalised by. `validation` is empty when nothing is held out.

    `faults`: what of any split could not be read while training and evaluation went on, counted.
    """

    train: Feed
    validation: Stream
    test: Stream
    normaliser: Normaliser
    faults: Faults = field(default_factory=Faults)


def seen_shape(data: Data, image_shape: Shape) -> Shape:
    """(C, P, Q) of what a network sees of images (C, H, W); RecipeError when the crop does not fit."""
    channels, height, width = image_shape
    if not data.crop:
        return image_shape
    if data.crop > min(height, width):
        raise RecipeError(
            f"{data.crop} pixels do not fit into images of {height}x{width}", place="data.crop", fix="lower it"
        )
    return channels, data.crop, data.crop


def in_memory(data: Data, batch: int, dataset: Dataset, rng: Rng) -> Feeds:
    """The feeds of a dataset in memory; RecipeError for what can't be cut or held out.

    Validation always goes by the centre view: it is done every epoch.
    """
    _demand_enough(data, len(dataset.train_labels))
    part, held = split(dataset.train_images, dataset.train_labels, data.validation, data.limit, rng)
    part = shuffled(part, rng) if data.shuffle_labels else part
    normaliser = Normaliser.of(dataset.train_images, data.normalise)
    cut = _cut(data, dataset.image_shape)
    return Feeds(
        train=Loader(part, batch, normaliser, rng.child("loader"), cut if cut.is_random else None),
        validation=_stream(held.images[held.index], held.labels[held.index], normaliser, cut, "centre"),
        test=_stream(dataset.test_images, dataset.test_labels, normaliser, cut, data.views),
        normaliser=normaliser,
    )


def evaluated(data: Data, images_NCHW: Bytes, labels_N: Bytes | None, normaliser: Normaliser) -> InMemory:
    """Images of a dataset's shape, as its recipe has them evaluated."""
    channels, height, width = images_NCHW.shape[1:]
    return _stream(images_NCHW, labels_N, normaliser, _cut(data, (channels, height, width)), data.views)


def _cut(data: Data, image_shape: Shape) -> Cut:
    return Cut(image_shape[1:], seen_shape(data, image_shape)[1:], data.flip)


def _stream(images: Bytes, labels: Bytes | None, normaliser: Normaliser, cut: Cut, views: Views) -> InMemory:
    if views == "centre" and cut.size == cut.image:
        return InMemory(images, labels, normaliser)
    return InMemory(images, labels, normaliser, cut.views(views), cut.size)


def _demand_enough(data: Data, images: int) -> None:
    if data.validation + max(data.limit, 1) > images:
        raise RecipeError(
            f"{data.validation} held out and {max(data.limit, 1)} to train on exceed the {images} training images",
            place="data.validation, data.limit",
            fix="lower one of them",
        )
