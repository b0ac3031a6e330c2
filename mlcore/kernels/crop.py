"""Windows cut out of images, mirrored or not, and turned from bytes into numbers on the way.

Legend: N images, B batch, C channels, H W an image's pixels, P Q a window's. A window is (top, left, mirrored).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel

Array = NDArray[Any]


def crop_by_table(
    images_NCHW: Array, index_B: Array, windows_B3: Array, size: tuple[int, int], table_C256: Array
) -> Array:
    """float32 [B,C,P,Q]: table[channel, byte] of image `index[b]` in window `windows[b]`; the table is float32."""
    out = _room(images_NCHW, index_B, windows_B3, size)
    _by_table(images_NCHW, index_B, windows_B3, table_C256, out)
    return out


def crop_minus_mean(
    images_NCHW: Array, index_B: Array, windows_B3: Array, size: tuple[int, int], scale_C: Array, mean_CHW: Array
) -> Array:
    """float32 [B,C,P,Q]: byte * scale[channel] - mean[channel] of the same pixel; scale and mean are float32."""
    out = _room(images_NCHW, index_B, windows_B3, size)
    _minus_mean(images_NCHW, index_B, windows_B3, scale_C, mean_CHW, out)
    return out


def _room(images: Array, index: Array, windows: Array, size: tuple[int, int]) -> Array:
    """The memory for what is cut; what would be read must be there, for the kernels don't look."""
    count, channels, height, width = images.shape
    if len(index):
        assert index.min() >= 0 and index.max() < count and windows.shape == (len(index), 3)  # noqa: PT018
        assert windows.min() >= 0 and (windows[:, :2].max(axis=0) + size <= (height, width)).all()  # noqa: PT018
    return np.empty((len(index), channels, *size), np.float32)


@kernel
def _by_table(images: Array, index: Array, windows: Array, table: Array, out: Array) -> None:
    batch, channels, rows, columns = out.shape
    for b in range(batch):
        top, left, mirrored = windows[b]
        for c in range(channels):
            for p in range(rows):
                source, target = images[index[b], c, top + p, left : left + columns], out[b, c, p]
                if mirrored:
                    for q in range(columns):
                        target[columns - 1 - q] = table[c, source[q]]
                else:
                    for q in range(columns):
                        target[q] = table[c, source[q]]


@kernel
def _minus_mean(images: Array, index: Array, windows: Array, scale: Array, mean: Array, out: Array) -> None:
    batch, channels, rows, columns = out.shape
    for b in range(batch):
        top, left, mirrored = windows[b]
        for c in range(channels):
            times = scale[c]
            for p in range(rows):
                source, target = images[index[b], c, top + p, left : left + columns], out[b, c, p]
                less = mean[c, top + p, left : left + columns]
                if mirrored:
                    for q in range(columns):
                        target[columns - 1 - q] = np.float32(source[q]) * times - less[q]
                else:
                    for q in range(columns):
                        target[q] = np.float32(source[q]) * times - less[q]
