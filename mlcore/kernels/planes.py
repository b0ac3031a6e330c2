"""How a planned network's images lie in memory, and convolution on them: forward, back to the input, to the weights.

Images are planes [group, image, height, width, channel]: the channels of one group side by side, so that a row of a
window is one run of kernel width * channels numbers, and with a border of zeros, so that padding needs no case of its
own. Gradients that arrive at a strided convolution lie `step` apart with zeros between, which makes going back the
same correlation as going forward, with the window turned round.

Both are driven by a table of blocks: which panel of weights meets which group, and where its channels go. Every
number is summed in an order that is part of the table, so results don't depend on the number of threads, to the bit.

Planes hold float32 or bf16; both are read in words of 32 bits, so that a run is R numbers in W words. Weights and the
sums of their gradients are float32.

Legend: G group, N image, H W height and width with border, C channel of a group, R run (kernel width * C), W words of a
run, P numbers of a word, K kernel height, O output channel of a group, V columns of a panel. C-contiguous.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.micro import address_of, run_tile
from mlcore.kernels.precision import WORD_BYTES, narrow, widen

IMAGES = 4  # in one turn of a correlation
CHUNK = 16  # images whose weight gradients are summed before others are added: part of the arithmetic

Array = NDArray[Any]


class Grid(NamedTuple):
    """Where the true pixels stand in a plane: `height` rows of `width`, `step` apart, inside a border."""

    border: int
    step: int
    height: int
    width: int


class Walk(NamedTuple):
    """How a window moves: kernel height, run (and its words), stride, where in the plane's border its first row and
    column are, and how many blocks share the cache while images pass."""

    kernel: int
    run: int
    words: int
    stride: int
    first: int
    together: int


# Columns of a table of blocks.
GROUP, PLANE, CHANNEL, COLUMNS, TILE, ROWS, TIMES, LAST_TILE, LAST_ROWS, LAST_TIMES = range(10)
BLOCK_COLUMNS = 10


def correlate(
    x: Array, panels: Array, bias: Array, blocks: Array, walk: Walk, floor: float, out: Array, grid: Grid, images: int
) -> None:
    """out = max(x correlated with the panels + bias, floor), for the first `images` images.

    x [G, N, H, W, C]; panels [B, K * W, V, P]; bias [B, V]; out planes whose pixels stand where `grid` says.
    blocks [B, 10]: group read, plane and channel written, columns, and the two sizes of tile that make up a row.
    """
    work = images * grid.height * grid.width * panels.size
    _correlate(work, x, panels, bias, blocks, walk, np.float32(floor), out, grid, images)


def relu_and_bias_gradient(
    grad: Array, grid: Grid, out: Array, out_grid: Grid, relu: bool, sums: Array, images: int
) -> None:
    """In place: the gradient before a ReLU whose output was `out`; and its sums over pixels, per chunk of images.

    grad: planes [G, N, H, W, O]; out: planes of the same channels, in any groups. sums [chunks, channels].
    """
    piece = math.gcd(grad.shape[4], out.shape[4])
    work = 8 * grid.height * grid.width * images * sums.shape[1]
    _relu_and_bias_gradient(work, grad, grid, out, out_grid, relu, piece, sums, images)


def load_images(x_NCHW: Array, planes: Array, grid: Grid) -> None:
    """A batch into planes; the border stays as it is."""
    _load_images(4 * x_NCHW.size, x_NCHW, planes, grid)


def unload_images(planes: Array, grid: Grid, out_NCHW: Array) -> None:
    """The way back: the first images of planes, as float32."""
    _unload_images(4 * out_NCHW.size, planes, grid, out_NCHW)


def pack_panels(weight: Array, spans: Array, panels: Array) -> None:
    """Weights [G, K, R, O] into forward panels [B, K * W, V, P]; spans [B, 3]: group, first output, how many."""
    _pack_panels(8 * panels.size, weight, spans, panels)


def pack_turned_panels(weight: Array, channels: int, spans: Array, panels: Array) -> None:
    """Weights [G, K, R, O], turned round, into panels [B, K * words of kernel width * O, V, P], back to the input."""
    _pack_turned_panels(8 * panels.size, weight, channels, spans, panels)


@SharedKernel
def _correlate(
    x: Array, panels: Array, bias: Array, blocks: Array, walk: Walk, floor: Any, out: Array, grid: Grid, images: int
) -> None:
    for turn in prange(-(-images // IMAGES)):
        for first in range(0, blocks.shape[0], walk.together):
            last = min(first + walk.together, blocks.shape[0])
            for n in range(turn * IMAGES, min(images, (turn + 1) * IMAGES)):
                _correlate_image(x, n, panels, bias, blocks, first, last, walk, floor, out, grid)


@kernel
def _correlate_image(
    x: Array,
    n: int,
    panels: Array,
    bias: Array,
    blocks: Array,
    first: int,
    last: int,
    walk: Walk,
    floor: Any,
    out: Array,
    grid: Grid,
) -> None:
    """One image, blocks `first` to `last`, row by row."""
    _, count, height, width, channels = x.shape
    out_height, out_width, out_channels = out.shape[2:]
    pixel, out_pixel = channels * x.itemsize, grid.step * out_channels * out.itemsize
    columns = panels.shape[2]
    for y in range(grid.height):
        out_y = grid.border + y * grid.step
        for b in range(first, last):
            block = blocks[b]
            row = (block[GROUP] * count + n) * height + walk.first + y * walk.stride
            a = address_of(x) + (row * width + walk.first) * pixel
            at = ((block[PLANE] * count + n) * out_height + out_y) * out_width + grid.border
            c = address_of(out) + (at * out_channels + block[CHANNEL]) * out.itemsize
            panel = address_of(panels) + b * panels.shape[1] * columns * WORD_BYTES
            start = address_of(bias) + b * columns * WORD_BYTES
            for size in (0, 3):
                tile, rows = block[TILE + size], block[ROWS + size]
                for _ in range(block[TIMES + size]):
                    run_tile(
                        tile, walk.kernel, walk.words, a, width * pixel, WORD_BYTES, walk.stride * pixel,
                        panel, c, out_pixel, block[COLUMNS], start, 0, floor,
                    )  # fmt: skip
                    a += rows * walk.stride * pixel
                    c += rows * out_pixel


@SharedKernel
def _relu_and_bias_gradient(
    grad: Array, grid: Grid, out: Array, out_grid: Grid, relu: bool, piece: int, sums: Array, images: int
) -> None:
    for chunk in prange(-(-images // CHUNK)):
        sums[chunk] = 0
        for n in range(chunk * CHUNK, min(images, (chunk + 1) * CHUNK)):
            _relu_and_bias_gradient_image(grad, grid, out, out_grid, relu, piece, n, sums[chunk])


@kernel
def _relu_and_bias_gradient_image(
    grad: Array, grid: Grid, out: Array, out_grid: Grid, relu: bool, piece: int, n: int, sums: Array
) -> None:
    per_grad, per_out = grad.shape[4], out.shape[4]
    nothing = grad.dtype.type(0)
    for first in range(0, sums.size, piece):
        total = sums[first : first + piece]
        for y in range(grid.height):
            for x in range(grid.width):
                slope = grad[first // per_grad, n, grid.border + y * grid.step, grid.border + x * grid.step]
                slope = slope[first % per_grad : first % per_grad + piece]
                if relu:
                    shown = out[first // per_out, n, out_grid.border + y, out_grid.border + x]
                    shown = shown[first % per_out : first % per_out + piece]
                    for v in range(piece):
                        value = slope[v]
                        value = nothing if widen(shown[v]) <= 0 else value
                        slope[v] = value
                        total[v] += widen(value)
                else:
                    for v in range(piece):
                        total[v] += widen(slope[v])


@SharedKernel
def _load_images(x_NCHW: Array, planes: Array, grid: Grid) -> None:
    for n in prange(x_NCHW.shape[0]):
        per_group = planes.shape[4]
        for c in range(x_NCHW.shape[1]):
            for y in range(grid.height):
                row = planes[c // per_group, n, grid.border + y * grid.step]
                for x in range(grid.width):
                    row[grid.border + x * grid.step, c % per_group] = narrow(x_NCHW[n, c, y, x], planes)


@SharedKernel
def _unload_images(planes: Array, grid: Grid, out_NCHW: Array) -> None:
    for n in prange(out_NCHW.shape[0]):
        per_group = planes.shape[4]
        for c in range(out_NCHW.shape[1]):
            for y in range(grid.height):
                row = planes[c // per_group, n, grid.border + y * grid.step]
                for x in range(grid.width):
                    out_NCHW[n, c, y, x] = widen(row[grid.border + x * grid.step, c % per_group])


@SharedKernel
def _pack_panels(weight: Array, spans: Array, panels: Array) -> None:
    last = panels.shape[3] - 1  # a word holds one number or two
    for b in prange(spans.shape[0]):
        group, first, columns = spans[b]
        _, kernel_h, run, _ = weight.shape
        words = panels.shape[1] // kernel_h
        for r in range(kernel_h):
            for q in range(run):
                word, row = panels[b, r * words + (q >> last)], weight[group, r, q]
                for v in range(columns):
                    word[v, q & last] = narrow(row[first + v], panels)


@SharedKernel
def _pack_turned_panels(weight: Array, channels: int, spans: Array, panels: Array) -> None:
    last = panels.shape[3] - 1
    for b in prange(spans.shape[0]):
        group, first, columns = spans[b]
        _, kernel_h, run, outputs = weight.shape
        kernel_w, words = run // channels, panels.shape[1] // kernel_h
        for r in range(kernel_h):
            for s in range(kernel_w):
                for v in range(columns):
                    source = weight[group, kernel_h - 1 - r, (kernel_w - 1 - s) * channels + first + v]
                    for o in range(outputs):
                        q = s * outputs + o
                        panels[b, r * words + (q >> last), v, q & last] = narrow(source[o], panels)
