"""The one place that knows how a planned network lies in memory: planes, panels, and the tables of tiles over them.

Numbers are kept as the plan's precision says: planes and panels in fp32 or bf16, weights and sums always in float32.

Legend: G group, N image, C channel of a group, K kernel height, R run (kernel width * C), O output of a group,
B block, V columns of a panel, P numbers of a word, I input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlcore.kernels.cook_toom import Matrix
from mlcore.kernels.micro import cover, tile_address
from mlcore.kernels.native import this_machine
from mlcore.kernels.panels import Tiles
from mlcore.kernels.planes import BLOCK_COLUMNS, Grid
from mlcore.kernels.precision import FP32, PRECISIONS, WORD_BYTES, Precision
from mlcore.kernels.transform import transform_address
from mlcore.tensor import Array

L2_BYTES = 640 << 10  # of weights that stay in the cache while images pass
SLACK = 16  # numbers behind every plane: the last word of a run may reach past it


@dataclass(frozen=True, eq=False)
class Planes:
    """Images in memory: `array` [G, N, H, W, C] with its border, `grid` says where the pixels stand."""

    array: Array
    grid: Grid

    @property
    def groups(self) -> int:
        return int(self.array.shape[0])

    @property
    def per_group(self) -> int:
        return int(self.array.shape[4])

    @property
    def channels(self) -> int:
        return self.groups * self.per_group

    @property
    def precision(self) -> Precision:
        return next(each for each in PRECISIONS.values() if each.dtype == self.array.dtype)

    @property
    def memory(self) -> Array:
        """What the planes lie in, perhaps together with others."""
        base = self.array.base
        return base if isinstance(base, np.ndarray) else self.array

    @property
    def is_plain(self) -> bool:
        """One group and no border: an image is one row of numbers."""
        return self.groups == 1 and self.array.shape[2:4] == (self.grid.height, self.grid.width)

    def rows(self, images: int) -> Array:
        """[images, H * W * C] of plain planes: the same memory."""
        assert self.is_plain, "only plain planes are rows"
        return self.array.reshape(self.array.shape[1], -1)[:images]

    def put(self, rows: Array) -> None:
        """Numbers [images, H * W * C], as plain planes have them, at the pixels of these, whatever their grid."""
        grid, (images, _) = self.grid, rows.shape
        down, across = (
            slice(grid.border, grid.border + grid.step * side, grid.step) for side in (grid.height, grid.width)
        )
        pixels = rows.reshape(images, grid.height, grid.width, self.groups, self.per_group)
        self.array[:, :images, down, across] = pixels.transpose(3, 0, 1, 2, 4)

    def canonical_order(self) -> Array:
        """For each number of a row, its place in the [C, H, W] order that the rest of the library uses."""
        shape = (self.channels, self.grid.height, self.grid.width)
        return np.arange(math.prod(shape)).reshape(shape).transpose(1, 2, 0).reshape(-1)


def plane(
    images: int,
    channels: int,
    height: int,
    width: int,
    groups: int = 1,
    border: int = 0,
    precision: Precision = FP32,
) -> Planes:
    """Zeroed planes with the same border on every side."""
    shape = (groups, images, height + 2 * border, width + 2 * border, channels // groups)
    return Planes(_zeros(shape, precision), Grid(border, 1, height, width))


class Pool:
    """Memory that stages share: of gradients that are planes two are alive at a time, of sums over chunks only one.

    That holds for a chain of stages; where it branches, planes get memory of their own (`chain` False).
    """

    def __init__(self, chain: bool = True) -> None:
        self._chain = chain
        self._pieces: list[Array] = []
        self._sums = np.empty(0, np.float32)

    def plane(self, shape: tuple[int, ...], precision: Precision, busy: Planes | None) -> Array:
        """Numbers that don't share memory with `busy`; what they are is not said."""
        size = math.prod(shape) + SLACK
        pieces = self._pieces if self._chain else []
        free = [p for p in pieces if p.size >= size and (busy is None or not np.may_share_memory(p, busy.array))]
        if not free:
            # As large as the largest: pages that are never touched cost nothing, and later planes may fit.
            free = [np.empty(max([size, *map(len, pieces)]), precision.dtype)]
            self._pieces += free
        return min(free, key=len)[: math.prod(shape)].reshape(shape)

    def sums(self, shape: tuple[int, ...]) -> Array:
        """float32 numbers, the same for everyone."""
        size = math.prod(shape)
        if size > self._sums.size:
            self._sums = np.empty(size, np.float32)
        return self._sums[:size].reshape(shape)


def _zeros(shape: tuple[int, ...], precision: Precision) -> Array:
    size = math.prod(shape)
    return np.zeros(size + SLACK, precision.dtype)[:size].reshape(shape)


def gradient_plane(
    out: Planes,
    groups: int,
    kernel: int,
    stride: int,
    padding: int,
    x: Planes,
    x_grad: Planes | None,
    pool: Pool,
) -> Planes:
    """Where the gradient of a convolution's output `out` is put, so that a correlation leads back to its input `x`.

    Where nobody wants that (x_grad is None) it needs no border. With a stride it needs memory of its own, since the
    zeros between its pixels must stay; else `clear_border` makes it ready to be read.
    """
    images, channels, height, width = out.array.shape[1], out.channels, out.grid.height, out.grid.width
    if x_grad is None:
        return pooled_plane(images, channels, height, width, out.precision, None, pool, groups)
    border = kernel - 1 - padding
    rows, columns = x.grid.height + kernel - 1, x.grid.width + kernel - 1
    shape = (groups, images, rows, columns, channels // groups)
    memory = _zeros(shape, out.precision) if stride > 1 else pool.plane(shape, out.precision, x_grad)
    return Planes(memory, Grid(border, stride, height, width))


def pooled_plane(
    images: int,
    channels: int,
    height: int,
    width: int,
    precision: Precision,
    busy: Planes | None,
    pool: Pool,
    groups: int = 1,
) -> Planes:
    """Planes without a border for a gradient, in memory that it shares, though not with `busy`."""
    shape = (groups, images, height, width, channels // groups)
    return Planes(pool.plane(shape, precision, busy), Grid(0, 1, height, width))


def clear_border(there: Planes) -> None:
    """Zeros around the pixels of planes whose memory was used for others, and behind them."""
    grid = there.grid
    if grid.step > 1:
        return
    there.memory.reshape(-1)[there.array.size :][:SLACK] = 0
    bottom, right = grid.border + grid.height, grid.border + grid.width
    there.array[:, :, : grid.border] = 0
    there.array[:, :, bottom:] = 0
    there.array[:, :, grid.border : bottom, : grid.border] = 0
    there.array[:, :, grid.border : bottom, right:] = 0


def panel_vectors(outputs: int) -> int:
    """Vectors across a panel: what pads `outputs` least; of equals, two keep the registers busiest."""
    lanes = this_machine().lanes
    return min((2, 3, 1), key=lambda vectors: -(-outputs // (vectors * lanes)) * vectors)


def panel_columns(vectors: int) -> int:
    """Numbers across a panel."""
    return vectors * this_machine().lanes


def transform(matrix: Matrix, has_end: bool, read: Precision = FP32, written: Precision = FP32) -> int:
    """The transform of squares of pixels by `matrix`, compiled."""
    return transform_address(matrix, has_end, this_machine(), read.name, written.name)


def tiles(length: int, vectors: int, read: Precision = FP32, written: Precision = FP32, unit: int = 1) -> Tiles:
    """The tiles that make up `length` rows, in whole `unit`s of rows, compiled."""
    machine = this_machine()
    units, times, last_units, last_times = cover(length // unit, machine.rows(vectors) // unit)
    kinds = read.name, written.name
    tile = tile_address(units * unit, vectors, machine, *kinds)
    last = tile_address(last_units * unit, vectors, machine, *kinds) if last_times else 0
    return Tiles(tile, units * unit, times, last, last_units * unit, last_times)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Outputs cut into panels. `table` [B, 10] drives the kernels; `spans` [B, 3]: group, first output, how many."""

    table: Array
    spans: Array
    columns: int

    @property
    def vectors(self) -> int:
        return self.columns // this_machine().lanes

    def together(self, depth: int) -> int:
        """How many blocks of panels `depth` words deep fit the cache at once."""
        return max(1, L2_BYTES // (depth * self.columns * WORD_BYTES))

    def padded(self, values: Array, outputs: int) -> Array:
        """values [G * outputs] as [B, V]: what each panel starts at."""
        panels = np.zeros((len(self.spans), self.columns), np.float32)
        for panel, (group, first, count) in zip(panels, self.spans, strict=True):
            panel[:count] = values[group * outputs + first :][:count]
        return panels


def correlation_blocks(outputs: int, groups: int, target: Planes) -> Blocks:
    """Panels of `groups` times `outputs` channels, cut where the target's groups end; tiles along its rows."""
    piece = math.gcd(outputs, target.per_group)
    vectors = panel_vectors(piece)
    columns = panel_columns(vectors)
    spans = np.array(list(_cut(outputs, groups, piece, columns)), np.int64)
    channel = spans[:, 0] * outputs + spans[:, 1]
    table = np.zeros((len(spans), BLOCK_COLUMNS), np.int64)
    table[:, 0], table[:, 1], table[:, 2] = spans[:, 0], channel // target.per_group, channel % target.per_group
    table[:, 3] = spans[:, 2]
    table[:, 4:] = tiles(target.grid.width, vectors, target.precision, target.precision)
    return Blocks(table, spans, columns)


def gradient_blocks(outputs: int, run: int, precision: Precision) -> Blocks:
    """Panels of one group's output gradients; tiles along the run of the weights."""
    vectors = panel_vectors(outputs)
    columns = panel_columns(vectors)
    spans = np.array(list(_cut(outputs, 1, outputs, columns)), np.int64)
    table = np.zeros((len(spans), BLOCK_COLUMNS), np.int64)
    table[:, 1], table[:, 2], table[:, 3] = columns, spans[:, 1], spans[:, 2]
    table[:, 4:] = tiles(run, vectors, precision)
    return Blocks(table, spans, columns)


def _cut(outputs: int, groups: int, piece: int, columns: int) -> Iterator[tuple[int, int, int]]:
    for group in range(groups):
        for start in range(0, outputs, piece):
            for first in range(start, start + piece, columns):
                yield group, first, min(columns, start + piece - first)


def conv_panels(blocks: Blocks, kernel: int, run: int, precision: Precision) -> Array:
    """Room for a convolution's weights as the innermost loop reads them: [B, K * words of a run, V, P]."""
    depth = kernel * precision.words(run)
    return np.zeros((len(blocks.spans), depth, blocks.columns, precision.per_word), precision.dtype)


def conv_to_plan(weight_OCKL: Array, groups: int) -> Array:
    """[G * O, C, K, L] as [G, K, L * C, O]."""
    outputs, channels, kernel_h, kernel_w = weight_OCKL.shape
    parts = weight_OCKL.reshape(groups, outputs // groups, channels, kernel_h, kernel_w)
    return np.ascontiguousarray(parts.transpose(0, 3, 4, 2, 1)).reshape(groups, kernel_h, kernel_w * channels, -1)


def conv_from_plan(weight_GKRO: Array, channels: int) -> Array:
    """The way back: [G * O, C, K, L]."""
    groups, kernel_h, run, outputs = weight_GKRO.shape
    parts = weight_GKRO.reshape(groups, kernel_h, run // channels, channels, outputs)
    return np.ascontiguousarray(parts.transpose(0, 4, 3, 1, 2)).reshape(groups * outputs, channels, kernel_h, -1)


def local_panels(outputs: int, depth: int) -> tuple[int, int, int]:
    """[B, D, V] of a place's panels."""
    columns = panel_columns(panel_vectors(outputs))
    return -(-outputs // columns), depth, columns


def local_to_plan(weight_PQOCKL: Array, columns: int) -> Array:
    """A locally connected layer's weights as panels [S, B, D, V]; zeros where no output is."""
    p, q, outputs = weight_PQOCKL.shape[:3]
    weight_SDO = weight_PQOCKL.transpose(0, 1, 4, 5, 3, 2).reshape(p * q, -1, outputs)
    padded = np.pad(weight_SDO, ((0, 0), (0, 0), (0, -outputs % columns)))
    return np.ascontiguousarray(padded.reshape(*padded.shape[:2], -1, columns).transpose(0, 2, 1, 3))


def local_from_plan(weight_SBDV: Array, shape: tuple[int, ...]) -> Array:
    """The way back: [P, Q, O, C, K, L], which is `shape`."""
    p, q, outputs, channels, kernel_h, kernel_w = shape
    weight_SDO = weight_SBDV.transpose(0, 2, 1, 3).reshape(p * q, weight_SBDV.shape[2], -1)[..., :outputs]
    weight = weight_SDO.reshape(p, q, kernel_h, kernel_w, channels, outputs)
    return np.ascontiguousarray(weight.transpose(0, 1, 5, 4, 2, 3))


def local_biases_to_plan(bias_OPQ: Array, columns: int) -> Array:
    """[S, B, V]."""
    outputs = len(bias_OPQ)
    padded = np.pad(bias_OPQ.reshape(outputs, -1).T, ((0, 0), (0, -outputs % columns)))
    return padded.reshape(len(padded), -1, columns)


def local_biases_from_plan(bias_SBV: Array, shape: tuple[int, ...]) -> Array:
    """The way back: [O, P, Q], which is `shape`."""
    return np.ascontiguousarray(bias_SBV.reshape(len(bias_SBV), -1)[:, : shape[0]].T).reshape(shape)
