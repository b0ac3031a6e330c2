"""Bytes to the numbers a network sees, and back: one mean and one deviation, from the training split."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.kernels.bytes import histogram, look_up

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Normaliser:
    """Maps a byte b to (b / 255 - mean) / deviation, in float32 by a table of the 256 values."""

    mean: float
    deviation: float

    @staticmethod
    def of(images_NHW: Bytes) -> "Normaliser":
        """The mean and standard deviation of `images_NHW`; of blank images the deviation is taken as 1."""
        counts, values = histogram(images_NHW), np.arange(256)
        mean = int(counts @ values) / images_NHW.size
        variance = max(int(counts @ values**2) / images_NHW.size - mean**2, 0.0)
        return Normaliser(mean / 255, variance**0.5 / 255 or 1.0)

    def table(self) -> Floats:
        """float32 [256]: what each byte becomes."""
        return ((np.arange(256) / 255 - self.mean) / self.deviation).astype(np.float32)

    def apply(self, images_NHW: Bytes) -> Floats:
        """uint8 [N,H,W] to float32 [N,1,H,W]."""
        return look_up(self.table(), images_NHW)[:, None]

    def undo(self, x_NCHW: Floats) -> Bytes:
        """float32 [N,1,H,W] back to uint8 [N,H,W]; exact for what `apply` gave, else the nearest byte."""
        values = (x_NCHW[:, 0].astype(np.float64) * self.deviation + self.mean) * 255
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
