"""Locally connected layers on planes, forward and back: at each place a small product of matrices of its own.

A tile's rows are images, so that a place's weights pass once for some images, and windows are read where they lie. The
way back to the input is the same walk over the output's gradient, with each pixel's weights gathered and turned round.

Legend: N image, H W height and width with border, C channel, O output, S place, K side of the window, R run (K * C),
D = K * R, B block of V outputs, V columns of a panel. One group, float32, C-contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.micro import address_of, run_tile
from mlcore.kernels.panels import Tiles, tile_at
from mlcore.kernels.planes import Grid
from mlcore.kernels.precision import WORD_BYTES

SPREAD = 16  # numbers between copied windows: rows whose distance is a power of two would share few places in the cache

Array = NDArray[Any]


class Windows(NamedTuple):
    """Side of the windows, and where in the planes' border the first one begins; they are one pixel apart."""

    kernel: int
    first: int


def forward(
    x: Array, windows: Windows, weight: Array, bias: Array, tiles: Tiles, floor: float, out: Array, grid: Grid
) -> None:
    """out = max(each window's products with its place's weights + bias, floor), for as many images as `tiles` has rows.

    x [N, H, W, C], weight [S, B, D, V], bias [S, B, V]; out planes [N, H, W, O] whose places stand where `grid` says.
    """
    _forward(len(x) * weight.size, x, windows, weight, bias, tiles, np.float32(floor), out, grid)


def turn_weights(weight: Array, across: int, padding: int, outputs: int, turned: Array) -> None:
    """Weights [S, B, D, V] of places in rows of `across`, for the way back: [pixel, blocks of C, K * K * O, V].

    What leads to no place stays as it is: zeros. Pixels are the input's, in rows of across + K - 1 - 2 * padding.
    """
    _turn_weights(8 * weight.size, weight, across, padding, outputs, turned)


def weight_gradient(
    x: Array, windows: Windows, grad: Array, grid: Grid, tiles: Tiles, images: int, slope: Array, bias_slope: Array
) -> None:
    """slope [S, B, D, V] and bias_slope [S, B, V]: the gradients, images added in their order. tiles make up a run."""
    _weight_gradient(images * slope.size, x, windows, grad, grid, tiles, images, slope, bias_slope)


@SharedKernel
def _forward(
    x: Array, windows: Windows, weight: Array, bias: Array, tiles: Tiles, floor: Any, out: Array, grid: Grid
) -> None:
    for place in prange(weight.shape[0]):
        for b in range(weight.shape[1]):
            _forward_block(x, windows, weight, bias, tiles, floor, out, grid, np.int64(place), b)


@kernel
def _forward_block(
    x: Array,
    windows: Windows,
    weight: Array,
    bias: Array,
    tiles: Tiles,
    floor: Any,
    out: Array,
    grid: Grid,
    place: int,
    b: int,
) -> None:
    """All images at one place, one block of outputs."""
    _, blocks, depth, columns = weight.shape
    outputs, channels = out.shape[3], x.shape[3]
    y, z = place // grid.width, place % grid.width
    image, out_image = x[0].size * WORD_BYTES, out[0].size * WORD_BYTES
    panel = address_of(weight) + (place * blocks + b) * depth * columns * WORD_BYTES
    start = address_of(bias) + (place * blocks + b) * columns * WORD_BYTES
    a = address_of(x) + ((windows.first + y) * x.shape[2] + windows.first + z) * channels * WORD_BYTES
    pixel = (grid.border + y * grid.step) * out.shape[2] + grid.border + z * grid.step
    c = address_of(out) + (pixel * outputs + b * columns) * WORD_BYTES
    for i in range(tiles.times + tiles.last_times):
        tile, _, row = tile_at(tiles, i)
        run_tile(
            tile, windows.kernel, windows.kernel * channels,
            a + row * image, x.shape[2] * channels * WORD_BYTES, WORD_BYTES, image,
            panel, c + row * out_image, out_image, min(columns, outputs - b * columns), start, 0, floor,
        )  # fmt: skip


@SharedKernel
def _turn_weights(weight: Array, across: int, padding: int, outputs: int, turned: Array) -> None:
    places = weight.shape[0]
    columns = turned.shape[3]
    side = _side(turned.shape[2] // outputs)
    channels = weight.shape[2] // (side * side)
    width = across + side - 1 - 2 * padding
    for pixel in prange(turned.shape[0]):
        for step in range(side * side):
            y = pixel // width + step // side + padding - side + 1
            z = pixel % width + step % side + padding - side + 1
            if 0 <= y < places // across and 0 <= z < across:
                theirs, first = weight[y * across + z], (side * side - 1 - step) * channels
                for c in range(0, channels, columns):
                    block = turned[pixel, c // columns, step * outputs : (step + 1) * outputs]
                    _turn_block(theirs, first + c, min(columns, channels - c), block)


@kernel
def _side(area: int) -> int:
    side = 1
    while side * side < area:
        side += 1
    return side


@kernel
def _turn_block(theirs: Array, first: int, count: int, block: Array) -> None:
    """block [O, V] = the weights theirs [B, D, V] of `count` inputs from `first` on."""
    columns = theirs.shape[2]
    for o in range(block.shape[0]):
        panel, v = theirs[o // columns], o % columns
        for c in range(count):
            block[o, c] = panel[first + c, v]


@SharedKernel
def _weight_gradient(
    x: Array,
    windows: Windows,
    grad: Array,
    grid: Grid,
    tiles: Tiles,
    images: int,
    slope: Array,
    bias_slope: Array,
) -> None:
    run = windows.kernel * x.shape[3]
    for place in prange(slope.shape[0]):
        y, z = place // grid.width, place % grid.width
        packed = np.zeros((slope.shape[1], images, slope.shape[3]), np.float32)
        _pack_place(grad, grid.border + y, grid.border + z, packed, bias_slope[place])
        rows = np.empty((images, run + SPREAD), np.float32)
        for k in range(windows.kernel):
            _copy_runs(x, windows.first + y + k, windows.first + z, run, rows)
            for b in range(slope.shape[1]):
                _gradient_rows(rows, packed[b], tiles, slope[place, b, k * run : (k + 1) * run])


@kernel
def _pack_place(grad: Array, y: int, z: int, packed: Array, total: Array) -> None:
    """A place's gradient as panels [B, N, V], and the sums over images, total [B, V]."""
    columns = packed.shape[2]
    total[:] = 0
    for n in range(packed.shape[1]):
        values = grad[n, y, z]
        for b in range(packed.shape[0]):
            row, sums = packed[b, n], total[b]
            for v in range(min(columns, values.size - b * columns)):
                row[v] = values[b * columns + v]
                sums[v] += row[v]


@kernel
def _copy_runs(x: Array, y: int, z: int, run: int, rows: Array) -> None:
    for n in range(rows.shape[0]):
        values, row = x[n, y, z:].reshape(-1), rows[n]
        for i in range(run):
            row[i] = values[i]


@kernel
def _gradient_rows(rows: Array, packed: Array, tiles: Tiles, slope: Array) -> None:
    """slope [R, V] = rows.T @ packed."""
    images, columns = packed.shape
    nothing = np.zeros(columns, np.float32)
    for i in range(tiles.times + tiles.last_times):
        tile, _, row = tile_at(tiles, i)
        run_tile(
            tile, 1, images, address_of(rows) + row * WORD_BYTES, 0, rows.shape[1] * WORD_BYTES, WORD_BYTES,
            address_of(packed), address_of(slope) + row * columns * WORD_BYTES, columns * WORD_BYTES,
            columns, address_of(nothing), 0, np.float32(-np.inf),
        )  # fmt: skip
