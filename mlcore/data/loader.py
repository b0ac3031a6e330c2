"""Batches in a seeded order.

The order is a pure function of the seed and the epoch, and a place in it is a number of steps; what is drawn for an
image in an epoch, of seed, epoch and the image's number. So a loader resumed at a step gives bit for bit what it
would have given.

Legend: B batch, N images, C channels, H W an image's pixels, P Q what of it is seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.dataset import Bytes
from mlcore.data.images import Floats, Normaliser
from mlcore.data.windows import Cut, Windows
from mlcore.rng import Rng

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """`images` float32 [B,C,P,Q] normalised, `labels` int64 [B], `index` int64 [B] into the dataset's split.

    `windows`: what was seen of each image; None: all of it.
    """

    images: Floats
    labels: Indices
    index: Indices
    windows: Windows | None = None


class Feed(Protocol):
    """What training draws its batches from, wherever the images are."""

    batch: int

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every image once."""

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps `start` (inclusive) to `stop` (exclusive), the same however training came there."""

    def only(self, mine: Callable[[int], slice]) -> None:
        """Of a batch of so many images, nothing but these will be looked at: others need not be made."""


@dataclass(frozen=True)
class Part:
    """The part of a split a loader draws from: the split's own arrays, and which of its images belong."""

    images: Bytes
    labels: Bytes
    index: Indices

    def __len__(self) -> int:
        return len(self.index)


class Loader:
    """Endless batches over a part, reshuffled each epoch; the last batch of an epoch may be smaller."""

    def __init__(self, part: Part, batch: int, normaliser: Normaliser, rng: Rng, cut: Cut | None = None) -> None:
        """`cut`: what is to be seen of each image; None: all of it, always."""
        self.part, self.batch, self.normaliser, self.rng, self.cut = part, batch, normaliser, rng, cut

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.part) // self.batch)

    def only(self, mine: Callable[[int], slice]) -> None:
        """All are made: from memory that costs next to nothing."""

    def order(self, epoch: int) -> Indices:
        """The order of an epoch: every index of the part exactly once."""
        return self.part.index[self.rng.child("epoch", epoch).generator().permutation(len(self.part))]

    def windows(self, epoch: int) -> Windows | None:
        """An epoch's window of each image of the split; None where all of it is seen."""
        if self.cut is None:
            return None
        return self.cut.drawn(len(self.part.labels), self.rng.child("windows", epoch))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps `start` (inclusive) to `stop` (exclusive).

        Made when asked for: that takes some hundredths of a small network's step, less than a thread's handing over.
        """
        epoch, order, windows = -1, self.part.index, None
        for step in range(start, stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order, windows = self.order(epoch), self.windows(epoch)
            first = step % self.steps_per_epoch * self.batch
            index = order[first : first + self.batch]
            yield self.take(index, None if windows is None else windows[index])

    def take(self, index: Indices, windows: Windows | None = None) -> Batch:
        """The batch of these images of the split, seen through the windows."""
        labels = self.part.labels[index].astype(np.int64)
        if windows is None:
            return Batch(self.normaliser.apply(self.part.images[index]), labels, index)
        assert self.cut is not None
        images = self.normaliser.cut(self.part.images, index, windows, self.cut.size)
        return Batch(images, labels, index, windows)


def split(images: Bytes, labels: Bytes, validation: int, limit: int, rng: Rng) -> tuple[Part, Part]:
    """Part the training split by seed into (training, validation); `limit` > 0 keeps that many for training.

    Both keep the file's order inside. The caller has checked that they fit into the split.
    """
    order = rng.child("split").generator().permutation(len(labels)).astype(np.int64)
    held, rest = order[:validation], order[validation:]
    kept = rest[:limit] if limit else rest
    return Part(images, labels, np.sort(kept)), Part(images, labels, np.sort(held))


def shuffled(part: Part, rng: Rng) -> Part:
    """The control: the same images, with the part's own labels dealt out anew, so that nothing can be learnt."""
    labels = part.labels.copy()
    labels[part.index] = rng.child("shuffled labels").generator().permutation(part.labels[part.index])
    return Part(part.images, labels, part.index)
