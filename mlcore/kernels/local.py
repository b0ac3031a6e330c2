"""Locally connected layers, forward and back: a convolution whose weights are others at every place.

Images are laid out with the batch as the last axis, so that a place's window is rows of images: row k of it begins
`starts[place] + steps[k]` into the flat buffer, and the inner loops of `tiles` run along the batch. Nothing is copied
out. The batch is padded to whole tiles with zeros.

Weights and outputs are shared out by places, input gradients (whose places overlap) by images; each sum is taken by one
thread in a fixed order: the same bits for any number of threads.

Source: the unshared layers of Krizhevsky's cuda-convnet, LeCun 1989 ("Generalization and network design strategies").
Legend: N batch, C channel, H W input, O output channel, P Q output (one place each), K L window, D = C * K * L,
S = P * Q places, F = N in whole tiles. float32 or float64, C-contiguous.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.tiles import COLUMNS, DOTS, ROWS, dot_tile, outer_rows, pack_rows, round_up

Array = NDArray[Any]
Shape = tuple[int, ...]


class Places(NamedTuple):
    """Where windows begin in [C, H padded, W padded, F], and the rows of one."""

    starts: Array
    steps: Array
    shape: Shape


def local2d_forward(x_NCHW: Array, weight_PQOCKL: Array, bias_OPQ: Array, stride: int, padding: int) -> Array:
    """[N, O, P, Q]: at each place the window's dot products with that place's own weights."""
    places = _places(x_NCHW.shape, weight_PQOCKL.shape, stride, padding)
    weight_SOD = _by_place(weight_PQOCKL)
    outputs, flat = weight_SOD.shape[1], places.shape[3]
    out = np.empty((len(weight_SOD), round_up(outputs, ROWS), flat), x_NCHW.dtype)
    images = _images_last(x_NCHW, places.shape, padding)
    _forward(weight_SOD.size * flat, images, weight_SOD, places.starts, places.steps, out)
    values_NOS = out[:, :outputs, : len(x_NCHW)].transpose(2, 1, 0)
    return np.ascontiguousarray(values_NOS).reshape(len(x_NCHW), *bias_OPQ.shape) + bias_OPQ


def local2d_grad_input(grad_NOPQ: Array, weight_PQOCKL: Array, x_shape: Shape, stride: int, padding: int) -> Array:
    """Gradient of the input, [N, C, H, W]."""
    places = _places(x_shape, weight_PQOCKL.shape, stride, padding)
    weight_SOD = _by_place(weight_PQOCKL)
    sides, outputs, depth = weight_SOD.shape
    flat = places.shape[3]
    packed = np.empty((sides, round_up(depth, ROWS) // ROWS, outputs, ROWS), grad_NOPQ.dtype)
    _pack(packed.size, weight_SOD, packed)
    images = np.zeros(places.shape, grad_NOPQ.dtype)
    grads = _grads_last(grad_NOPQ, flat)
    _grad_input(weight_SOD.size * flat, grads, packed, places.starts, places.steps, flat, images.reshape(-1))
    height, width = x_shape[2:]
    inner = images[:, padding : padding + height, padding : padding + width, : x_shape[0]]
    return np.ascontiguousarray(inner.transpose(3, 0, 1, 2))


def local2d_grad_weight(
    grad_NOPQ: Array, x_NCHW: Array, weight_shape: Shape, stride: int, padding: int
) -> tuple[Array, Array]:
    """Gradients of weight_PQOCKL and of bias_OPQ."""
    places = _places(x_NCHW.shape, weight_shape, stride, padding)
    flat = places.shape[3]
    grad_weight = np.empty((len(places.starts), weight_shape[2], places.steps.size), x_NCHW.dtype)
    steps = np.pad(places.steps, (0, DOTS - 1), mode="edge")  # a tile may ask for three rows too many
    images, grads = _images_last(x_NCHW, places.shape, padding), _grads_last(grad_NOPQ, flat)
    _grad_weight(grad_weight.size * flat, grads, images, places.starts, steps, flat, grad_weight)
    return grad_weight.reshape(weight_shape), grad_NOPQ.sum(axis=0)


def _places(x_shape: Shape, weight_shape: Shape, stride: int, padding: int) -> Places:
    n, channels, height, width = x_shape
    p, q, _, _, kernel_h, kernel_w = weight_shape
    shape = (channels, height + 2 * padding, width + 2 * padding, round_up(n, COLUMNS))
    pixels = np.arange(shape[0] * shape[1] * shape[2]).reshape(shape[:3]) * shape[3]
    starts = pixels[0, : p * stride : stride, : q * stride : stride].ravel()
    return Places(starts, pixels[:, :kernel_h, :kernel_w].ravel(), shape)


def _by_place(weight_PQOCKL: Array) -> Array:
    """[S, O, D]."""
    p, q, outputs = weight_PQOCKL.shape[:3]
    return weight_PQOCKL.reshape(p * q, outputs, -1)


def _images_last(x_NCHW: Array, shape: Shape, padding: int) -> Array:
    """[C, H padded, W padded, F], flat, zeros where nothing is."""
    n, _, height, width = x_NCHW.shape
    images = np.zeros(shape, x_NCHW.dtype)
    images[:, padding : padding + height, padding : padding + width, :n] = x_NCHW.transpose(1, 2, 3, 0)
    return images.reshape(-1)


def _grads_last(grad_NOPQ: Array, flat: int) -> Array:
    """[S, O, F], flat, with some rows of zeros behind: a tile may ask for three too many."""
    n, outputs, p, q = grad_NOPQ.shape
    grads = np.zeros((p * q * outputs + DOTS, flat), grad_NOPQ.dtype)
    grads[: p * q * outputs, :n] = grad_NOPQ.transpose(2, 3, 1, 0).reshape(-1, n)
    return grads.reshape(-1)


@SharedKernel
def _forward(images: Array, weight_SOD: Array, starts: Array, steps: Array, out_SOF: Array) -> None:
    """out: O in whole tiles."""
    for place in prange(starts.size):
        packed = np.empty((out_SOF.shape[1] // ROWS, steps.size, ROWS), images.dtype)
        pack_rows(weight_SOD[place], packed)
        for tile in range(packed.shape[0]):
            rows = out_SOF[place, tile * ROWS : (tile + 1) * ROWS].reshape(-1)
            outer_rows(packed[tile].reshape(-1), images, starts[place], steps, out_SOF.shape[2], rows)


@SharedKernel
def _pack(weight_SOD: Array, packed: Array) -> None:
    """Each place's weights, turned round, as `outer_rows` reads them: [S, D / 8, O, 8]."""
    for place in prange(packed.shape[0]):
        pack_rows(weight_SOD[place].T, packed[place])


@SharedKernel
def _grad_input(grads: Array, packed: Array, starts: Array, steps: Array, flat: int, images: Array) -> None:
    """Adds to `images`; a turn is a tile of images, which goes from place to place."""
    for block in prange(flat // COLUMNS):
        _grad_input_images(grads, packed, starts, steps, flat, block * COLUMNS, images)


@kernel
def _grad_input_images(
    grads: Array, packed: Array, starts: Array, steps: Array, flat: int, first: int, images: Array
) -> None:
    places, tiles, outputs, _ = packed.shape
    grad_rows = np.arange(outputs) * flat
    rows = np.empty(ROWS * COLUMNS, grads.dtype)
    for place in range(places):
        for tile in range(tiles):
            left = packed[place, tile].reshape(-1)
            outer_rows(left, grads, place * outputs * flat + first, grad_rows, COLUMNS, rows)
            for d in range(tile * ROWS, min((tile + 1) * ROWS, steps.size)):
                at, row = starts[place] + steps[d] + first, (d - tile * ROWS) * COLUMNS
                for i in range(COLUMNS):
                    images[at + i] += rows[row + i]


@SharedKernel
def _grad_weight(grads: Array, images: Array, starts: Array, steps: Array, flat: int, grad_SOD: Array) -> None:
    for place in prange(starts.size):
        _grad_weight_place(grads, place, images[starts[place] :], steps, flat, grad_SOD[place])


@kernel
def _grad_weight_place(grads: Array, place: int, windows: Array, steps: Array, flat: int, grad_OD: Array) -> None:
    """Dot products along the batch."""
    outputs, depth = grad_OD.shape
    tile = np.empty(DOTS * DOTS, grads.dtype)
    for o in range(0, outputs, DOTS):
        for d in range(0, depth, DOTS):
            dot_tile(grads, (place * outputs + o) * flat, flat, windows, steps, d, 1, 0, 0, flat, tile)
            for i in range(min(DOTS, outputs - o)):
                for j in range(min(DOTS, depth - d)):
                    grad_OD[o + i, d + j] = tile[DOTS * i + j]
