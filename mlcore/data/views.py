"""Images as a network is to see them in evaluation: in order, each through one window or through ten.

Legend: N images, V views of each, C channels, P Q a view's pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlcore.data.dataset import Bytes
from mlcore.data.images import Floats, Normaliser
from mlcore.data.windows import Windows

BATCH = 500  # images through the network at a time, views counted


class Stream(Protocol):
    """What evaluation reads, wherever the images are. `labels`: uint8 or int64 [N], or None where they are withheld."""

    @property
    def labels(self) -> "np.typing.NDArray[np.integer] | None": ...

    def __len__(self) -> int: ...

    def pieces(self) -> Iterator[Floats]:
        """float32 [n,V,C,P,Q], normalised: the next n images, each in all its views."""


@dataclass(frozen=True)
class InMemory:
    """A stream of images in memory. `windows` [V,3] and `size` (P, Q) say what is seen; None: all of each."""

    images: Bytes
    labels: Bytes | None
    normaliser: Normaliser
    windows: Windows | None = None
    size: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.images)

    def pieces(self) -> Iterator[Floats]:
        views = 1 if self.windows is None else len(self.windows)
        step = max(BATCH // views, 1)
        for start in range(0, len(self.images), step):
            yield self._piece(self.images[start : start + step])

    def _piece(self, images_NCHW: Bytes) -> Floats:
        if self.windows is None:
            return self.normaliser.apply(images_NCHW)[:, None]
        count, views = len(images_NCHW), len(self.windows)
        index, windows = np.repeat(np.arange(count), views), np.tile(self.windows, (count, 1))
        seen = self.normaliser.cut(images_NCHW, index, windows, self.size)
        return seen.reshape(count, views, *seen.shape[1:])
