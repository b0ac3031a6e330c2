"""Batches in a seeded order, made ready by a thread while the network works on the one before.

The order is a pure function of the seed and the epoch, and a place in it is a number of steps: a loader resumed
at a step gives bit for bit what it would have given.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.images import Bytes, Floats, Normaliser
from mlcore.rng import Rng

Indices: TypeAlias = npt.NDArray[np.int64]
AHEAD = 3  # batches made ready before they are asked for


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
        """The batches of the steps `start` (inclusive) to `stop` (exclusive), made ahead by a thread."""
        return prefetched(self._make(start, stop))

    def _make(self, start: int, stop: int) -> Iterator[Batch]:
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


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Run `batches` in a thread, at most AHEAD in front; its errors surface here, and it ends with its reader."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
    closed = threading.Event()
    thread = threading.Thread(target=_feed, args=(batches, ready, closed), name="mlcore-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


def _feed(
    batches: Iterator[Batch], ready: "queue.Queue[Batch | BaseException | None]", closed: threading.Event
) -> None:
    last: BaseException | None = None
    try:
        for batch in batches:
            if not _put(ready, batch, closed):
                return
    except BaseException as error:
        last = error
    _put(ready, last, closed)


def _put(
    ready: "queue.Queue[Batch | BaseException | None]", item: Batch | BaseException | None, closed: threading.Event
) -> bool:
    """Put, unless the reader has gone; returns whether it was put."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
