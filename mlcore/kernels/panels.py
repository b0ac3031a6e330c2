"""Fully connected layers on panels: weights lie as [block of V outputs, input, V], as the innermost loop reads them.

The update is fused with the gradient: a tile of the gradient is made, used on its weights, and forgotten, so that
gradients as large as the weights are never written. Tables of tiles are (address, rows, times) twice, as `cover` cuts.

Legend: N image, I input, O output, B block of outputs, V columns of a panel. float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.micro import address_of, run_tile

DEPTH = 1024  # inputs whose weights stay in the cache while all images pass
BLOCKS = 16  # blocks of outputs that go back to the inputs at a time
TURN = 8  # tiles in one turn
FLOAT_BYTES = 4

Array = NDArray[Any]


class Tiles(NamedTuple):
    """`times` tiles of `rows` rows, then `last_times` of `last_rows`."""

    tile: int
    rows: int
    times: int
    last_tile: int
    last_rows: int
    last_times: int


class Move(NamedTuple):
    """SGD: v = momentum v + g + decay w, w -= rate v."""

    rate: float
    momentum: float
    decay: float


def forward(x_NI: Array, weight_BIV: Array, bias: Array, tiles: Tiles, floor: float, out_NO: Array) -> None:
    """out = max(x @ weight + bias, floor). bias: padded to whole blocks."""
    work = x_NI.shape[0] * weight_BIV.size
    _forward(work, x_NI, weight_BIV, bias, tiles, np.float32(floor), out_NO)


def to_input(weight_BIV: Array, grad_panels: Array, tiles: Tiles, nothing: Array, out_IN: Array) -> None:
    """out[I, N] = weight @ gradient. grad_panels [blocks of V images, B * V outputs, V]; nothing: V zeros."""
    work = out_IN.shape[1] * weight_BIV.size
    _to_input(work, weight_BIV, grad_panels, tiles, nothing, out_IN)


def update(
    x_IN: Array, grad_BNV: Array, tiles: Tiles, nothing: Array, weight_BIV: Array, velocity_BIV: Array, move: Move
) -> None:
    """The gradient of the weights, and at once the step it leads to."""
    work = x_IN.shape[1] * weight_BIV.size
    parts = np.float32(move.rate), np.float32(move.momentum), np.float32(move.decay)
    _update(work, x_IN, grad_BNV, tiles, nothing, weight_BIV, velocity_BIV, *parts)


def pack_gradient(grad_NO: Array, by_output_BNV: Array, by_image: Array) -> None:
    """The gradient as panels over outputs [B, N, V] and over images [blocks of V images, B * V, V];

    zeros where no output is."""
    _pack_gradient(64 * grad_NO.size, grad_NO, by_output_BNV, by_image)


def transpose(matrix: Array, out: Array) -> None:
    """out = matrix.T, in squares that fit the cache."""
    _transpose(64 * matrix.size, matrix, out)


def move_weights(weight: Array, velocity: Array, sums: Array, move: Move) -> None:
    """In place, flat: SGD with the gradient that is the sum of `sums` [chunks, size], chunk after chunk."""
    parts = np.float32(move.rate), np.float32(move.momentum), np.float32(move.decay)
    _move_weights(8 * sums.size, weight, velocity, sums, *parts)


@SharedKernel
def _forward(x: Array, weight: Array, bias: Array, tiles: Tiles, floor: Any, out: Array) -> None:
    for b in prange(weight.shape[0]):
        for first in range(0, weight.shape[1], DEPTH):
            _forward_block(x, weight, bias, tiles, floor, out, b, first)


@kernel
def _forward_block(
    x: Array, weight: Array, bias: Array, tiles: Tiles, floor: Any, out: Array, b: int, first: int
) -> None:
    """All images through the weights of one block, from input `first` on."""
    _, inputs, columns = weight.shape
    outputs = out.shape[1]
    depth = min(DEPTH, inputs - first)
    at_end = first + depth == inputs
    panel = address_of(weight) + (b * inputs + first) * columns * FLOAT_BYTES
    a, c = address_of(x) + first * FLOAT_BYTES, address_of(out) + b * columns * FLOAT_BYTES
    for tile, rows, times in (
        (tiles.tile, tiles.rows, tiles.times),
        (tiles.last_tile, tiles.last_rows, tiles.last_times),
    ):
        for _ in range(times):
            run_tile(
                tile, 1, depth, a, 0, FLOAT_BYTES, inputs * FLOAT_BYTES, panel, c, outputs * FLOAT_BYTES,
                min(columns, outputs - b * columns), address_of(bias) + b * columns * FLOAT_BYTES,
                1 if first > 0 else 0, floor if at_end else np.float32(-np.inf),
            )  # fmt: skip
            a += rows * inputs * FLOAT_BYTES
            c += rows * outputs * FLOAT_BYTES


@kernel
def _tile_at(tiles: Tiles, i: int) -> tuple[int, int, int]:
    """(address, rows, first row) of the i-th tile."""
    if i < tiles.times:
        return tiles.tile, tiles.rows, i * tiles.rows
    return tiles.last_tile, tiles.last_rows, tiles.times * tiles.rows + (i - tiles.times) * tiles.last_rows


@SharedKernel
def _to_input(weight: Array, grad: Array, tiles: Tiles, nothing: Array, out: Array) -> None:
    count = tiles.times + tiles.last_times
    for turn in prange(-(-count // TURN)):
        for first in range(0, weight.shape[0], BLOCKS):
            for i in range(turn * TURN, min(count, (turn + 1) * TURN)):
                _to_input_tile(weight, grad, tiles, i, nothing, out, first)


@kernel
def _to_input_tile(weight: Array, grad: Array, tiles: Tiles, i: int, nothing: Array, out: Array, first: int) -> None:
    """A tile's inputs, all images, from block `first` on."""
    blocks, inputs, columns = weight.shape
    images, wide = out.shape[1], grad.shape[2]
    tile, _, row = _tile_at(tiles, i)
    a = address_of(weight) + (first * inputs + row) * columns * FLOAT_BYTES
    for n in range(grad.shape[0]):
        run_tile(
            tile, min(BLOCKS, blocks - first), columns, a, inputs * columns * FLOAT_BYTES, FLOAT_BYTES,
            columns * FLOAT_BYTES, address_of(grad) + (n * grad.shape[1] + first * columns) * wide * FLOAT_BYTES,
            address_of(out) + (row * images + n * wide) * FLOAT_BYTES, images * FLOAT_BYTES,
            min(wide, images - n * wide), address_of(nothing), 1 if first > 0 else 0, np.float32(-np.inf),
        )  # fmt: skip


@SharedKernel
def _update(
    x_IN: Array,
    grad: Array,
    tiles: Tiles,
    nothing: Array,
    weight: Array,
    velocity: Array,
    rate: Any,
    momentum: Any,
    decay: Any,
) -> None:
    for b in prange(weight.shape[0]):
        slope = np.empty(max(tiles.rows, tiles.last_rows) * weight.shape[2], np.float32)
        for i in range(tiles.times + tiles.last_times):
            tile, rows, row = _tile_at(tiles, i)
            _gradient_tile(x_IN, grad, tile, row, nothing, b, slope)
            size = rows * weight.shape[2]
            flat = slice(row * weight.shape[2], row * weight.shape[2] + size)
            _move(weight[b].reshape(-1)[flat], velocity[b].reshape(-1)[flat], slope, rate, momentum, decay)


@kernel
def _gradient_tile(x_IN: Array, grad: Array, tile: int, row: int, nothing: Array, b: int, slope: Array) -> None:
    images, columns = grad.shape[1:]
    stride = x_IN.shape[1] * FLOAT_BYTES
    run_tile(
        tile, 1, images, address_of(x_IN) + row * stride, 0, FLOAT_BYTES, stride,
        address_of(grad) + b * images * columns * FLOAT_BYTES, address_of(slope), columns * FLOAT_BYTES,
        columns, address_of(nothing), 0, np.float32(-np.inf),
    )  # fmt: skip


@kernel
def _move(weight: Array, velocity: Array, slope: Array, rate: Any, momentum: Any, decay: Any) -> None:
    for i in range(weight.size):
        speed = momentum * velocity[i] + (slope[i] + decay * weight[i])
        velocity[i] = speed
        weight[i] -= rate * speed


@SharedKernel
def _move_weights(weight: Array, velocity: Array, sums: Array, rate: Any, momentum: Any, decay: Any) -> None:
    block = 1 << 14
    for turn in prange(-(-weight.size // block)):
        part = slice(turn * block, min(weight.size, (turn + 1) * block))
        slope = sums[0, part].copy()
        for chunk in range(1, sums.shape[0]):
            more = sums[chunk, part]
            for i in range(slope.size):
                slope[i] += more[i]
        _move(weight[part], velocity[part], slope, rate, momentum, decay)


@SharedKernel
def _pack_gradient(grad: Array, by_output: Array, by_image: Array) -> None:
    images, outputs = grad.shape
    columns, wide = by_output.shape[2], by_image.shape[2]
    for b in prange(by_output.shape[0]):
        for n in range(images):
            for v in range(columns):
                o = b * columns + v
                value = grad[n, o] if o < outputs else np.float32(0)
                by_output[b, n, v] = value
                by_image[n // wide, b * columns + v, n % wide] = value


@SharedKernel
def _transpose(matrix: Array, out: Array) -> None:
    side = 32
    for turn in prange(-(-matrix.shape[1] // side)):
        for first in range(0, matrix.shape[0], side):
            for column in range(turn * side, min(matrix.shape[1], (turn + 1) * side)):
                for row in range(first, min(matrix.shape[0], first + side)):
                    out[column, row] = matrix[row, column]
