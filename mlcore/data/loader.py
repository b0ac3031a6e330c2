"""Batches in a seeded order.

The order is a pure function of the seed and the epoch, and a place in it is a number of steps: a loader resumed
at a step gives bit for bit what it would have given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.images import Bytes, Floats, Normaliser
from mlcore.rng import Rng

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """`images` float32 [N,1,28,28] normalised, `labels` int64 [N], `index` int64 [N] into the dataset's split."""

    images: Floats
    labels: Indices
    index: Indices


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

    def __init__(self, part: Part, batch: int, normaliser: Normaliser, rng: Rng) -> None:
        self.part, self.batch, self.normaliser, self.rng = part, batch, normaliser, rng
        self.steps_per_epoch = -(-len(part) // batch)

    def order(self, epoch: int) -> Indices:
        """The order of an epoch: every index of the part exactly once."""
        return self.part.index[self.rng.child("epoch", epoch).generator().permutation(len(self.part))]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps `start` (inclusive) to `stop` (exclusive).

        Made when asked for: that takes some hundredths of a small network's step, less than a thread's handing over.
        """
        epoch, order = -1, self.part.index
        for step in range(start, stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.order(epoch)
            first = step % self.steps_per_epoch * self.batch
            yield self.take(order[first : first + self.batch])

    def take(self, index: Indices) -> Batch:
        """The batch of these images of the split."""
        images = self.normaliser.apply(self.part.images[index])
        return Batch(images, self.part.labels[index].astype(np.int64), index)


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
