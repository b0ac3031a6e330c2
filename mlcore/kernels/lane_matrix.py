"""All multiplications of a network in lanes, a row of pixels at a time: rows of a table tell where the tiles go.

An address in a table is a number of bytes from a base: the thread's activations, the weights, or the group's
gradients. Where the groups' gradients are brought together, it counts from the factors, the weights, the batch's
gradient, and all groups'. The columns of a row are named below; LAST_ ones are of the shorter tiles at the end, as
`cover` cuts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel
from mlcore.kernels.lane_tiles import LOOPS, run_dots, run_spread

ACTIVATIONS, WEIGHTS, GRADIENTS, GROUPS = range(4)  # what addresses count from
FACTORS = ACTIVATIONS  # there
TILES = ("tile", "tile_last", "last_tile", "last_tile_last")  # by size of rows, then of columns

CORRELATE = (
    "kind", *LOOPS,
    "a_base", "a", *(f"a_{loop}" for loop in LOOPS), "a_row",
    "b", *(f"b_{loop}" for loop in LOOPS), "b_pixel",
    "c_base", "c", "c_row", "c_pixel",
    "bias_base", "bias", "bias_row", "relu",
    "rows", "times", "last_rows", "last_times", "pixels", "across", "last_pixels", "last_across", *TILES,
)  # fmt: skip
DESCEND = (
    "kind", *LOOPS,
    "x", *(f"x_{loop}" for loop in LOOPS), "x_row", "x_channel", "channels",
    "y", *(f"y_{loop}" for loop in LOOPS), "y_column",
    "c", "c_row", "c_channel", "adding",
    "rows", "times", "last_rows", "last_times", "columns", "across", "last_columns", "last_across", *TILES,
)  # fmt: skip

Array = NDArray[Any]


(
    _, OUTER, MIDDLE, INNER,
    A_BASE, A, A_OUTER, A_MIDDLE, A_INNER, A_ROW,
    B, B_OUTER, B_MIDDLE, B_INNER, B_PIXEL,
    C_BASE, C, C_ROW, C_PIXEL,
    BIAS_BASE, BIAS, BIAS_ROW, RELU,
    ROWS, TIMES, _, _, PIXELS, ACROSS, _, _, TILE, _, _, _,
) = range(len(CORRELATE))  # fmt: skip
(
    _, D_OUTER, D_MIDDLE, D_INNER,
    X, X_OUTER, X_MIDDLE, X_INNER, X_ROW, X_CHANNEL, CHANNELS,
    Y, Y_OUTER, Y_MIDDLE, Y_INNER, Y_COLUMN,
    D, D_ROW, D_CHANNEL, ADDING,
    D_ROWS, D_TIMES, _, _, D_COLUMNS, D_ACROSS, _, _, D_TILE, _, _, _,
) = range(len(DESCEND))  # fmt: skip


@kernel
def correlate(op: Array, bases: Array) -> None:
    """A row of pixels, all its channels: C = max(bias + A along the walk times B, floor)."""
    a, c = bases[op[A_BASE]] + op[A], bases[op[C_BASE]] + op[C]
    bias = bases[op[BIAS_BASE]] + op[BIAS]
    for last in range(2):
        rows = op[ROWS + 2 * last]
        for _ in range(op[TIMES + 2 * last]):
            _correlate_across(op, TILE + 2 * last, a, bases[ACTIVATIONS] + op[B], c, bias)
            a += rows * op[A_ROW]
            c += rows * op[C_ROW]
            bias += rows * op[BIAS_ROW]


@kernel
def _correlate_across(op: Array, tiles: int, a: int, b: int, c: int, bias: int) -> None:
    """One block of channels, pixel after pixel."""
    floor = np.float32(0) if op[RELU] else np.float32(-np.inf)
    for last in range(2):
        pixels, tile = op[PIXELS + 2 * last], op[tiles + last]
        for _ in range(op[ACROSS + 2 * last]):
            run_spread(
                tile,
                (
                    op[OUTER], op[MIDDLE], op[INNER], a, op[A_OUTER], op[A_MIDDLE], op[A_INNER], op[A_ROW],
                    b, op[B_OUTER], op[B_MIDDLE], op[B_INNER], op[B_PIXEL], c, op[C_ROW], op[C_PIXEL],
                    bias, op[BIAS_ROW],
                ),
                floor,
            )  # fmt: skip
            b += pixels * op[B_PIXEL]
            c += pixels * op[C_PIXEL]


@kernel
def descend(op: Array, bases: Array) -> None:
    """The gradient of a kernel row's weights from some rows of pixels: C (+)= dot products of X and Y.

    Block after block of outputs, for their gradients fit the first cache and meet every channel.
    """
    y, c = bases[ACTIVATIONS] + op[Y], bases[GRADIENTS] + op[D]
    for last in range(2):
        columns = op[D_COLUMNS + 2 * last]
        for _ in range(op[D_ACROSS + 2 * last]):
            for channel in range(op[CHANNELS]):
                x = bases[ACTIVATIONS] + op[X] + channel * op[X_CHANNEL]
                _descend_rows(op, D_TILE + last, x, y, c + channel * op[D_CHANNEL])
            y += columns * op[Y_COLUMN]
            c += columns * 4


@kernel
def _descend_rows(op: Array, tiles: int, x: int, y: int, c: int) -> None:
    """One channel and block of outputs, tap after tap."""
    for last in range(2):
        rows, tile = op[D_ROWS + 2 * last], op[tiles + 2 * last]
        for _ in range(op[D_TIMES + 2 * last]):
            run_dots(
                tile,
                (
                    op[D_OUTER], op[D_MIDDLE], op[D_INNER], x, op[X_OUTER], op[X_MIDDLE], op[X_INNER], op[X_ROW],
                    y, op[Y_OUTER], op[Y_MIDDLE], op[Y_INNER], op[Y_COLUMN], c, op[D_ROW], op[ADDING],
                ),
                np.float32(0),
            )  # fmt: skip
            x += rows * op[X_ROW]
            c += rows * op[D_ROW]
