"""Which part of an image a network sees: all of it, a part drawn by seed, the centre, or ten parts in turn.

A window is int32 (top, left, mirrored); what its size is, a `Cut` says.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.rng import Rng

Windows: TypeAlias = npt.NDArray[np.int32]
Views: TypeAlias = Literal["centre", "ten"]
CENTRE_OF_TEN = 4  # which of ten views is the centre, not mirrored


@dataclass(frozen=True)
class Cut:
    """Windows of `size` (P, Q) in images of `image` (H, W); in training mirrored half of the time, if `flip`."""

    image: tuple[int, int]
    size: tuple[int, int]
    flip: bool

    @property
    def is_random(self) -> bool:
        """Whether training sees anything but the same pixels in each epoch."""
        return self.flip or self.size != self.image

    def drawn(self, count: int, rng: Rng) -> Windows:
        """[count, 3]: a window for each of a split's images, each place as likely as another.

        It depends on the stream and the image's number only: not on the batch it is in, nor on its place there.
        """
        generator = rng.generator()
        spare = [whole - part + 1 for whole, part in zip(self.image, self.size, strict=True)]
        return generator.integers(0, (*spare, 1 + self.flip), (count, 3), dtype=np.int32)

    def views(self, which: Views) -> Windows:
        """[V, 3]: the windows of an evaluated image, the centre alone, or four corners, centre and their mirror images.

        Source: Krizhevsky 2012, sec. 4.1, and cuda-convnet's multiview test.
        """
        down, right = (whole - part for whole, part in zip(self.image, self.size, strict=True))
        centre = (down // 2, right // 2)
        places = {"centre": [centre], "ten": [(0, 0), (0, right), (down, 0), (down, right), centre]}[which]
        mirrored = (0, 1) if which == "ten" else (0,)
        return np.array([(*place, flip) for flip in mirrored for place in places], np.int32)
