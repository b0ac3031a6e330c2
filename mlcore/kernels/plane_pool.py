"""Pooling on planes, with local response normalisation on the way: one pass over the image, forward and back.

The normalised rows live in a ring of `size` rows and are never written out; going back computes them again, which is
cheaper than fetching them. Numbers stand channel after channel, so every loop over channels is a vector loop.

Legend: N image, H W height and width, C channel, P Q output. x [1, N, H, W, C], winner [N, P, Q, C].
Planes hold float32 or bf16; all is computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels import plane_windows
from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.lane_pool import (
    CHANNELS,
    COLUMNS,
    FIRST,
    LAST,
    OUT,
    PADDING,
    PIXEL,
    SIZE,
    STRIDE,
    TOP,
    WIDTH,
    WINDOWS,
    WON,
    X_RING,
    X_ROW,
    X,
    max_pool,
)
from mlcore.kernels.micro import address_of
from mlcore.kernels.plane_windows import AVERAGING
from mlcore.kernels.planes import Grid
from mlcore.kernels.precision import narrow, widen
from mlcore.kernels.response import NO_RESPONSE, Response, respond, respond_back, room
from mlcore.kernels.simd import LANES

COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]


def max_pool_forward(
    x: Array,
    response: Response,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    grid: Grid,
    winner: Array,
    images: int,
) -> None:
    """The largest of each window (after the normalisation) into planes, and which it was: row * size + column.

    The first one wins a tie, NaN wins all (of several NaNs, any). size: at most 15.
    """
    if plane_windows.has_form(response, x, _plain(x), out, grid):
        table = plane_windows.windows(size, stride, padding, x.shape, _plain(x), out.shape, grid)
        plane_windows.forward(table, x, out, winner, images)
        return
    _max_forward(COST * images * x[0, 0].size, x, response, size, stride, padding, out, grid, winner, images)


def max_pool_backward(
    grad: Array,
    winner: Array,
    x: Array,
    response: Response,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    grid: Grid,
    images: int,
) -> None:
    """The gradient of x, into planes, from grad [1, N, P, Q, C]."""
    if plane_windows.has_form(response, out, grid, grad, _plain(grad)):
        table = plane_windows.windows(size, stride, padding, out.shape, grid, grad.shape, _plain(grad))
        plane_windows.backward(table, grad, winner, out, grid, images)
        return
    _max_backward(COST * images * x[0, 0].size, grad, winner, x, response, size, stride, padding, out, grid, images)


def avg_pool_forward(x: Array, size: int, stride: int, padding: int, out: Array, grid: Grid, images: int) -> None:
    """The mean of each window into planes; what lies outside of the image counts as zeros."""
    if plane_windows.has_form(NO_RESPONSE, x, _plain(x), out, grid):
        table = plane_windows.windows(size, stride, padding, x.shape, _plain(x), out.shape, grid)
        plane_windows.forward(table, x, out, AVERAGING, images)
        return
    _avg_forward(COST * images * x[0, 0].size, x, size, stride, padding, out, grid, images)


def avg_pool_backward(grad: Array, size: int, stride: int, padding: int, out: Array, grid: Grid, images: int) -> None:
    """Each gradient of [1, N, P, Q, C] shared out evenly over its window, into planes."""
    if plane_windows.has_form(NO_RESPONSE, out, grid, grad, _plain(grad)):
        table = plane_windows.windows(size, stride, padding, out.shape, grid, grad.shape, _plain(grad))
        plane_windows.backward(table, grad, AVERAGING, out, grid, images)
        return
    _avg_backward(COST * images * grad[0, 0].size, grad, size, stride, padding, out, grid, images)


def _plain(planes: Array) -> Grid:
    """Of planes without a border."""
    return Grid(0, 1, planes.shape[2], planes.shape[3])


@SharedKernel
def _max_forward(
    x: Array,
    response: Response,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    grid: Grid,
    winner: Array,
    images: int,
) -> None:
    for n in prange(images):
        _max_forward_image(x[0, n], response, size, stride, padding, out, grid, winner[n], np.int64(n))


@kernel
def _max_forward_image(
    x: Array, response: Response, size: int, stride: int, padding: int, out: Array, grid: Grid, winner: Array, n: int
) -> None:
    height, width, channels = x.shape
    columns, whole = winner.shape[1], -(-channels // LANES) * LANES
    ring = np.zeros((size, width, whole), np.float32)
    best, which = np.empty((columns, whole), np.float32), np.empty((columns, whole), np.uint8)
    space, op = room(channels, response), _windows_on(ring, size, stride, padding, best, which)
    ready = 0
    for p in range(winner.shape[0]):
        top = p * stride - padding
        ready = max(ready, top)
        while ready < min(height, top + size):
            for w in range(width):
                respond(x[ready, w], response, space, ring[ready % size, w])
            ready += 1
        op[TOP], op[FIRST], op[LAST] = top, max(0, -top), min(size, height - top)
        max_pool(op, 0, 0)
        for q in range(columns):
            for c in range(channels):
                winner[p, q, c] = which[q, c]
            _write(best[q], out, n, grid.border + p * grid.step, grid.border + q * grid.step)


@kernel
def _windows_on(ring: Array, size: int, stride: int, padding: int, best: Array, which: Array) -> Array:
    """The row of a table by which `max_pool` goes over rows of windows, all but which row it is."""
    rows, width, channels = ring.shape
    op = np.zeros(len(WINDOWS), np.int64)
    op[X], op[X_RING], op[X_ROW], op[WIDTH] = address_of(ring), rows, 4 * width * channels, width
    op[SIZE], op[STRIDE], op[PADDING] = size, stride, padding
    op[OUT], op[WON], op[COLUMNS], op[CHANNELS] = address_of(best), address_of(which), best.shape[0], 1
    op[PIXEL] = 4 * channels
    return op


@SharedKernel
def _max_backward(
    grad: Array,
    winner: Array,
    x: Array,
    response: Response,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    grid: Grid,
    images: int,
) -> None:
    for n in prange(images):
        _max_backward_image(grad[0, n], winner[n], x[0, n], response, size, stride, padding, out, grid, np.int64(n))


@kernel
def _max_backward_image(
    grad: Array,
    winner: Array,
    x: Array,
    response: Response,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    grid: Grid,
    n: int,
) -> None:
    height, width, channels = x.shape
    row = np.empty((width, channels), np.float32)
    space = room(channels, response)
    slope = np.empty(channels, np.float32)
    for h in range(height):
        row[:] = 0
        first, last = _windows_over(h, size, stride, padding, winner.shape[0])
        for p in range(first, last):
            _back_to_winners(grad[p], winner[p], h + padding - p * stride, size, stride, padding, row)
        for w in range(width):
            respond_back(x[h, w], row[w], response, space, slope)
            _write(slope, out, n, grid.border + h * grid.step, grid.border + w * grid.step)


@kernel
def _windows_over(h: int, size: int, stride: int, padding: int, windows: int) -> tuple[int, int]:
    """The windows that see row h, as (from, to)."""
    return max(0, (h + padding - size + stride) // stride), min(windows, (h + padding) // stride + 1)


@kernel
def _back_to_winners(grad: Array, winner: Array, i: int, size: int, stride: int, padding: int, row: Array) -> None:
    """One row of windows gives its gradients to the image row that is row i of these windows."""
    nothing = np.float32(0)
    for q in range(grad.shape[0]):
        slope, won, left = grad[q], winner[q], q * stride - padding
        for j in range(max(0, -left), min(size, row.shape[0] - left)):
            place, there = np.uint8(i * size + j), row[left + j]
            for c in range(slope.size):
                value = widen(slope[c])
                there[c] += value if won[c] == place else nothing


@SharedKernel
def _avg_forward(x: Array, size: int, stride: int, padding: int, out: Array, grid: Grid, images: int) -> None:
    for n in prange(images):
        _avg_forward_image(x[0, n], size, stride, padding, out, grid, np.int64(n))


@kernel
def _avg_forward_image(x: Array, size: int, stride: int, padding: int, out: Array, grid: Grid, n: int) -> None:
    total = np.empty(x.shape[2], np.float32)
    share = np.float32(1 / (size * size))
    for p in range(grid.height):
        for q in range(grid.width):
            total[:] = 0
            top, left = p * stride - padding, q * stride - padding
            for i in range(max(0, top), min(x.shape[0], top + size)):
                for j in range(max(0, left), min(x.shape[1], left + size)):
                    pixel = x[i, j]
                    for c in range(total.size):
                        total[c] += widen(pixel[c])
            for c in range(total.size):
                total[c] *= share
            _write(total, out, n, grid.border + p * grid.step, grid.border + q * grid.step)


@SharedKernel
def _avg_backward(grad: Array, size: int, stride: int, padding: int, out: Array, grid: Grid, images: int) -> None:
    for n in prange(images):
        _avg_backward_image(grad[0, n], size, stride, padding, out, grid, np.int64(n))


@kernel
def _avg_backward_image(grad: Array, size: int, stride: int, padding: int, out: Array, grid: Grid, n: int) -> None:
    row = np.empty((grid.width, grad.shape[2]), np.float32)
    share = np.float32(1 / (size * size))
    for h in range(grid.height):
        row[:] = 0
        first, last = _windows_over(h, size, stride, padding, grad.shape[0])
        for p in range(first, last):
            for q in range(grad.shape[1]):
                left = q * stride - padding
                for j in range(max(0, left), min(grid.width, left + size)):
                    slope, there = grad[p, q], row[j]
                    for c in range(slope.size):
                        there[c] += share * widen(slope[c])
        for w in range(grid.width):
            _write(row[w], out, n, grid.border + h * grid.step, grid.border + w * grid.step)


@kernel
def _write(values: Array, out: Array, n: int, y: int, x: int) -> None:
    """All channels of one pixel, into however many groups the planes have."""
    per_group = out.shape[4]
    for g in range(out.shape[0]):
        pixel, part = out[g, n, y, x], values[g * per_group : (g + 1) * per_group]
        for c in range(per_group):
            pixel[c] = narrow(part[c], out)
