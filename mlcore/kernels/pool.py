"""Pooling over image windows, each plane by itself.

Legend: N batch, C channel, H W input, P Q output. float32 or float64, C-contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from mlcore.kernels.jit import SharedKernel, kernel

COST = 16  # what handling one value costs, in multiplications

Array = NDArray[Any]
Shape = tuple[int, ...]


def max_pool2d_forward(x_NCHW: Array, size: int, stride: int, padding: int) -> tuple[Array, Array]:
    """(largest value, its flat position h * W + w in the unpadded plane); the first one wins a tie, NaN wins all."""
    out = np.empty(_output_shape(x_NCHW.shape, size, stride, padding), x_NCHW.dtype)
    winner = np.empty(out.shape, np.int32)
    _max_forward(COST * x_NCHW.size, _planes(x_NCHW), size, stride, padding, _planes(out), _planes(winner))
    return out, winner


def max_pool2d_backward(grad_NCPQ: Array, winner_NCPQ: Array, x_shape: Shape) -> Array:
    """Each gradient goes to its window's winner."""
    grad_x = np.empty(x_shape, grad_NCPQ.dtype)
    _max_backward(COST * grad_x.size, _planes(grad_NCPQ), _planes(winner_NCPQ), _planes(grad_x))
    return grad_x


def avg_pool2d_forward(x_NCHW: Array, size: int, stride: int, padding: int) -> Array:
    """The mean of each window; padding counts as zeros, so the divisor is always size * size."""
    out = np.empty(_output_shape(x_NCHW.shape, size, stride, padding), x_NCHW.dtype)
    _avg_forward(COST * x_NCHW.size, _planes(x_NCHW), size, stride, padding, _planes(out))
    return out


def avg_pool2d_backward(grad_NCPQ: Array, x_shape: Shape, size: int, stride: int, padding: int) -> Array:
    """Each gradient is shared out evenly over its window."""
    grad_x = np.empty(x_shape, grad_NCPQ.dtype)
    _avg_backward(COST * grad_x.size, _planes(grad_NCPQ), size, stride, padding, _planes(grad_x))
    return grad_x


def _output_shape(x_shape: Shape, size: int, stride: int, padding: int) -> Shape:
    n, c, h, w = x_shape
    return n, c, (h + 2 * padding - size) // stride + 1, (w + 2 * padding - size) // stride + 1


def _planes(x_NCHW: Array) -> Array:
    """[N * C, H, W]."""
    return x_NCHW.reshape(-1, *x_NCHW.shape[2:])


@SharedKernel
def _max_forward(x: Array, size: int, stride: int, padding: int, out: Array, winner: Array) -> None:
    for plane in prange(x.shape[0]):
        _max_forward_plane(x[plane], size, stride, padding, out[plane], winner[plane])


@kernel
def _max_forward_plane(
    x_HW: Array, size: int, stride: int, padding: int, out_PQ: Array, winner_PQ: Array
) -> None:
    height, width = x_HW.shape
    winner_PQ[:] = -1
    for p in range(out_PQ.shape[0]):
        best, where = out_PQ[p], winner_PQ[p]
        for h in range(max(0, p * stride - padding), min(height, p * stride - padding + size)):
            for j in range(size):
                first, last = _inside(j - padding, stride, width, best.size)
                start = first * stride + j - padding
                row, at = x_HW[h, start:], h * width + start
                if stride == 2:  # a constant lets the compiler use vectors
                    _challenge(row, 2, at, best[first:last], where[first:last])
                else:
                    _challenge(row, stride, at, best[first:last], where[first:last])


@kernel
def _challenge(row: Array, stride: int, at: int, best: Array, where: Array) -> None:
    """Each window's best so far meets the window's value in `row`; `at` is the plane's index of row[0]."""
    for q in range(best.size):
        value, champion = row[q * stride], best[q]
        # nothing was there yet, or a larger value, or a NaN, which only an earlier NaN can stop
        wins = (where[q] < 0) | (value > champion) | ((value != value) & (champion == champion))
        best[q] = value if wins else champion
        where[q] = at + q * stride if wins else where[q]


@SharedKernel
def _max_backward(grad: Array, winner: Array, grad_x: Array) -> None:
    for plane in prange(grad.shape[0]):
        _max_backward_plane(grad[plane].reshape(-1), winner[plane].reshape(-1), grad_x[plane].reshape(-1))


@kernel
def _max_backward_plane(grad: Array, winner: Array, grad_x: Array) -> None:
    grad_x[:] = 0
    for i in range(grad.size):
        grad_x[winner[i]] += grad[i]


@SharedKernel
def _avg_forward(x: Array, size: int, stride: int, padding: int, out: Array) -> None:
    for plane in prange(x.shape[0]):
        _avg_forward_plane(x[plane], size, stride, padding, out[plane])


@kernel
def _avg_forward_plane(x_HW: Array, size: int, stride: int, padding: int, out_PQ: Array) -> None:
    height, width = x_HW.shape
    out_PQ[:] = 0
    for p in range(out_PQ.shape[0]):
        for h in range(max(0, p * stride - padding), min(height, p * stride - padding + size)):
            for j in range(size):
                first, last = _inside(j - padding, stride, width, out_PQ.shape[1])
                for q in range(first, last):
                    out_PQ[p, q] += x_HW[h, q * stride + j - padding]
    for p in range(out_PQ.shape[0]):
        for q in range(out_PQ.shape[1]):
            out_PQ[p, q] /= size * size


@SharedKernel
def _avg_backward(grad: Array, size: int, stride: int, padding: int, grad_x: Array) -> None:
    for plane in prange(grad.shape[0]):
        _avg_backward_plane(grad[plane], size, stride, padding, grad_x[plane])


@kernel
def _avg_backward_plane(grad_PQ: Array, size: int, stride: int, padding: int, grad_HW: Array) -> None:
    height, width = grad_HW.shape
    grad_HW[:] = 0
    share = grad_PQ.dtype.type(1 / (size * size))
    for p in range(grad_PQ.shape[0]):
        for h in range(max(0, p * stride - padding), min(height, p * stride - padding + size)):
            for j in range(size):
                first, last = _inside(j - padding, stride, width, grad_PQ.shape[1])
                for q in range(first, last):
                    grad_HW[h, q * stride + j - padding] += grad_PQ[p, q] * share


@kernel
def _inside(shift: int, stride: int, width: int, windows: int) -> tuple[int, int]:
    """The windows q (from, to) for which column q * stride + shift lies in 0..width-1."""
    first = 0 if shift >= 0 else (stride - 1 - shift) // stride
    last = (width - 1 - shift) // stride + 1
    return first, min(windows, last)
