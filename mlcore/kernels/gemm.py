"""Fully connected layers: y = x @ weight.T + bias, and back.

Every sum is taken in one thread in a fixed order, so results don't depend on the number of threads, to the bit.

Legend: N batch, I inputs, O outputs. float32 or float64, C-contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel
from mlcore.kernels.tiles import COLUMNS, DOTS, ROWS, VECTOR, dot_tile, outer_rows, packed_rows, padded_copy

Array = NDArray[Any]


def linear_forward(x_NI: Array, weight_OI: Array, bias_O: Array) -> Array:
    """x @ weight.T + bias, [N, O]."""
    out_NO = np.empty((x_NI.shape[0], weight_OI.shape[0]), x_NI.dtype)
    x, weight = padded_copy(x_NI, DOTS, VECTOR), padded_copy(weight_OI, DOTS, VECTOR)
    _forward(x.shape[0] * weight.size, x, weight, bias_O, out_NO)
    return out_NO


def linear_grad_input(grad_NO: Array, weight_OI: Array) -> Array:
    """grad @ weight, [N, I]."""
    grad_x = np.empty((grad_NO.shape[0], weight_OI.shape[1]), grad_NO.dtype)
    work = grad_NO.shape[0] * weight_OI.size
    _product(work, packed_rows(grad_NO), padded_copy(weight_OI, 1, COLUMNS), grad_x)
    return grad_x


def linear_grad_weight(grad_NO: Array, x_NI: Array) -> tuple[Array, Array]:
    """Gradients of weight_OI (grad.T @ x) and of bias_O."""
    grad_w = np.empty((grad_NO.shape[1], x_NI.shape[1]), grad_NO.dtype)
    work = grad_NO.shape[0] * grad_w.size
    _product(work, packed_rows(grad_NO.T), padded_copy(x_NI, 1, COLUMNS), grad_w)
    return grad_w, _column_sums(grad_NO)


@SharedKernel
def _forward(x: Array, weight: Array, bias_O: Array, out_NO: Array) -> None:
    for tile in prange(x.shape[0] // DOTS):
        _forward_rows(x.reshape(-1), tile * DOTS, weight, bias_O, out_NO)


@kernel
def _forward_rows(x: Array, row: int, weight: Array, bias_O: Array, out_NO: Array) -> None:
    """Four rows of the output."""
    n, outputs = out_NO.shape
    depth = weight.shape[1]
    sums = np.empty(DOTS * DOTS, x.dtype)
    steps = np.arange(weight.shape[0]) * depth
    for o in range(0, weight.shape[0], DOTS):
        dot_tile(x, row * depth, depth, weight.reshape(-1), steps, o, 1, 0, 0, depth, sums)
        for i in range(min(DOTS, n - row)):
            for j in range(min(DOTS, outputs - o)):
                out_NO[row + i, o + j] = sums[DOTS * i + j] + bias_O[o + j]


@SharedKernel
def _product(left: Array, right: Array, out: Array) -> None:
    """out [M, W] = left [M / 8, K, 8] @ right [K, W padded]."""
    for tile in prange(left.shape[0]):
        _product_rows(left[tile].reshape(-1), right, tile * ROWS, out)


@kernel
def _product_rows(left: Array, right: Array, row: int, out: Array) -> None:
    """Eight rows of the product."""
    depth, columns = right.shape
    rows = np.empty(ROWS * columns, out.dtype)
    outer_rows(left, right.reshape(-1), 0, np.arange(depth) * columns, columns, rows)
    for i in range(min(ROWS, out.shape[0] - row)):
        for j in range(out.shape[1]):
            out[row + i, j] = rows[i * columns + j]


@kernel
def _column_sums(matrix: Array) -> Array:
    sums = np.zeros(matrix.shape[1], matrix.dtype)
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            sums[j] += matrix[i, j]
    return sums
