"""How an image lies in memory for a convolution: as the matrix of its own windows.

An image is laid out in a flat buffer in which the values that meet weight k stand in one row, `steps[k]` into the
buffer, in the order of the output pixels. With stride 1 the padded image is that buffer already: the row of a
weight is the image shifted by its place in the window, and output rows are as long as the padded image's (the last
few pixels of each are no windows and are dropped). With a larger stride the rows are written out one by one.

Legend: C channel, H W input, O output channel, P Q output, F = flat output pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcore.kernels.jit import kernel
from mlcore.kernels.tiles import COLUMNS, round_up

Array = NDArray[Any]
Shape = tuple[int, ...]
Layout = tuple[int, int, int, int, int, int, int]


class Plan(NamedTuple):
    """Where things stand in the buffer. `layout`: window height and width, stride, padding, row (flat length of an
    output row), flat (F in whole tiles), size (of the buffer)."""

    layout: Layout
    steps: Array
    groups: int


def plan_windows(x_shape: Shape, weight_shape: Shape, stride: int, padding: int, groups: int) -> Plan:
    _, per_group, kernel_h, kernel_w = weight_shape
    _, _, p, q = output_shape(x_shape, weight_shape, stride, padding)
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
    return Plan((kernel_h, kernel_w, stride, padding, row, flat, size), steps, groups)


def output_shape(x_shape: Shape, weight_shape: Shape, stride: int, padding: int) -> Shape:
    p = (x_shape[2] + 2 * padding - weight_shape[2]) // stride + 1
    q = (x_shape[3] + 2 * padding - weight_shape[3]) // stride + 1
    return x_shape[0], weight_shape[0], p, q


@kernel
def lay_out(x_CHW: Array, layout: Layout, windows: Array, at: int) -> None:
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
def take_back(windows: Array, layout: Layout, x_CHW: Array) -> None:
    """The transpose of `lay_out`: sum into x_CHW what each of its values was written to."""
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
def write_rows(grad_OPQ: Array, row: int, flat: int, flat_rows: Array, at: int) -> None:
    """Each channel's pixels into its flat row; the gaps between rows are zero already."""
    channels, p, q = grad_OPQ.shape
    for o in range(channels):
        for y in range(p):
            start = at + o * flat + y * row
            _copy(grad_OPQ[o, y], flat_rows[start : start + q])


@kernel
def read_rows(flat_rows: Array, at: int, row: int, bias: Any, out_PQ: Array) -> None:
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
def add_row(source: Array, target: Array) -> None:
    for i in range(target.size):
        target[i] += source[i]
