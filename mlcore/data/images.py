"""Bytes to the numbers a network sees, and back.

Legend: N images, B batch, C channels, H W an image's pixels, P Q a window's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mlcore.data.dataset import Bytes
from mlcore.data.windows import Windows
from mlcore.kernels.bytes import histogram, look_up
from mlcore.kernels.crop import crop_by_table, crop_minus_mean

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Maps a byte b to (b / 255 - mean) / deviation, in float32.

    mean: float64 [1,1,1], [C,1,1] or [C,H,W]. deviation: float64 [1,1,1] or [C,1,1].
    """

    mean: Doubles
    deviation: Doubles

    @staticmethod
    def of(images_NCHW: Bytes, way: str = "scalar") -> Normaliser:
        """Measured on `images_NCHW`; `way` is one of WAYS."""
        return WAYS[way](images_NCHW)

    @staticmethod
    def scalar(mean: float, deviation: float) -> Normaliser:
        """The same two numbers for every pixel."""
        return Normaliser(np.full((1, 1, 1), mean), np.full((1, 1, 1), deviation))

    @cached_property
    def table(self) -> Floats:
        """float32 [1 or C, 256]: what each byte becomes, where that is the same at every pixel."""
        assert self.mean.shape[1:] == (1, 1)
        return ((np.arange(256) / 255 - self.mean[:, 0]) / self.deviation[:, 0]).astype(np.float32)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that a byte of any pixel becomes."""
        return float(((0 - self.mean) / self.deviation).min()), float(((1 - self.mean) / self.deviation).max())

    def apply(self, images_NCHW: Bytes) -> Floats:
        """uint8 [N,C,H,W] to float32 of that shape."""
        if self.mean.size == self.deviation.size == 1:
            return look_up(self.table[0], images_NCHW)
        count, _, *size = images_NCHW.shape
        return self.cut(images_NCHW, np.arange(count), np.zeros((count, 3), np.int32), (size[0], size[1]))

    def cut(
        self, images_NCHW: Bytes, index_B: npt.NDArray[np.int64], windows: Windows, size: tuple[int, int]
    ) -> Floats:
        """float32 [B,C,P,Q] of size (P, Q): what lies in the windows of the images `index`, mirrored if they say so."""
        channels = images_NCHW.shape[1]
        if self.mean.shape[1:] == (1, 1):
            table = np.broadcast_to(self.table, (channels, 256))
            return crop_by_table(images_NCHW, index_B, windows, size, np.ascontiguousarray(table))
        scale, mean = self._affine
        return crop_minus_mean(images_NCHW, index_B, windows, size, scale, mean)

    def undo(self, x_NCHW: Floats, windows: Windows | None = None) -> Bytes:
        """float32 [N,C,P,Q] back to uint8, as the windows showed them; exact for what `apply` and `cut` gave."""
        mean = self.mean if windows is None else self._mean_in(windows, x_NCHW.shape[2:])
        values = (x_NCHW.astype(np.float64) * self.deviation + mean) * 255
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)

    @cached_property
    def _affine(self) -> tuple[Floats, Floats]:
        """The same map as byte * scale [C] - mean [C,H,W]."""
        mean = (self.mean / self.deviation).astype(np.float32)
        scale = np.broadcast_to(1 / (255 * self.deviation[:, 0, 0]), mean.shape[:1])
        return scale.astype(np.float32), mean

    def _mean_in(self, windows: Windows, size: tuple[int, ...]) -> Doubles:
        """float64, [N,C,P,Q] or broadcast to it: the mean under each window."""
        if self.mean.shape[1:] == (1, 1):
            return self.mean
        seen = [self.mean[:, top : top + size[0], left : left + size[1]] for top, left, _ in windows]
        return np.stack([part[..., ::-1] if flip else part for part, flip in zip(seen, windows[:, 2], strict=True)])


def _scalar(images_NCHW: Bytes) -> Normaliser:
    """One mean and one deviation; of blank images the deviation is taken as 1."""
    return Normaliser.scalar(*_moments(images_NCHW))


def _channel(images_NCHW: Bytes) -> Normaliser:
    """A mean and a deviation of each channel."""
    moments = np.array([_moments(images_NCHW[:, channel]) for channel in range(images_NCHW.shape[1])])
    return Normaliser(moments[:, 0].reshape(-1, 1, 1), moments[:, 1].reshape(-1, 1, 1))


def _image(images_NCHW: Bytes) -> Normaliser:
    """The mean of each pixel, and no deviation: bytes stay 0..255 but for their mean, as cuda-convnet has them."""
    total = np.zeros(images_NCHW.shape[1:], np.int64)
    for start in range(0, len(images_NCHW), ADDED):  # that many bytes add up to no more than a uint16 holds
        total += np.add.reduce(images_NCHW[start : start + ADDED], axis=0, dtype=np.uint16)
    return Normaliser(total / len(images_NCHW) / 255, np.full((1, 1, 1), 1 / 255))


def _moments(images: Bytes) -> tuple[float, float]:
    counts, values = histogram(images), np.arange(256)
    mean = int(counts @ values) / images.size
    variance = max(int(counts @ values**2) / images.size - mean**2, 0.0)
    return mean / 255, variance**0.5 / 255 or 1.0


ADDED = 257
WAYS: dict[str, Callable[[Bytes], Normaliser]] = {"scalar": _scalar, "channel": _channel, "image": _image}
