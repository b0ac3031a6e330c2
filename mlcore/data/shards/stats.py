"""The mean image of a split and the colours' covariance, measured once and kept beside the shards.

The sums are whole numbers, so that they come out the same in any order. Legend: S the side of a central square.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.shards.ahead import ahead
from mlcore.data.shards.catalogue import AGAIN, Catalogue, members_bytes
from mlcore.data.shards.decode import Look, Square, decode_square
from mlcore.data.shards.faults import Faults, PictureError
from mlcore.data.shards.files import Tell
from mlcore.errors import DataError
from mlcore.files import write_bytes
from mlcore.kernels.photo import add_up

Doubles: TypeAlias = npt.NDArray[np.float64]
TOLD_EVERY = 1000
PER_WORKER = 4
LACKED = "training picture that the mean image lacks: "


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of `count` squares: `total` int64 [S,S,3] of their bytes, `products` int64 [3,3] of their pixels' colours."""

    count: int
    total: npt.NDArray[np.int64]
    products: npt.NDArray[np.int64]

    @property
    def mean_image(self) -> Doubles:
        """float64 [3,S,S], 0 to 1."""
        return np.ascontiguousarray(self.total.transpose(2, 0, 1) / (self.count * 255))

    @property
    def mean_colour(self) -> Doubles:
        """float64 [3], 0 to 1."""
        return np.asarray(self.mean_image.mean(axis=(1, 2)))

    @cached_property
    def covariance(self) -> Doubles:
        """float64 [3,3] of red, green and blue over all pixels, which are 0 to 1."""
        pixels = self.count * self.total.shape[0] * self.total.shape[1]
        mean = self.mean_colour
        return np.asarray(self.products / pixels / 255**2 - np.outer(mean, mean))

    @cached_property
    def axes(self) -> Doubles:
        """float64 [3,3]: its rows are the covariance's eigenvectors, each as long as the deviation along it.

        Each row's largest entry is positive, so that equal statistics give equal noise on every machine.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
        return np.ascontiguousarray((vectors * signs * np.sqrt(np.maximum(values, 0))).T)


def statistics_of(
    catalogue: Catalogue, side: int, cache: Path, look: Look, tell: Tell, refuse: bool = True
) -> tuple[Statistics, Path]:
    """The statistics of a catalogue's central squares of that side, and the file that keeps them.

    They are kept beside the shards, or in `cache` where that can't be written; not those that lack a picture. Raises
    DataError as `measure` does.
    """
    of = hashlib.sha256(members_bytes(catalogue.table)).hexdigest()
    name = f"statistics-{side}.npz"
    places = (catalogue.home / name, cache / "statistics" / f"{of[:24]}-{name}")
    for path in places:
        if found := _kept(path, of, side):
            return found, path
    made = measure(catalogue, side, look, tell, refuse)
    for path in places if made.count == len(catalogue) else ():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, _packed(made, of))
            return made, path
        except OSError as error:
            tell(f"the statistics can't be kept in {path.parent} ({error.strerror})")
    return made, places[-1]


def measure(catalogue: Catalogue, side: int, look: Look, tell: Tell, refuse: bool = True) -> Statistics:
    """Decode every picture once and add up its central square.

    A picture that can't be had is refused (DataError), or counted in the catalogue's faults and not added.
    """

    def square(index: int) -> Square | PictureError:
        try:
            return decode_square(catalogue.read(index), side, look.most_pixels)
        except PictureError as error:
            return PictureError(error.what, kind=error.kind, place=catalogue.place(index))

    total, products = np.zeros((side, side, 3), np.int64), np.zeros((3, 3), np.int64)
    count, faults = len(catalogue), Faults()
    for done, one in enumerate(ahead(square, range(count), look.workers, PER_WORKER * look.workers)):
        if isinstance(one, PictureError):
            faults.add(one.kind, f"{one.place}: {one.what}")
            if refuse:
                faults.demand_none()
        else:
            add_up(one.image_HW3, (one.top, one.left), total, products)
        if done % TOLD_EVERY == 0:
            tell(f"measuring the mean image and the colours: {done:,} of {count:,} pictures")
    for kind, lost in faults.counts.items():
        catalogue.faults.add(f"{LACKED}{kind}", faults.first[kind], lost)
        count -= lost
    if not count:
        raise DataError(f"no picture can be measured ({faults.lines()[0]})", place=str(catalogue.home), fix=AGAIN)
    return Statistics(count, total, products)


def _packed(made: Statistics, of: str) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, count=np.int64(made.count), total=made.total, products=made.products, of=np.array(of))
    return packed.getvalue()


def _kept(path: Path, of: str, side: int) -> Statistics | None:
    """What was kept, if it belongs to these pictures."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["of"]) != of or stored["total"].shape != (side, side, 3):
                return None
            return Statistics(int(stored["count"]), stored["total"], stored["products"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
