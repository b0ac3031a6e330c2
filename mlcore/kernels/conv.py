"""Convolution over images, forward and back, for any stride, padding and number of groups.

An image is first laid out in a flat buffer in which the values that meet weight k stand in one row, `steps[k]`
into the buffer, in the order of the output pixels. With stride 1 the padded image is that buffer already: the row
of a weight is the image shifted by its place in the window, and output rows are as long as the padded image's (the
last few pixels of each are no windows and are dropped). With a larger stride the rows are written out one by one.
Everything else is the same for both: outputs and input gradients are outer products, weight gradients dot products.

Weight gradients are summed per chunk of 8 images, then chunk after chunk: the same bits for any number of threads.

Legend: N batch, C channel, H W input, O output channel, K = C / groups * kernel height * kernel width (all weights
of one output channel), P Q output, F = flat output pixels. float32 or float64, C-contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.tiles import COLUMNS, DOTS, dot_tile, outer_rows, packed_rows, round_up, sum_row

CHUNK = 8  # images in one turn; part of the arithmetic, so never a function of the threads

Array = NDArray[Any]
Shape = tuple[int, ...]
Layout = tuple[int, int, int, int, int, int, int]


class _Plan(NamedTuple):
    """Where things stand in the buffer. `layout`: window height and width, stride, padding, row (flat length of an
    output row), flat (F in whole tiles), size (of the buffer)."""

    layout: Layout
    steps: Array
    groups: int


def conv2d_forward(x_NCHW: Array, weight_OIKL: Array, bias_O: Array, stride: int, padding: int, groups: int) -> Array:
    """Cross-correlation with zero padding, [N, O, P, Q]."""
    plan = _plan(x_NCHW.shape, weight_OIKL.shape, stride, padding, groups)
    out = np.empty(_output_shape(x_NCHW.shape, weight_OIKL.shape, stride, padding), x_NCHW.dtype)
    left = np.stack([packed_rows(weight_OK) for weight_OK in _by_group(weight_OIKL, groups)])
    _forward(_macs(out, plan), x_NCHW, left, bias_O, plan.steps, plan.layout, out)
    return out


def conv2d_grad_input(
    grad_NOPQ: Array, weight_OIKL: Array, x_shape: Shape, stride: int, padding: int, groups: int
) -> Array:
    """Gradient of the input, [N, C, H, W]."""
    plan = _plan(x_shape, weight_OIKL.shape, stride, padding, groups)
    grad_x = np.empty(x_shape, grad_NOPQ.dtype)
    left = np.stack([packed_rows(weight_OK.T) for weight_OK in _by_group(weight_OIKL, groups)])
    _grad_input(_macs(grad_NOPQ, plan), grad_NOPQ, left, plan.steps, plan.layout, grad_x)
    return grad_x


def conv2d_grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, weight_shape: Shape, stride: int, padding: int, groups: int
) -> tuple[Array, Array]:
    """Gradients of weight_OIKL and of bias_O."""
    plan = _plan(x_NCHW.shape, weight_shape, stride, padding, groups)
    chunks = -(-x_NCHW.shape[0] // CHUNK)
    sums = np.empty((chunks, weight_shape[0], plan.steps.size), x_NCHW.dtype)
    bias_sums = np.empty((chunks, weight_shape[0]), x_NCHW.dtype)
    work = _macs(grad_NOPQ, plan)
    steps = np.pad(plan.steps, (0, DOTS - 1), mode="edge")  # a tile may ask for three rows too many
    _grad_weight(work, grad_NOPQ, x_NCHW, steps, plan.layout, plan.groups, sums, bias_sums)
    return _in_order(sums).reshape(weight_shape), _in_order(bias_sums)


def _plan(x_shape: Shape, weight_shape: Shape, stride: int, padding: int, groups: int) -> _Plan:
    _, per_group, kernel_h, kernel_w = weight_shape
    _, _, p, q = _output_shape(x_shape, weight_shape, stride, padding)
    height, width = x_shape[2] + 2 * padding, x_shape[3] + 2 * padding
    c, i, j = np.ogrid[:per_group, :kernel_h, :kernel_w]
    if stride == 1:
        row, flat = width, round_up(p * width, COLUMNS)
        steps = ((c * height + i) * width + j).ravel()
        size = int(steps[-1]) + flat
    else:
        row, flat = q, round_up(p * q, COLUMNS)
        steps = np.arange(per_group * kernel_h * kernel_w) * flat
        size = steps.size * flat
    return _Plan((kernel_h, kernel_w, stride, padding, row, flat, size), steps, groups)


def _output_shape(x_shape: Shape, weight_shape: Shape, stride: int, padding: int) -> Shape:
    p = (x_shape[2] + 2 * padding - weight_shape[2]) // stride + 1
    q = (x_shape[3] + 2 * padding - weight_shape[3]) // stride + 1
    return x_shape[0], weight_shape[0], p, q


def _macs(out_NOPQ: Array, plan: _Plan) -> int:
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
    for chunk in prange((x_NCHW.shape[0] + 7) // 8):
        _forward_images(x_NCHW, chunk * 8, left, bias_O, steps, layout, out_NOPQ)


@kernel
def _forward_images(
    x_NCHW: Array, first: int, left: Array, bias_O: Array, steps: Array, layout: Layout, out_NOPQ: Array
) -> None:
    _, _, _, _, row, flat, size = layout
    groups, tiles = left.shape[:2]
    per_in, per_out = x_NCHW.shape[1] // groups, out_NOPQ.shape[1] // groups
    windows = np.zeros(size, x_NCHW.dtype)
    rows = np.empty(8 * flat, x_NCHW.dtype)
    for n in range(first, min(first + 8, x_NCHW.shape[0])):
        for g in range(groups):
            _lay_out(x_NCHW[n, g * per_in : (g + 1) * per_in], layout, windows, 0)
            for tile in range(tiles):
                outer_rows(left[g, tile].reshape(-1), windows, 0, steps, flat, rows)
                for o in range(min(8, per_out - tile * 8)):
                    channel = g * per_out + tile * 8 + o
                    _read_rows(rows, o * flat, row, bias_O[channel], out_NOPQ[n, channel])


@SharedKernel
def _grad_input(grad_NOPQ: Array, left: Array, steps: Array, layout: Layout, grad_x_NCHW: Array) -> None:
    """left: packed transposed weights [groups, tiles of K, O / groups, 8]."""
    for chunk in prange((grad_NOPQ.shape[0] + 7) // 8):
        _grad_input_images(grad_NOPQ, chunk * 8, left, steps, layout, grad_x_NCHW)


@kernel
def _grad_input_images(
    grad_NOPQ: Array, first: int, left: Array, steps: Array, layout: Layout, grad_x_NCHW: Array
) -> None:
    _, _, _, _, row, flat, size = layout
    groups, tiles, per_out = left.shape[:3]
    per_in = grad_x_NCHW.shape[1] // groups
    grads = np.zeros(per_out * flat, grad_NOPQ.dtype)
    grad_rows = np.arange(per_out) * flat
    rows = np.empty(8 * flat, grad_NOPQ.dtype)
    windows = np.empty(size, grad_NOPQ.dtype)
    for n in range(first, min(first + 8, grad_NOPQ.shape[0])):
        for g in range(groups):
            windows[:] = 0
            _write_rows(grad_NOPQ[n, g * per_out : (g + 1) * per_out], row, flat, grads, 0)
            for tile in range(tiles):
                outer_rows(left[g, tile].reshape(-1), grads, 0, grad_rows, flat, rows)
                for k in range(tile * 8, min(tile * 8 + 8, steps.size)):
                    _add(rows[(k - tile * 8) * flat :], windows[steps[k] : steps[k] + flat])
            _take_back(windows, layout, grad_x_NCHW[n, g * per_in : (g + 1) * per_in])


@SharedKernel
def _grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, steps: Array, layout: Layout, groups: int, sums: Array, bias_sums: Array
) -> None:
    """sums [chunks, O, K] and bias_sums [chunks, O]: one slice per chunk of images."""
    for chunk in prange(sums.shape[0]):
        for g in range(groups):
            _grad_weight_chunk(grad_NOPQ, x_NCHW, chunk * 8, g, groups, steps, layout, sums[chunk], bias_sums[chunk])


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
    images = min(8, x_NCHW.shape[0] - first)
    per_in, per_out = x_NCHW.shape[1] // groups, grad_NOPQ.shape[1] // groups
    area = (per_out + 3) // 4 * 4 * flat
    windows = np.zeros(images * size, x_NCHW.dtype)
    grads = np.zeros(images * area, x_NCHW.dtype)
    for n in range(images):
        _lay_out(x_NCHW[first + n, group * per_in : (group + 1) * per_in], layout, windows, n * size)
        _write_rows(grad_NOPQ[first + n, group * per_out : (group + 1) * per_out], row, flat, grads, n * area)
    tile = np.empty(16, x_NCHW.dtype)
    for o in range(0, per_out, 4):
        for k in range(0, sums_OK.shape[1], 4):
            dot_tile(grads, o * flat, flat, windows, steps, k, images, area, size, flat, tile)
            for i in range(min(4, per_out - o)):
                for j in range(min(4, sums_OK.shape[1] - k)):
                    sums_OK[group * per_out + o + i, k + j] = tile[4 * i + j]
    for o in range(per_out):
        bias = tile.dtype.type(0)
        for n in range(images):
            bias += sum_row(grads, n * area + o * flat, flat)
        bias_O[group * per_out + o] = bias


@kernel
def _lay_out(x_CHW: Array, layout: Layout, windows: Array, at: int) -> None:
    """Write one image (or one group of its channels) from windows[at]; what is padding there is zero already."""
    kernel_h, kernel_w, stride, padding, row, flat, _ = layout
    channels, height, width = x_CHW.shape
    if stride == 1:
        for c in range(channels):
            for h in range(height):
                start = at + (c * (height + 2 * padding) + h + padding) * row + padding
                _copy(x_CHW[c, h], windows[start : start + width])
        return
    p, q = (height + 2 * padding - kernel_h) // stride + 1, row
    for c in range(channels):
        for i in range(kernel_h):
            for j in range(kernel_w):
                for y in range(p):
                    h = y * stride + i - padding
                    if 0 <= h < height:
                        for x in range(q):
                            w = x * stride + j - padding
                            if 0 <= w < width:
                                windows[at + y * q + x] = x_CHW[c, h, w]
                at += flat


@kernel
def _take_back(windows: Array, layout: Layout, x_CHW: Array) -> None:
    """The transpose of `_lay_out`: sum into x_CHW what each of its values was written to."""
    kernel_h, kernel_w, stride, padding, row, flat, _ = layout
    channels, height, width = x_CHW.shape
    if stride == 1:
        for c in range(channels):
            for h in range(height):
                start = (c * (height + 2 * padding) + h + padding) * row + padding
                _copy(windows[start : start + width], x_CHW[c, h])
        return
    p, q = (height + 2 * padding - kernel_h) // stride + 1, row
    x_CHW[:] = 0
    at = 0
    for c in range(channels):
        for i in range(kernel_h):
            for j in range(kernel_w):
                for y in range(p):
                    h = y * stride + i - padding
                    if 0 <= h < height:
                        for x in range(q):
                            w = x * stride + j - padding
                            if 0 <= w < width:
                                x_CHW[c, h, w] += windows[at + y * q + x]
                at += flat


@kernel
def _write_rows(grad_OPQ: Array, row: int, flat: int, flat_rows: Array, at: int) -> None:
    """Each channel's pixels into its flat row; the gaps between rows are zero already."""
    channels, p, q = grad_OPQ.shape
    for o in range(channels):
        for y in range(p):
            start = at + o * flat + y * row
            _copy(grad_OPQ[o, y], flat_rows[start : start + q])


@kernel
def _read_rows(flat_rows: Array, at: int, row: int, bias: Any, out_PQ: Array) -> None:
    """One channel's pixels out of its flat row, plus its bias."""
    p, q = out_PQ.shape
    for y in range(p):
        pixels, out = flat_rows[at + y * row :], out_PQ[y]
        for x in range(q):
            out[x] = pixels[x] + bias


@kernel
def _copy(source: Array, target: Array) -> None:
    for i in range(target.size):
        target[i] = source[i]


@kernel
def _add(source: Array, target: Array) -> None:
    for i in range(target.size):
        target[i] += source[i]
