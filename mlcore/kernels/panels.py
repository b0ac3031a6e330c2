"""Fully connected layers on panels: weights lie as [block of V outputs, input, V], as the innermost loop reads them.

The update is fused with the gradient: a tile of the gradient is made, used on its weights, and forgotten, so that
gradients as large as the weights are never written. Tables of tiles are (address, rows, times) twice, as `cover` cuts.

In bf16 the weights stay float32 for the update, which leaves two rounded copies behind: one in words along the inputs
for the way forward, one in words along the outputs for the way back. In float32 a word is a number and the weights
serve for both.

Legend: N image, I input, O output, B block of outputs, V columns of a panel, P numbers of a word, W words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.micro import address_of, run_tile
from mlcore.kernels.precision import WORD_BYTES, narrow, widen

DEPTH = 1024  # words of inputs whose weights stay in the cache while all images pass
BLOCKS = 16  # blocks of outputs that go back to the inputs at a time
TURN = 8  # tiles in one turn
FEW = 16  # inputs at a time: a line of the cache, used up before a row of another output pushes it out of its set
BLANK = 1 << 10  # numbers that are looked at before it is asked whether one was not zero

Array = NDArray[Any]

NO_COPIES = np.zeros((0, 0, 0, 2), np.uint16), np.zeros((0, 0, 0), np.uint16)


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


def forward(x_NI: Array, weight_BWV: Array, bias: Array, tiles: Tiles, floor: float, out_NO: Array) -> None:
    """out = max(x @ weight + bias, floor), float32. weight: words along the inputs; bias: padded to whole blocks."""
    work = x_NI.shape[0] * weight_BWV.size
    _forward(work, x_NI, weight_BWV, bias, tiles, np.float32(floor), out_NO)


def to_input(weight_BIV: Array, grad_panels: Array, tiles: Tiles, nothing: Array, out_IN: Array) -> None:
    """out[I, N] = weight @ gradient, float32. grad_panels [blocks of V images, words of B * V outputs, V]; nothing: V
    zeros."""
    work = out_IN.shape[1] * weight_BIV.size
    _to_input(work, weight_BIV, grad_panels, tiles, nothing, out_IN)


def update(
    x_IN: Array,
    grad_BWV: Array,
    tiles: Tiles,
    nothing: Array,
    weight_BIV: Array,
    velocity_BIV: Array,
    move: Move,
    copies: tuple[Array, Array] = NO_COPIES,
) -> None:
    """The gradient of the weights, at once the step it leads to, and the rounded copies of the moved weights.

    grad: words along the images, as x has them. With copies ([B, W, V, P] and [B, I, V]) the tiles have even numbers of
    rows.
    """
    work = x_IN.shape[1] * weight_BIV.size
    _update(work, x_IN, grad_BWV, tiles, nothing, weight_BIV, velocity_BIV, *_parts(move), *copies)


def weight_gradient(x_IN: Array, grad_BWV: Array, tiles: Tiles, nothing: Array, out_BIV: Array) -> None:
    """The gradient of the weights alone, for those who add others' to it before they move by it."""
    _weight_gradient(x_IN.shape[1] * out_BIV.size, x_IN, grad_BWV, tiles, nothing, out_BIV)


def round_weights(weight_BIV: Array, by_input_BWVP: Array, by_output_BIV: Array) -> None:
    """Both rounded copies of the weights."""
    _round_weights(8 * weight_BIV.size, weight_BIV, by_input_BWVP, by_output_BIV)


def pack_gradient(grad_NO: Array, by_output_BWVP: Array, by_image: Array) -> None:
    """The gradient as panels over outputs [B, words of N, V, P] and over images [blocks of V images, words of B * V, V,
    P]; zeros where no output or image is."""
    _pack_gradient(64 * grad_NO.size, grad_NO, by_output_BWVP, by_image)


def transpose(matrix: Array, out: Array) -> None:
    """out = matrix.T, in squares that fit the cache, as numbers of out's kind."""
    _transpose(64 * matrix.size, matrix, out)


def pack_weights(weight_OI: Array, order: Array, out_BIV: Array) -> None:
    """[O, I] into panels [B, I, V], inputs in the order in which they lie in memory; what is padding stays as it is.

    A block that is all zeros and stays so is not written: of velocities at the start, pages have not even been touched.
    """
    _pack_weights(4 * out_BIV.size, weight_OI, np.argsort(order), out_BIV)


def copy_rows(matrix: Array, out: Array) -> None:
    """out = matrix, as numbers of out's kind."""
    _copy_rows(16 * matrix.size, matrix, out)


def move_weights(weight: Array, velocity: Array, sums: Array, move: Move) -> None:
    """In place, flat: SGD with the gradient that is the sum of `sums` [chunks, size], chunk after chunk."""
    _move_weights(8 * sums.size, weight, velocity, sums, *_parts(move))


def _parts(move: Move) -> tuple[Any, Any, Any]:
    return np.float32(move.rate), np.float32(move.momentum), np.float32(move.decay)


@SharedKernel
def _forward(x: Array, weight: Array, bias: Array, tiles: Tiles, floor: Any, out: Array) -> None:
    for b in prange(weight.shape[0]):
        for first in range(0, weight.shape[1], DEPTH):
            _forward_block(x, weight, bias, tiles, floor, out, np.int64(b), first)


@kernel
def _forward_block(
    x: Array, weight: Array, bias: Array, tiles: Tiles, floor: Any, out: Array, b: int, first: int
) -> None:
    """All images through the weights of one block, from word `first` on."""
    _, words, columns = weight.shape
    outputs, row = out.shape[1], x.shape[1] * x.itemsize
    depth = min(DEPTH, words - first)
    at_end = first + depth == words
    panel = address_of(weight) + (b * words + first) * columns * WORD_BYTES
    a, c = address_of(x) + first * WORD_BYTES, address_of(out) + b * columns * WORD_BYTES
    for tile, rows, times in (
        (tiles.tile, tiles.rows, tiles.times),
        (tiles.last_tile, tiles.last_rows, tiles.last_times),
    ):
        for _ in range(times):
            run_tile(
                tile, 1, depth, a, 0, WORD_BYTES, row, panel, c, outputs * WORD_BYTES,
                min(columns, outputs - b * columns), address_of(bias) + b * columns * WORD_BYTES,
                1 if first > 0 else 0, floor if at_end else np.float32(-np.inf),
            )  # fmt: skip
            a += rows * row
            c += rows * outputs * WORD_BYTES


@kernel
def tile_at(tiles: Tiles, i: int) -> tuple[int, int, int]:
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
    row_bytes = columns * weight.itemsize
    words = row_bytes // WORD_BYTES
    tile, _, row = tile_at(tiles, i)
    a = address_of(weight) + (first * inputs + row) * row_bytes
    for n in range(grad.shape[0]):
        run_tile(
            tile, min(BLOCKS, blocks - first), words, a, inputs * row_bytes, WORD_BYTES, row_bytes,
            address_of(grad) + (n * grad.shape[1] + first * words) * wide * WORD_BYTES,
            address_of(out) + (row * images + n * wide) * WORD_BYTES, images * WORD_BYTES,
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
    by_input: Array,
    by_output: Array,
) -> None:
    for b in prange(weight.shape[0]):
        slope = np.empty(max(tiles.rows, tiles.last_rows) * weight.shape[2], np.float32)
        for i in range(tiles.times + tiles.last_times):
            _update_tile(x_IN, grad, tiles, i, nothing, weight, velocity, rate, momentum, decay, np.int64(b), slope)
            if by_input.size > 0:
                _, rows, row = tile_at(tiles, i)
                _round_rows(weight[b], row, row + rows, by_input[b], by_output[b])


@kernel
def _update_tile(
    x_IN: Array,
    grad: Array,
    tiles: Tiles,
    i: int,
    nothing: Array,
    weight: Array,
    velocity: Array,
    rate: Any,
    momentum: Any,
    decay: Any,
    b: int,
    slope: Array,
) -> None:
    """The i-th tile's inputs of block b: gradient and move."""
    tile, rows, row = tile_at(tiles, i)
    _gradient_tile(x_IN, grad, tile, row, nothing, b, slope)
    columns = weight.shape[2]
    flat = slice(row * columns, (row + rows) * columns)
    _move(weight[b].reshape(-1)[flat], velocity[b].reshape(-1)[flat], slope, rate, momentum, decay)


@kernel
def _gradient_tile(x_IN: Array, grad: Array, tile: int, row: int, nothing: Array, b: int, slope: Array) -> None:
    words, columns = grad.shape[1:]
    stride = x_IN.shape[1] * x_IN.itemsize
    run_tile(
        tile, 1, words, address_of(x_IN) + row * stride, 0, WORD_BYTES, stride,
        address_of(grad) + b * words * columns * WORD_BYTES, address_of(slope), columns * WORD_BYTES,
        columns, address_of(nothing), 0, np.float32(-np.inf),
    )  # fmt: skip


@SharedKernel
def _weight_gradient(x_IN: Array, grad: Array, tiles: Tiles, nothing: Array, out: Array) -> None:
    columns = out.shape[2]
    for b in prange(out.shape[0]):
        for i in range(tiles.times + tiles.last_times):
            tile, rows, row = tile_at(tiles, i)
            slope = out[b].reshape(-1)[row * columns : (row + rows) * columns]
            _gradient_tile(x_IN, grad, tile, row, nothing, np.int64(b), slope)


@SharedKernel
def _round_weights(weight: Array, by_input: Array, by_output: Array) -> None:
    for b in prange(weight.shape[0]):
        _round_rows(weight[b], 0, weight.shape[1], by_input[b], by_output[b])


@kernel
def _round_rows(weight: Array, first: int, last: int, by_input: Array, by_output: Array) -> None:
    """Inputs first to last of one block, an even number of them, into both copies."""
    columns = weight.shape[1]
    for row in range(first, last, 2):
        words, upper, lower = by_input[row >> 1], by_output[row], by_output[row + 1]
        for v in range(columns):
            low, high = narrow(weight[row, v], by_output), narrow(weight[row + 1, v], by_output)
            upper[v], lower[v] = low, high
            words[v, 0], words[v, 1] = low, high


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
    columns, wide, last = by_output.shape[2], by_image.shape[2], by_output.shape[3] - 1
    for b in prange(by_output.shape[0]):
        for n in range(images):
            for v in range(columns):
                o = b * columns + v
                value = narrow(widen(grad[n, o]), by_output) if o < outputs else by_output.dtype.type(0)
                by_output[b, n >> last, v, n & last] = value
                by_image[n // wide, o >> last, n % wide, o & last] = value
        if images & last:
            by_output[b, images >> last, :, 1] = 0


@SharedKernel
def _transpose(matrix: Array, out: Array) -> None:
    side = 32
    for turn in prange(-(-matrix.shape[1] // side)):
        for first in range(0, matrix.shape[0], side):
            for column in range(turn * side, min(matrix.shape[1], (turn + 1) * side)):
                for row in range(first, min(matrix.shape[0], first + side)):
                    out[column, row] = narrow(widen(matrix[row, column]), out)


@SharedKernel
def _pack_weights(weight: Array, place: Array, out: Array) -> None:
    columns = out.shape[2]
    for b in prange(out.shape[0]):
        rows, panel = weight[b * columns : (b + 1) * columns], out[b]
        if not (_is_blank(rows) and _is_blank(panel)):
            few = np.empty((FEW, columns), np.float32)
            for first in range(0, place.size, FEW):
                count = min(FEW, place.size - first)
                for v in range(rows.shape[0]):
                    for k in range(count):
                        few[k, v] = rows[v, first + k]
                for k in range(count):
                    for v in range(rows.shape[0]):
                        panel[place[first + k], v] = few[k, v]


@kernel
def _is_blank(matrix: Array) -> bool:
    """Whether all bits are zero."""
    bits = matrix.reshape(-1).view(np.uint32)
    for start in range(0, bits.size, BLANK):
        seen = np.uint32(0)
        for i in range(start, min(bits.size, start + BLANK)):
            seen |= bits[i]
        if seen:
            return False
    return True


@SharedKernel
def _copy_rows(matrix: Array, out: Array) -> None:
    for n in prange(matrix.shape[0]):
        row, there = matrix[n], out[n]
        for i in range(row.size):
            there[i] = narrow(widen(row[i]), out)
