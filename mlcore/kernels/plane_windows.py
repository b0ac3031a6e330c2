"""Pooling on planes of float32, sixteen channels at a time: what networks in lanes do to sixteen images.

A pixel of a plane is a run of channels as a pixel in lanes is a run of images, so the kernels are those of
`lane_pool`, and rows of the same table drive them; only, every image has planes of its own, and addresses in the rows
count from there. Half the time and less of `plane_pool`'s loops over the channels of a pixel.

Legend: N image, H W height and width with border, C channel, P Q output. Planes [1, N, H, W, C], C a multiple of 16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.lane_pool import OUT, WINDOWS, WON, X, avg_pool, avg_pool_back, max_pool, max_pool_back
from mlcore.kernels.micro import address_of
from mlcore.kernels.planes import Grid
from mlcore.kernels.response import Response
from mlcore.kernels.simd import LANES

COST = 16  # what handling one value costs, in multiplications
AVERAGING = np.zeros((0, 0, 0, 0), np.uint8)  # in the place of winners

Array = NDArray[Any]


def has_form(response: Response, pixels: Array, pixel_grid: Grid, pooled: Array, pooled_grid: Grid) -> bool:
    """Whether pooling between these planes is done here."""
    dense = pixel_grid.step == pooled_grid.step == pixels.shape[0] == pooled.shape[0] == 1
    return dense and response.size == 0 and pixels.dtype == np.float32 and pixels.shape[4] % LANES == 0


@functools.lru_cache(maxsize=256)
def windows(
    size: int, stride: int, padding: int, pixels: tuple[int, ...], pixel_grid: Grid, pooled: tuple[int, ...],
    pooled_grid: Grid,
) -> Array:  # fmt: skip
    """A row of the table [P, columns] for each row of windows.

    pixels, pooled: shapes [1, N, H, W, C] of the planes that windows lie on, and of those with a pixel for each window.
    """
    rows = [_row_of_windows(row, size, stride, padding, pixel_grid, pixels) for row in range(pooled_grid.height)]
    for row, columns in enumerate(rows):
        border, width, channels = pooled_grid.border, pooled[3], pooled[4]
        columns["out"] = ((border + row) * width + border) * channels * 4
        columns["columns"], columns["won"] = pooled_grid.width, row * pooled_grid.width * channels
    return np.array([[columns.get(name, 0) for name in WINDOWS] for columns in rows], np.int64)


def _row_of_windows(
    row: int, size: int, stride: int, padding: int, grid: Grid, shape: tuple[int, ...]
) -> dict[str, int]:
    """What a row of windows is on its planes."""
    top, (_, _, height, width, channels) = row * stride - padding, shape
    pixel = channels * 4
    return {
        "x": (grid.border * width + grid.border) * pixel, "x_ring": height, "x_row": width * pixel,
        "width": grid.width, "top": top, "first": max(0, -top), "last": min(size, grid.height - top),
        "size": size, "stride": stride, "padding": padding,
        "channels": 1, "pixel": pixel, "adding": int(stride < size),
    }  # fmt: skip


def forward(table: Array, x: Array, out: Array, winner: Array, images: int) -> None:
    """The largest of each window into `out`, and which it was; or the mean, where winner is AVERAGING."""
    _forward(COST * images * x[0, 0].size, table, x, out, winner, images)


def backward(table: Array, grad: Array, winner: Array, out: Array, grid: Grid, images: int) -> None:
    """The gradient of x into `out`, whose pixels stand where `grid` says."""
    filled = winner.size > 0 and _fills(table, grid)
    _backward(COST * images * out[0, 0].size, table, grad, winner, out, grid, filled, images)


def _fills(table: Array, grid: Grid) -> bool:
    """Whether each pixel is in exactly one window."""
    size, stride, padding, columns = (int(table[0, WINDOWS.index(n)]) for n in ("size", "stride", "padding", "columns"))
    whole = (len(table) * size, columns * size) == (grid.height, grid.width)
    return whole and stride == size and padding == 0


@SharedKernel
def _forward(table: Array, x: Array, out: Array, winner: Array, images: int) -> None:
    for n in prange(images):
        for row in table:
            op = row.copy()
            op[X] += address_of(x[0, n])
            op[OUT] += address_of(out[0, n])
            if winner.size > 0:
                op[WON] += address_of(winner[n])
                max_pool(op, 0, 0)
            else:
                avg_pool(op, 0)


@SharedKernel
def _backward(table: Array, grad: Array, winner: Array, out: Array, grid: Grid, filled: bool, images: int) -> None:
    for n in prange(images):
        if not filled:
            _clear(out[0, n], grid)
        for row in table:
            op = row.copy()
            op[X] += address_of(out[0, n])
            op[OUT] += address_of(grad[0, n])
            if winner.size > 0:
                op[WON] += address_of(winner[n])
                max_pool_back(op, 0, 0)
            else:
                avg_pool_back(op, 0)


@kernel
def _clear(out: Array, grid: Grid) -> None:
    """Zeros inside the border."""
    channels = out.shape[2]
    for h in range(grid.border, grid.border + grid.height):
        row = out[h].reshape(-1)
        for i in range(grid.border * channels, (grid.border + grid.width) * channels):
            row[i] = 0
