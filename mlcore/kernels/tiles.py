"""The two inner loops that all matrix work comes down to, and how operands are laid out for them.

`outer_rows` adds up outer products, 8 rows by 32 columns at a time; `dot_tile` adds up dot products, 4 by 4 at a
time. Both hold their sixteen sums in vector registers. The right-hand operand is a flat buffer plus a table
`steps`: row k of it begins at steps[k]. Rows may overlap, which is how a padded image serves as the matrix of its
own windows without being copied out.

Buffers are padded to whole tiles; the callers drop what falls in the padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel
from mlcore.kernels.simd import LANES, load, multiply_add, spread_add, store, total, zeros

VECTOR = LANES
ROWS, COLUMNS = 8, 2 * LANES  # of one tile of outer products
DOTS = 4  # rows on either side of one tile of dot products

Array = NDArray[Any]


def round_up(size: int, tile: int) -> int:
    """The next multiple of `tile`."""
    return -(-size // tile) * tile


@kernel
def pack_rows(matrix: Array, packed: Array) -> None:
    """matrix [M, K] to packed [M / 8, K, 8]: the order in which `outer_rows` reads it; missing rows are zeros."""
    rows, depth = matrix.shape
    for tile in range(packed.shape[0]):
        for k in range(depth):
            for i in range(ROWS):
                row = tile * ROWS + i
                packed[tile, k, i] = matrix[row, k] if row < rows else 0


@kernel
def pad_rows(matrix: Array, padded: Array) -> None:
    """matrix [M, K] into the corner of padded, zeros elsewhere."""
    rows, columns = matrix.shape
    padded[rows:] = 0
    for i in range(rows):
        for j in range(columns):
            padded[i, j] = matrix[i, j]
        padded[i, columns:] = 0


@kernel
def outer_rows(left: Array, right: Array, start: int, steps: Array, columns: int, out: Array) -> None:
    """out[8, columns] = left.T @ right, where right[k] = right[start + steps[k] :]; columns in whole 32s.

    left: [K, 8] from `pack_rows`, flattened. out: flat, rows `columns` apart.
    """
    for column in range(0, columns, COLUMNS):
        _outer_tile(left, right, start + column, steps, out, column, columns)


@kernel
def _outer_tile(left: Array, right: Array, start: int, steps: Array, out: Array, at: int, width: int) -> None:
    a0, a1, b0, b1 = zeros(out), zeros(out), zeros(out), zeros(out)
    c0, c1, d0, d1 = zeros(out), zeros(out), zeros(out), zeros(out)
    e0, e1, f0, f1 = zeros(out), zeros(out), zeros(out), zeros(out)
    g0, g1, h0, h1 = zeros(out), zeros(out), zeros(out), zeros(out)
    for k in range(steps.size):
        i, j = ROWS * k, start + steps[k]
        x0, x1 = load(right, j), load(right, j + LANES)
        a0, a1 = spread_add(left[i], x0, a0), spread_add(left[i], x1, a1)
        b0, b1 = spread_add(left[i + 1], x0, b0), spread_add(left[i + 1], x1, b1)
        c0, c1 = spread_add(left[i + 2], x0, c0), spread_add(left[i + 2], x1, c1)
        d0, d1 = spread_add(left[i + 3], x0, d0), spread_add(left[i + 3], x1, d1)
        e0, e1 = spread_add(left[i + 4], x0, e0), spread_add(left[i + 4], x1, e1)
        f0, f1 = spread_add(left[i + 5], x0, f0), spread_add(left[i + 5], x1, f1)
        g0, g1 = spread_add(left[i + 6], x0, g0), spread_add(left[i + 6], x1, g1)
        h0, h1 = spread_add(left[i + 7], x0, h0), spread_add(left[i + 7], x1, h1)
    store(out, at, a0)
    store(out, at + LANES, a1)
    store(out, at + width, b0)
    store(out, at + width + LANES, b1)
    store(out, at + 2 * width, c0)
    store(out, at + 2 * width + LANES, c1)
    store(out, at + 3 * width, d0)
    store(out, at + 3 * width + LANES, d1)
    store(out, at + 4 * width, e0)
    store(out, at + 4 * width + LANES, e1)
    store(out, at + 5 * width, f0)
    store(out, at + 5 * width + LANES, f1)
    store(out, at + 6 * width, g0)
    store(out, at + 6 * width + LANES, g1)
    store(out, at + 7 * width, h0)
    store(out, at + 7 * width + LANES, h1)


@kernel
def dot_tile(
    left: Array,
    at: int,
    left_step: int,
    right: Array,
    steps: Array,
    k: int,
    parts: int,
    left_part: int,
    right_part: int,
    length: int,
    out: Array,
) -> None:
    """out[4 * i + j] = left row i . right row j, for four rows each.

    left, right: flat; row i of left begins at `at + i * left_step`, row j of right at steps[k + j]. A row has
    `parts` pieces of `length` values (whole 16s); the pieces begin `left_part` and `right_part` apart.
    """
    aa, ab, ac, ad = zeros(out), zeros(out), zeros(out), zeros(out)
    ba, bb, bc, bd = zeros(out), zeros(out), zeros(out), zeros(out)
    ca, cb, cc, cd = zeros(out), zeros(out), zeros(out), zeros(out)
    da, db, dc, dd = zeros(out), zeros(out), zeros(out), zeros(out)
    l0, l1, l2, l3 = at, at + left_step, at + 2 * left_step, at + 3 * left_step
    r0, r1, r2, r3 = steps[k], steps[k + 1], steps[k + 2], steps[k + 3]
    for part in range(parts):
        i, j = part * left_part, part * right_part
        for f in range(0, length, LANES):
            w, x = load(right, r0 + j + f), load(right, r1 + j + f)
            y, z = load(right, r2 + j + f), load(right, r3 + j + f)
            v = load(left, l0 + i + f)
            aa, ab = multiply_add(v, w, aa), multiply_add(v, x, ab)
            ac, ad = multiply_add(v, y, ac), multiply_add(v, z, ad)
            v = load(left, l1 + i + f)
            ba, bb = multiply_add(v, w, ba), multiply_add(v, x, bb)
            bc, bd = multiply_add(v, y, bc), multiply_add(v, z, bd)
            v = load(left, l2 + i + f)
            ca, cb = multiply_add(v, w, ca), multiply_add(v, x, cb)
            cc, cd = multiply_add(v, y, cc), multiply_add(v, z, cd)
            v = load(left, l3 + i + f)
            da, db = multiply_add(v, w, da), multiply_add(v, x, db)
            dc, dd = multiply_add(v, y, dc), multiply_add(v, z, dd)
    out[0], out[1], out[2], out[3] = total(aa), total(ab), total(ac), total(ad)
    out[4], out[5], out[6], out[7] = total(ba), total(bb), total(bc), total(bd)
    out[8], out[9], out[10], out[11] = total(ca), total(cb), total(cc), total(cd)
    out[12], out[13], out[14], out[15] = total(da), total(db), total(dc), total(dd)


@kernel
def sum_row(values: Array, at: int, length: int) -> Any:
    """The sum of `length` values (whole 16s) from values[at]."""
    so_far = zeros(values)
    one = values.dtype.type(1)
    for f in range(0, length, LANES):
        so_far = spread_add(one, load(values, at + f), so_far)
    return total(so_far)


def padded_copy(matrix: Array, row_tile: int, column_tile: int) -> Array:
    """A copy of [M, K], both sides rounded up to whole tiles with zeros."""
    rows, columns = matrix.shape
    padded = np.empty((round_up(rows, row_tile), round_up(columns, column_tile)), matrix.dtype)
    pad_rows(matrix, padded)
    return padded


def packed_rows(matrix: Array) -> Array:
    """[M, K] as [M / 8, K, 8] for `outer_rows`."""
    packed = np.empty((round_up(matrix.shape[0], ROWS) // ROWS, matrix.shape[1], ROWS), matrix.dtype)
    pack_rows(matrix, packed)
    return packed
