"""Convolution over images, forward and back, for any stride, padding and number of groups.

An image is laid out once, as `windows` says; outputs and input gradients are then outer products, weight gradients
dot products.

Weight gradients are summed per chunk of 8 images, then chunk after chunk: the same bits for any number of threads.

Legend: N batch, C channel, H W input, O output channel, K = C / groups * kernel height * kernel width (all weights
of one output channel), P Q output, F = flat output pixels. float32 or float64, C-contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.tiles import DOTS, ROWS, dot_tile, outer_rows, packed_rows, sum_row
from mlcore.kernels.windows import (
    Layout,
    Plan,
    add_row,
    lay_out,
    output_shape,
    plan_windows,
    read_rows,
    take_back,
    write_rows,
)

CHUNK = 8  # images in one turn; part of the arithmetic, so never a function of the threads

Array = NDArray[Any]
Shape = tuple[int, ...]


def conv2d_forward(x_NCHW: Array, weight_OIKL: Array, bias_O: Array, stride: int, padding: int, groups: int) -> Array:
    """Cross-correlation with zero padding, [N, O, P, Q]."""
    plan = plan_windows(x_NCHW.shape, weight_OIKL.shape, stride, padding, groups)
    out = np.empty(output_shape(x_NCHW.shape, weight_OIKL.shape, stride, padding), x_NCHW.dtype)
    left = np.stack([packed_rows(weight_OK) for weight_OK in _by_group(weight_OIKL, groups)])
    _forward(_macs(out, plan), x_NCHW, left, bias_O, plan.steps, plan.layout, out)
    return out


def conv2d_grad_input(
    grad_NOPQ: Array, weight_OIKL: Array, x_shape: Shape, stride: int, padding: int, groups: int
) -> Array:
    """Gradient of the input, [N, C, H, W]."""
    plan = plan_windows(x_shape, weight_OIKL.shape, stride, padding, groups)
    grad_x = np.empty(x_shape, grad_NOPQ.dtype)
    left = np.stack([packed_rows(weight_OK.T) for weight_OK in _by_group(weight_OIKL, groups)])
    _grad_input(_macs(grad_NOPQ, plan), grad_NOPQ, left, plan.steps, plan.layout, grad_x)
    return grad_x


def conv2d_grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, weight_shape: Shape, stride: int, padding: int, groups: int
) -> tuple[Array, Array]:
    """Gradients of weight_OIKL and of bias_O."""
    plan = plan_windows(x_NCHW.shape, weight_shape, stride, padding, groups)
    chunks = -(-x_NCHW.shape[0] // CHUNK)
    sums = np.empty((chunks, weight_shape[0], plan.steps.size), x_NCHW.dtype)
    bias_sums = np.empty((chunks, weight_shape[0]), x_NCHW.dtype)
    work = _macs(grad_NOPQ, plan)
    steps = np.pad(plan.steps, (0, DOTS - 1), mode="edge")  # a tile may ask for three rows too many
    _grad_weight(work, grad_NOPQ, x_NCHW, steps, plan.layout, plan.groups, sums, bias_sums)
    return _in_order(sums).reshape(weight_shape), _in_order(bias_sums)


def _macs(out_NOPQ: Array, plan: Plan) -> int:
    return out_NOPQ.size * plan.steps.size


def _by_group(weight_OIKL: Array, groups: int) -> Array:
    """[O, I, K, L] as [groups, O / groups, I * K * L]."""
    return weight_OIKL.reshape(groups, weight_OIKL.shape[0] // groups, -1)


def _in_order(sums: Array) -> Array:
    """The sum over the first axis, one slice after the other."""
    out: Array = sums[0].copy()
    for chunk in sums[1:]:
        out += chunk
    return out


@SharedKernel
def _forward(x_NCHW: Array, left: Array, bias_O: Array, steps: Array, layout: Layout, out_NOPQ: Array) -> None:
    """left: packed weights [groups, tiles, K, 8]."""
    for chunk in prange(-(-x_NCHW.shape[0] // CHUNK)):
        _forward_images(x_NCHW, chunk * CHUNK, left, bias_O, steps, layout, out_NOPQ)


@kernel
def _forward_images(
    x_NCHW: Array, first: int, left: Array, bias_O: Array, steps: Array, layout: Layout, out_NOPQ: Array
) -> None:
    _, _, _, _, row, flat, size = layout
    groups, tiles = left.shape[:2]
    per_in, per_out = x_NCHW.shape[1] // groups, out_NOPQ.shape[1] // groups
    windows = np.zeros(size, x_NCHW.dtype)
    rows = np.empty(ROWS * flat, x_NCHW.dtype)
    for n in range(first, min(first + CHUNK, x_NCHW.shape[0])):
        for g in range(groups):
            lay_out(x_NCHW[n, g * per_in : (g + 1) * per_in], layout, windows, 0)
            for tile in range(tiles):
                outer_rows(left[g, tile].reshape(-1), windows, 0, steps, flat, rows)
                for o in range(min(ROWS, per_out - tile * ROWS)):
                    channel = g * per_out + tile * ROWS + o
                    read_rows(rows, o * flat, row, bias_O[channel], out_NOPQ[n, channel])


@SharedKernel
def _grad_input(grad_NOPQ: Array, left: Array, steps: Array, layout: Layout, grad_x_NCHW: Array) -> None:
    """left: packed transposed weights [groups, tiles of K, O / groups, 8]."""
    for chunk in prange(-(-grad_NOPQ.shape[0] // CHUNK)):
        _grad_input_images(grad_NOPQ, chunk * CHUNK, left, steps, layout, grad_x_NCHW)


@kernel
def _grad_input_images(
    grad_NOPQ: Array, first: int, left: Array, steps: Array, layout: Layout, grad_x_NCHW: Array
) -> None:
    _, _, _, _, row, flat, size = layout
    groups, tiles, per_out = left.shape[:3]
    per_in = grad_x_NCHW.shape[1] // groups
    grads = np.zeros(per_out * flat, grad_NOPQ.dtype)
    grad_rows = np.arange(per_out) * flat
    rows = np.empty(ROWS * flat, grad_NOPQ.dtype)
    windows = np.empty(size, grad_NOPQ.dtype)
    for n in range(first, min(first + CHUNK, grad_NOPQ.shape[0])):
        for g in range(groups):
            windows[:] = 0
            write_rows(grad_NOPQ[n, g * per_out : (g + 1) * per_out], row, flat, grads, 0)
            for tile in range(tiles):
                outer_rows(left[g, tile].reshape(-1), grads, 0, grad_rows, flat, rows)
                for k in range(tile * ROWS, min((tile + 1) * ROWS, steps.size)):
                    add_row(rows[(k - tile * ROWS) * flat :], windows[steps[k] : steps[k] + flat])
            take_back(windows, layout, grad_x_NCHW[n, g * per_in : (g + 1) * per_in])


@SharedKernel
def _grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, steps: Array, layout: Layout, groups: int, sums: Array, bias_sums: Array
) -> None:
    """sums [chunks, O, K] and bias_sums [chunks, O]: one slice per chunk of images."""
    for chunk in prange(sums.shape[0]):
        for g in range(groups):
            _grad_weight_chunk(
                grad_NOPQ, x_NCHW, chunk * CHUNK, g, groups, steps, layout, sums[chunk], bias_sums[chunk]
            )


@kernel
def _grad_weight_chunk(
    grad_NOPQ: Array,
    x_NCHW: Array,
    first: int,
    group: int,
    groups: int,
    steps: Array,
    layout: Layout,
    sums_OK: Array,
    bias_O: Array,
) -> None:
    """One group's part of the weight gradient, over one chunk of images."""
    _, _, _, _, row, flat, size = layout
    images = min(CHUNK, x_NCHW.shape[0] - first)
    per_in, per_out = x_NCHW.shape[1] // groups, grad_NOPQ.shape[1] // groups
    area = -(-per_out // DOTS) * DOTS * flat
    windows = np.zeros(images * size, x_NCHW.dtype)
    grads = np.zeros(images * area, x_NCHW.dtype)
    for n in range(images):
        lay_out(x_NCHW[first + n, group * per_in : (group + 1) * per_in], layout, windows, n * size)
        write_rows(grad_NOPQ[first + n, group * per_out : (group + 1) * per_out], row, flat, grads, n * area)
    tile = np.empty(DOTS * DOTS, x_NCHW.dtype)
    for o in range(0, per_out, DOTS):
        for k in range(0, sums_OK.shape[1], DOTS):
            dot_tile(grads, o * flat, flat, windows, steps, k, images, area, size, flat, tile)
            for i in range(min(DOTS, per_out - o)):
                for j in range(min(DOTS, sums_OK.shape[1] - k)):
                    sums_OK[group * per_out + o + i, k + j] = tile[DOTS * i + j]
    for o in range(per_out):
        bias = tile.dtype.type(0)
        for n in range(images):
            bias += sum_row(grads, n * area + o * flat, flat)
        bias_O[group * per_out + o] = bias
