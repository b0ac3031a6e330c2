"""The gradient of a planned convolution's weights: images times gradients, pixel by pixel, on planes.

Gradients are packed into panels, some images at a time. In bf16 a word joins two neighbouring pixels, so images are
joined with themselves, one stride further on.

Legend: N image, H W height and width with border, C channel of a group, R run (kernel width * C), K kernel height,
O output channel of a group, V columns of a panel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.micro import address_of, run_tile
from mlcore.kernels.planes import CHANNEL, CHUNK, COLUMNS, PLANE, ROWS, TILE, TIMES, Grid, Walk
from mlcore.kernels.precision import WORD_BYTES, join
from mlcore.kernels.simd import LANES, load, store

L1_BYTES = 24 << 10  # of packed gradients that one tile walks at a time
TOGETHER_BYTES = 96 << 10  # of packed gradients, from as many images as fit, that one tile walks one after another

Array = NDArray[Any]


def weight_gradient(x: Array, grad: Array, grid: Grid, blocks: Array, walk: Walk, sums: Array, images: int) -> None:
    """sums [chunks, G, K, R, O] = the gradient of the weights, one slice for each 16 images, to be added in order.

    grad: planes [G, N, H, W, O] of x's dtype, pixels where `grid` says. blocks [B, 10], the same for every group:
    CHANNEL and COLUMNS of the output, in PLANE the columns of a panel; the tiles make up the run.
    """
    work = images * grid.height * grid.width * sums[0].size
    _weight_gradient(work, x, grad, grid, blocks, walk, sums, images)


@SharedKernel
def _weight_gradient(x: Array, grad: Array, grid: Grid, blocks: Array, walk: Walk, sums: Array, images: int) -> None:
    groups = sums.shape[1]
    for turn in prange(-(-images // CHUNK) * groups):
        chunk, g = turn // groups, turn % groups
        last = min(images, (chunk + 1) * CHUNK)
        _weight_gradient_chunk(x[g], grad[g], grid, blocks, walk, sums[chunk, g], chunk * CHUNK, last)


@kernel
def _weight_gradient_chunk(
    x: Array, grad: Array, grid: Grid, blocks: Array, walk: Walk, sums: Array, first: int, last: int
) -> None:
    """One group, some images at a time: so many that their packed gradients stay in the cache beside the sums."""
    columns, per_word = blocks[0, PLANE], WORD_BYTES // x.itemsize
    words = (grid.width + per_word - 1) // per_word
    row_bytes = words * columns * WORD_BYTES
    rows = min(grid.height, max(1, L1_BYTES // row_bytes))
    together = max(1, TOGETHER_BYTES // (grid.height * row_bytes))
    packed = np.zeros((together, blocks.shape[0], grid.height, words, columns), word_type(x))
    neighbours = np.zeros((together if per_word > 1 else 0, x[0].size), np.uint32)
    nothing = np.zeros(columns, np.float32)
    for start in range(first, last, together):
        count = min(together, last - start)
        for i in range(count):
            _pack_gradient(grad[start + i], grid, blocks, packed[i])
        source = joined(x[start : start + count], walk.stride * x.shape[3], neighbours)
        for b in range(blocks.shape[0]):
            for y in range(0, grid.height, rows):
                _weight_gradient_rows(
                    x, source, count, y, min(rows, grid.height - y), packed, b, nothing, blocks[b], walk, sums,
                    1 if start > first or y > 0 else 0,
                )  # fmt: skip


def word_type(x: Array) -> Any:
    """The dtype of a word of x's numbers."""
    return np.uint32 if x.dtype == np.uint16 else np.float32


@overload(word_type, strict=False, inline="always")
def _compiled_word_type(x: Any) -> Callable[..., Any]:
    if x.dtype == types.uint16:
        return lambda x: np.uint32
    return lambda x: np.float32


def joined(x: Array, distance: int, words: Array) -> int:
    """Address of one word for each number of the images x [N, H, W, C]: in bf16 the number and the one `distance`
    further on, written to `words`; in float32 the number itself, where it is."""
    raise NotImplementedError("compiled only")


@overload(joined, strict=False)
def _compiled_joined(x: Any, distance: Any, words: Any) -> Callable[..., Any]:
    if x.dtype != types.uint16:
        return lambda x, distance, words: address_of(x)

    def join_images(x: Array, distance: int, words: Array) -> int:
        for i in range(x.shape[0]):
            _join_image(x[i].reshape(-1), distance, words[i])
        return address_of(words)  # type: ignore[no-any-return]

    return join_images


@kernel
def _join_image(x: Array, distance: int, words: Array) -> None:
    both = x.size - distance
    further = x[distance:]
    for i in range(both):
        words[i] = join(x[i], further[i])
    for i in range(max(both, 0), x.size):
        words[i] = x[i]


@kernel
def _pack_gradient(grad: Array, grid: Grid, blocks: Array, packed: Array) -> None:
    """One image's gradient as panels, neighbours in one word; columns that don't exist stay zero."""
    per_word = WORD_BYTES // grad.itemsize
    if pack_vectors(grad, grid, blocks, packed):
        return
    for y in range(grid.height):
        row = grad[grid.border + y * grid.step]
        for word in range(packed.shape[2]):
            x = grid.border + word * per_word * grid.step
            whole = (word + 1) * per_word <= grid.width
            low, high = row[x], row[x + (per_word - 1) * grid.step if whole else x]
            for b in range(blocks.shape[0]):
                part = slice(blocks[b, CHANNEL], blocks[b, CHANNEL] + blocks[b, COLUMNS])
                _pack_word(low[part], high[part], whole, packed[b, y, word])


def pack_vectors(grad: Array, grid: Grid, blocks: Array, packed: Array) -> bool:
    """Whether it was done sixteen numbers at a time, as float32 whose blocks have so many columns can be."""
    raise NotImplementedError("compiled only")


@overload(pack_vectors, strict=False)
def _compiled_pack_vectors(grad: Any, grid: Any, blocks: Any, packed: Any) -> Callable[..., Any]:
    if grad.dtype == types.uint16:
        return lambda grad, grid, blocks, packed: False

    def pack(grad: Array, grid: Grid, blocks: Array, packed: Array) -> bool:
        for b in range(blocks.shape[0]):
            if blocks[b, COLUMNS] % LANES:
                return False
        for b in range(blocks.shape[0]):
            _pack_block(grad, grid, blocks[b, CHANNEL], blocks[b, COLUMNS], packed[b])
        return True

    return pack


@kernel
def _pack_block(grad: Array, grid: Grid, channel: int, count: int, packed: Array) -> None:
    values, there = grad.reshape(-1), packed.reshape(-1)
    to = 0
    for y in range(grid.height):
        at = ((grid.border + y * grid.step) * grad.shape[1] + grid.border) * grad.shape[2] + channel
        for _ in range(grid.width):
            for v in range(0, count, LANES):
                store(there, to + v, load(values, at + v))
            at += grid.step * grad.shape[2]
            to += packed.shape[2]


@kernel
def _pack_word(low: Array, high: Array, whole: bool, there: Array) -> None:
    nothing = low.dtype.type(0)
    if whole:
        for v in range(low.size):
            there[v] = join(low[v], high[v])
    else:
        for v in range(low.size):
            there[v] = join(low[v], nothing)


@kernel
def _weight_gradient_rows(
    x: Array,
    source: int,
    count: int,
    y: int,
    rows: int,
    packed: Array,
    b: int,
    nothing: Array,
    block: Array,
    walk: Walk,
    sums: Array,
    adding: int,
) -> None:
    """What `rows` rows of outputs from `y` on add to block b's sums, for the `count` images at `source`."""
    _, height, width, channels = x.shape
    outputs = sums.shape[2]
    pixel, out_row = channels * WORD_BYTES, outputs * WORD_BYTES
    step = WORD_BYTES // x.itemsize * walk.stride * pixel
    for r in range(walk.kernel):
        a = source + ((walk.first + y * walk.stride + r) * width + walk.first) * pixel
        c = address_of(sums) + (r * walk.run * outputs + block[CHANNEL]) * WORD_BYTES
        for size in (0, 3):
            tile, run = block[TILE + size], block[ROWS + size]
            for _ in range(block[TIMES + size]):
                for i in range(count):
                    run_tile(
                        tile, rows, packed.shape[3], a + i * height * width * pixel, walk.stride * width * pixel,
                        step, WORD_BYTES, address_of(packed[i, b, y]), c, out_row, block[COLUMNS],
                        address_of(nothing), 1 if i > 0 else adding, np.float32(-np.inf),
                    )  # fmt: skip
                a += run * WORD_BYTES
                c += run * out_row
