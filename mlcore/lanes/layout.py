"""The one place that knows how a network in lanes lies in memory: planes, weights, and how rows are cut into tiles.

A plane is [row][channel][column][image of the group], so a row of all channels is one piece, and a pixel is one or a
few vectors. Columns of zeros left and right stand for a convolution's padding; rows above and below are left out by
the walk. A plane that is used up at once keeps only a ring of its rows.

Legend: G group of a convolution, O output of a group, C channel of a group, K L kernel window, I input, F feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mlcore.kernels.lane_tiles import FLOAT_BYTES, dots_address, spread_address
from mlcore.kernels.micro import cover
from mlcore.kernels.native import this_machine
from mlcore.kernels.simd import LANES
from mlcore.tensor import Array

PIECE = 1 << 12  # floats
PAGE_PIXELS = 4096  # bytes from row to row at which the first cache holds only eight rows


def group_images() -> int:
    """Images side by side: two vectors of the machine, and whole sixteens."""
    return max(LANES, 2 * this_machine().lanes)


def pixel_vectors() -> int:
    """Vectors of the machine in a pixel."""
    return group_images() // this_machine().lanes


@dataclass(frozen=True)
class Plane:
    """`offset`: of its first byte among the activations. `left`, `right`: columns of zeros. `ring`: rows it keeps."""

    offset: int
    channels: int
    height: int
    width: int
    left: int
    right: int
    ring: int
    pixel: int

    @property
    def channel_bytes(self) -> int:
        return (self.left + self.width + self.right) * self.pixel

    @property
    def row_bytes(self) -> int:
        return self.channels * self.channel_bytes

    @property
    def count(self) -> int:
        """Floats in a channel's row."""
        return self.width * self.pixel // FLOAT_BYTES

    @property
    def features(self) -> int:
        return self.channels * self.height * self.width

    @property
    def is_plain(self) -> bool:
        """Pixel after pixel without gaps."""
        return self.left == self.right == 0 and self.ring == self.height

    def at(self, row: int, channel: int = 0) -> int:
        """Where a channel's row begins."""
        return self.offset + row % self.ring * self.row_bytes + channel * self.channel_bytes + self.left * self.pixel

    def canonical_order(self) -> Array:
        """For each pixel as it lies here, its place in the [C, H, W] order that the rest of the library uses."""
        shape = (self.channels, self.height, self.width)
        return np.arange(self.features).reshape(shape).transpose(1, 0, 2).reshape(-1)


@dataclass
class Arena:
    """Memory of one group in one thread, given out piece by piece; `size` in bytes."""

    size: int = 0
    pixel: int = field(default_factory=lambda: group_images() * FLOAT_BYTES)

    def take(self, size: int) -> int:
        """The offset of a new piece, on a cache line."""
        offset, self.size = self.size, self.size + -(-size // 64) * 64
        return offset

    def plane(
        self, channels: int, height: int, width: int, left: int = 0, right: int = 0, ring: int | None = None
    ) -> Plane:
        """A new plane."""
        if (left or right) and (left + width + right) * self.pixel % PAGE_PIXELS == 0:
            right += 1
        new = Plane(self.size, channels, height, width, left, right, min(ring or height, height), self.pixel)
        self.take(new.ring * new.row_bytes)
        return new


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies among the weights, in floats: `shape` as stored."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.start * FLOAT_BYTES

    def of(self, flat: Array) -> Array:
        """The parameter's part of the weights, of the velocities, or of a group's gradients."""
        return flat[self.start : self.stop].reshape(self.shape)

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(from, to) of what threads take at a time."""
        for start in range(self.start, self.stop, PIECE):
            yield start, min(self.stop, start + PIECE)


@dataclass
class Parameters:
    """All parameters of a network, one after the other; a zero for those who need one comes first."""

    slots: list[Slot] = field(default_factory=list)
    size: int = LANES
    zero: int = 0

    def slot(self, name: str, *shape: int) -> Slot:
        """A new parameter."""
        new = Slot(name, self.size, shape)
        self.slots.append(new)
        self.size += -(-int(np.prod(shape)) // LANES) * LANES
        return new


def linear_pitch(outputs: int) -> int:
    """Floats from input to input of a linear layer's weights: whole pixels of outputs, and an odd number of lines.

    At an even number, the weights of one output would crowd in a few sets of the first cache.
    """
    lanes = group_images()
    whole = -(-outputs // lanes) * lanes
    return whole + (LANES if whole // LANES % 2 == 0 else 0)


def spread_tiles(rows: int, pixels: int) -> dict[str, int]:
    """The columns of a table that cut `rows` by `pixels` pixels into spread tiles."""
    machine, vectors = this_machine(), pixel_vectors()
    wide = 2 if rows <= machine.rows(2 * vectors) and pixels > 1 else 1
    down, across = cover(rows, machine.rows(wide * vectors)), (wide, pixels // wide, 1, pixels % wide)
    return _cut(down, across, "pixels", lambda i, j: spread_address(i, j, vectors, machine))


def dots_tiles(rows: int, columns: int) -> dict[str, int]:
    """The columns of a table that cut `rows` taps by `columns` outputs into dots tiles."""
    machine = this_machine()
    most = max(1, (machine.registers - 5) // 4)
    down = cover(rows, most)
    wide = min(machine.lanes, max(1, (machine.registers - 1) // (down[0] + 1)))
    wide = 1 << (wide.bit_length() - 1)  # sums are folded by powers of two
    return _cut(down, cover(columns, wide), "columns", lambda i, j: dots_address(i, j, machine))


def _cut(down: tuple[int, ...], across: tuple[int, ...], what: str, tile: object) -> dict[str, int]:
    rows, times, last_rows, last_times = down
    wide, count, last_wide, last_count = across
    assert callable(tile)
    sizes = {
        "tile": (times and count, rows, wide),
        "tile_last": (times and last_count, rows, last_wide),
        "last_tile": (last_times and count, last_rows, wide),
        "last_tile_last": (last_times and last_count, last_rows, last_wide),
    }
    return {
        "rows": rows, "times": times, "last_rows": last_rows, "last_times": last_times,
        what: wide, "across": count, f"last_{what}": last_wide, "last_across": last_count,
        **{name: tile(i, j) if used else 0 for name, (used, i, j) in sizes.items()},
    }  # fmt: skip


def conv_to_lanes(weight_OCKL: Array, groups: int) -> Array:
    """[G * O, C, K, L] as [G, K, C, L, O]."""
    outputs, channels, kernel_h, kernel_w = weight_OCKL.shape
    parts = weight_OCKL.reshape(groups, outputs // groups, channels, kernel_h, kernel_w)
    return np.ascontiguousarray(parts.transpose(0, 3, 2, 4, 1))


def conv_from_lanes(weight_GKCLO: Array) -> Array:
    """The way back: [G * O, C, K, L]."""
    groups, kernel_h, channels, kernel_w, outputs = weight_GKCLO.shape
    return np.ascontiguousarray(weight_GKCLO.transpose(0, 4, 2, 1, 3)).reshape(
        groups * outputs, channels, kernel_h, kernel_w
    )
