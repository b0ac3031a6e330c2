"""The one place that knows how a planned network lies in memory: planes, panels, and the tables of tiles over them.

Legend: G group, N image, C channel of a group, K kernel height, R run (kernel width * C), O output of a group,
B block, V columns of a panel, I input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlcore.kernels.micro import cover, tile_address
from mlcore.kernels.native import this_machine
from mlcore.kernels.panels import Tiles
from mlcore.kernels.planes import BLOCK_COLUMNS, Grid
from mlcore.tensor import Array

L2_BYTES = 640 << 10  # of weights that stay in the cache while images pass


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
    def is_plain(self) -> bool:
        """One group and no border: an image is one row of numbers."""
        return self.groups == 1 and self.array.shape[2:4] == (self.grid.height, self.grid.width)

    def rows(self, images: int) -> Array:
        """[images, H * W * C] of plain planes: the same memory."""
        assert self.is_plain, "only plain planes are rows"
        return self.array.reshape(self.array.shape[1], -1)[:images]

    def canonical_order(self) -> Array:
        """For each number of a row, its place in the [C, H, W] order that the rest of the library uses."""
        shape = (self.channels, self.grid.height, self.grid.width)
        return np.arange(math.prod(shape)).reshape(shape).transpose(1, 2, 0).reshape(-1)


def plane(images: int, channels: int, height: int, width: int, groups: int = 1, border: int = 0) -> Planes:
    """Zeroed planes with the same border on every side."""
    shape = (groups, images, height + 2 * border, width + 2 * border, channels // groups)
    return Planes(np.zeros(shape, np.float32), Grid(border, 1, height, width))


def gradient_plane(out: Planes, groups: int, kernel: int, stride: int, padding: int, x: Planes | None) -> Planes:
    """Where the gradient of a convolution's output `out` is put, so that a correlation leads back to its input `x`.

    Without `x` (nobody wants its gradient) it needs no border.
    """
    images, channels, height, width = out.array.shape[1], out.channels, out.grid.height, out.grid.width
    if x is None:
        return plane(images, channels, height, width, groups)
    border = kernel - 1 - padding
    rows, columns = x.grid.height + kernel - 1, x.grid.width + kernel - 1
    shape = (groups, images, rows, columns, channels // groups)
    return Planes(np.zeros(shape, np.float32), Grid(border, stride, height, width))


def panel_vectors(outputs: int) -> int:
    """Vectors across a panel: what pads `outputs` least; of equals, two keep the registers busiest."""
    lanes = this_machine().lanes
    return min((2, 3, 1), key=lambda vectors: -(-outputs // (vectors * lanes)) * vectors)


def panel_columns(vectors: int) -> int:
    """Numbers across a panel."""
    return vectors * this_machine().lanes


def tiles(length: int, vectors: int) -> Tiles:
    """The tiles that make up `length` rows, compiled."""
    machine = this_machine()
    rows, times, last_rows, last_times = cover(length, machine.rows(vectors))
    last = tile_address(last_rows, vectors, machine) if last_times else 0
    return Tiles(tile_address(rows, vectors, machine), rows, times, last, last_rows, last_times)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Outputs cut into panels. `table` [B, 10] drives the kernels; `spans` [B, 3]: group, first output, how many."""

    table: Array
    spans: Array
    columns: int

    def together(self, depth: int) -> int:
        """How many blocks of panels `depth` deep fit the cache at once."""
        return max(1, L2_BYTES // (depth * self.columns * 4))

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
    table[:, 3], table[:, 4:] = spans[:, 2], tiles(target.grid.width, vectors)
    return Blocks(table, spans, columns)


def gradient_blocks(outputs: int, run: int) -> Blocks:
    """Panels of one group's output gradients; tiles along the run of the weights."""
    vectors = panel_vectors(outputs)
    columns = panel_columns(vectors)
    spans = np.array(list(_cut(outputs, 1, outputs, columns)), np.int64)
    table = np.zeros((len(spans), BLOCK_COLUMNS), np.int64)
    table[:, 1], table[:, 2], table[:, 3], table[:, 4:] = columns, spans[:, 1], spans[:, 2], tiles(run, vectors)
    return Blocks(table, spans, columns)


def _cut(outputs: int, groups: int, piece: int, columns: int) -> Iterator[tuple[int, int, int]]:
    for group in range(groups):
        for start in range(0, outputs, piece):
            for first in range(start, start + piece, columns):
                yield group, first, min(columns, start + piece - first)


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


def linear_to_plan(weight_OI: Array, order: Array, panels_BIV: Array) -> None:
    """[O, I] into panels [B, I, V], inputs in the order in which they lie in memory; zeros where no output is.

    Block by block, since the largest layers are too large to be copied whole.
    """
    columns = panels_BIV.shape[2]
    for block, panel in enumerate(panels_BIV):
        rows = weight_OI[block * columns : (block + 1) * columns]
        panel[:, : len(rows)], panel[:, len(rows) :] = rows[:, order].T, 0


def linear_from_plan(panels_BIV: Array, order: Array, outputs: int) -> Array:
    """The way back: [O, I]."""
    _, inputs, columns = panels_BIV.shape
    weight = np.empty((outputs, inputs), np.float32)
    for block, panel in enumerate(panels_BIV):
        rows = weight[block * columns : (block + 1) * columns]
        rows[:, order] = panel.T[: len(rows)]
    return weight
