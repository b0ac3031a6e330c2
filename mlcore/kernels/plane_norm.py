"""Batch normalisation on planes, with what follows it in one pass: a shortcut to be added, a ReLU.

    out = max(scale * (x - mean) + shift + side, floor)

Sums are taken per image in one slot each, then over the images in order, in float64: the same bits for any number of
threads. Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1 and the gradients after it.

Legend: N image, H W height and width, C channel. x, grad [1, N, H, W, C] plain planes of float32 or bf16; out and side
planes with grids of their own. Sums and factors per channel are float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.planes import Grid
from mlcore.kernels.precision import narrow, widen

COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]


class Scaling(NamedTuple):
    """Per channel: scale * (x - mean) + shift."""

    mean: Array
    scale: Array
    shift: Array


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
    grad: Array, x: Array, mean_C: Array, relu: bool, out: Array, out_grid: Grid, images: int, sums_2NC: Array
) -> tuple[Array, Array]:
    """In place, the gradient before a ReLU whose output was `out`; (sum of it, sum of it * (x - mean)), float64 [C]."""
    _image_slopes(COST * images * x[0, 0].size, grad, x, mean_C, relu, out, out_grid, images, sums_2NC)
    plain, weighed = sums_2NC[:, :images].astype(np.float64).sum(axis=1)
    return plain, weighed


def to_input(grad: Array, x: Array, scaling: Scaling, slope_C: Array, out: Array, grid: Grid, images: int) -> None:
    """out = scale * grad + slope * (x - mean) + shift, into planes, by the scaling and the slope of each channel."""
    _to_input(COST * images * x[0, 0].size, grad, x, scaling, slope_C, out, grid, images)


def add_planes(addend: Array, addend_grid: Grid, out: Array, grid: Grid, images: int) -> None:
    """out += addend, pixel by pixel; addend has one group."""
    _add_planes(COST * images * addend[:, 0].size, addend, addend_grid, out, grid, images)


@SharedKernel
def _image_moments(x: Array, sums: Array, images: int) -> None:
    for n in prange(images):
        _moments_of_image(x[0, n], sums[0, n], sums[1, n])


@kernel
def _moments_of_image(x: Array, mean: Array, squares: Array) -> None:
    """An image's mean and its sum of squares about that mean: two walks over what stays in the cache."""
    height, width, channels = x.shape
    mean[:], squares[:] = 0, 0
    for h in range(height):
        for w in range(width):
            pixel = x[h, w]
            for c in range(channels):
                mean[c] += widen(pixel[c])
    share = np.float32(1 / (height * width))
    for c in range(channels):
        mean[c] *= share
    for h in range(height):
        for w in range(width):
            pixel = x[h, w]
            for c in range(channels):
                away = widen(pixel[c]) - mean[c]
                squares[c] += away * away


@SharedKernel
def _normalise(
    x: Array,
    scaling: Scaling,
    side: Array,
    side_grid: Grid,
    floor: Any,
    out: Array,
    grid: Grid,
    images: int,
) -> None:
    for n in prange(images):
        _normalise_image(x[0, n], scaling, side, side_grid, floor, out, grid, n)


@kernel
def _normalise_image(
    x: Array,
    scaling: Scaling,
    side: Array,
    side_grid: Grid,
    floor: Any,
    out: Array,
    grid: Grid,
    n: int,
) -> None:
    per_group = out.shape[4]
    mean, scale, shift = scaling
    for h in range(grid.height):
        for w in range(grid.width):
            for g in range(out.shape[0]):
                part = slice(g * per_group, (g + 1) * per_group)
                there = out[g, n, grid.border + h * grid.step, grid.border + w * grid.step]
                if side.shape[1] > 0:
                    added = side[0, n, side_grid.border + h, side_grid.border + w, part]
                    _scale_and_add(x[h, w, part], mean[part], scale[part], shift[part], added, floor, there)
                else:
                    _scale(x[h, w, part], mean[part], scale[part], shift[part], floor, there)


@kernel
def _scale(x: Array, mean: Array, scale: Array, shift: Array, floor: Any, out: Array) -> None:
    for c in range(x.size):
        value = scale[c] * (widen(x[c]) - mean[c]) + shift[c]
        out[c] = narrow(floor if floor > value else value, out)


@kernel
def _scale_and_add(x: Array, mean: Array, scale: Array, shift: Array, added: Array, floor: Any, out: Array) -> None:
    for c in range(x.size):
        value = scale[c] * (widen(x[c]) - mean[c]) + shift[c] + widen(added[c])
        out[c] = narrow(floor if floor > value else value, out)


@SharedKernel
def _image_slopes(
    grad: Array, x: Array, mean: Array, relu: bool, out: Array, out_grid: Grid, images: int, sums: Array
) -> None:
    for n in prange(images):
        sums[:, n] = 0
        for h in range(x.shape[2]):
            for w in range(x.shape[3]):
                if relu:
                    _stop_at_zero(grad[0, n, h, w], out, out_grid, n, h, w)
                _add_slopes(grad[0, n, h, w], x[0, n, h, w], mean, sums[0, n], sums[1, n])


@kernel
def _stop_at_zero(grad: Array, out: Array, grid: Grid, n: int, h: int, w: int) -> None:
    per_group, nothing = out.shape[4], grad.dtype.type(0)
    for g in range(out.shape[0]):
        shown, slope = out[g, n, grid.border + h, grid.border + w], grad[g * per_group : (g + 1) * per_group]
        for c in range(per_group):
            value = slope[c]
            slope[c] = nothing if widen(shown[c]) <= 0 else value


@kernel
def _add_slopes(grad: Array, x: Array, mean: Array, plain: Array, weighed: Array) -> None:
    for c in range(grad.size):
        slope = widen(grad[c])
        plain[c] += slope
        weighed[c] += slope * (widen(x[c]) - mean[c])


@SharedKernel
def _to_input(grad: Array, x: Array, scaling: Scaling, slope: Array, out: Array, grid: Grid, images: int) -> None:
    for n in prange(images):
        for h in range(grid.height):
            for w in range(grid.width):
                _to_pixel(grad[0, n, h, w], x[0, n, h, w], scaling, slope, out, n, grid, h, w)


@kernel
def _to_pixel(
    grad: Array,
    x: Array,
    scaling: Scaling,
    slope: Array,
    out: Array,
    n: int,
    grid: Grid,
    h: int,
    w: int,
) -> None:
    per_group = out.shape[4]
    mean, scale, shift = scaling
    for g in range(out.shape[0]):
        there = out[g, n, grid.border + h * grid.step, grid.border + w * grid.step]
        first = g * per_group
        for c in range(per_group):
            away = widen(x[first + c]) - mean[first + c]
            value = scale[first + c] * widen(grad[first + c]) + slope[first + c] * away + shift[first + c]
            there[c] = narrow(value, out)


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
