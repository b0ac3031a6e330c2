"""Photographs as training and evaluation draw them: decoded, cut and normalised ahead of whoever waits for them.

What is drawn for a photograph depends on the seed, the epoch and the photograph's number alone; the order of an epoch
on the seed and the epoch. So training goes on in mid-epoch to the bit, and reads nothing of what it has seen.
Legend: N photographs, B batch, V views, P Q a view's pixels, S the side of a central square.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.images import Floats, Normaliser
from mlcore.data.loader import Batch, Indices
from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import Catalogue
from mlcore.data.shards.decode import Look, decode_square
from mlcore.data.shards.faults import Faults, PictureError
from mlcore.data.windows import Cut, Windows
from mlcore.errors import DataError
from mlcore.kernels.photo import cut_views
from mlcore.rng import Rng

BLOCK = 16_384  # photographs that are shuffled with one another: some gigabytes of an ImageNet's shards, 300 MB
PIECE = 16  # photographs that a thread takes at a time
AHEAD = 2  # batches that are made while one is used
EVALUATED = 128  # views through the network at a time

Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seeing:
    """How photographs are seen: squares of `cut.image`, normalised; broken ones refused or left out."""

    cut: Cut
    normaliser: Normaliser
    look: Look
    refuse: bool = True

    @cached_property
    def _affine(self) -> tuple[Floats, Floats]:
        """Normalisation as byte * scale [3] - less [3,S,S]."""
        side = self.cut.image[0]
        scale = np.broadcast_to(1 / (255 * self.normaliser.deviation), (3, 1, 1))
        less = np.broadcast_to(self.normaliser.mean / self.normaliser.deviation, (3, side, side))
        return np.ascontiguousarray(scale[:, 0, 0], np.float32), np.ascontiguousarray(less, np.float32)

    def shown(self, catalogue: Catalogue, index: int, windows_V3: Windows, add_3: Floats, out_V3PQ: Floats) -> None:
        """Fill `out_V3PQ` with a photograph's windows; PictureError when it can't be had."""
        try:
            square = decode_square(catalogue.read(index), self.cut.image[0], self.look.most_pixels)
        except PictureError as error:
            raise error if error.place else error.at(catalogue.place(index)) from None
        cut_views(square.image_HW3, (square.top, square.left), windows_V3, *self._affine, add_3, out_V3PQ)


@dataclass(frozen=True, eq=False)
class ColourNoise:
    """Of a photograph's brightness and colour along the axes of how all photographs' colours vary.

    `axes` float64 [3,3]: its rows are the covariance's eigenvectors, as long as the deviation along each. `sigma`: of
    the factors that these are drawn with. Source: Krizhevsky 2012, sec. 4.1, which multiplies by eigenvalues; they
    depend on the unit of brightness, and the author's program took their roots, as here.
    """

    sigma: float
    axes: Doubles

    def drawn(self, count: int, rng: Rng) -> Doubles:
        """float64 [count,3]: what is added to each photograph's red, green and blue (0 to 1)."""
        return self.sigma * rng.generator().standard_normal((count, 3)) @ self.axes


@dataclass
class _Piece:
    """Some photographs of a batch or of an evaluation: where they go, and which of them came."""

    index: Indices
    windows: npt.NDArray[np.int32]  # [n,V,3]
    add: Floats  # [n,3]
    out: Floats  # [n,V,3,P,Q], a part of a whole
    whole: Floats
    last: bool
    wanted: range  # of its photographs
    came: npt.NDArray[np.bool_] = field(init=False)
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.came = np.ones(len(self.index), np.bool_)


@dataclass(frozen=True)
class _Whole:
    """A batch, or as many photographs as are evaluated at a time."""

    index: Indices
    windows: npt.NDArray[np.int32]
    add: Floats


@dataclass
class Filler:
    """Decodes and cuts in threads. `faults`: the photographs that could not be had any more, where that is allowed.

    `mine`: of so many photographs, those that are wanted; None: all. `called`: what comes before a fault's kind.
    """

    catalogue: Catalogue
    seeing: Seeing
    faults: Faults = field(default_factory=Faults)
    mine: Callable[[int], slice] | None = None
    called: str = ""

    def filled(self, wholes: Iterable[_Whole]) -> Iterator[tuple[Floats, npt.NDArray[np.bool_]]]:
        """For each whole: float32 [n,V,3,P,Q], and which of the n photographs are in it; the others are zeros."""
        came = list[npt.NDArray[np.bool_]]()
        wholes = iter(wholes)
        first = next(wholes, None)
        if first is None:
            return
        most = AHEAD * max(-(-len(first.index) // PIECE), 1)
        workers = self.seeing.look.workers
        pieces = (piece for whole in itertools.chain([first], wholes) for piece in self._cut_up(whole))
        for piece in ahead(self._fill, pieces, workers, max(most, workers)):
            self.faults.merge(piece.faults)
            came.append(piece.came)
            if piece.last:
                yield piece.whole, np.concatenate(came)
                came.clear()

    def _cut_up(self, whole: _Whole) -> Iterator[_Piece]:
        count, views = whole.windows.shape[:2]
        images = np.zeros((count, views, 3, *self.seeing.cut.size), np.float32)
        mine = self.mine(count) if self.mine else slice(0, count)
        for start in range(0, count, PIECE):
            part = slice(start, start + PIECE)
            chosen = whole.index[part], whole.windows[part], whole.add[part], images[part]
            wanted = range(max(0, mine.start - start), min(PIECE, count - start, mine.stop - start))
            yield _Piece(*chosen, images, start + PIECE >= count, wanted)

    def _fill(self, piece: _Piece) -> _Piece:
        for at in piece.wanted:
            try:
                self.seeing.shown(self.catalogue, int(piece.index[at]), piece.windows[at], piece.add[at], piece.out[at])
            except PictureError as error:
                if self.seeing.refuse:
                    raise
                piece.faults.add(f"{self.called}{error.kind}", f"{error.place}: {error.what}")
                piece.came[at], piece.out[at] = False, 0
        return piece


class PhotoFeed:
    """Endless batches of a catalogue's photographs `index`, reshuffled each epoch; the last of an epoch may be smaller.

    labels: int64 [N] of the whole catalogue. A `Feed`.
    """

    def __init__(
        self, filler: Filler, index: Indices, labels: Indices, batch: int, rng: Rng, noise: ColourNoise | None
    ) -> None:
        self.filler, self.index, self.labels = filler, index, labels
        self.batch, self.rng, self.noise = batch, rng, noise

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.index) // self.batch)

    def only(self, mine: Callable[[int], slice]) -> None:
        """Leave the rest of a batch black. Not where broken photographs are left out: all have to know which came."""
        self.filler.mine = mine if self.filler.seeing.refuse else None

    def order(self, epoch: int) -> Indices:
        """Every photograph once: the shards in a drawn order, and in that order BLOCK photographs mixed at a time."""
        generator = self.rng.child("epoch", epoch).generator()
        catalogue = self.filler.catalogue
        rank = generator.permutation(len(catalogue.shards))
        order = self.index[np.argsort(rank[catalogue.table["shard"][self.index]], kind="stable")]
        for start in range(0, len(order), BLOCK):
            generator.shuffle(order[start : start + BLOCK])
        return order

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps `start` (inclusive) to `stop` (exclusive), made ahead by threads.

        Photographs that can't be had any more are missing from their batch, or DataError, as the recipe says.
        """
        wholes = list[_Whole]()

        def noted() -> Iterator[_Whole]:
            for whole in self._wholes(start, stop):
                wholes.append(whole)
                yield whole

        for images_B13PQ, came in self.filler.filled(noted()):
            whole = wholes.pop(0)
            if not came.any():
                raise DataError(
                    "not one photograph of a batch can be had", place=next(iter(self.filler.faults.lines()))
                )
            images, index, windows = images_B13PQ[:, 0], whole.index, whole.windows[:, 0]
            if not came.all():
                images, index, windows = np.ascontiguousarray(images[came]), index[came], windows[came]
            yield Batch(images, self.labels[index], index, windows)

    def _wholes(self, start: int, stop: int) -> Iterator[_Whole]:
        count, seeing, drawn = len(self.filler.catalogue), self.filler.seeing, -1
        order, windows, add = self.index, np.empty((0, 3), np.int32), np.empty((0, 3), np.float32)
        for step in range(start, stop):
            epoch, at = divmod(step, self.steps_per_epoch)
            if epoch != drawn:
                drawn, order = epoch, self.order(epoch)
                windows = seeing.cut.drawn(count, self.rng.child("windows", epoch))
                add = self._noise(count, epoch)
            index = order[at * self.batch : (at + 1) * self.batch]
            yield _Whole(index, windows[index][:, None], add[index])

    def _noise(self, count: int, epoch: int) -> Floats:
        """float32 [count,3]: added to the normalised colours."""
        if self.noise is None:
            return np.zeros((count, 3), np.float32)
        drawn = self.noise.drawn(count, self.rng.child("colour", epoch))
        return (drawn / self.filler.seeing.normaliser.deviation.reshape(1, -1)).astype(np.float32)


@dataclass(frozen=True)
class PhotoStream:
    """Photographs `index` of a catalogue in order, each through `windows` [V,3]. A `Stream`."""

    filler: Filler
    index: Indices
    windows: Windows

    @property
    def labels(self) -> Indices | None:
        catalogue = self.filler.catalogue
        return None if catalogue.withheld else catalogue.labels[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def pieces(self) -> Iterator[Floats]:
        """float32 [n,V,3,P,Q]. A photograph that can't be had any more, where that is allowed, is seen as zeros."""
        for images, _ in self.filler.filled(self._wholes()):
            yield images

    def _wholes(self) -> Iterator[_Whole]:
        most = max(EVALUATED // len(self.windows), 1)
        for start in range(0, len(self.index), most):
            index = self.index[start : start + most]
            windows = np.broadcast_to(self.windows, (len(index), *self.windows.shape))
            yield _Whole(index, np.ascontiguousarray(windows), np.zeros((len(index), 3), np.float32))
