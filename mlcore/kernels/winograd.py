"""Convolution of stride 1 with fewer multiplications, on planes: forward, back to the input (turned weights, so the
same), and to the weights.

The image is cut into tiles of m x m outputs; each is transformed into n x n points, the points of all tiles and
channels are multiplied as n * n matrices, and what comes out is transformed back. Some rows of tiles are worked on at
a time, so that their points stay in the cache, and each number is summed in the same order whoever does it.

Planes are float32 or bf16. Points are float32; where they are multiplied as pairs of bf16, they are rounded once: those
of images when they are written, or, for the gradient of the weights, when pairs of tiles are joined.

Legend: G group, N image, H W height and width with border, C channel of a group, W words (C, or pairs of C), K kernel
height, R run (kernel width * C), O output channel of a group, B block, V columns of a panel, P points (n * n), T tiles
worked on together. C-contiguous. Source: Lavin and Gray 2015, arXiv:1509.09308, sec. 4 and algorithm 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numba.extending import register_jitable
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.micro import address_of, run_tile
from mlcore.kernels.panels import Tiles
from mlcore.kernels.planes import CHANNEL, CHUNK, COLUMNS, PLANE, Grid
from mlcore.kernels.precision import WORD_BYTES, Precision, join
from mlcore.kernels.transform import run_transform

LINE = 16  # numbers between the points of a matrix and the next, so that they don't meet in one set of the cache

Array = NDArray[Any]


class Cut(NamedTuple):
    """How images are cut: points and outputs along a tile's side, tiles down and across an image, how many rows of
    tiles and blocks of panels are worked on together, and how many points are one word (2: rounded to bf16)."""

    side: int
    outputs: int
    down: int
    across: int
    rows: int
    together: int
    per_word: int


class Ways(NamedTuple):
    """Addresses of the transforms: into points, and out of them."""

    into: int
    out_of: int


def convolve(
    x: Array, points: Array, bias: Array, blocks: Array, cut: Cut, ways: Ways, tiles: Tiles, last_tiles: Tiles,
    floor: float, out: Array, grid: Grid, space: Array, images: int,
) -> None:  # fmt: skip
    """out = max(x correlated with the weights + bias, floor), for the first `images` images.

    x [G, N, H, W, C]; points [P, B, W, V] of the weights; bias [B, V]; out planes whose pixels stand where `grid`
    says; blocks [B, 10] as for `planes.correlate`, the same number for each group. tiles, last_tiles: what makes up
    the T tiles of a turn, and of the last one. space [threads, at least `correlation_room`]: contents don't matter.
    """
    work = images * cut.down * cut.across * points.size
    _convolve(work, x, points, bias, blocks, cut, ways, tiles, last_tiles, np.float32(floor), out, grid, space, images)


def weight_gradient(
    x: Array, grad: Array, grid: Grid, blocks: Array, cut: Cut, ways: Ways, grad_into: int, tiles: Tiles,
    columns: int, sums: Array, space: Array, images: int,
) -> None:  # fmt: skip
    """sums [chunks, G, K, R, O] = the gradient of the weights, one slice for each 16 images, to be added in order.

    grad: planes [G, N, H, W, O], pixels where `grid` says. blocks [B, 10], the same for every group: CHANNEL and
    COLUMNS of the output; `columns` of a panel. ways.into, grad_into: the transforms of the image and of the
    gradient; ways.out_of: of the points into taps. tiles make up the channels. space [threads, at least
    `gradient_room`]: contents don't matter.
    """
    work = images * cut.down * cut.across * cut.side**2 * sums.shape[1] * x.shape[4] * grad.shape[4]
    _weight_gradient(work, x, grad, grid, blocks, cut, ways, grad_into, tiles, columns, sums, space, images)


def weight_points(panels: Array, kernel_size: int, into: int, precision: Precision, points: Array) -> None:
    """Panels float32 [B, K * kernel width * C, V] of square windows, transformed into points [P, B, W, V], words of
    `precision`; `into` writes such numbers."""
    number = np.zeros(precision.per_word, precision.dtype)
    _weight_points(4 * points.size, panels, kernel_size, into, number, points)


def correlation_room(cut: Cut, words: int, columns: int) -> int:
    """Words that `convolve` needs for the points of its tiles."""
    return cut.side**2 * (cut.rows * cut.across * (words + cut.together * columns) + 2 * LINE)


def gradient_room(cut: Cut, channels: int, columns: int) -> int:
    """Words that `weight_gradient` needs for the points of its tiles and of the weights."""
    tiles, wide = cut.rows * cut.across, cut.together * columns
    depth, loose = -(-tiles // cut.per_word), _loose(cut, tiles, channels, columns)
    return cut.side**2 * (depth * (channels + wide) + loose + channels * wide + 4 * LINE)


@register_jitable
def _loose(cut: Cut, tiles: int, channels: int, columns: int) -> int:
    """Words for the points of tiles that wait for being joined with their neighbours."""
    return tiles * (max(channels, columns) + 1) // 2 + 1 if cut.per_word > 1 else 0


@SharedKernel
def _convolve(
    x: Array, points: Array, bias: Array, blocks: Array, cut: Cut, ways: Ways, tiles: Tiles, last_tiles: Tiles,
    floor: Any, out: Array, grid: Grid, space: Array, images: int,
) -> None:  # fmt: skip
    rows, threads = images * cut.down, space.shape[0]
    for thread in prange(threads):
        for first in range(thread * cut.rows, rows, threads * cut.rows):
            last = min(rows, first + cut.rows)
            some = tiles if last - first == cut.rows else last_tiles
            _convolve_rows(x, points, bias, blocks, cut, ways, some, floor, out, grid, space[thread], first, last)


@kernel
def _convolve_rows(
    x: Array, points: Array, bias: Array, blocks: Array, cut: Cut, ways: Ways, tiles: Tiles, floor: Any, out: Array,
    grid: Grid, space: Array, first: int, last: int,
) -> None:  # fmt: skip
    """Rows of tiles `first` to `last`, counted through all images; group by group, some blocks at a time."""
    groups, channels, words, columns = x.shape[0], x.shape[4], points.shape[2], points.shape[3]
    count, per_group, squares = (last - first) * cut.across, blocks.shape[0] // groups, cut.side**2
    image, rest = _matrices(space, squares, count * words)
    product, _ = _matrices(rest, squares, cut.together * count * columns)
    nothing = np.zeros(max(channels + 1, columns), np.float32)
    whole = Grid(0, 1, x.shape[2], x.shape[3])
    for g in range(groups):
        _gather(
            x[g], whole, 0, channels, cut, cut.side, ways.into, first, last, words * cut.per_word, cut.per_word,
            nothing, image, 0,
        )  # fmt: skip
        for start in range(g * per_group, (g + 1) * per_group, cut.together):
            stop = min((g + 1) * per_group, start + cut.together)
            for p in range(squares):
                for b in range(start, stop):
                    at = address_of(product[p]) + (b - start) * count * columns * WORD_BYTES
                    _multiply(tiles, image[p], words, points[p, b], nothing, at)
            for b in range(start, stop):
                at = address_of(product) + (b - start) * count * columns * WORD_BYTES
                _scatter(at, product, columns, bias[b], blocks[b], cut, ways.out_of, floor, out, grid, first, last)


@kernel
def _matrices(space: Array, squares: int, size: int) -> tuple[Array, Array]:
    """Room for `size` numbers of each point, and what is left."""
    end = squares * (size + LINE)
    return space[:end].reshape(squares, size + LINE), space[end:]


@kernel
def _multiply(tiles: Tiles, image: Array, words: int, panel: Array, nothing: Array, c: int) -> None:
    """One point: [T, W] of the image times a panel [W, V] of the weights, into [T, V]."""
    columns = panel.shape[1]
    a = address_of(image)
    for tile, rows, times in (
        (tiles.tile, tiles.rows, tiles.times),
        (tiles.last_tile, tiles.last_rows, tiles.last_times),
    ):
        for _ in range(times):
            run_tile(
                tile, 1, words, a, 0, WORD_BYTES, words * WORD_BYTES, address_of(panel), c,
                columns * WORD_BYTES, columns, address_of(nothing), 0, np.float32(-np.inf),
            )  # fmt: skip
            a += rows * words * WORD_BYTES
            c += rows * columns * WORD_BYTES


@kernel
def _gather(
    planes: Array, grid: Grid, channel: int, channels: int, cut: Cut, side: int, into: int, first: int, last: int,
    columns: int, per_word: int, nothing: Array, points: Array, offset: int,
) -> None:  # fmt: skip
    """Squares of `side` pixels, `cut.outputs` apart, into points[:, offset:], [T, columns] each, `per_word` in a word.

    What lies beyond `channels`, or beyond the pixels that `grid` counts, is zeros.
    """
    _, height, width, depth = planes.shape
    pixel, step = depth * planes.itemsize, points.shape[1] * WORD_BYTES
    out = address_of(points) + offset * WORD_BYTES
    for row in range(first, last):
        y = row % cut.down * cut.outputs
        corner = ((row // cut.down * height + grid.border + y) * width + grid.border) * pixel
        for i in range(cut.across):
            x = i * cut.outputs
            run_transform(
                into, address_of(planes) + corner + x * pixel + channel * planes.itemsize, width * pixel, pixel,
                min(side, grid.height - y), min(side, grid.width - x), channels,
                out, cut.side * step, step, cut.side, cut.side, columns,
                address_of(nothing), address_of(nothing), address_of(nothing), np.float32(0),
            )  # fmt: skip
            out += columns // per_word * WORD_BYTES


@kernel
def _scatter(
    x: int, points: Array, columns: int, bias: Array, block: Array, cut: Cut, out_of: int, floor: Any, out: Array,
    grid: Grid, first: int, last: int,
) -> None:  # fmt: skip
    """A block's points [T, V], from address `x` on, into the planes."""
    _, count, height, width, channels = out.shape
    pixel, step = channels * out.itemsize, points.shape[1] * WORD_BYTES
    sink = np.empty(columns, np.float32)
    for row in range(first, last):
        n, y = block[PLANE] * count + row // cut.down, row % cut.down * cut.outputs
        corner = ((n * height + grid.border + y * grid.step) * width + grid.border) * pixel
        corner += address_of(out) + block[CHANNEL] * out.itemsize
        for i in range(cut.across):
            q = i * cut.outputs
            run_transform(
                out_of, x, cut.side * step, step, cut.side, cut.side, columns,
                corner + q * grid.step * pixel, grid.step * width * pixel, grid.step * pixel,
                min(cut.outputs, grid.height - y), min(cut.outputs, grid.width - q), block[COLUMNS],
                address_of(bias), address_of(bias), address_of(sink), floor,
            )  # fmt: skip
            x += columns * WORD_BYTES


@SharedKernel
def _weight_gradient(
    x: Array, grad: Array, grid: Grid, blocks: Array, cut: Cut, ways: Ways, grad_into: int, tiles: Tiles,
    columns: int, sums: Array, space: Array, images: int,
) -> None:  # fmt: skip
    groups, threads = sums.shape[1], space.shape[0]
    turns = -(-images // CHUNK) * groups
    for thread in prange(threads):
        for turn in range(thread, turns, threads):
            chunk, g = turn // groups, turn % groups
            first, last = chunk * CHUNK * cut.down, min(images, (chunk + 1) * CHUNK) * cut.down
            for start in range(first, last, cut.rows):
                _weight_gradient_rows(
                    x[g], grad[g], grid, blocks, cut, ways, grad_into, tiles, columns, sums[chunk, g], space[thread],
                    start, min(last, start + cut.rows), start > first,
                )  # fmt: skip


@kernel
def _weight_gradient_rows(
    x: Array, grad: Array, grid: Grid, blocks: Array, cut: Cut, ways: Ways, grad_into: int, tiles: Tiles,
    columns: int, sums: Array, space: Array, first: int, last: int, adding: bool,
) -> None:  # fmt: skip
    """One group, rows of tiles `first` to `last`, some blocks at a time.

    Their points are summed before they become taps, but not those of more rows: points are larger than taps, and in
    longer sums of them digits would be lost.
    """
    channels, squares, count = x.shape[3], cut.side**2, (last - first) * cut.across
    depth, loose_size = -(-count // cut.per_word), _loose(cut, count, channels, columns)
    image, rest = _matrices(space, squares, depth * channels)
    slope, rest = _matrices(rest, squares, cut.together * depth * columns)
    loose, rest = _matrices(rest, squares, loose_size)
    nothing = np.zeros(max(channels, columns) + 1, np.float32)
    _gather_turned(
        x, Grid(0, 1, x.shape[1], x.shape[2]), 0, channels, cut, cut.side, ways.into, first, last, channels, nothing,
        loose, image, 0,
    )  # fmt: skip
    for start in range(0, blocks.shape[0], cut.together):
        some = blocks[start : start + cut.together]
        wide = some.shape[0] * columns
        total, _ = _matrices(rest, squares, channels * wide)
        for b in range(some.shape[0]):
            _gather_turned(
                grad, grid, some[b, CHANNEL], some[b, COLUMNS], cut, cut.outputs, grad_into, first, last, columns,
                nothing, loose, slope, b * depth * columns,
            )  # fmt: skip
        for p in range(squares):
            for b in range(some.shape[0]):
                panel = address_of(slope[p]) + b * depth * columns * WORD_BYTES
                at = address_of(total[p]) + b * columns * WORD_BYTES
                _multiply_turned(tiles, image[p], depth, channels, panel, columns, nothing, at, wide)
        outputs = slice(some[0, CHANNEL], some[-1, CHANNEL] + some[-1, COLUMNS])
        _into_taps(total, channels, wide, cut.side, ways.out_of, sums[:, :, outputs], adding)


@kernel
def _gather_turned(
    planes: Array, grid: Grid, channel: int, channels: int, cut: Cut, side: int, into: int, first: int, last: int,
    columns: int, nothing: Array, loose: Array, points: Array, offset: int,
) -> None:  # fmt: skip
    """As `_gather`, but a word is a pair of tiles, where it is a pair: [words along T, columns]."""
    if cut.per_word == 1:
        _gather(
            planes, grid, channel, channels, cut, side, into, first, last, columns, 1, nothing, points, offset
        )  # fmt: skip
        return
    even, count = columns + columns % 2, (last - first) * cut.across
    _gather(planes, grid, channel, channels, cut, side, into, first, last, even, 2, nothing, loose, 0)
    for p in range(loose.shape[0]):
        halves = loose[p, : count * even // 2].view(np.uint16).reshape(count, even)
        words = points[p, offset : offset + (count + 1) // 2 * columns].view(np.uint32).reshape(-1, columns)
        for row in range(count // 2):
            _join_rows(halves[2 * row], halves[2 * row + 1], words[row])
        if count % 2:
            _join_rows(halves[count - 1], np.zeros(even, np.uint16), words[count // 2])


@kernel
def _join_rows(low: Array, high: Array, words: Array) -> None:
    for c in range(words.size):
        words[c] = join(low[c], high[c])


@kernel
def _multiply_turned(
    tiles: Tiles, image: Array, depth: int, channels: int, panel: int, columns: int, nothing: Array, c: int, wide: int
) -> None:
    """One point: [depth, C] of the image, transposed, times a panel [depth, V] of the gradient, into [C, V] at c."""
    a = address_of(image)
    for tile, rows, times in (
        (tiles.tile, tiles.rows, tiles.times),
        (tiles.last_tile, tiles.last_rows, tiles.last_times),
    ):
        for _ in range(times):
            run_tile(
                tile, 1, depth, a, 0, channels * WORD_BYTES, WORD_BYTES, panel, c, wide * WORD_BYTES, columns,
                address_of(nothing), 0, np.float32(-np.inf),
            )  # fmt: skip
            a += rows * WORD_BYTES
            c += rows * wide * WORD_BYTES


@kernel
def _into_taps(points: Array, channels: int, wide: int, side: int, out_of: int, sums: Array, adding: bool) -> None:
    """Points [P, C, `wide`] into sums [K, R, O], or added to them."""
    taps, outputs = sums.shape[0], sums.shape[2]
    step = points.shape[1] * WORD_BYTES
    some = np.empty((taps, taps, outputs), np.float32)
    for c in range(channels):
        run_transform(
            out_of, address_of(points) + c * wide * WORD_BYTES, side * step, step, side, side, outputs,
            address_of(some), taps * outputs * WORD_BYTES, outputs * WORD_BYTES, taps, taps, outputs,
            address_of(some), address_of(some), address_of(some), np.float32(0),
        )  # fmt: skip
        for i in range(taps):
            for j in range(taps):
                there, more = sums[i, j * channels + c], some[i, j]
                if adding:
                    for o in range(outputs):
                        there[o] += more[o]
                else:
                    for o in range(outputs):
                        there[o] = more[o]


@SharedKernel
def _weight_points(panels: Array, taps: int, into: int, number: Array, points: Array) -> None:
    squares, blocks, words, columns = points.shape
    side, channels = int(np.sqrt(squares)), panels.shape[1] // (taps * taps)
    per_word, row, size = number.size, columns * WORD_BYTES, columns * number.itemsize
    for b in prange(blocks):
        some = np.zeros((per_word, squares, columns), number.dtype)
        for word in range(words):
            some[-1] = 0
            for half in range(min(per_word, channels - word * per_word)):
                c = word * per_word + half
                run_transform(
                    into, address_of(panels[b]) + c * row, taps * channels * row, channels * row, taps, taps, columns,
                    address_of(some[half]), side * size, size, side, side, columns,
                    address_of(panels), address_of(panels), address_of(panels), np.float32(0),
                )  # fmt: skip
            for p in range(squares):
                _join_rows(some[0, p], some[-1, p], points[p, b, word])
