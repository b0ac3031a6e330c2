"""Batch normalisation on planes, with what follows it in one pass: a shortcut to be added, a ReLU.

    out = max(scale * (x - mean) + shift + side, floor)

Sums are taken per image in one slot each, then over the images in order, in float64: the same bits for any number of
threads. Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and the gradients after it.

Rows are walked whole, W * C numbers side by side, with the factors of the channels repeated along them, because loops
over the few channels of one pixel are short.

Legend: N image, H W height and width, C channel. All planes have one group, [1, N, H, W, C], float32 or bf16; x and
grad are plain, others have grids of their own. Factors are float32, [W * C]: a channel's, for each pixel of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.elementwise import copy_block
from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.planes import Grid
from mlcore.kernels.precision import narrow, widen

COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]


class Scaling(NamedTuple):
    """scale * (x - mean) + shift, along a row."""

    mean: Array
    scale: Array
    shift: Array


def along_row(factors_C: Array, width: int) -> Array:
    """[W * C] float32: each channel's factor for every pixel of a row."""
    return np.tile(factors_C.astype(np.float32), width)


def moments(x: Array, images: int, sums_2NC: Array) -> tuple[Array, Array]:
    """(mean [C], biased variance [C]) over batch and pixels, float64. sums_2NC: room for both, per image."""
    _image_moments(COST * images * x[0, 0].size, x, sums_2NC, images)
    means, squares = sums_2NC[:, :images].astype(np.float64)
    mean = means.mean(axis=0)
    pixels = x.shape[2] * x.shape[3]
    return mean, (squares.sum(axis=0) + pixels * ((means - mean) ** 2).sum(axis=0)) / (pixels * images)


def normalise(
    x: Array, scaling: Scaling, side: Array, side_grid: Grid, floor: float, out: Array, grid: Grid, images: int
) -> None:
    """out = max(scale * (x - mean) + shift + side, floor). side: planes of no images when nothing is to be added."""
    work = COST * images * x[0, 0].size
    _normalise(work, x, scaling, side, side_grid, np.float32(floor), out, grid, images)


def slopes(
    grad: Array, x: Array, mean: Array, relu: bool, out: Array, out_grid: Grid, images: int, sums_2NC: Array
) -> tuple[Array, Array]:
    """In place, the gradient before a ReLU whose output was `out`; (sum of it, sum of it * (x - mean)), float64 [C]."""
    _image_slopes(COST * images * x[0, 0].size, grad, x, mean, relu, out, out_grid, images, sums_2NC)
    plain, weighed = sums_2NC[:, :images].astype(np.float64).sum(axis=1)
    return plain, weighed


def to_input(grad: Array, x: Array, scaling: Scaling, slope: Array, out: Array, grid: Grid, images: int) -> None:
    """out = scale * grad + slope * (x - mean) + shift, into planes."""
    _to_input(COST * images * x[0, 0].size, grad, x, scaling, slope, out, grid, images)


def add_planes(addend: Array, addend_grid: Grid, out: Array, grid: Grid, images: int) -> None:
    """out += addend, pixel by pixel; out may have any groups."""
    _add_planes(COST * images * addend[:, 0].size, addend, addend_grid, out, grid, images)


@kernel
def _inside(planes: Array, n: int, grid: Grid, h: int) -> Array:
    """The pixels of row h of planes whose pixels stand side by side, [W * C]."""
    channels = planes.shape[4]
    row: Array = planes[0, n, grid.border + h].reshape(-1)
    return row[grid.border * channels : (grid.border + grid.width) * channels]


@kernel
def _fold(row: Array, out: Array) -> None:
    """The sum over the pixels of a row."""
    out[:] = 0
    for first in range(0, row.size, out.size):
        part = row[first : first + out.size]
        for c in range(out.size):
            out[c] += part[c]


@SharedKernel
def _image_moments(x: Array, sums: Array, images: int) -> None:
    for n in prange(images):
        _moments_of_image(x[0, n], sums[0, n], sums[1, n])


@kernel
def _moments_of_image(x: Array, mean: Array, squares: Array) -> None:
    """An image's mean and its sum of squares about that mean: two walks over what stays in the cache."""
    height, width, channels = x.shape
    total = np.zeros(width * channels, np.float32)
    for h in range(height):
        row = x[h].reshape(-1)
        for i in range(row.size):
            total[i] += widen(row[i])
    _fold(total, mean)
    share = np.float32(1 / (height * width))
    for c in range(channels):
        mean[c] *= share
    middle = np.empty(width * channels, np.float32)
    for w in range(width):
        copy_block(mean, middle[w * channels : (w + 1) * channels])
    total[:] = 0
    for h in range(height):
        row = x[h].reshape(-1)
        for i in range(row.size):
            away = widen(row[i]) - middle[i]
            total[i] += away * away
    _fold(total, squares)


@SharedKernel
def _normalise(
    x: Array, scaling: Scaling, side: Array, side_grid: Grid, floor: Any, out: Array, grid: Grid, images: int
) -> None:
    for n in prange(images):
        for h in range(grid.height):
            row, there = x[0, n, h].reshape(-1), _inside(out, n, grid, h)
            if side.shape[1] > 0:
                _scale_and_add(row, scaling, _inside(side, n, side_grid, h), floor, there)
            else:
                _scale(row, scaling, floor, there)


@kernel
def _scale(x: Array, scaling: Scaling, floor: Any, out: Array) -> None:
    mean, scale, shift = scaling
    for i in range(x.size):
        value = scale[i] * (widen(x[i]) - mean[i]) + shift[i]
        out[i] = narrow(floor if floor > value else value, out)


@kernel
def _scale_and_add(x: Array, scaling: Scaling, added: Array, floor: Any, out: Array) -> None:
    mean, scale, shift = scaling
    for i in range(x.size):
        value = scale[i] * (widen(x[i]) - mean[i]) + shift[i] + widen(added[i])
        out[i] = narrow(floor if floor > value else value, out)


@SharedKernel
def _image_slopes(
    grad: Array, x: Array, mean: Array, relu: bool, out: Array, out_grid: Grid, images: int, sums: Array
) -> None:
    for n in prange(images):
        _slopes_of_image(grad, x, mean, relu, out, out_grid, n, sums[:, n])


@kernel
def _slopes_of_image(
    grad: Array, x: Array, mean: Array, relu: bool, out: Array, out_grid: Grid, n: int, sums: Array
) -> None:
    plain, weighed = np.zeros(mean.size, np.float32), np.zeros(mean.size, np.float32)
    for h in range(x.shape[2]):
        slope, row = grad[0, n, h].reshape(-1), x[0, n, h].reshape(-1)
        if relu:
            _stop_at_zero(slope, _inside(out, n, out_grid, h))
        for i in range(row.size):
            value = widen(slope[i])
            plain[i] += value
            weighed[i] += value * (widen(row[i]) - mean[i])
    _fold(plain, sums[0])
    _fold(weighed, sums[1])


@kernel
def _stop_at_zero(slope: Array, shown: Array) -> None:
    nothing = slope.dtype.type(0)
    for i in range(slope.size):
        value = slope[i]
        slope[i] = nothing if widen(shown[i]) <= 0 else value


@SharedKernel
def _to_input(grad: Array, x: Array, scaling: Scaling, slope: Array, out: Array, grid: Grid, images: int) -> None:
    for n in prange(images):
        row = np.empty(slope.size, out.dtype)
        for h in range(grid.height):
            there = _inside(out, n, grid, h) if grid.step == 1 else row
            _back_through(grad[0, n, h].reshape(-1), x[0, n, h].reshape(-1), scaling, slope, there)
            if grid.step > 1:
                _spread(row, out[0, n, grid.border + h * grid.step], grid)


@kernel
def _back_through(grad: Array, x: Array, scaling: Scaling, slope: Array, out: Array) -> None:
    mean, scale, shift = scaling
    for i in range(x.size):
        value = scale[i] * widen(grad[i]) + slope[i] * (widen(x[i]) - mean[i]) + shift[i]
        out[i] = narrow(value, out)


@kernel
def _spread(row: Array, out_WC: Array, grid: Grid) -> None:
    """A row's pixels to where the grid has them."""
    channels = out_WC.shape[1]
    for w in range(grid.width):
        copy_block(row[w * channels : (w + 1) * channels], out_WC[grid.border + w * grid.step])


@SharedKernel
def _add_planes(addend: Array, addend_grid: Grid, out: Array, grid: Grid, images: int) -> None:
    for n in prange(images):
        for h in range(grid.height):
            for w in range(grid.width):
                more = addend[0, n, addend_grid.border + h, addend_grid.border + w]
                for g in range(out.shape[0]):
                    there = out[g, n, grid.border + h * grid.step, grid.border + w * grid.step]
                    part = more[g * there.size : (g + 1) * there.size]
                    for c in range(there.size):
                        there[c] = narrow(widen(there[c]) + widen(part[c]), out)
