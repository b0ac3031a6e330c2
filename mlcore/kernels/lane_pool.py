"""Pooling in lanes, one row of windows at a time: forward, and back into some rows of the input.

The input's rows may live in a ring: row h stands at h modulo `ring`. Windows reach from row `top` (perhaps above the
image) and take part with their rows `first` to `last`; what lies beside the image takes no part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel
from mlcore.kernels.lane_vectors import (
    load_at,
    load_bytes_at,
    plus,
    spread,
    store_at,
    store_bytes_at,
    times,
    where_above,
    where_equal,
)

WINDOWS = (
    "kind",
    "x", "x_ring", "x_row", "x_channel", "width",  # the input's plane, or its gradient's
    "top", "first", "last", "size", "stride", "padding",
    "out", "out_channel", "columns", "channels",  # the row of outputs, or of their gradients
    "won", "won_channel",  # bytes: row * size + column of each window's largest
    "adding",  # back: 1 where windows overlap, so that gradients add up
    "pixel",  # bytes of a pixel
)  # fmt: skip

Array = NDArray[Any]

(
    _, X, X_RING, X_ROW, X_CHANNEL, WIDTH, TOP, FIRST, LAST, SIZE, STRIDE, PADDING,
    OUT, OUT_CHANNEL, COLUMNS, CHANNELS, WON, WON_CHANNEL, ADDING, PIXEL,
) = range(len(WINDOWS))  # fmt: skip
SIXTEEN_FLOATS = 64


@kernel
def max_pool(op: Array, base: int, won_base: int) -> None:
    """The largest of each window and which it was; the first one wins a tie, NaN wins all."""
    for channel in range(op[CHANNELS]):
        for q in range(op[COLUMNS]):
            left = q * op[STRIDE] - op[PADDING]
            start, stop = max(0, -left), min(op[SIZE], op[WIDTH] - left)
            out = op[OUT] + channel * op[OUT_CHANNEL] + q * op[PIXEL]
            won = op[WON] + channel * op[WON_CHANNEL] + q * op[PIXEL] // 4
            for lanes in range(0, op[PIXEL], SIXTEEN_FLOATS):
                x = base + op[X] + channel * op[X_CHANNEL] + left * op[PIXEL] + lanes
                _largest(op, x, start, stop, base + out + lanes, won_base + won + lanes // 4)


@kernel
def _largest(op: Array, x: int, start: int, stop: int, out: int, won: int) -> None:
    """Sixteen lanes of one window; x: where its column 0 would stand in row 0."""
    size, pixel = op[SIZE], op[PIXEL]
    best = load_at(_row(op, x, op[FIRST]) + start * pixel)
    which = spread(np.float32(op[FIRST] * size + start))
    for i in range(op[FIRST], op[LAST]):
        row = _row(op, x, i)
        for j in range(start, stop):
            value = load_at(row + j * pixel)
            which = where_above(value, best, spread(np.float32(i * size + j)), which)
            best = where_above(value, best, value, best)
    store_at(out, best)
    store_bytes_at(won, which)


@kernel
def max_pool_back(op: Array, base: int, won_base: int) -> None:
    """Each gradient to the window's winner, if it stands in the rows `first` to `last`."""
    for channel in range(op[CHANNELS]):
        for q in range(op[COLUMNS]):
            left = q * op[STRIDE] - op[PADDING]
            start, stop = max(0, -left), min(op[SIZE], op[WIDTH] - left)
            out = op[OUT] + channel * op[OUT_CHANNEL] + q * op[PIXEL]
            won = op[WON] + channel * op[WON_CHANNEL] + q * op[PIXEL] // 4
            for lanes in range(0, op[PIXEL], SIXTEEN_FLOATS):
                x = base + op[X] + channel * op[X_CHANNEL] + left * op[PIXEL] + lanes
                grad, which = load_at(base + out + lanes), load_bytes_at(won_base + won + lanes // 4)
                _to_winner(op, x, start, stop, grad, which)


@kernel
def _to_winner(op: Array, x: int, start: int, stop: int, grad: Any, which: Any) -> None:
    """Sixteen lanes of one window; x: where its column 0 would stand in row 0."""
    # Read once: as far as the compiler knows, a store may change the table.
    size, pixel, adding = op[SIZE], op[PIXEL], op[ADDING]
    for i in range(op[FIRST], op[LAST]):
        row = _row(op, x, i)
        for j in range(start, stop):
            share = where_equal(which, spread(np.float32(i * size + j)), grad)
            there = row + j * pixel
            store_at(there, plus(load_at(there), share) if adding else share)


@kernel
def avg_pool(op: Array, base: int) -> None:
    """The mean of each window; what lies outside of the image counts as zeros."""
    part = spread(np.float32(1 / (op[SIZE] * op[SIZE])))
    for channel in range(op[CHANNELS]):
        for q in range(op[COLUMNS]):
            left = q * op[STRIDE] - op[PADDING]
            start, stop = max(0, -left), min(op[SIZE], op[WIDTH] - left)
            out = base + op[OUT] + channel * op[OUT_CHANNEL] + q * op[PIXEL]
            for lanes in range(0, op[PIXEL], SIXTEEN_FLOATS):
                x = base + op[X] + channel * op[X_CHANNEL] + left * op[PIXEL] + lanes
                total = spread(np.float32(0))
                for i in range(op[FIRST], op[LAST]):
                    row = _row(op, x, i)
                    for j in range(start, stop):
                        total = plus(total, load_at(row + j * op[PIXEL]))
                store_at(out + lanes, times(total, part))


@kernel
def avg_pool_back(op: Array, base: int) -> None:
    """Each gradient shared out evenly over its window, added to the rows `first` to `last`."""
    part = spread(np.float32(1 / (op[SIZE] * op[SIZE])))
    for channel in range(op[CHANNELS]):
        for q in range(op[COLUMNS]):
            left = q * op[STRIDE] - op[PADDING]
            start, stop = max(0, -left), min(op[SIZE], op[WIDTH] - left)
            out = base + op[OUT] + channel * op[OUT_CHANNEL] + q * op[PIXEL]
            for lanes in range(0, op[PIXEL], SIXTEEN_FLOATS):
                x = base + op[X] + channel * op[X_CHANNEL] + left * op[PIXEL] + lanes
                share = times(load_at(out + lanes), part)
                pixel = op[PIXEL]
                for i in range(op[FIRST], op[LAST]):
                    row = _row(op, x, i)
                    for j in range(start, stop):
                        there = row + j * pixel
                        store_at(there, plus(load_at(there), share))


@kernel
def _row(op: Array, x: int, i: int) -> int:
    """Where the window's row i begins."""
    return int(x + (op[TOP] + i) % op[X_RING] * op[X_ROW])
